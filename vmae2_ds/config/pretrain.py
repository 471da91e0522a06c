"""A pre-training run: masks, what the decoder predicts, data, model."""

from __future__ import annotations

from typing import Annotated, Literal

import tyro
from pydantic import Field

from vmae2_ds.config.model import ModelConfig
from vmae2_ds.config.run import DataConfig, RunConfig
from vmae2_ds.config.strict import Part, PartBelow1, StrictModel


class MaskConfig(StrictModel):
    """What the encoder and the decoder do not see."""

    encoder: Literal["tube", "random", "frame"] = "tube"
    """Encoder mask: the same cells in every frame, independent cubes, or whole frames."""
    encoder_ratio: PartBelow1 = 0.9
    """Share of cubes hidden from the encoder."""
    decoder: Literal["none", "running_cell", "frame", "random"] = "running_cell"
    """Decoder mask; none decodes every cube hidden from the encoder (VideoMAE V1, encoder-only masking)."""
    decoder_ratio: PartBelow1 = 0.5
    """Share of cubes that are not decoded; running_cell takes 0.25, 0.5 or 0.75."""
    decoder_tokens: Literal["official", "disjoint"] = "official"
    """official: a mask token at every decoder-visible cube (published); disjoint: only where the encoder saw nothing."""


class ObjectiveConfig(StrictModel):
    """What the decoder has to predict."""

    target: Literal["normalised", "pixels"] = "normalised"
    """Cubes normalised by their own mean and deviation per colour (published), or plain pixels in [0, 1]."""


class PretrainDataConfig(DataConfig):
    """Videos, how clips are drawn from them, and how they are fed."""

    crop_scales: Annotated[tuple[Annotated[float, Field(gt=0, le=1)], ...], Field(min_length=1)] = (
        1.0,
        0.875,
        0.75,
        0.66,
    )
    """Multi-scale crop: edges as shares of the short side."""
    flip: Part = 0.0
    """Share of clips mirrored left to right (published: none; wrong wherever a label or a motion has a side, as in SSv2)."""
    jitter: PartBelow1 = 0.0
    """Brightness and contrast of a clip are multiplied by up to 1 - jitter or 1 + jitter (published: none). For small sets,
    whose scenes are otherwise learned by heart."""
    crop_on: Literal["workers", "device"] = "workers"
    """Where clips are cut, resized and mirrored: by the loader's processes, or on the device, which then gets whole frames."""


class PretrainConfig(RunConfig):
    """Everything that decides a pre-training run."""

    stage: tyro.conf.Suppress[Literal["pretrain"]] = "pretrain"
    """Which kind of run this is."""
    model: ModelConfig
    """Shape and attention."""
    mask: MaskConfig = MaskConfig()
    """Encoder and decoder masks."""
    objective: ObjectiveConfig = ObjectiveConfig()
    """Reconstruction target."""
    data: PretrainDataConfig = PretrainDataConfig()
    """Videos and clips."""
