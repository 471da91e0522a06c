"""Files on disk: whole or absent, flushed, hashed, locked; and the places of a user's, tried before the work.

The one way to write a file that somebody may read later. A verb calls `check_out_file` or `check_out_folder` first of all.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import logging
import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from io import FileIO
from pathlib import Path
from typing import IO, Any, NamedTuple

from vmae2_ds.errors import ConfigError

log = logging.getLogger(__name__)

TRIAL, TRIED_BYTES = ".vmae2_can_write.", 4096
"""What the name of a trial begins with, and what it writes: a block, so that a full disk says no."""
CHUNK = 1 << 22
"""Bytes read at a time for a hash."""
LARGEST_WRITE = 1 << 30
"""Bytes of one system call: Linux takes no more than 2 GiB at once."""
HASHED_APART = 1 << 20
"""From so many bytes on a piece is hashed in a second thread: 0.5 ms and more of work each."""


def write_whole(path: Path, content: str | bytes) -> None:
    """Write a file so that a reader sees the old content or the new, never half of it, also after a power cut."""
    data = content if isinstance(content, bytes) else content.encode("utf-8", "surrogateescape")
    with whole_file(path) as part:
        part.write_bytes(data)


@contextlib.contextmanager
def whole_file(path: Path, *, alone: bool = False) -> Iterator[Path]:
    """Yields a path to write to, which is renamed to `path` after the block has ended well and removed otherwise.

    Args:
        path: The name in the end.
        alone: No other process writes this file, for this one holds the folder. What a killed one left half is then written
            over, by whatever name this version or an earlier one gave it; else each process has a name of its own.
    """
    part = path.with_name(f".{path.name}.part" + ("" if alone else str(os.getpid())))
    if alone:
        for before in (f"{path.name}.part", f".part.{path.name}"):
            path.with_name(before).unlink(missing_ok=True)
    try:
        yield part
        flush_to_disk(part)
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
    flush_to_disk(path.parent)


def put_whole_folder(unfinished: Path, folder: Path) -> None:
    """Give a folder its name once all that lies in it is on disk, so that it is whole or absent too."""
    for path in (*unfinished.rglob("*"), unfinished):  # else a power cut leaves names and sizes, and nothing in them
        flush_to_disk(path)
    unfinished.rename(folder)
    flush_to_disk(folder.parent)


def flush_to_disk(path: Path) -> None:
    """fsync a file, or a folder's list of names: a renamed file is else lost with the power."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


class WrittenFile(NamedTuple):
    """What was written into a file."""

    size: int
    """Size in bytes."""
    sha256: str


class HashedFile(FileIO):
    """A new file that is hashed while it is written, from its start to its end: a large piece in a second thread.

    Both threads work on the same piece and `write` waits for both, so no piece is copied and at most one is under way; an
    error of either ends that write.
    """

    def __init__(self, path: Path | str) -> None:
        super().__init__(path, "wb")
        self._hash, self._size = hashlib.sha256(), 0
        self._hasher: ThreadPoolExecutor | None = None

    def write(self, data: Any) -> int:
        """Take all of it, as a raw file need not."""
        view = memoryview(data).cast("B")
        if len(view) < HASHED_APART:
            self._hash.update(view)
            self._put(view)
        else:
            if self._hasher is None:
                self._hasher = ThreadPoolExecutor(1, "sha256")
            hashed = self._hasher.submit(self._hash.update, view)
            try:
                self._put(view)
            finally:
                hashed.result()  # whoever wrote may change the piece from here on
        self._size += len(view)
        return len(view)

    def _put(self, view: memoryview) -> None:
        done = 0
        while done < len(view):
            done += super().write(view[done : done + LARGEST_WRITE])

    def close(self) -> None:
        """Let go of the file, and of the second thread where there is one."""
        super().close()
        if self._hasher is not None:
            self._hasher.shutdown()
            self._hasher = None

    @property
    def written(self) -> WrittenFile:
        """What went in so far."""
        return WrittenFile(self._size, self._hash.hexdigest())


def sha256_of(path: Path) -> str:
    """SHA-256 of a file, as `sha256sum` prints it."""
    with open(path, "rb") as file:
        digest = hashlib.sha256()
        while chunk := file.read(CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def hold(path: Path, mode: str = "w") -> IO[str] | None:
    """Lock the file `path`, made where it is not there; None where another process has it.

    The lock ends when this process closes the file, by this handle or any other, and with the process, however that ends. A
    file system without locks is taken on trust. `mode`: "r+" leaves what the file holds.
    """
    file = path.open(mode)
    try:
        # of this process alone: a flock would live on in its loader workers for seconds after a kill -9
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        file.close()
        return None
    except OSError as error:
        log.warning("%s: this file system has no locks (%s); do not start two jobs on one folder", path.parent, error)
    return file


def is_held(path: Path) -> bool | None:
    """Whether another process has locked the file `path` by `hold`; None where the file system does not say.

    Not to be asked for a file that this process holds: closing it would end the lock.
    """
    with path.open("r+") as file:
        try:
            fcntl.lockf(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):
            return True
        except OSError:
            return None
    return False


@contextlib.contextmanager
def open_alone(path: Path) -> Iterator[IO[bytes]]:
    """A file to read and to add to, made where it is not there, once no other process has it so."""
    with path.open("a+b") as file:
        fcntl.flock(file, fcntl.LOCK_EX)  # released as the file closes
        yield file


def check_out_file(
    path: Path,
    option: str = "--out",
    inputs: Iterable[str | Path] = (),
    is_ours: Callable[[Path], bool] | None = None,
) -> None:
    """Raises ConfigError unless a file can be written to `path` and is none of the `inputs`; makes its folder.

    `is_ours`: whether a file that is there is one that the verb may replace; without it any is.
    """
    if path.is_dir():
        raise ConfigError(f"{option} {path} is a folder; name a file in it")
    refuse_inputs(path, option, inputs)
    if is_ours is not None and path.exists() and not is_ours(path):
        raise ConfigError(f"{option} {path} is a file of something else; name another, or remove it")
    _try_writing(path.parent, f"{option} {path}")


def check_out_folder(
    path: Path,
    option: str = "--out",
    inputs: Iterable[str | Path] = (),
    is_ours: Callable[[Path], bool] | None = None,
) -> None:
    """Raises ConfigError unless files can be written into the folder `path`; makes it.

    Args:
        path: The folder.
        option: What the user gave it by.
        inputs: Files that are read; none of them may lie directly in the folder.
        is_ours: Whether a folder that is not empty is one that the verb may write into; without it any is.
    """
    if path.exists() and not path.is_dir():
        raise ConfigError(f"{option} {path} is a file; name a folder")
    for source in inputs:
        if path.exists() and Path(source).parent.exists() and Path(source).parent.samefile(path):
            raise ConfigError(f"{option} {path} is the folder of {source}, which is read; name another folder")
    _try_writing(path, f"{option} {path}")
    if is_ours is not None and any(path.iterdir()) and not is_ours(path):
        raise ConfigError(f"{option} {path} holds files of something else; name a new or an empty folder")


def check_there(path: Path) -> None:
    """Raises ConfigError where what is to be read is not there: said before anything heavy is imported."""
    if not path.exists():
        raise ConfigError(f"{path}: there is no such file or folder")


def refuse_inputs(path: Path, option: str, inputs: Iterable[str | Path]) -> None:
    """Raises ConfigError where `path` is one of the files that are read, under whatever name."""
    if path.exists():
        for source in inputs:
            if os.path.exists(source) and path.samefile(source):
                raise ConfigError(f"{option} {path} is {source}, which is read; name another file")


def _try_writing(folder: Path, said: str) -> None:
    made = [above for above in (folder, *folder.parents) if not above.exists()]
    trial = folder / f"{TRIAL}{os.getpid()}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        try:
            trial.write_bytes(b"\0" * TRIED_BYTES)
        finally:
            trial.unlink(missing_ok=True)
    except OSError as error:
        for above in made:
            with contextlib.suppress(OSError):
                above.rmdir()
        raise ConfigError(f"{said}: {error.strerror}; name a place that can be written") from None
