"""Videos for pre-training: `views` clips of each, with their masks."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from vmae2_ds.config.pretrain import PretrainConfig
from vmae2_ds.contracts import Masks, Movable, PretrainBatch, ReadFailure
from vmae2_ds.data.clips.crops import CropBox, crop_resize, draw_crop
from vmae2_ds.data.clips.device_crops import UncutBatch
from vmae2_ds.data.entry import VideoEntry
from vmae2_ds.data.feed.dataset import VideoDataset
from vmae2_ds.data.seeding import Purpose
from vmae2_ds.data.sources.mixture import Mixture
from vmae2_ds.data.sources.order import SampleKey
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
