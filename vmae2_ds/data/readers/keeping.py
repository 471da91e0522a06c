"""Reads that keep the videos they decode: the next clip of one, by any process that names the folder, is a piece of a file.

What is kept is the reader's own frames of the whole part that an entry names, so every clip is the same bits with and without.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import math
import mmap
import os
import stat
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from vmae2_ds.data.entry import ReadAs, VideoEntry
from vmae2_ds.data.readers.common import Choose, FrameCount, choose_checked
from vmae2_ds.data.readers.frame_store import Frames, FrameStore, KeptVideo, NoRoom
from vmae2_ds.data.readers.storage import read_entry, stream_entry
from vmae2_ds.data.readers.video_key import key_of
from vmae2_ds.data.readers.watchdog import GuardedReader
from vmae2_ds.errors import VideoError, Vmae2Error

log = logging.getLogger(__name__)

GIB = 2**30
LARGEST = 256 << 20
"""Bytes of decoded frames above which a video is not kept: 1,000 frames of 340x256. Decoding all of a film to keep it costs
minutes, and its clips seldom meet again."""
EXACT = "pyav"
"""The reader whose frame k is the same whatever else is asked for (docs/DATA.md)."""
ASK_AGAIN_S = 60.0
"""How long a process that found no room does not ask for as much again."""
LOOKED_AT = 3
"""Places at which the frames of a reader that seeks wrongly in some files are compared, beside the clip asked for."""


def default_folder() -> Path:
    """A folder of this user's, where this host keeps temporary files."""
    return Path(tempfile.gettempdir()) / f"vmae2_frames_{os.getuid()}"


def make_reader(timeout_s: float, cache_gib: float = 0, folder: Path | None = None) -> GuardedReader:
    """What reads a run's videos; with `cache_gib` above 0 it keeps as much of them in the folder."""
    if not cache_gib:
        return GuardedReader(timeout_s)
    return KeepingReader(timeout_s, folder or default_folder(), int(cache_gib * GIB))


class KeepingReader(GuardedReader):
    """A GuardedReader that keeps whole videos where they fit; where the folder cannot be used it says so once and reads on."""

    def __init__(self, timeout_s: float, folder: Path, limit: int) -> None:
        """`limit`: bytes of all videos in the folder."""
        super().__init__(timeout_s)
        self._store: FrameStore | None = None
        self._not_kept: set[str] = set()
        self._is_read_only = False
        self._signed: int | None = None
        self._no_room_for, self._no_room_until_s = math.inf, 0.0
        self._said = mmap.mmap(-1, 1)  # forks see it too: of all loader workers one says what there is to say
        try:
            self._store = FrameStore(_prepared(folder), limit)
        except OSError as error:
            log.warning("%s", _not_usable(folder, error))

    def describe(self) -> str | None:
        """One line with what is kept already; None where nothing is."""
        if self._store is None:
            return None
        store = self._store
        try:
            used = store.used()
        except OSError:
            return f"cache: what {store.folder} holds is used, and nothing is added: it cannot be written"
        return (
            f"cache: {used.videos:,} videos, {used.size / GIB:.2f} of {store.limit / GIB:g} GiB, in {store.folder}; videos "
            "that fit are kept as they are read, the rest is decoded each time"
        )

    def read(self, entry: VideoEntry, how: ReadAs, choose: Choose) -> np.ndarray:
        """Frames as `read_entry` gives them, valid until the next read. Raises VideoError."""
        key = key_of(entry, how) if self._store is not None else None
        if self._store is None or key is None:
            return super().read(entry, how, choose)
        kept = self._open(self._store, key)
        if kept is not None:
            with kept:
                indices = choose_checked(choose, kept.about.length, kept.about.fps)
                if kept.has(indices):
                    with contextlib.suppress(OSError):
                        return kept.frames(indices)
            return super().read(entry, how, lambda length, fps: np.array(indices))
        asked: list[tuple[int, float, Sequence[int]]] = []

        def noted(length: int, fps: float) -> np.ndarray:
            indices = choose(length, fps)
            asked.append((length, fps, [int(index) for index in indices]))
            return indices

        frames = super().read(entry, how, noted)
        if len(asked) == 1 and key not in self._not_kept:
            self._keep(self._store, key, entry, how, asked[0], frames)
        return frames

    def _open(self, store: FrameStore, key: str) -> KeptVideo | None:
        try:
            if self._signed != os.getpid():
                self._signed = os.getpid()
                with contextlib.suppress(OSError):
                    store.sign()
            return store.open(key)
        except OSError as error:
            self._give_up(error)
            return None

    def _keep(
        self,
        store: FrameStore,
        key: str,
        entry: VideoEntry,
        how: ReadAs,
        asked: tuple[int, float, Sequence[int]],
        frames: np.ndarray,
    ) -> None:
        """Decode the whole part and keep it, if it is not too large, there is room, and the clip just read is in it."""
        length, fps, indices = asked
        end = length if entry.frames is None else min(length, entry.start + entry.frames)
        about = Frames(length, fps, entry.start, end - entry.start, *frames.shape[1:3])
        if about.kept < 1 or about.file_bytes > min(LARGEST, store.limit) or frames.dtype != np.uint8:
            self._not_kept.add(key)
            return
        is_full = about.file_bytes >= self._no_room_for and time.monotonic() < self._no_room_until_s
        if self._is_read_only or is_full:
            return
        try:
            part = store.reserve(key, about.file_bytes)
            if part is None:
                return
            try:
                if self._write(part, entry, how, about) and _shows(part, indices, frames) and key_of(entry, how) == key:
                    store.publish(part, key)
                else:
                    self._not_kept.add(key)
            finally:
                store.drop(part)
        except NoRoom:
            self._no_room_for, self._no_room_until_s = about.file_bytes, time.monotonic() + ASK_AGAIN_S
            self._say(logging.INFO, f"cache: {store.folder} is full; videos that are not in it are decoded each time")
        except OSError as error:
            self._give_up(error)

    def _write(self, part: Path, entry: VideoEntry, how: ReadAs, about: Frames) -> bool:
        """Whether the reader gives all the frames; raises OSError where the folder does not take them."""
        try:
            refused = self.call(write_frames, str(part), entry, how, about)
        except VideoError:  # the clip that was asked for has been read
            return False
        if refused:
            raise OSError(*refused)
        return True

    def _give_up(self, error: OSError) -> None:
        self._is_read_only = True
        if self._store is not None:
            self._say(logging.WARNING, _not_usable(self._store.folder, error))

    def _say(self, level: int, line: str) -> None:
        if self._said[0] < level:
            self._said[0] = level
            log.log(level, "%s", line)


def write_frames(part: str, entry: VideoEntry, how: ReadAs, about: Frames) -> tuple[int, str] | None:
    """Write a header and all frames of the part into a file that is there, and flush it to disk; runs in the reader's process.

    Returns what the file system refused, if anything. Raises VideoError where the reader does not give these frames, or gives
    others where few are asked for.
    """
    try:
        with open(part, "r+b") as file:
            file.write(about.header)
            for frame_HWC in _all_frames(entry, how, about):
                file.write(np.ascontiguousarray(frame_HWC).data)
            file.flush()
            os.fsync(file.fileno())  # else a power cut may leave the name and not the content
    except OSError as error:
        return error.errno or 0, error.strerror or str(error)
    return None


def _all_frames(entry: VideoEntry, how: ReadAs, about: Frames) -> Iterator[np.ndarray]:
    """The frames of the part one by one. Raises VideoError, whatever a reader raises."""
    numbers = np.arange(about.start, about.start + about.kept)

    def choose(length: int, fps: float) -> np.ndarray:
        if about != about._replace(length=length, fps=fps) and not (length == about.length and math.isnan(fps)):
            raise VideoError("it has changed")
        return numbers

    is_exact = how.kind == "frames" or how.reader == EXACT
    try:
        count = 0
        for frame_HWC in stream_entry(entry, how, choose, FrameCount()) if is_exact else _checked(entry, how, choose):
            if frame_HWC.shape != (about.height, about.width, 3) or frame_HWC.dtype != np.uint8:
                raise VideoError("its frames are not all alike")
            count += 1
            yield frame_HWC
        if count != about.kept:
            raise VideoError(f"{count} of {about.kept} frames came")
    except Vmae2Error:  # also a signal to stop, where this is the process that gets it
        raise
    except Exception as error:  # a reader of the user's own may raise anything
        raise VideoError(f"its reader failed: {type(error).__name__}") from None


def _checked(entry: VideoEntry, how: ReadAs, choose: Choose) -> Iterator[np.ndarray]:
    """All frames in one read, where single ones are the same bits: decord and TorchCodec seek wrongly in some files."""
    numbers_T = np.zeros(0, np.int64)

    def noted(length: int, fps: float) -> np.ndarray:
        nonlocal numbers_T
        numbers_T = choose(length, fps)
        return numbers_T

    frames_THWC = np.asarray(read_entry(entry, how, noted))
    for place in np.linspace(0, len(numbers_T) - 1, LOOKED_AT + 1).astype(int)[1:]:
        alone = read_entry(entry, how, lambda length, fps, place=place: numbers_T[place : place + 1])  # type: ignore[misc]
        if not np.array_equal(alone[0], frames_THWC[place]):
            raise VideoError("its reader gives other frames where few are asked for")
    yield from frames_THWC


def _shows(part: Path, indices: Sequence[int], frames_THWC: np.ndarray) -> bool:
    """Whether a file gives the frames that the reader gave."""
    with KeptVideo(part.open("rb", buffering=0)) as kept:
        return not kept.has(indices) or np.array_equal(kept.frames(indices), frames_THWC)


def _prepared(folder: Path) -> Path:
    """The folder, made where it is not there. Raises OSError where others may write into the default one."""
    folder = folder.absolute()
    folder.mkdir(mode=0o700 if folder == default_folder() else 0o777, parents=True, exist_ok=True)
    if folder == default_folder():
        about = folder.lstat()
        if not stat.S_ISDIR(about.st_mode) or about.st_uid != os.getuid():
            raise PermissionError(errno.EPERM, "it belongs to somebody else")
        if about.st_mode & 0o022:
            raise PermissionError(errno.EPERM, "others may write into it")
    return folder


def _not_usable(folder: Path, error: OSError) -> str:
    return (
        f"cache: {folder}: {error.strerror or error}: from here on no more videos are kept; --data.cache-folder names another "
        "place"
    )
