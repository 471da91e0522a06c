"""Frames of videos for drawing: at a key time, or one after the other; what cannot be read is grey and counted."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator

import numpy as np

from vmae2_ds.data.readers.watchdog import GuardedReader
from vmae2_ds.downstream.ava.clip_files import ClipFiles, Span
from vmae2_ds.downstream.ava.rows import Key, seconds_of
from vmae2_ds.errors import VideoError

LARGEST = (1100, 860)
"""Width and height, in pixels, that a frame is made to fit into."""


class Pictures:
    """The frames of videos, read one at a time."""

    def __init__(self, files: ClipFiles | None, reader: GuardedReader) -> None:
        """files: None: there are none, and all is grey."""
        self._files, self._reader = files, reader
        self._asked = 0
        self._bad: dict[Key, VideoError] = {}

    def at(self, key: Key) -> np.ndarray | None:
        """The frame at a time, uint8 (H, W, 3), made smaller where it is larger than LARGEST; None: there is none."""
        found = self._read(key, Span(1, 1, "pyslowfast"))
        return None if found is None else found[0]

    def from_to(self, video: str, start_s: float, count: int, fps: float) -> Iterator[np.ndarray | None]:
        """`count` frames from a time on, `fps` a second; outside of the file the first or last one, or None."""
        at_once = max(1, round(fps))
        for first in range(0, count, at_once):
            number = min(at_once, count - first)
            middle_ms = round(1000 * (start_s + (first + number // 2) / fps))
            found = self._read((video, middle_ms), Span(number, 1, "pyslowfast", fps))
            if found is None:
                found = [self.at((video, round(1000 * (start_s + (first + place) / fps)))) for place in range(number)]
            yield from found

    def warn(self, log: logging.Logger) -> None:
        """Say in one line how many frames could not be read, and why the first of them."""
        if self._bad:
            (video, time_ms), reason = next(iter(self._bad.items()))
            log.warning(
                "%d of %d frames are drawn grey, the first of %s at %s s: %s",
                len(self._bad), self._asked, video, seconds_of(time_ms), str(reason).replace("--data.", "--"),
            )  # fmt: skip

    def _read(self, key: Key, span: Span) -> list[np.ndarray | None] | None:
        if self._files is None:
            return [None] * span.num_frames
        self._asked += span.num_frames
        try:
            return [_fitted(pixels_HWC) for pixels_HWC in self._files.read(self._reader, key, span)]
        except VideoError as error:
            if span.num_frames > 1:  # the time in the middle may lie outside of the file
                self._asked -= span.num_frames
                return None
            self._bad[key] = error
            return [None]


def _fitted(pixels_HWC: np.ndarray) -> np.ndarray:
    """A copy that is not larger than LARGEST."""
    from PIL import Image

    height, width = pixels_HWC.shape[:2]
    factor = math.ceil(max(width / LARGEST[0], height / LARGEST[1]))
    if factor <= 1:
        return pixels_HWC.copy()
    image = Image.fromarray(pixels_HWC)
    image.thumbnail(LARGEST)
    return np.asarray(image)
