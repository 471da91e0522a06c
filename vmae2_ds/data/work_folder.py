"""A folder that a long job fills: one job at a time, always with the same settings, and never half a file."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from vmae2_ds.disk import write_whole
from vmae2_ds.errors import ConfigError, DataError

FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
"""No space, quota used up, file larger than allowed."""


@contextlib.contextmanager
def work_folder(folder: Path, job: str, settings: dict[str, Any]) -> Iterator[None]:
    """Make or go on with `folder`, held for as long as the block runs.

    A full disk inside the block becomes a DataError. Raises ConfigError where another process holds the folder, or a job
    with other settings filled it.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / ".lock").open("w") as lock:
            try:
                fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except (BlockingIOError, PermissionError):
                raise ConfigError(
                    f"{folder} is held by another vmae2 data {job}; wait for it or name another --out"
                ) from None
            _check_settings(folder / f"{job}.json", folder, settings)
            yield
    except OSError as error:
        if error.errno not in FULL:
            raise
        raise DataError(
            f"{folder}: {error.strerror}, while writing; what is finished stays: make room, and the same command goes on"
        ) from error


def _check_settings(file: Path, folder: Path, settings: dict[str, Any]) -> None:
    text = json.dumps(settings, indent=1)
    if not file.is_file():
        write_whole(file, text)
        return
    try:
        before = json.loads(file.read_text())
    except ValueError:
        raise ConfigError(f"{file} is damaged; name another --out, or remove {folder}") from None
    now = json.loads(text)
    names = [key for key in {**before, **now} if before.get(key) != now.get(key)]
    if names:
        different = "; ".join(f"{key}: was {before.get(key)}, now {now.get(key)}" for key in names)
        raise ConfigError(f"{folder} was begun with other settings ({different}); name another --out")


def read_lines(file: Path) -> Iterator[dict[str, Any]]:
    """The whole lines of a JSONL file; torn ones are left out, and ended if they come last."""
    if not file.exists():
        return
    text = file.read_bytes()
    if text and not text.endswith(b"\n"):
        with file.open("ab") as end:
            end.write(b"\n")
    for line in text.splitlines():
        with contextlib.suppress(ValueError):
            yield json.loads(line)
