"""Files of a checkpoint, hashed while they are written: their SHA-256 goes into its manifest, and an error costs that save."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch

from vmae2_ds.checkpoint.host_copies import HostCopies
from vmae2_ds.disk import HashedFile, WrittenFile, flush_to_disk, sha256_of


class HashedFiles:
    """The files that this rank writes below `folder`, flushed to disk one by one.

    The first OSError is kept in `error` and nothing is written after it: DeepSpeed's save is a collective, so a rank that
    left it by an exception would hang the others. Stands in for DeepSpeed's checkpoint engine while it saves.

    Args:
        folder: of the files.
        copies: where `save` copies to what it is given, which `write_copies` then writes; without it `save` writes at once.
    """

    def __init__(self, folder: Path, copies: HostCopies | None = None) -> None:
        self.folder = folder
        self.written: dict[str, WrittenFile] = {}
        self.error: OSError | None = None
        self._copies = copies
        self._copied: list[tuple[Any, Path | str]] = []

    def attempt(self, action: Callable[[], object]) -> None:
        """Call `action` unless something failed before; keep its OSError."""
        if self.error is not None:
            return
        try:
            action()
        except OSError as error:
            self.error = error

    def save(self, state_dict: Any, path: Path | str) -> None:
        """torch.save `state_dict` to `path`, a file below the folder."""
        self.makedirs(os.path.dirname(path), exist_ok=True)
        if self._copies is None:
            self._write(state_dict, path)
        elif self.error is None:
            self._copied.append((self._copies.copy(state_dict), path))

    def write_copies(self) -> None:
        """Write what `save` has copied. It makes no folder, so that a run's that was removed meanwhile stays away."""
        if self._copies is not None:
            self._copies.wait()
        while self._copied:
            self._write(*self._copied.pop(0))

    def _write(self, state_dict: Any, path: Path | str) -> None:
        def write() -> None:
            with _ReportingFile(path, self) as file:
                torch.save(state_dict, file)
            if self.error is None:
                flush_to_disk(Path(path))
                self.written[os.path.relpath(path, self.folder)] = file.written

        self.attempt(write)

    def add(self, paths: Iterable[Path]) -> None:
        """Hash and flush files that something else wrote."""

        def add(path: Path) -> None:
            flush_to_disk(path)
            self.written[os.path.relpath(path, self.folder)] = WrittenFile(path.stat().st_size, sha256_of(path))

        for path in paths:
            self.attempt(partial(add, path))

    def makedirs(self, path: str, exist_ok: bool = False) -> None:
        """Make the folder, as DeepSpeed asks; an error of the disk is kept in `error`."""
        self.attempt(lambda: os.makedirs(path, exist_ok=exist_ok))


class _ReportingFile(HashedFile):
    """What torch.save needs of a file. An error goes to `files` and ends its writing: torch's writer would hide it."""

    def __init__(self, path: Path | str, files: HashedFiles) -> None:
        super().__init__(path)
        self._files = files

    def write(self, data: Any) -> int:
        self._files.attempt(lambda: super(_ReportingFile, self).write(data))
        return memoryview(data).nbytes


def digest_of(weights: Mapping[str, torch.Tensor]) -> str:
    """SHA-256, in hex, of names, shapes and values, in the order of the names."""
    digest = hashlib.sha256()
    for name in sorted(weights):
        tensor = weights[name].detach().cpu().contiguous()
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}\n".encode())
        digest.update(tensor.flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()
