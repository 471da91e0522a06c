"""Clips around key frames: in training one of each, cut at random; in a test all of them in order, seen whole."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from vmae2_ds.config.ava import KEY_FRAMES_AT_ONCE, AvaConfig
from vmae2_ds.contracts import AvaBatch, ReadFailure
from vmae2_ds.data.entry import VideoEntry
from vmae2_ds.data.feed.dataset import VideoDataset
from vmae2_ds.data.feed.loader import load_items
from vmae2_ds.data.readers.common import FrameCount
from vmae2_ds.data.readers.keeping import make_reader
from vmae2_ds.data.seeding import Purpose
from vmae2_ds.data.sources.mixture import Mixture, Source
from vmae2_ds.data.sources.order import SampleKey
from vmae2_ds.downstream.ava.clip_files import KeyFrameList, Span
from vmae2_ds.downstream.ava.framing import Framing, draw, is_left, jittered, whole
from vmae2_ds.errors import VideoError

# B clips, T frames, H x W pixels, S x S those of a training clip, G boxes, C actions.


class AvaSample(NamedTuple):
    """The clip around one key frame."""

    clip_TSSC: Tensor
    """uint8."""
    box_G4: Tensor
    """float32 x1 y1 x2 y2 in pixels of the clip; at least one."""
    target_GC: Tensor
    """float32."""
    failures: list[ReadFailure]
    source: str


class KeyFrameDataset(VideoDataset[AvaSample]):
    """A clip around each key frame, cut, coloured and mirrored as one with its boxes; all of it is drawn from the seed and the
    sample's key."""

    def __init__(self, config: AvaConfig, mixture: Mixture) -> None:
        """`mixture` is of a list that `list_of` made. Raises DataError as `ClipFiles`."""
        super().__init__(config.data, config.train.seed, mixture)
        (source,) = mixture.sources
        assert isinstance(source.manifest, KeyFrameList), "a list of key frames"
        self.data, self._frames, self._files = config.data, source.manifest.key_frames, source.manifest.files
        self._span = Span.of(config.data)

    def _read(self, entry: VideoEntry, source: Source, name: str, key: SampleKey, attempt: int) -> np.ndarray:
        """(T, H, W, 3) uint8, valid until the next read; raises VideoError."""
        del entry, source, name
        return self._files.read(self._reader, self._frames.key(self._row(key, attempt)), self._span)

    def cut(
        self, frames_THWC: np.ndarray, entry: VideoEntry, key: SampleKey, failures: list[ReadFailure], source: str
    ) -> AvaSample:
        """The square that was drawn, and those of the people who are in it."""
        del entry
        attempt = len(failures)
        row = self._row(key, attempt)
        people_G4, target_GC = self._frames[row].box_G4, self._frames.targets(row)
        rng = self._generator(Purpose.CROP, key, attempt=attempt)
        framing = draw(frames_THWC.shape[1], frames_THWC.shape[2], self.data, people_G4, rng)
        box_G4 = framing.boxes(people_G4)
        kept_G = np.flatnonzero(is_left(box_G4))
        rng = self._generator(Purpose.BOXES, key, attempt=attempt)
        if len(kept_G) > self.data.most_boxes:
            kept_G = np.sort(rng.choice(kept_G, self.data.most_boxes, replace=False))
        box_G4 = box_G4[kept_G]
        if any(self.data.box_jitter):
            box_G4 = jittered(box_G4, self.data.box_jitter, framing.cut, rng)
        clip_TSSC = framing.clip(torch.from_numpy(frames_THWC))
        target_GC = target_GC[kept_G]
        return AvaSample(clip_TSSC, torch.from_numpy(box_G4).float(), torch.from_numpy(target_GC), failures, source)

    def collate(self, samples: list[AvaSample]) -> AvaBatch:
        """Clips of one size; boxes and actions of each filled up with zeros to the largest number of boxes."""
        box_BG4, is_box_BG = padded([sample.box_G4 for sample in samples])
        target_BGC = torch.zeros(*is_box_BG.shape, samples[0].target_GC.shape[1])
        for target_GC, sample in zip(target_BGC, samples, strict=True):
            target_GC[: len(sample.target_GC)] = sample.target_GC
        return AvaBatch(torch.stack([sample.clip_TSSC for sample in samples]), box_BG4, is_box_BG, target_BGC)


def padded(boxes: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Boxes (G, 4) of several clips -> those of a batch (B, G, 4), zeros where there is none, and (B, G) where there is one."""
    counts = torch.tensor([len(box_G4) for box_G4 in boxes])
    is_box_BG = torch.arange(int(counts.max()))[None] < counts[:, None]
    box_BG4 = torch.zeros(*is_box_BG.shape, 4)
    box_BG4[is_box_BG] = torch.cat(list(boxes))
    return box_BG4, is_box_BG


class KeyFrameClip(NamedTuple):
    """The clip around one key frame of a test; None where it could not be read, and then why."""

    row: int
    """Number of the key frame in its list."""
    clip_THWC: Tensor | None
    """uint8: the whole picture, filled up to multiples of the patch."""
    box_G4: Tensor
    """float32 x1 y1 x2 y2 in pixels of the clip; none where it could not be read."""
    picture_2: Tensor
    """int64 height and width in pixels of the picture in the clip: what is not filled up."""
    reason: str | None


class KeyFrameClips(Dataset[list[KeyFrameClip]]):
    """The clips of a test: `clips.iterate(rows)` reads key frames in the order asked for.

    Key frames that follow each other in one movie or folder of frames are decoded together.
    """

    def __init__(self, config: AvaConfig, listed: KeyFrameList) -> None:
        """`listed` says at which key frames, and where their videos are."""
        self.data, self.key_frames, self.files = config.data, listed.key_frames, listed.files
        self._span, self._patch = Span.of(config.data), config.model.patch
        self._reader = make_reader(config.data.read_timeout_s, config.data.cache, config.data.cache_folder)
        self.count = FrameCount()
        """What was decoded of the video that was read last in one go."""

    def __len__(self) -> int:
        return len(self.key_frames)

    def __getitem__(self, rows: Sequence[int]) -> list[KeyFrameClip]:
        """The clips of these rows, which are of one video."""
        if len(rows) > 1 and self.files.streams:
            try:
                return self._together(rows)
            except VideoError:
                pass  # what can be read of it is read one by one
        return [self._alone(row) for row in rows]

    def iterate(self, rows: Sequence[int]) -> Iterator[KeyFrameClip]:
        """These rows in order, read by `data.workers` processes. Raises DataError where one of them dies or hangs."""
        for run in load_items(self.data, self, self._runs(rows)):
            yield from run

    def _runs(self, rows: Sequence[int]) -> list[list[int]]:
        """The rows in pieces of at most KEY_FRAMES_AT_ONCE that follow each other in one video."""
        video_F = self.key_frames.video_F
        runs: list[list[int]] = []
        for row in rows:
            last = runs[-1] if runs else []
            if last and len(last) < KEY_FRAMES_AT_ONCE and row == last[-1] + 1 and video_F[row] == video_F[last[-1]]:
                last.append(row)
            else:
                runs.append([row])
        return runs

    def _alone(self, row: int) -> KeyFrameClip:
        key = self.key_frames.key(row)
        try:
            frames_THWC = self.files.read(self._reader, key, self._span)
        except VideoError as error:
            nothing = torch.zeros(2, dtype=torch.int64)
            return KeyFrameClip(row, None, torch.zeros(0, 4), nothing, f"{self.files.file_of(key)}: {error}")
        framing = self._framing(frames_THWC.shape)
        return self._clip(row, framing, framing.clip(torch.from_numpy(frames_THWC)))

    def _together(self, rows: Sequence[int]) -> list[KeyFrameClip]:
        """All of them, or VideoError; each frame that any of them needs is decoded and resized once."""
        keys = [self.key_frames.key(row) for row in rows]
        entry, how = self.files.entry_of(keys[0][0], self.files.file_of(keys[0]))
        number_RT = np.zeros(0, np.int64)

        def choose(length: int, fps: float) -> NDArray[np.int64]:
            nonlocal number_RT
            number_RT = np.stack([self.files.indices(key, self._span, length, fps) for key in keys])
            return np.unique(number_RT)

        framing, resized, self.count = None, list[Tensor](), FrameCount()
        for piece_FHWC in self._reader.stream(entry, how, choose, self.count):
            framing = framing or self._framing(piece_FHWC.shape)
            resized.append(framing.clip(torch.from_numpy(piece_FHWC)))
        assert framing is not None, "a reader gives what was asked for, or raises"
        frames, place_RT = torch.cat(resized), np.searchsorted(np.unique(number_RT), number_RT)
        return [self._clip(row, framing, frames[place_T]) for row, place_T in zip(rows, place_RT, strict=True)]

    def _framing(self, shape: tuple[int, ...]) -> Framing:
        return whole(shape[1], shape[2], self.data.test_short_side, self._patch)

    def _clip(self, row: int, framing: Framing, clip_THWC: Tensor) -> KeyFrameClip:
        box_G4 = framing.boxes(self.key_frames[row].box_G4)
        return KeyFrameClip(row, clip_THWC, torch.from_numpy(box_G4).float(), torch.tensor(framing.cut), None)
