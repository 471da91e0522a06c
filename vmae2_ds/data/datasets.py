"""One video of the manifest -> `views` clips with masks, each a function of (seed, epoch, row, view) alone."""

from __future__ import annotations

import difflib
import logging
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from vmae2_ds.config import RunConfig
from vmae2_ds.contracts import Masks, PretrainBatch, ReadFailure
from vmae2_ds.data.decode import read_clip
from vmae2_ds.data.manifest import Manifest, VideoEntry
from vmae2_ds.data.sampling import SAMPLERS
from vmae2_ds.data.seeding import Purpose, generator
from vmae2_ds.data.transforms import crop_resize, draw_crop
from vmae2_ds.errors import ConfigError, DataError, VideoError
from vmae2_ds.masking import make_masks

log = logging.getLogger(__name__)

# K views of a video, T frames, S the clip's edge, V visible cubes, M decoded cubes.

MAX_ATTEMPTS = 8
"""Videos tried for one sample. Replacements are drawn from the whole manifest, so 8 bad ones mean it is mostly bad."""


class SampleKey(NamedTuple):
    """Which sample: everything random in it follows from this and the seed."""

    epoch: int
    row: int


class Sample(NamedTuple):
    """One video's clips, and the videos that were tried before it."""

    clip_KTHWC: Tensor
    """uint8."""
    visible_KV: Tensor
    decode_KM: Tensor
    is_supervised_KM: Tensor
    failures: list[ReadFailure]
    source: str


class PretrainDataset(Dataset[Sample]):
    """`dataset[SampleKey(epoch, row)]` decodes one video once and cuts `views` clips from it."""

    def __init__(self, config: RunConfig, manifest: Manifest) -> None:
        """Raises ConfigError for a stride whose source looks like a misspelt one of the manifest.

        A source that is simply absent is fine: the hybrid recipes name SSv2, and other sets have none.
        """
        self.data, self.mask, self.geometry, self.seed = config.data, config.mask, config.geometry, config.train.seed
        self.manifest = manifest
        spelt = {source.lower(): source for source in manifest.sources}
        for source in sorted(set(config.data.source_strides) - set(manifest.sources)):
            for near in difflib.get_close_matches(source.lower(), spelt, n=1):
                raise ConfigError(
                    f"data.source_strides: {manifest.file} has no source {source!r}; did you mean {spelt[near]!r}?"
                )
            log.info(
                "no video has the source %r of data.source_strides; sources are %s", source, ", ".join(manifest.sources)
            )

    def __len__(self) -> int:
        return len(self.manifest)

    def __getitem__(self, key: SampleKey) -> Sample:
        """Raises DataError when MAX_ATTEMPTS videos in a row cannot be used."""
        failures: list[ReadFailure] = []
        for attempt in range(MAX_ATTEMPTS):
            entry = self.manifest[self._row(key, attempt)]
            try:
                frames_THWC = self._read(entry, key, attempt)
            except VideoError as error:
                failures.append(ReadFailure(entry.path, str(error)))
                continue
            clips = [self._cut(frames_THWC, key, view) for view in range(self.data.views)]
            masks = [self._draw_masks(key, view) for view in range(self.data.views)]
            return Sample(*PretrainBatch.of_clips(torch.stack(clips), masks), failures, entry.source)
        raise DataError(
            f"{self.manifest.file}: none of {MAX_ATTEMPTS} videos drawn for epoch {key.epoch}, row {key.row} could be "
            f"used; the last: {failures[-1].path}: {failures[-1].reason}; check --data.root and the files"
        )

    def _row(self, key: SampleKey, attempt: int) -> int:
        if attempt == 0:
            return key.row
        draw = generator(Purpose.REPLACEMENT, self.seed, key.epoch, key.row, attempt=attempt)
        return int(draw.integers(len(self.manifest)))

    def _read(self, entry: VideoEntry, key: SampleKey, attempt: int) -> np.ndarray:
        """(T, H, W, 3) uint8; raises VideoError."""
        rng = generator(Purpose.FRAMES, self.seed, key.epoch, key.row, attempt=attempt)
        stride = self.data.source_strides.get(entry.source, self.data.stride)

        def choose(length: int) -> np.ndarray:
            part = max(0, length - entry.start) if entry.frames is None else min(entry.frames, length - entry.start)
            if part < self.data.min_frames:
                whole = "" if part == length else f" from frame {entry.start} of {length}"
                raise VideoError(f"too short: {max(0, part)} frame(s){whole}; min_frames={self.data.min_frames}")
            return entry.start + SAMPLERS[self.data.sampling](part, self.data.num_frames, stride, rng)

        return read_clip(entry.path, choose, self.data.reader)

    def _cut(self, frames_THWC: np.ndarray, key: SampleKey, view: int) -> Tensor:
        """(T, S, S, 3) uint8."""
        rng = generator(Purpose.CROP, self.seed, key.epoch, key.row, view)
        height, width = frames_THWC.shape[1:3]
        return crop_resize(
            frames_THWC, draw_crop(height, width, self.data.size, self.data.crop_scales, rng), self.data.size
        )

    def _draw_masks(self, key: SampleKey, view: int) -> Masks:
        return make_masks(self.mask, self.geometry, generator(Purpose.MASK, self.seed, key.epoch, key.row, view))
