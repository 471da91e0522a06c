"""A stand-in for video readers: nothing is decoded, what was asked for is written down, and a test says what frames show."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np

from vmae2_ds.data.entry import VideoEntry
from vmae2_ds.errors import VideoError

Picture = Callable[[VideoEntry, np.ndarray], np.ndarray]
"""(the video, numbers of frames) -> uint8 (T, H, W, 3)."""


class StandInReader:
    """Every video has `length` frames, but those with `bad` in their names cannot be read."""

    def __init__(self, picture: Picture, length: int, fps: float = 24.0) -> None:
        self.picture, self.length, self.fps = picture, length, fps
        self.read_names: list[str] = []
        """Of the videos that were asked for, in order."""
        self.chosen: list[list[int]] = []
        self.given = np.zeros(0)
        """The frames that were handed out last, which are the reader's own."""

    def read(self, entry: VideoEntry, how: object, choose: Callable[[int, float], np.ndarray]) -> np.ndarray:
        name = Path(entry.path).stem
        self.read_names.append(name)
        if "bad" in name:
            raise VideoError("bad")
        index_T = choose(self.length, self.fps)
        self.chosen.append(index_T.tolist())
        self.given = self.picture(entry, index_T)
        return self.given


def listed(folder: Path, rows: list[str], columns: str = "path,label") -> Path:
    """A list of these rows, whose files are there and empty."""
    path = folder / "list.csv"
    path.write_text("\n".join([columns, *rows]) + "\n")
    for row in rows:
        (folder / row.partition(",")[0]).touch()
    return path
