"""Micro batches whose clips are cut on the device: whole frames travel, one copy for all views of a video."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from vmae2_ds.contracts import PretrainBatch
from vmae2_ds.data.clips.crops import CropBox, crop_resize

# B clips = videos * K views, T frames, H x W pixels of a video, S the clip's edge.


class UncutBatch(NamedTuple):
    """What `PretrainBatch` holds, with the videos' frames and the boxes in place of the clips."""

    videos_THWC: list[Tensor]
    """uint8, one a video; videos differ in H and W."""
    boxes_B: list[CropBox]
    """Video by video."""
    size: int
    """S."""
    visible_BV: Tensor
    decode_BM: Tensor
    is_supervised_BM: Tensor

    def to(self, device: torch.device | str) -> PretrainBatch:
        """Copy to `device` without waiting, and cut there."""
        views = len(self.boxes_B) // len(self.videos_THWC)
        clips = []
        for number, video_THWC in enumerate(self.videos_THWC):
            frames_THWC = video_THWC.to(device, non_blocking=True)
            boxes = self.boxes_B[number * views : (number + 1) * views]
            clips += [crop_resize(frames_THWC, box, self.size) for box in boxes]
        masks = (self.visible_BV, self.decode_BM, self.is_supervised_BM)
        return PretrainBatch(torch.stack(clips), *(mask.to(device, non_blocking=True) for mask in masks))
