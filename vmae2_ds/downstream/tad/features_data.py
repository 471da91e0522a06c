"""Features of long videos from files: in training a stretch of a video and its actions, in a test all of it, in windows."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from vmae2_ds.config.tad import TadConfig, TadDataConfig
from vmae2_ds.contracts import ReadFailure, TadBatch
from vmae2_ds.data.entry import VideoEntry
from vmae2_ds.data.feed.dataset import VideoDataset
from vmae2_ds.data.seeding import Purpose
from vmae2_ds.data.sources.mixture import Mixture, Source
from vmae2_ds.data.sources.order import SampleKey
from vmae2_ds.downstream.features.sidecar import read_features
from vmae2_ds.downstream.tad.annotations import AnnotatedVideo
from vmae2_ds.downstream.tad.decode import TimeGrid
from vmae2_ds.downstream.tad.videos import feature_info, length_s, name_of, training_videos
from vmae2_ds.errors import DataError, VideoError

# B videos, R rows of a file, T positions, D width, G segments.

TRIES = 200
"""Stretches of a long video that are drawn until one has an action (docs/PAPER.md#detection-recipes)."""


class Track(NamedTuple):
    """All features of a video, and when they are."""

    feature_RD: np.ndarray
    grid: TimeGrid

    def resized(self, length: int) -> Track:
        """Interpolated along time to so many positions, as torch's interpolate does it without aligned corners.

        The middle of each position lies where its value is taken from: position p is at row (p + 1/2) R / length - 1/2.
        """
        feature_DR = torch.from_numpy(np.array(self.feature_RD, np.float32)).T[None]
        feature_RD = F.interpolate(feature_DR, size=length, mode="linear", align_corners=False)[0].T.numpy()
        grid, ratio = self.grid, len(self.feature_RD) / length
        offset_frames = grid.offset_frames + (0.5 * ratio - 0.5) * grid.stride
        return Track(feature_RD, replace(grid, stride=grid.stride * ratio, offset_frames=offset_frames))


def positions_of(second_N: np.ndarray, grid: TimeGrid) -> np.ndarray:
    """Where these times are on a grid; they need not be whole (the inverse of `grid.seconds`)."""
    return (second_N * grid.fps - grid.offset_frames) / grid.stride


class FeatureFiles:
    """The features of a run's videos, with the time of their rows."""

    def __init__(self, data: TadDataConfig, width: int, videos: Mapping[str, AnnotatedVideo]) -> None:
        """`videos` say the frame rates that no file of features says. Errors as `feature_info`."""
        assert data.features is not None, "checked by check_is_named"
        self.data, self.folder, self.info, self._videos = data, data.features, feature_info(data, width), videos

    @property
    def half_window(self) -> float:
        """Positions from a feature to the end of the window that it was made of."""
        return self.info.window * self.info.interval / 2 / self.info.stride

    def num_windows(self, name: str) -> int:
        """How many windows a test makes of a video; 0 where its file cannot be used."""
        rows = self.rows(name)
        return len(window_starts(rows, self.data)) if rows else 0

    def windows(self, name: str) -> FeatureWindows:
        """The windows of a test. Errors as `read`."""
        return FeatureWindows(fitted(self.read(name), self.data), self.data)

    def batch(self, windows: list[Tensor]) -> tuple[Tensor, Tensor]:
        """What the model takes of some of them, and where it is real."""
        return padded(windows, self.data.length)

    def blank(self) -> tuple[Tensor, Tensor]:
        """A window of nothing."""
        return self.batch([torch.zeros(self.data.length, self.info.width)])

    def rows(self, name: str) -> int:
        """How many a video has; 0 where its file cannot be used."""
        try:
            return len(self._mapped(name).feature_RD)
        except VideoError:
            return 0

    def read(self, name: str) -> Track:
        """All features of a video, mapped from the file. Raises VideoError with what is wrong with it."""
        track = self._mapped(name)
        if not (is_finite_R := np.isfinite(track.feature_RD).all(axis=1)).all():
            raise VideoError(f"{self.folder / name}.npy: row {is_finite_R.argmin()} is not finite; extract it again")
        return track

    def _mapped(self, name: str) -> Track:
        """The same, of which no row is looked at."""
        try:
            array_RD, about = read_features(self.folder, name, self.info)
        except DataError as error:
            raise VideoError(str(error)) from None
        video = self._videos.get(name)
        fps = about.fps or (video and video.fps)
        if not fps:
            raise VideoError(f"neither {name}.json nor the annotations say its frame rate")
        if not len(array_RD):
            raise VideoError("has no feature: it is shorter than a window")
        offset_frames = about.start + self.info.offset_frames  # times count from the start of the file
        return Track(array_RD, TimeGrid(self.info.stride, offset_frames, fps, length_s(video, about.end_s)))


class TadSample(NamedTuple):
    """A stretch of one video, and its actions."""

    feature_TD: Tensor
    """float32."""
    segment_G2: np.ndarray
    """Start and end in positions."""
    label_G: np.ndarray
    failures: list[ReadFailure]
    source: str


class FeaturesDataset(VideoDataset[TadSample]):
    """A stretch of each video and the actions in it; what is drawn is a function of the seed and the sample's key."""

    def __init__(self, config: TadConfig, mixture: Mixture) -> None:
        super().__init__(config.data, config.train.seed, mixture)
        self.data, self._num_classes = config.data, config.model.num_classes
        self._videos = training_videos(config.data)
        self.files = FeatureFiles(config.data, config.model.encoder.width, self._videos)
        self._now: Track | None = None

    def _read(self, entry: VideoEntry, source: Source, name: str, key: SampleKey, attempt: int) -> np.ndarray:
        """(R, D), mapped; when its rows are is kept for `cut`, which follows."""
        del source, name, key, attempt
        self._now = self.files.read(name_of(entry.path))
        return self._now.feature_RD

    def cut(
        self, frames_THWC: np.ndarray, entry: VideoEntry, key: SampleKey, failures: list[ReadFailure], source: str
    ) -> TadSample:
        """A stretch of the features that were read last."""
        del frames_THWC
        assert self._now is not None, "read just now"
        video, track = self._videos[name_of(entry.path)], fitted(self._now, self.data)
        rng = self._generator(Purpose.STRETCH, key)
        at = stretch_of(video, len(track.feature_RD), track.grid, self.data, self.files.half_window, rng)
        feature_TD = torch.from_numpy(np.array(track.feature_RD[at.start : at.end], np.float32))
        return TadSample(feature_TD, at.segment_G2, np.minimum(at.label_G, self._num_classes - 1), failures, source)

    def collate(self, samples: list[TadSample]) -> TadBatch:
        """Features padded to `data.length`: the batch's shape does not change but for the number of actions."""
        features, segments, labels, *_ = map(list, zip(*samples, strict=True))
        return TadBatch(*padded(features, self.data.length), *padded_actions(segments, labels))


class FeatureWindows:
    """What a test shows the head of a fitted video: first position of each window, and its features (T, D)."""

    def __init__(self, track: Track, data: TadDataConfig) -> None:
        self.grid, self._track, self._data = track.grid, track, data

    def __iter__(self) -> Iterator[tuple[int, Tensor]]:
        rows, data = len(self._track.feature_RD), self._data
        for start in window_starts(rows, data):
            end = start + data.length if data.fit == "windows" else rows
            yield start, torch.from_numpy(np.array(self._track.feature_RD[start:end], np.float32))


def padded_actions(segments: list[np.ndarray], labels: list[np.ndarray]) -> tuple[Tensor, Tensor]:
    """The actions of each sample of a micro batch: float32 (B, G, 2), and int64 (B, G), -1 where there is none."""
    most = max(1, *map(len, labels))
    segment_BG2, label_BG = torch.zeros(len(labels), most, 2), torch.full((len(labels), most), -1)
    for at, (segment_G2, label_G) in enumerate(zip(segments, labels, strict=True)):
        segment_BG2[at, : len(label_G)] = torch.from_numpy(segment_G2)
        label_BG[at, : len(label_G)] = torch.from_numpy(label_G)
    return segment_BG2, label_BG


class Stretch(NamedTuple):
    """What is taken of a video in training."""

    start: int
    """First position."""
    end: int
    segment_G2: np.ndarray
    """The actions in it, in positions from its start."""
    label_G: np.ndarray


def stretch_of(
    video: AnnotatedVideo, rows: int, grid: TimeGrid, data: TadDataConfig, half_window: float, rng: np.random.Generator
) -> Stretch:
    """A stretch of a video of so many positions, and its actions; `half_window` as in `FeatureFiles`."""
    second_G2, label_G = _learnt(video, data.min_segment_share)
    segment_G2 = positions_of(second_G2, grid)
    start, end = draw_stretch(rows, segment_G2, data, half_window, rng)
    if end - start < rows:
        near_G2, is_kept_G = near(segment_G2, start, end, half_window, data.keep_share)
        segment_G2, label_G = near_G2[is_kept_G] - start, label_G[is_kept_G]
    return Stretch(start, end, segment_G2, label_G)


def _learnt(video: AnnotatedVideo, least_share: float) -> tuple[np.ndarray, np.ndarray]:
    """The segments in seconds (G, 2) and their labels (G,), without those shorter than the share of its length."""
    second_G2 = np.array([segment[:2] for segment in video.segments], np.float64).reshape(-1, 2)
    label_G = np.array([segment.label for segment in video.segments], np.int64)
    if not least_share or video.duration_s is None:
        return second_G2, label_G
    is_long_G = second_G2[:, 1] - second_G2[:, 0] > least_share * video.duration_s
    return second_G2[is_long_G], label_G[is_long_G]


def padded(features: list[Tensor], length: int) -> tuple[Tensor, Tensor]:
    """(B, T, D) float32 of at least `length` positions, and where they are real (B, T)."""
    length = max(length, *(len(feature_TD) for feature_TD in features))
    feature_BTD = torch.stack([F.pad(feature_TD, (0, 0, 0, length - len(feature_TD))) for feature_TD in features])
    count_B1 = torch.tensor([[len(feature_TD)] for feature_TD in features])
    return feature_BTD, torch.arange(length)[None] < count_B1


def draw_stretch(
    rows: int, segment_G2: np.ndarray, data: TadDataConfig, half_window: float, rng: np.random.Generator
) -> tuple[int, int]:
    """First position and the end of what is taken of `rows`: at most `data.length`, of a shorter video a share of
    `data.crop`, where an action is (docs/PAPER.md#detection-recipes)."""
    wanted = data.length
    if rows <= data.length:
        if data.crop is None:
            return 0, rows
        least, most = (round(share * rows) for share in data.crop)
        wanted = int(rng.integers(max(1, least), max(1, most) + 1))
    start = 0
    for _ in range(TRIES):
        start = int(rng.integers(rows - wanted + 1))
        if near(segment_G2, start, start + wanted, half_window, data.keep_share)[1].any():
            break
    return start, start + wanted


def near(
    segment_G2: np.ndarray, start: int, end: int, half_window: float, keep_share: float
) -> tuple[np.ndarray, np.ndarray]:
    """Segments cut to what the features from `start` to `end` have seen, and which have at least the share left (G,)."""
    near_G2 = np.clip(segment_G2, start - half_window, end + half_window)
    length_G = segment_G2[:, 1] - segment_G2[:, 0]
    return near_G2, near_G2[:, 1] - near_G2[:, 0] >= keep_share * length_G


def fitted(track: Track, data: TadDataConfig) -> Track:
    """A video's features as the head knows them: all of them, or as many as `data.length`."""
    return track.resized(data.length) if data.fit == "resize" else track


def window_starts(rows: int, data: TadDataConfig) -> list[int]:
    """Where the windows of a test begin; the last one ends with the video."""
    if data.fit != "windows" or rows <= data.length:
        return [0]
    step = max(1, int(data.length * (1 - data.overlap)))
    return [*range(0, rows - data.length, step), rows - data.length]
