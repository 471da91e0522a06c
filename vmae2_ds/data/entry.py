"""One video of a list, and how the videos of its source are read."""

from __future__ import annotations

from typing import NamedTuple


class VideoEntry(NamedTuple):
    """One row: a video, or `frames` frames of it from frame `start` on (None: to the end)."""

    path: str
    """Where the video lies; inside a shard, its member's name."""
    label: int | None
    source: str
    start: int
    frames: int | None
    shard: str | None = None
    """The tar file, or its URL, that holds the video as `size` bytes from byte `offset` on; None: a file of its own."""
    offset: int = 0
    size: int = 0

    @property
    def name(self) -> str:
        """Name of the video in messages, and its identity. In a shard the place belongs to it: members may share a name."""
        return self.path if self.shard is None else f"{self.shard}:{self.path}@{self.offset}+{self.size}"


class ReadAs(NamedTuple):
    """How the videos of a source are read."""

    kind: str = "video"
    """video: a file, or a member of a shard; frames: a folder of pictures."""
    template: str = "{:05}.jpg"
    """File name of frame number k of a folder, as a Python format."""
    reader: str = "pyav"
