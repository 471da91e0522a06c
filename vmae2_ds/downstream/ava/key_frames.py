"""Key frames: the moments of videos at which people are boxed, and what each of them does."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

# F key frames, G boxes of one.


class KeyFrame(NamedTuple):
    """One moment of a video and the people in it."""

    video: str
    time_ms: int
    """Milliseconds of the time in seconds that the files write."""
    box_G4: np.ndarray
    """float64 x1 y1 x2 y2, in parts of the picture's width and height."""
    action_ids: tuple[tuple[int, ...], ...]
    """Ids of the actions of each box, as the label map has them, ascending; none of a person whom no truth names."""
    score_G: np.ndarray
    """float64, the detector's; 1 for a box of the truth."""

    @property
    def key(self) -> tuple[str, int]:
        """(video, milliseconds): what truth, boxes and exclusions are joined by."""
        return self.video, self.time_ms
