"""Labelled videos for training: `views` augmented clips of a video, and micro batches that are mixed."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from vmae2_ds.config.finetune import FinetuneConfig
from vmae2_ds.contracts import LabelledBatch, ReadFailure
from vmae2_ds.data.clips.augment import check_policy, draw_mixing, erase, paste_boxes, rand_augment
from vmae2_ds.data.clips.crops import crop_resize, draw_resized_crop
from vmae2_ds.data.entry import VideoEntry
from vmae2_ds.data.feed.dataset import VideoDataset
from vmae2_ds.data.seeding import Purpose
from vmae2_ds.data.sources.labels import check_labels, check_names
from vmae2_ds.data.sources.mixture import Mixture
from vmae2_ds.data.sources.order import SampleKey

# K views of a video, T frames, S the clip's edge.


class LabelledSample(NamedTuple):
    """One video's clips and its class."""

    clip_KTHWC: Tensor
    """uint8 (K, T, S, S, 3)."""
    label: int
    """-1 where it has none."""
    failures: list[ReadFailure]
    source: str
    key: SampleKey


class LabelledDataset(VideoDataset[LabelledSample]):
    """`views` clips of a video, each with its own RandAugment, crop, mirror and erased box."""

    def __init__(self, config: FinetuneConfig, mixture: Mixture, *, needs_labels: bool = True) -> None:
        """Raises ConfigError for labels that the model has no class for, and for an unknown RandAugment policy.

        `needs_labels=False`: any label will do, or none.
        """
        super().__init__(config.data, config.train.seed, mixture)
        self.data, self.augment = config.data, config.augment
        check_names(config, mixture.form.names)
        for source in mixture.sources if needs_labels else ():
            check_labels(source.manifest, config.model.num_classes)
        if self.augment.rand_augment:
            check_policy(self.augment.rand_augment, self.data.size)

    def cut(
        self, frames_THWC: np.ndarray, entry: VideoEntry, key: SampleKey, failures: list[ReadFailure], source: str
    ) -> LabelledSample:
        """The clips and the label of the video that was used."""
        clips_KTHWC = torch.stack([self._view(frames_THWC, key, view) for view in range(self.data.views)])
        label = -1 if entry.label is None else entry.label
        return LabelledSample(clips_KTHWC, label, failures, source, key)

    def collate(self, samples: list[LabelledSample]) -> LabelledBatch:
        """Clips video by video; how they are mixed is a function of the first sample's key."""
        clip_BTHWC = torch.cat([sample.clip_KTHWC for sample in samples])
        label_B = torch.tensor([sample.label for sample in samples]).repeat_interleave(self.data.views)
        augment = self.augment
        mixing = draw_mixing(
            self.data.size,
            augment.mixup,
            augment.cutmix,
            augment.mix_share,
            augment.cutmix_share,
            self._generator(Purpose.MIX, samples[0].key),
        )
        if mixing.box is not None:
            clip_BTHWC = paste_boxes(clip_BTHWC, mixing.box)
        return LabelledBatch(clip_BTHWC, label_B, torch.tensor(mixing.keep_pixels), torch.tensor(mixing.keep_label))

    def _view(self, frames_THWC: np.ndarray, key: SampleKey, view: int) -> Tensor:
        """(T, S, S, 3) uint8, in the published order: RandAugment on whole frames, crop, erase."""
        if self.augment.rand_augment:
            rng = self._generator(Purpose.AUGMENT, key, view)
            frames_THWC = rand_augment(frames_THWC, self.augment.rand_augment, self.data.size, rng)
        height, width = frames_THWC.shape[1:3]
        rng = self._generator(Purpose.CROP, key, view)
        box = draw_resized_crop(height, width, self.data.crop_area, self.data.crop_aspect, self.data.flip, rng)
        clip_TSSC = crop_resize(
            torch.from_numpy(frames_THWC), box, self.data.size
        ).clone()  # the frames are the reader's
        erase(clip_TSSC, self.augment.erase, self._generator(Purpose.ERASE, key, view))
        return clip_TSSC
