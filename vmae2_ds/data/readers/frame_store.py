"""Decoded videos in files of one folder, bounded in bytes, for all processes of a host that name the folder. No torch.

A file is a header and the frames as they are, uint8; it is whole or absent, as it is written under another name first. What a
name stands for never changes, so no reader needs a lock. Whoever writes holds LOCK only to count and to make room.
"""

from __future__ import annotations

import contextlib
import os
import re
import struct
import uuid
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import IO, NamedTuple

import numpy as np

from vmae2_ds.disk import hold, is_held, open_alone

LOCK = ".lock"
ENDING = ".frames"
_PART = re.compile(r"\.(\w+)-(\d+)-(\w+)\.part")
"""A file that is being written: its key, its bytes in the end, who writes it."""
_USER = re.compile(r"\.(\w+)\.user")
"""A process that uses the folder: locked while it lives, and as old as it."""
_HEADER = struct.Struct("<8sqdqqqq8x")
_MAGIC = b"vmae2fr1"
HEADER_BYTES = _HEADER.size


class Frames(NamedTuple):
    """Which frames a file holds, and what the reader said of the whole video."""

    length: int
    """Frames of the video."""
    fps: float
    """nan where unknown."""
    start: int
    """Number of the first frame that is kept."""
    kept: int
    """Frames from there on that are kept."""
    height: int
    width: int

    @property
    def frame_bytes(self) -> int:
        """Bytes of one frame."""
        return self.height * self.width * 3

    @property
    def file_bytes(self) -> int:
        """Bytes of the file."""
        return HEADER_BYTES + self.kept * self.frame_bytes

    @property
    def header(self) -> bytes:
        """What the file begins with."""
        return _HEADER.pack(_MAGIC, *self)


class KeptVideo:
    """One file, open to be read. Frames are there to the end, even if the file is removed meanwhile."""

    def __init__(self, file: IO[bytes]) -> None:
        """Raises ValueError for a file that is none of ours, or not whole."""
        self._file = file
        head = file.read(HEADER_BYTES)
        if len(head) < HEADER_BYTES or not head.startswith(_MAGIC):
            raise ValueError("no header")
        self.about = Frames(*_HEADER.unpack(head)[1:])
        if os.fstat(file.fileno()).st_size != self.about.file_bytes:
            raise ValueError("not whole")

    def has(self, indices: Sequence[int]) -> bool:
        """Whether all these frames, by their numbers in the video, are kept."""
        return min(indices) >= self.about.start and max(indices) < self.about.start + self.about.kept

    def frames(self, indices: Sequence[int]) -> np.ndarray:
        """Those frames in that order, uint8 (T, H, W, 3), in memory of their own. Raises OSError."""
        about = self.about
        found = np.empty((len(indices), about.height, about.width, 3), np.uint8)
        for place, index in zip(found, indices, strict=True):
            offset = HEADER_BYTES + (index - about.start) * about.frame_bytes
            if os.preadv(self._file.fileno(), [place.data.cast("B")], offset) != about.frame_bytes:
                raise OSError("a kept file ends early")
        return found

    def __enter__(self) -> KeptVideo:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._file.close()


class NoRoom(Exception):
    """The folder is as full as it may be."""


class Used(NamedTuple):
    """What a folder holds."""

    videos: int
    size: int
    """Bytes, those included that are being written."""


class FrameStore:
    """The folder as one process sees it. Methods raise OSError where it cannot be read or written."""

    def __init__(self, folder: Path, limit: int) -> None:
        """`limit`: bytes that all files of the folder may have together."""
        self.folder, self.limit = folder, limit
        self._size_of: dict[str, int] = {}
        self._touched: set[str] = set()

    def open(self, key: str) -> KeptVideo | None:
        """The video kept under that key; None where there is none."""
        path = self._path(key)
        try:
            file = path.open("rb", buffering=0)
        except FileNotFoundError:
            return None
        try:
            kept = KeptVideo(file)
        except ValueError:  # nobody of us leaves such a file behind
            file.close()
            path.unlink(missing_ok=True)
            return None
        if key not in self._touched:
            self._touched.add(key)
            _touch(path)
        return kept

    def reserve(self, key: str, size: int) -> Path | None:
        """An empty file to write `size` bytes to, which count from now on; `publish` or `drop` it.

        None where another process keeps the video or is just about to. Room is made by removing what no running process has
        used, the oldest first. Raises NoRoom.
        """
        with open_alone(self.folder / LOCK):
            live, began = self._users()
            sizes, is_there = self._count(live, key)
            if is_there:
                return None
            self._make_room(sizes, size, began)
            part = self.folder / f".{key}-{size}-{_token(self.folder)}.part"
            part.touch()
            return part

    def publish(self, part: Path, key: str) -> None:
        """Give a file that is whole, and flushed to disk, the name it is found by."""
        with open_alone(self.folder / LOCK):  # who lists the folder meanwhile may see neither name
            part.rename(self._path(key))
        self._touched.add(key)

    def drop(self, part: Path) -> None:
        """Forget a file that was not written."""
        part.unlink(missing_ok=True)

    def used(self) -> Used:
        """Videos and bytes that are there."""
        with open_alone(self.folder / LOCK):
            live, _ = self._users()
            sizes, _ = self._count(live, "")
        return Used(sum(name.endswith(ENDING) for name in sizes), sum(sizes.values()))

    def sign(self) -> None:
        """Tell others that this process uses the folder: what it has used stays, as long as it lives."""
        with open_alone(self.folder / LOCK):
            _token(self.folder)

    def _path(self, key: str) -> Path:
        return self.folder / f"{key}{ENDING}"

    def _age(self, name: str) -> int:
        """When a file was used last, in ns of the file system's clock."""
        try:
            return (self.folder / name).stat().st_mtime_ns
        except FileNotFoundError:
            return 0

    def _users(self) -> tuple[set[str], int]:
        """Processes that use the folder and live, and when the first of them began, in ns of the file system's clock."""
        mine, live, began = _token(self.folder), set(), []
        for name in os.listdir(self.folder):
            user = _USER.fullmatch(name)
            if user is None:
                continue
            path = self.folder / name
            try:
                if user[1] != mine and not _lives(path):
                    path.unlink(missing_ok=True)
                    continue
                began.append(path.stat().st_mtime_ns)
            except FileNotFoundError:
                continue
            live.add(user[1])
        return live, min(began, default=0)

    def _count(self, live: set[str], key: str) -> tuple[dict[str, int], bool]:
        """Bytes of each file, and whether one is the key's; what a killed process left half is removed."""
        sizes, is_there = {}, False
        for name in os.listdir(self.folder):
            part = _PART.fullmatch(name)
            if part is not None:
                if part[3] not in live:
                    (self.folder / name).unlink(missing_ok=True)
                    continue
                sizes[name] = int(part[2])
                is_there |= part[1] == key
            elif name.endswith(ENDING):
                if name not in self._size_of:
                    with contextlib.suppress(FileNotFoundError):  # the user may have removed it just now
                        self._size_of[name] = (self.folder / name).stat().st_size
                sizes[name] = self._size_of.get(name, 0)
                is_there |= name == f"{key}{ENDING}"
        return sizes, is_there

    def _make_room(self, sizes: dict[str, int], size: int, began: int) -> None:
        """Remove files that nobody has used since `began` until so many bytes more are within the limit. Raises NoRoom."""
        lacking = sum(sizes.values()) + size - self.limit
        if lacking <= 0:
            return
        ages = ((self._age(name), name) for name in sizes if name.endswith(ENDING))
        unused = sorted((age, name) for age, name in ages if age < began)
        if sum(sizes[name] for _, name in unused) < lacking or size > self.limit:
            raise NoRoom
        for _, name in unused:
            (self.folder / name).unlink(missing_ok=True)
            lacking -= sizes[name]
            if lacking <= 0:
                return


_signed: dict[tuple[int, Path], tuple[str, IO[str] | None]] = {}
"""The process's name in each folder and the file that it holds locked there, by process and folder; a fork is another one."""


def _token(folder: Path) -> str:
    """This process's name in the folder. It holds LOCK: else others would take it for dead before it has locked its file."""
    mine = os.getpid(), folder
    if mine not in _signed:
        name = uuid.uuid4().hex
        _signed[mine] = name, hold(folder / f".{name}.user")
    return _signed[mine][0]


def _lives(user: Path) -> bool:
    """Whether the process behind a user's file is there; true where nobody can say."""
    try:
        return is_held(user) is not False
    except PermissionError:
        return True


def _touch(path: Path) -> None:
    with contextlib.suppress(OSError):  # a folder that is only read
        os.utime(path)
