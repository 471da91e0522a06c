"""Videos for pre-training: `views` clips of each, with their masks."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from vmae2_ds.config.pretrain import PretrainConfig
from vmae2_ds.contracts import Masks, Movable, PretrainBatch, ReadFailure
from vmae2_ds.data.clips.crops import CropBox, crop_resize, draw_crop, view_crops
from vmae2_ds.data.clips.device_crops import UncutBatch
from vmae2_ds.data.clips.sampling import middle_clip
from vmae2_ds.data.entry import VideoEntry
from vmae2_ds.data.feed.dataset import VideoDataset
from vmae2_ds.data.feed.loader import load_items
from vmae2_ds.data.seeding import Purpose, generator
from vmae2_ds.data.sources.held_back import number_of
from vmae2_ds.data.sources.mixture import Mixture
from vmae2_ds.data.sources.order import SampleKey
from vmae2_ds.errors import VideoError
from vmae2_ds.masking import make_masks


class PretrainSample(NamedTuple):
    """One video's clips and their masks."""

    clip_KTHWC: Tensor
    """uint8 (K, T, S, S, 3); with crop_on=device the whole frames, (1, T, H, W, 3)."""
    visible_KV: Tensor
    decode_KM: Tensor
    is_supervised_KM: Tensor
    failures: list[ReadFailure]
    source: str
    boxes_K: list[CropBox]
    """What is, or has still to be, cut from the frames."""


class PretrainDataset(VideoDataset[PretrainSample]):
    """`views` clips of a video, each with its own crop and masks."""

    def __init__(self, config: PretrainConfig, mixture: Mixture) -> None:
        super().__init__(config.data, config.train.seed, mixture)
        self.data, self.mask, self.geometry = config.data, config.mask, config.geometry

    def cut(
        self, frames_THWC: np.ndarray, entry: VideoEntry, key: SampleKey, failures: list[ReadFailure], source: str
    ) -> PretrainSample:
        """The clips; what the video shows has no part in it."""
        del entry
        boxes = [self._draw_box(frames_THWC.shape, key, view) for view in range(self.data.views)]
        masks = [self._draw_masks(key, view) for view in range(self.data.views)]
        frames = torch.from_numpy(frames_THWC)
        cuts = [frames] if self.data.crop_on == "device" else [self._cut(frames, box) for box in boxes]
        # stacking copies: the frames are the reader's, until its next read
        return PretrainSample(*PretrainBatch.of_clips(torch.stack(cuts), masks), failures, source, boxes)

    def collate(self, samples: list[PretrainSample]) -> Movable:
        """Clips of several videos, or their frames, in one batch."""
        masks = (
            torch.cat([sample.visible_KV for sample in samples]),
            torch.cat([sample.decode_KM for sample in samples]),
            torch.cat([sample.is_supervised_KM for sample in samples]),
        )
        if self.data.crop_on == "workers":
            return PretrainBatch(torch.cat([sample.clip_KTHWC for sample in samples]), *masks)
        videos = [sample.clip_KTHWC[0] for sample in samples]
        return UncutBatch(videos, [box for sample in samples for box in sample.boxes_K], self.data.size, *masks)

    def _draw_box(self, shape: tuple[int, ...], key: SampleKey, view: int) -> CropBox:
        rng = self._generator(Purpose.CROP, key, view)
        return draw_crop(
            shape[1], shape[2], self.data.size, self.data.crop_scales, rng, self.data.flip, self.data.jitter
        )

    def _cut(self, frames_THWC: Tensor, box: CropBox) -> Tensor:
        """(T, S, S, 3) uint8."""
        return crop_resize(frames_THWC, box, self.data.size)

    def _draw_masks(self, key: SampleKey, view: int) -> Masks:
        return make_masks(self.mask, self.geometry, self._generator(Purpose.MASK, key, view))


class MiddleClips(PretrainDataset):
    """One clip of each video for validation, in which nothing is drawn but masks: its middle frames, a square of the short side
    in the middle, and masks that follow from the video's name in its list. Runs of any seed look at the same."""

    def __init__(self, config: PretrainConfig, mixture: Mixture) -> None:
        """What a stride's source is called the training videos have checked: these may have none of it."""
        strides = {source: step for source, step in config.data.source_strides.items() if source in mixture.names}
        data = {"views": 1, "crop_on": "workers", "source_strides": strides}
        super().__init__(config.changed(data=data), mixture.with_reader("pyav"))

    def __getitem__(self, key: SampleKey) -> PretrainBatch | None:  # type: ignore[override]  # no other video is taken for it
        """The clip, in a batch of its own; None of a video that cannot be used."""
        entry, source = self.entry_of(key), self.mixture.sources[key.source]
        name = source.name or entry.source
        try:
            frames_THWC = self._read(entry, source, name, key, attempt=0)
        except VideoError:
            return None
        frames = torch.from_numpy(frames_THWC)
        clip_TSSC = self._cut(frames, self._draw_box(frames_THWC.shape, key, 0))
        return PretrainBatch.of_clips(clip_TSSC[None].clone(), [self._draw_masks(key, 0)])

    def iterate(self, keys: Sequence[SampleKey]) -> Generator[PretrainBatch | None, None, None]:
        """These videos in order, read by `data.workers` processes. Raises DataError where one of them dies or hangs."""
        return load_items(self.data, self, keys)

    def _clip_indices(self, length: int, stride: int, key: SampleKey, attempt: int) -> np.ndarray:
        del key, attempt
        return middle_clip(self.data.sampling, length, self.data.num_frames, stride)

    def _draw_box(self, shape: tuple[int, ...], key: SampleKey, view: int) -> CropBox:
        del key, view
        (box,) = view_crops(shape[1], shape[2], 1)
        return box

    def _draw_masks(self, key: SampleKey, view: int) -> Masks:
        del view
        video = self.mixture.sources[key.source].manifest.listed(key.row)
        rng = generator(Purpose.HELD_BACK, seed=0, epoch=0, row=number_of(video.path, video.start))
        return make_masks(self.mask, self.geometry, rng)
