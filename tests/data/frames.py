"""Frames of a video by their numbers, for tests that know what each frame shows."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from vmae2_ds.data.readers.table import read_clip


def read_frames(video: str | Path | bytes, indices: np.ndarray, reader: str = "pyav") -> np.ndarray:
    """The frames at `indices`: uint8 (T, H, W, 3). Raises VideoError, also where the video is shorter."""
    return read_clip(video, lambda length, fps: indices, reader)
