"""Windows of frames of long videos: in training a stretch of each and its actions, in a test all of it, window by window.

A video streams by, and each frame that is needed is decoded and cropped once: no more whole frames are held than a piece of it.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from vmae2_ds.config.tad import TadConfig, TadDataConfig
from vmae2_ds.contracts import ReadFailure, TadFramesBatch
from vmae2_ds.data.clips.crops import CropBox, crop_resize, draw_resized_crop, view_crops
from vmae2_ds.data.entry import ReadAs, VideoEntry
from vmae2_ds.data.feed.dataset import VideoDataset
from vmae2_ds.data.readers.common import FrameCount
from vmae2_ds.data.readers.watchdog import GuardedReader
from vmae2_ds.data.seeding import Purpose
from vmae2_ds.data.sources.mixture import Mixture, Source
from vmae2_ds.data.sources.order import SampleKey
from vmae2_ds.downstream.tad.annotations import AnnotatedVideo
from vmae2_ds.downstream.tad.decode import TimeGrid
from vmae2_ds.downstream.tad.features_data import Stretch, padded_actions, stretch_of, window_starts
from vmae2_ds.downstream.tad.videos import length_s, name_of, training_videos, video_files
from vmae2_ds.errors import VideoError

# B windows, T positions, F frames of a window, H x W pixels, S the edge of a crop, G segments.

BoxOf = Callable[[int, int], CropBox]
"""(height, width) of a video's frames -> what is cut out of all of them."""


class VideoTime(NamedTuple):
    """How long a video is, and when its positions are."""

    positions: int
    grid: TimeGrid


def time_of(length: int, fps: float, video: AnnotatedVideo | None, data: TadDataConfig) -> VideoTime:
    """The whole positions of a video of `length` frames, of which every `data.stride`-th is seen.

    A position's time is the middle of its frames; the first is frame 0. Raises VideoError where nobody says its frame rate,
    it has no position, or as `length_s`.
    """
    fps = fps if fps > 0 else (video and video.fps) or math.nan
    if math.isnan(fps):
        raise VideoError("neither its file nor the annotations say its frame rate")
    positions = -(-length // data.stride) // data.frames_per_position
    if not positions:
        raise VideoError(
            f"{length} frames are less than one position of {data.frames_per_position}, {data.stride} apart"
        )
    duration_s = length_s(video, length / fps)
    offset_frames = (data.frames_per_position - 1) / 2 * data.stride
    return VideoTime(positions, TimeGrid(data.frames_per_position * data.stride, offset_frames, fps, duration_s))


def frames_of(start: int, end: int, data: TadDataConfig) -> np.ndarray:
    """The frames of positions `start` to `end`."""
    return np.arange(start * data.frames_per_position, end * data.frames_per_position) * data.stride


def cropped(pieces: Iterator[np.ndarray], box_of: BoxOf, size: int) -> Iterator[Tensor]:
    """Pieces of a video (T, H, W, 3) -> each cut and resized, uint8 (T, S, S, 3), in memory of its own."""
    box: CropBox | None = None
    for piece_THWC in pieces:
        frames_THWC = torch.from_numpy(piece_THWC)
        box = box or box_of(*piece_THWC.shape[1:3])
        cut_TSSC = crop_resize(frames_THWC, box, size)
        shared = cut_TSSC.untyped_storage().data_ptr() == frames_THWC.untyped_storage().data_ptr()
        yield cut_TSSC.clone() if shared else cut_TSSC


def middle(height: int, width: int) -> CropBox:
    """The square in the middle, its edge the short side."""
    return view_crops(height, width, 1)[0]


def whole_window(frame_FSSC: Tensor, length: int) -> Tensor:
    """So many frames: behind the end the last one, again and again (as published)."""
    lacking = length - len(frame_FSSC)
    return torch.cat([frame_FSSC, frame_FSSC[-1:].expand(lacking, -1, -1, -1)]) if lacking else frame_FSSC


class FrameSample(NamedTuple):
    """A stretch of one video as frames, and its actions."""

    frame_FSSC: Tensor
    """uint8, a whole window."""
    num_real: int
    """Positions of it that are real."""
    segment_G2: np.ndarray
    """Start and end in positions."""
    label_G: np.ndarray
    failures: list[ReadFailure]
    source: str


class FramesDataset(VideoDataset[FrameSample]):
    """A stretch of each video and the actions in it, cropped and mirrored as one; all of it is drawn from the seed and the
    sample's key."""

    def __init__(self, config: TadConfig, mixture: Mixture) -> None:
        super().__init__(config.data, config.train.seed, mixture)
        self.data, self._num_classes = config.data, config.model.num_classes
        self._videos = training_videos(config.data)
        self._now: Stretch | None = None

    def _read(self, entry: VideoEntry, source: Source, name: str, key: SampleKey, attempt: int) -> np.ndarray:
        """(F, S, S, 3) cropped; which stretch it is is kept for `cut`, which follows."""
        del name
        data, video = self.data, self._videos[name_of(entry.path)]

        def choose(length: int, fps: float) -> np.ndarray:
            positions, grid = time_of(length, fps, video, data)
            rng = self._generator(Purpose.STRETCH, key, attempt=attempt)
            self._now = stretch_of(video, positions, grid, data, 0.0, rng)  # a position sees its own frames alone
            return frames_of(self._now.start, self._now.end, data)

        def box_of(height: int, width: int) -> CropBox:
            rng = self._generator(Purpose.CROP, key, attempt=attempt)
            return draw_resized_crop(height, width, data.crop_area, data.crop_aspect, data.flip, rng)

        pieces = self._reader.stream(entry, source.how, choose, FrameCount())
        return torch.cat(list(cropped(pieces, box_of, data.size))).numpy()

    def cut(
        self, frames_THWC: np.ndarray, entry: VideoEntry, key: SampleKey, failures: list[ReadFailure], source: str
    ) -> FrameSample:
        """The stretch that was read last."""
        del entry, key
        assert self._now is not None, "read just now"
        start, end, segment_G2, label_G = self._now
        frame_FSSC = whole_window(torch.from_numpy(frames_THWC), self.data.window_frames)
        return FrameSample(
            frame_FSSC, end - start, segment_G2, np.minimum(label_G, self._num_classes - 1), failures, source
        )

    def collate(self, samples: list[FrameSample]) -> TadFramesBatch:
        """Windows of one length: the batch's shape does not change but for the number of actions."""
        windows, counts, segments, labels, *_ = map(list, zip(*samples, strict=True))
        is_real_BT = _real(counts, self.data.length)
        return TadFramesBatch(torch.stack(windows), is_real_BT, *padded_actions(segments, labels))


def _real(counts: list[int], length: int) -> Tensor:
    return torch.arange(length)[None] < torch.tensor(counts)[:, None]


class VideoFiles:
    """A run's videos as a detector is shown them, the middle of each picture."""

    def __init__(self, data: TadDataConfig, videos: Mapping[str, AnnotatedVideo]) -> None:
        """`videos` say the frame rates that no file says."""
        assert data.videos is not None, "checked by check_is_named"
        self.data, self._videos = data, videos
        self._files = {name: data.videos / file for name, file in video_files(data.videos).items()}
        self._reader = GuardedReader(data.read_timeout_s)
        self._positions = cache(self._ask_positions)
        self.count = FrameCount()

    def num_windows(self, name: str) -> int:
        """How many windows a test makes of a video; 0 where it cannot be opened. Nothing of it is decoded."""
        positions = self._positions(name)
        return len(window_starts(positions, self.data)) if positions else 0

    def windows(self, name: str) -> FrameWindows:
        """The windows of a test."""
        return FrameWindows(self, name)

    def batch(self, windows: list[Tensor]) -> tuple[Tensor, Tensor]:
        """What the model takes of some of them, and where it is real."""
        frames = self.data.window_frames
        real_BT = _real([len(window) // self.data.frames_per_position for window in windows], self.data.length)
        return torch.stack([whole_window(window, frames) for window in windows]), real_BT

    def blank(self) -> tuple[Tensor, Tensor]:
        """A window of nothing."""
        size = self.data.size
        return self.batch([torch.zeros(self.data.window_frames, size, size, 3, dtype=torch.uint8)])

    def stream(self, name: str, choose: Callable[[VideoTime], np.ndarray]) -> Iterator[Tensor]:
        """The frames chosen, cropped, in pieces. Raises VideoError."""
        if name not in self._files:
            raise VideoError(f"no such video in {self.data.videos}")
        entry = VideoEntry(str(self._files[name]), None, "", 0, None)

        def chosen(length: int, fps: float) -> np.ndarray:
            return choose(time_of(length, fps, self._videos.get(name), self.data))

        return cropped(self._reader.stream(entry, ReadAs(), chosen, self.count), middle, self.data.size)

    def _ask_positions(self, name: str) -> int:
        found: list[int] = []

        def look(time: VideoTime) -> np.ndarray:
            found.append(time.positions)
            raise VideoError("that is all that was asked")

        with contextlib.suppress(VideoError):
            next(self.stream(name, look), None)
        return found[0] if found else 0


class FrameWindows:
    """What a test shows the model of a video: first position of each window, and its frames (F, S, S, 3).

    Iterated once; `grid` is known from the first window on. Frames that two windows share are kept from one to the next.
    Raises VideoError while iterating.
    """

    def __init__(self, files: VideoFiles, name: str) -> None:
        self._files, self._name = files, name
        self._time: VideoTime | None = None

    @property
    def grid(self) -> TimeGrid:
        """When positions are."""
        assert self._time is not None, "no window was read yet"
        return self._time.grid

    def __iter__(self) -> Iterator[tuple[int, Tensor]]:
        data = self._files.data
        each = data.frames_per_position
        held, first, row = list[Tensor](), 0, 0
        for piece_TSSC in self._files.stream(self._name, self._choose):
            assert self._time is not None, "chosen before the first piece"
            starts = window_starts(self._time.positions, data)
            held.append(piece_TSSC)
            while row < len(starts):
                begins, ends = starts[row], min(starts[row] + data.length, self._time.positions)
                if first + sum(map(len, held)) < ends * each:
                    break
                frame_FSSC = torch.cat(
                    [held[0][begins * each - first :], *held[1:]]
                )  # the last window reaches to this one
                held, first = [frame_FSSC], begins * each
                yield begins, frame_FSSC[: (ends - begins) * each]
                row += 1
        if self._time is None or row < len(window_starts(self._time.positions, data)):
            raise VideoError(f"its frames end before those of window {row} are all there")

    def _choose(self, time: VideoTime) -> np.ndarray:
        self._time = time
        return frames_of(0, time.positions, self._files.data)
