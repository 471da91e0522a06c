"""Readers that do what a reader must never do, for `--data.reader tests.data.readers.bad_readers:NAME`.

Each does it to files called bad.mp4 alone, and reads others as PyAV does.
"""

from __future__ import annotations

import ctypes
import os
import time
from collections.abc import Callable, Iterator
from functools import wraps

import numpy as np

from vmae2_ds.data.readers.common import Choose, Video
from vmae2_ds.data.readers.pyav import read_pyav
from vmae2_ds.errors import VideoError

Misdeed = Callable[[Video, Choose], np.ndarray]


def of_bad_files(misdeed: Misdeed) -> Misdeed:
    @wraps(misdeed)
    def read(video: Video, choose: Choose) -> np.ndarray:
        if isinstance(video, str) and os.path.basename(video) == "bad.mp4":
            return misdeed(video, choose)
        return read_pyav(video, choose)

    return read


@of_bad_files
def sleeps(video: Video, choose: Choose) -> np.ndarray:
    """For ever, in C, with the GIL held: neither a signal handler nor another thread can run."""
    while True:
        ctypes.PyDLL(None).sleep(1000)


@of_bad_files
def sleeps_decoding(video: Video, choose: Choose) -> np.ndarray:
    choose(100, 25.0)
    return sleeps("bad.mp4", choose)


@of_bad_files
def crashes(video: Video, choose: Choose) -> np.ndarray:
    ctypes.string_at(0)
    raise AssertionError("not reached")


@of_bad_files
def exits(video: Video, choose: Choose) -> np.ndarray:
    os._exit(3)


@of_bad_files
def hogs(video: Video, choose: Choose) -> np.ndarray:
    raise MemoryError("no room for\na frame")


@of_bad_files
def wrong_shape(video: Video, choose: Choose) -> np.ndarray:
    return np.zeros((len(choose(100, 25.0)) - 1, 8, 8, 3), np.uint8)


@of_bad_files
def wrong_type(video: Video, choose: Choose) -> np.ndarray:
    return np.zeros((len(choose(100, 25.0)), 8, 8, 3), np.float32)


@of_bad_files
def never_chooses(video: Video, choose: Choose) -> np.ndarray:
    return np.zeros((8, 8, 8, 3), np.uint8)


@of_bad_files
def chooses_twice(video: Video, choose: Choose) -> np.ndarray:
    choose(100, 25.0)
    return np.zeros((len(choose(100, 25.0)), 8, 8, 3), np.uint8)


def wrong_frames(video: Video, choose: Choose) -> np.ndarray:
    """Quick, and wrong in every file."""
    return 255 - read_pyav(video, choose)


def counts_what_is_asked(video: Video, choose: Choose) -> np.ndarray:
    """Frames with the number of frames asked for in them."""
    frames = read_pyav(video, choose).copy()
    frames[:, 0, 0, 0] = len(frames)
    return frames


def shifts_behind_a_seek(video: Video, choose: Choose) -> np.ndarray:
    """As decord in some files: where the first frame asked for is a later one, the one after each is shown."""

    def shifted(length: int, fps: float) -> np.ndarray:
        indices = np.array(choose(length, fps))
        return indices if indices.min() < length // 2 else np.minimum(indices + 1, length - 1)

    return read_pyav(video, shifted)


def when_asked_for_all(misdeed: Callable[[], object]) -> Misdeed:
    def read(video: Video, choose: Choose) -> np.ndarray:
        frames = read_pyav(video, choose)
        if len(frames) > 10:
            misdeed()
        return frames

    return read


sleeps_when_asked_for_all = when_asked_for_all(lambda: ctypes.PyDLL(None).sleep(1000))
crashes_when_asked_for_all = when_asked_for_all(lambda: ctypes.string_at(0))
fails_when_asked_for_all = when_asked_for_all(lambda: 1 / 0)


def refuses(video: Video, choose: Choose) -> np.ndarray:
    raise VideoError("not today")


def count_slowly(items: int, pause_s: float) -> Iterator[int]:
    """0 to items - 1, with a pause after each."""
    for number in range(items):
        yield number
        time.sleep(pause_s)
