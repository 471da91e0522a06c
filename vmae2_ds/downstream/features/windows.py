"""Which frames of a long video make window i, in whole numbers, and the time that its feature stands for."""

from __future__ import annotations

from typing import Literal, NamedTuple

import numpy as np

# R windows (rows of a feature file), W frames of a window.

GridName = Literal["opengvlab", "opentad"]
"""How windows lie: the two ways in which features for THUMOS14 were published (docs/PAPER.md#clip-features-of-long-videos)."""


class WindowGrid(NamedTuple):
    """Windows of `window` frames, `interval` apart, one every `stride` frames.

    opengvlab: window i begins at frame i * stride, and only whole windows count. opentad: window i has frame i * stride in its
    middle, for every such frame that there is; frames before the first and behind the last are those two, again.
    """

    name: GridName
    window: int = 16
    stride: int = 4
    interval: int = 1

    @property
    def span(self) -> int:
        """Frames from a window's first to its last, both counted."""
        return (self.window - 1) * self.interval + 1

    @property
    def offset_frames(self) -> float:
        """Feature i stands for frame i * stride + offset_frames: the middle of an opengvlab window; 2 of a stride of 4 for
        opentad, as its configuration has it (half a stride), though the window's own middle is at 0."""
        return self.window * self.interval / 2 if self.name == "opengvlab" else self.stride / 2

    def rows(self, frames: int) -> int:
        """Number of windows in a video of so many frames; 0 where it is too short."""
        if self.name == "opentad":
            return -(-frames // self.stride)
        return max(0, (frames - self.span) // self.stride + 1)

    def first(self, row: int) -> int:
        """The first frame of window `row`, which opentad may have in front of the video."""
        before = (self.window // 2) * self.interval if self.name == "opentad" else 0
        return row * self.stride - before

    def indices(self, frames: int, first: int = 0, end: int | None = None) -> np.ndarray:
        """(R, W) int64, ascending in both: the frames of windows first .. end - 1 of a video of `frames`; default: all."""
        row_R = np.arange(first, self.rows(frames) if end is None else end, dtype=np.int64)
        first_R = self.first(0) + self.stride * row_R
        return np.clip(first_R[:, None] + self.interval * np.arange(self.window), 0, frames - 1)

    def needed(self, frames: int) -> np.ndarray:
        """(n,) int64, ascending: the frames that any window has, each once."""
        is_needed = np.zeros(frames, bool)
        first_R = self.first(0) + self.stride * np.arange(self.rows(frames), dtype=np.int64)
        for step in range(self.window):  # an hour's windows at once would be a thousand times as large as the answer
            is_needed[np.clip(first_R + step * self.interval, 0, frames - 1)] = True
        return np.flatnonzero(is_needed)
