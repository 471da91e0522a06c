"""A folder that a long job fills: one job at a time, always with the same settings, and never half a file."""

from __future__ import annotations

import contextlib
import errno
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from vmae2_ds.disk import TRIAL, check_out_folder, hold, write_whole
from vmae2_ds.errors import ConfigError, DataError

FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
"""No space, quota used up, file larger than allowed."""
LOCK = ".lock"


def check_work_folder(
    folder: Path,
    job: str,
    inputs: Iterable[Path | None] = (),
    option: str = "--out",
    root: str | Path | None = None,
    *,
    several: bool = False,
) -> None:
    """Raises ConfigError unless `folder` is new, empty, or one that this job began; it holds nothing that is read.

    Called first of all, before a long list is read; it leaves nothing behind.

    Args:
        folder: What the job writes into.
        job: Its name; JOB.json in the folder says that it is the job's.
        inputs: Files that are read.
        option: What the folder was given by.
        root: The folder that the paths of the list start from.
        several: Whether others may begin the same job at the same time: what one of them makes the others do not take away.
    """
    if root is not None and folder.exists() and Path(root).exists() and folder.samefile(root):
        raise ConfigError(f"{option} {folder} is the folder that the list's paths start from; name another folder")
    files = [path for path in inputs if path is not None]
    made = [above for above in (folder, *folder.parents) if not above.exists()]
    check_out_folder(folder, option, files, lambda path: (path / f"{job}.json").is_file() or _is_beginning(path, job))
    for above in () if several else made:
        above.rmdir()


def _is_beginning(folder: Path, job: str) -> bool:
    """Whether a folder holds no more than a job has there before it says whose the folder is."""
    beginnings = (LOCK, f".{job}.json.part", TRIAL)
    return all(path.name.startswith(beginnings) for path in folder.iterdir()) or (folder / f"{job}.json").is_file()


@contextlib.contextmanager
def work_folder(folder: Path, job: str, settings: dict[str, Any], option: str = "--out") -> Iterator[None]:
    """Make or go on with `folder`, held for as long as the block runs; `check_work_folder` was asked first.

    A full disk inside the block becomes a DataError. Raises ConfigError where another process holds the folder, or a job
    with other settings filled it.
    """
    file, text = folder / f"{job}.json", json.dumps(settings, indent=1)
    check_settings(file, folder, json.loads(text), option)  # before a lock is left in a folder of something else
    with full_disk_is_told(folder):
        folder.mkdir(parents=True, exist_ok=True)
        if (lock := hold(folder / LOCK)) is None:
            raise ConfigError(f"{folder} is held by another vmae2 data {job}; wait for it or name another {option}")
        with lock:
            check_settings(file, folder, json.loads(text), option)
            if not file.is_file():
                write_whole(file, text)
            yield


@contextlib.contextmanager
def full_disk_is_told(place: Path) -> Iterator[None]:
    """A disk that has no room inside the block becomes a DataError."""
    try:
        yield
    except OSError as error:
        if error.errno not in FULL:
            raise
        raise DataError(
            f"{place}: {error.strerror}, while writing; what is finished stays: make room, and the same command goes on"
        ) from error


def check_settings(file: Path, folder: Path, now: dict[str, Any], option: str) -> None:
    """Raises ConfigError where `file` says that `folder` was begun with other settings than `now`."""
    if not file.is_file():
        return
    try:
        before = json.loads(file.read_text())
        assert isinstance(before, dict), "settings are an object"
    except (ValueError, AssertionError):
        raise ConfigError(f"{file} is damaged, or of something else; name another {option}") from None
    names = [key for key in {**before, **now} if before.get(key) != now.get(key)]
    if names:
        different = "; ".join(f"{key}: was {before.get(key)}, now {now.get(key)}" for key in names)
        raise ConfigError(f"{folder} was begun with other settings ({different}); name another {option}")
