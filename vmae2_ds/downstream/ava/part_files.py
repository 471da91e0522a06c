"""What was found so far, in parts on disk: each whole or not there, so that a job that was killed goes on with the others."""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np

from vmae2_ds.disk import hold, whole_file, write_whole
from vmae2_ds.downstream.ava.detector import FoundInFrame
from vmae2_ds.errors import ConfigError, DataError

OF, LOCK = "of.json", "lock"
"""In the folder: what the parts are of, and the file that a job which writes them holds."""


class PartFolder:
    """A folder of parts beside the file that they will make."""

    def __init__(self, out: Path) -> None:
        self.folder = out.with_name(f".{out.name}.parts")

    @contextlib.contextmanager
    def held(self, of: dict[str, Any]) -> Iterator[None]:
        """Make the folder, or go on with that of an earlier job, and keep other jobs away from it.

        Args:
            of: all that decides what is found, as JSON.

        Raises ConfigError where another job is writing its parts, or they are of something else.
        """
        self.folder.mkdir(exist_ok=True)
        lock = hold(self.folder / LOCK)
        if lock is None:
            raise ConfigError(f"{self.folder}: another job writes its parts; wait for it, or give another --out")
        with lock:
            self._claim(json.dumps(of, sort_keys=True, indent=1))
            yield

    def _claim(self, of: str) -> None:
        file = self.folder / OF
        if not file.is_file():
            return write_whole(file, of)
        before = file.read_text()
        if before == of:
            return None
        differing = _differing(before, of)
        raise ConfigError(
            f"{self.folder} holds parts of a job with {differing}; give the same options to go on with it, another --out, or "
            "remove that folder"
        )

    def path(self, part: int) -> Path:
        """The file of a part."""
        return self.folder / f"part{part:06d}.npz"

    def write(self, part: int, found: Sequence[FoundInFrame]) -> None:
        """Write what was found in the key frames of a part."""
        arrays: dict[str, np.ndarray] = {
            str(one.row): one.probability_GC for one in found if one.probability_GC is not None
        }
        reasons = {one.row: one.reason for one in found if one.reason is not None}
        arrays["reasons"] = np.array(json.dumps(reasons))
        with whole_file(self.path(part)) as unfinished, unfinished.open("wb") as file:
            np.savez(file, **arrays)  # type: ignore[arg-type]  # names of rows

    def read(self, part: int) -> list[FoundInFrame] | None:
        """What was found in its key frames, in their order; None where the part is not there, or is damaged."""
        try:
            with np.load(self.path(part)) as arrays:
                reasons = json.loads(str(arrays["reasons"]))
                found = [FoundInFrame(int(name), arrays[name], None) for name in arrays.files if name != "reasons"]
        except (OSError, ValueError, KeyError, BadZipFile):
            return None
        found += [FoundInFrame(int(row), None, reason) for row, reason in reasons.items()]
        return sorted(found, key=lambda one: one.row)

    def is_done(self, part: int) -> bool:
        """Whether there is nothing left to find: a part with videos that could not be read is tried again."""
        found = self.read(part)
        return found is not None and all(one.reason is None for one in found)

    def read_all(self) -> list[FoundInFrame]:
        """What all parts hold, in the order of the key frames. Raises DataError for one that is damaged."""
        every: list[FoundInFrame] = []
        for path in sorted(self.folder.glob("part*.npz")):
            found = self.read(int(path.stem.removeprefix("part")))
            if found is None:
                raise DataError(f"{path} is damaged; start the same command again")
            every += found
        return every

    def remove(self) -> None:
        """Take the folder away."""
        shutil.rmtree(self.folder)


def _differing(before: str, now: str) -> str:
    """What differs between two descriptions of jobs, in words."""
    try:
        pairs = json.loads(before), json.loads(now)
        words = [
            f"{name} {pairs[0].get(name)}, not {value}"
            for name, value in pairs[1].items()
            if pairs[0].get(name) != value
        ]
    except (ValueError, AttributeError):
        words = []
    return "; ".join(words) or "other settings"
