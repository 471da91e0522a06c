"""A few frames of a long video, small, at even times: what lies under a timeline's axis. Only these are decoded."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np

from vmae2_ds.data.entry import ReadAs, VideoEntry
from vmae2_ds.data.readers.watchdog import Watchdog
from vmae2_ds.data.sources.list_header import VIDEO_SUFFIXES, videos_below
from vmae2_ds.draw.timeline import FrameStrip
from vmae2_ds.errors import ConfigError, VideoError

LARGEST = (320, 240)
"""Width and height, in pixels, that a frame is made to fit into."""


class Thumbnails(NamedTuple):
    """Frames of one video, and how long it is."""

    frames: FrameStrip
    duration_s: float
    """The length that the annotations say, else the file's."""


class VideoFolder:
    """The videos below a folder by their names without suffix."""

    def __init__(self, folder: Path) -> None:
        """Raises ConfigError where there is no such folder, or no video in it."""
        if not folder.is_dir():
            raise ConfigError(f"--videos {folder} is no folder")
        self._paths: dict[str, str] = {}
        for path in videos_below(folder):
            self._paths.setdefault(Path(path).stem, path)
        if not self._paths:
            raise ConfigError(
                f"--videos {folder}: no file in it is named like a video ({', '.join(VIDEO_SUFFIXES[:4])})"
            )

    def find(self, name: str) -> str:
        """The video of this name, with or without ActivityNet's "v_" before it; raises VideoError where there is none."""
        for candidate in (name, f"v_{name}"):
            if candidate in self._paths:
                return self._paths[candidate]
        raise VideoError("no video of this name in --videos")


def read_thumbnails(path: str, count: int, duration_s: float | None, reader: str, watchdog: Watchdog) -> Thumbnails:
    """`count` frames from the middles of as many equal parts of `duration_s` (None: of the video as it is).

    Where the video ends sooner there are fewer of them. Raises VideoError.
    """
    times: list[float] = []
    length_s: list[float] = []

    def choose(length: int, fps: float) -> np.ndarray:
        if not fps > 0:  # nan where it is not known
            if duration_s is None:
                raise VideoError("neither it nor the annotations say how long it is")
            fps = length / duration_s
        length_s.append(duration_s or length / fps)
        middle_N = (np.arange(count) + 0.5) / count * length_s[0]
        index_N = np.unique(np.minimum(np.floor(middle_N[middle_N * fps < length] * fps), length - 1).astype(np.int64))
        times.extend((index_N + 0.5) / fps)
        if not times:
            raise VideoError(f"it has {length / fps:.3g} of {duration_s:.3g} s, and no frame at the times to be shown")
        return index_N

    frames_NHWC = watchdog.read(VideoEntry(path, None, "", 0, None), ReadAs(reader=reader), choose)
    return Thumbnails(FrameStrip(tuple(times), _small(frames_NHWC)), length_s[0])


def _small(frames_NHWC: np.ndarray) -> np.ndarray:
    from PIL import Image

    def fitted(pixels_HWC: np.ndarray) -> np.ndarray:
        image = Image.fromarray(pixels_HWC)
        image.thumbnail(LARGEST)
        return np.asarray(image)

    return np.stack([fitted(pixels_HWC) for pixels_HWC in frames_NHWC])
