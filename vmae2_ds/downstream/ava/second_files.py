"""Videos kept as a file for each second, as VideoMAE-AD keeps AVA's: a clip is put together from several of them."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from vmae2_ds.data.entry import ReadAs, VideoEntry
from vmae2_ds.data.readers.watchdog import GuardedReader
from vmae2_ds.data.sources.list_header import VIDEO_SUFFIXES
from vmae2_ds.errors import VideoError

# T frames of a clip, K of them in one file, H x W pixels.


def seconds_in(folder: Path) -> dict[int, str]:
    """The files of a folder, SECOND.mp4 or with another ending, by their second; none where there is no such folder."""
    if not folder.is_dir():
        return {}
    return {
        int(path.stem): path.name
        for path in sorted(folder.iterdir())
        if path.suffix.lower() in VIDEO_SUFFIXES and path.stem.isascii() and path.stem.isdigit()
    }


def read_seconds(
    folder: Path,
    files: Mapping[int, str],
    reader: GuardedReader,
    reader_name: str,
    time_ms: int,
    offsets: Callable[[float], NDArray[np.int64]],
) -> np.ndarray:
    """The clip around a time: on from the file of its second to the right, then back to the left of it (VideoMAE-AD).

    Args:
        folder: Where the files are.
        files: The name of each second's file.
        reader: What reads them.
        reader_name: The reader of videos that it takes.
        time_ms: The key time.
        offsets: The rate of the key second -> (T,) frames counted from the key frame, ascending.

    Returns uint8 (T, H, W, 3). Where a neighbour is not there, the last frame before it is repeated. Raises VideoError.
    """
    key_second, rest_ms = divmod(time_ms, 1000)
    if key_second not in files:
        raise VideoError(f"there is no file of second {key_second} in {folder}")
    frames: dict[int, np.ndarray] = {}
    wanted_T = np.zeros(0, np.int64)  # counted from the first frame of the key second

    def take(second: int, begins: int | None = None, ends: int = 0) -> int:
        """Take what lies in one file, of which is known where it begins or where it ends; returns how many frames it has."""
        places: list[int] = []
        found = 0

        def choose(length: int, fps: float) -> np.ndarray:
            nonlocal wanted_T, found
            found = length
            if second == key_second:
                if not (math.isfinite(fps) and fps > 0):
                    raise VideoError("does not tell its frame rate")
                wanted_T = round(rest_ms * fps / 1000) + offsets(fps)
            index_T = wanted_T - (ends - length if begins is None else begins)
            if second - 1 not in files:
                index_T = np.maximum(index_T, 0)
            if second + 1 not in files:
                index_T = np.minimum(index_T, length - 1)
            places.extend(np.flatnonzero((index_T >= 0) & (index_T < length)).tolist())
            if not places:
                raise _NothingHereError
            return index_T[places]

        entry = VideoEntry(str(folder / files[second]), None, "", 0, None)
        try:
            read_KHWC = reader.read(entry, ReadAs(reader=reader_name), choose)
            frames.update((place, frame.copy()) for place, frame in zip(places, read_KHWC, strict=True))
        except _NothingHereError:
            pass
        except VideoError as error:
            raise VideoError(f"{files[second]}: {error}") from None
        return found

    end, second = take(key_second, begins=0), key_second + 1
    while wanted_T[-1] >= end and second in files:
        end, second = end + take(second, begins=end), second + 1
    start, second = 0, key_second - 1
    while wanted_T[0] < start and second in files:
        start, second = start - take(second, ends=start), second - 1
    if len({frame.shape for frame in frames.values()}) != 1:
        raise VideoError("its seconds have several sizes")
    return np.stack([frames[place] for place in range(len(wanted_T))])


class _NothingHereError(VideoError):
    """A file was opened only to learn how many frames it has."""
