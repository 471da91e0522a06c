"""The windows of one video, in batches, while its frames stream by: each frame is decoded and resized once."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from itertools import islice
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from vmae2_ds.console.progress import counted
from vmae2_ds.data.clips.crops import CropBox, crop_resize, view_crops
from vmae2_ds.data.entry import ReadAs, VideoEntry
from vmae2_ds.data.readers.common import FrameCount
from vmae2_ds.data.readers.watchdog import GuardedReader
from vmae2_ds.downstream.features.sidecar import FeatureInfo, VideoFeatures
from vmae2_ds.errors import VideoError

# F frames, H x W pixels, S the window's edge, W frames of a window, B windows at once, R windows of a video, D width.

BATCH = 16
"""Windows that a model sees at once where nobody says otherwise."""
IN_CACHE = 4
"""Frames that become floats at once: those of a whole piece leave the processor's cache, which takes many times as long."""


class WindowBatch(NamedTuple):
    """Some windows that follow each other. They share frames, which lie here once."""

    frame_FHWC: Tensor
    """(F, S, S, 3) uint8, or float32 in [0, 1] where the settings resize so."""
    index_BW: Tensor
    """int64: places in `frame_FHWC`."""

    def windows(self, device: torch.device) -> Tensor:
        """(B, W, S, S, 3) on `device`, to which each frame is copied once."""
        return self.frame_FHWC.to(device, non_blocking=True)[self.index_BW.to(device, non_blocking=True)]


class VideoWindows:
    """Iterated once, every window of a video, `batch` of them at a time; then `about` says what the video is.

    What is in a batch depends on the video and on the settings alone. Held are the frames of one batch and of the piece that
    came last. Iterating raises VideoError.
    """

    def __init__(
        self, entry: VideoEntry, info: FeatureInfo, reader: GuardedReader, how: ReadAs | None = None, batch: int = BATCH
    ) -> None:
        self.entry, self.info = entry, info
        self.grid, self.batch = info.window_grid, batch
        self.frames = self.rows = 0
        """Frames of the entry and its windows: known from the first batch on."""
        self.fps = float("nan")
        self.count = FrameCount()
        self.most_held = 0
        """The largest number of resized frames held at a time."""
        self._reader, self._how = reader, how or ReadAs()
        self._needed = np.zeros(0, np.int64)

    @property
    def about(self) -> VideoFeatures:
        """What goes beside the features."""
        fps = self.fps if self.fps > 0 else None
        of = self.entry
        return VideoFeatures(
            frames=self.frames,
            fps=fps,
            rows=self.rows,
            off_s=round(self.count.off_s, 3),
            video=of.name,
            start=of.start,
            asked_frames=of.frames,
        )

    def __iter__(self) -> Iterator[WindowBatch]:
        held, first, row = deque[Tensor](), 0, 0  # frames, the place of the first among those needed, the next window
        for piece_FHWC in self._reader.stream(self.entry, self._how, self._choose, self.count):
            held.extend(prepared(piece_FHWC, self.info))
            self.most_held = max(self.most_held, len(held))
            while row < self.rows:
                place_BW = self._places(row)
                begins, ends = int(place_BW[0, 0]), int(place_BW[-1, -1]) + 1
                while first < min(begins, first + len(held)):
                    held.popleft()
                    first += 1
                if first + len(held) < ends:
                    break
                frames = torch.stack(list(islice(held, begins - first, ends - first)))
                yield WindowBatch(frames, torch.from_numpy(place_BW - begins))
                row += len(place_BW)
        if row < self.rows:
            raise VideoError(f"its frames end before window {row} of {self.rows}")

    def _places(self, row: int) -> np.ndarray:
        """(B, W): where the frames of the batch that begins with window `row` are among those needed."""
        end = min(row + self.batch, self.rows)
        return np.searchsorted(self._needed, self.grid.indices(self.frames, row, end))

    def _choose(self, length: int, fps: float) -> np.ndarray:
        start, asked = self.entry.start, self.entry.frames
        self.frames = max(0, (length if asked is None else min(length, start + asked)) - start)
        if not self.frames:
            raise VideoError(f"no frame from frame {start} of {length}")
        self.rows, self.fps = self.grid.rows(self.frames), fps
        if not self.rows:
            raise VideoError(
                f"{counted(self.frames, 'frame')}, and a window of --grid {self.grid.name} has {self.grid.span}; "
                "--grid opentad repeats the edges of a short video"
            )
        self._needed = self.grid.needed(self.frames)
        return start + self._needed


def prepared(frames_FHWC: np.ndarray, info: FeatureInfo) -> Tensor:
    """Frames as the model takes them, a copy of their own: (F, H, W, 3) -> (F, S, S, 3)."""
    frames, size = torch.from_numpy(frames_FHWC), info.size
    height, width = frames.shape[1:3]
    if info.resize == "squash_no_antialias":
        floats = (some.permute(0, 3, 1, 2).float() for some in frames.split(IN_CACHE))
        small = [F.interpolate(some, size=(size, size), mode="bilinear", align_corners=False) / 255 for some in floats]
        return torch.cat(small).permute(0, 2, 3, 1).contiguous()
    box = CropBox(0, 0, height, width) if info.resize == "squash" else view_crops(height, width, 1)[0]
    resized = crop_resize(frames, box, size)
    is_shared = resized.untyped_storage().data_ptr() == frames.untyped_storage().data_ptr()
    return resized.clone() if is_shared else resized


Encode = Callable[[Tensor], Tensor]
"""Windows (B, W, S, S, 3) -> features on the same device: (B, D), or tokens (B, N, D)."""


class ExtractedVideo(NamedTuple):
    """All of a video's features, and how it was gone through."""

    feature_RD: np.ndarray
    """In the number format of the settings; (R, N, D) of tokens, (1, D) of a whole video."""
    about: VideoFeatures
    decoded: int
    """Frames that came out of the decoder."""
    most_held: int
    """Resized frames held at a time, at most."""


def extract_video(
    encode: Encode,
    entry: VideoEntry,
    info: FeatureInfo,
    *,
    device: torch.device | None = None,
    reader: GuardedReader | None = None,
    how: ReadAs | None = None,
    batch: int = BATCH,
) -> ExtractedVideo:
    """The features of one video, in this process.

    Args:
        encode: What gives the features: an encoder's module, or anything else of windows.
        entry: The video, or a part of it.
        info: Grid, size, pixels and pooling; the values are those of `vmae2 extract`.
        device: Where `encode` wants its windows; default: the CPU.
        reader: Under a time limit where it has one; default: this process reads.
        how: A folder of frames and the names of its files.
        batch: Windows that `encode` is given at once.

    Raises VideoError.
    """
    video = VideoWindows(entry, info, reader or GuardedReader(0), how, batch)
    pooled = Pooled(info)
    with torch.inference_mode():
        parts = [pooled.add(encode(some.windows(device or torch.device("cpu")))) for some in video]
    feature_RD = pooled.mean() if info.pooling == "video" else np.concatenate(parts)
    return ExtractedVideo(feature_RD, video.about, video.count.decoded, video.most_held)


class Pooled:
    """What is kept of the model's answers: themselves, or one mean of a video."""

    def __init__(self, info: FeatureInfo) -> None:
        self._info, self._rows, self._sum = info, 0, np.zeros(info.width)

    def add(self, feature_BD: Tensor) -> np.ndarray:
        """A batch in the number format of the file, counted into the mean."""
        found = feature_BD.float().cpu().numpy()
        if self._info.pooling == "video":
            self._rows, self._sum = self._rows + len(found), self._sum + found.sum(axis=0, dtype=np.float64)
        return found.astype(self._info.dtype)

    def mean(self) -> np.ndarray:
        """(1, D): the mean over all windows, summed in float64."""
        return (self._sum / self._rows)[None].astype(self._info.dtype)
