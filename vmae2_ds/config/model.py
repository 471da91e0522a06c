"""Model configuration: towers, the published sizes, masked autoencoders and classifiers."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import tyro
from pydantic import Field, model_validator

from vmae2_ds.config.strict import ClipLength, Edge, PartBelow1, Size, StrictModel
from vmae2_ds.contracts import ClipGeometry

ConfigFile = Annotated[Path | None, tyro.conf.arg(name="config")]
"""A verb's `--config`: a JSON file with fields of a model config."""


AttentionName = Literal["auto", "flash", "sdpa", "math"]
CheckpointingName = Literal["none", "decoder", "every_k", "all", "deepspeed"]
Layer = Annotated[int, Field(ge=1, le=2**20)]
"""Channels, heads or blocks: a million of them is no model."""


class TowerConfig(StrictModel):
    """One transformer tower: the encoder or the decoder."""

    width: Layer
    """Token width D."""
    depth: Layer
    """Number of blocks."""
    heads: Layer
    """Attention heads; must divide the width."""
    mlp: Layer
    """Hidden width of the MLP."""

    @model_validator(mode="after")
    def _heads_divide_width(self) -> TowerConfig:
        if self.width % self.heads or self.width % 2:
            raise ValueError(f"width={self.width} must be even and a multiple of heads={self.heads}")
        return self


def _tower(width: int, depth: int, heads: int, mlp: int | None = None) -> TowerConfig:
    return TowerConfig(width=width, depth=depth, heads=heads, mlp=4 * width if mlp is None else mlp)


SIZES: dict[str, tuple[TowerConfig, TowerConfig, int]] = {
    # name: (encoder, decoder, patch). S to g: PAPER A7 (published code). Tiny: DeiT-Ti's encoder (arXiv 2012.12877).
    "tiny": (_tower(192, 12, 3), _tower(96, 4, 3), 16),
    "small": (_tower(384, 12, 6), _tower(192, 4, 3), 16),
    "base": (_tower(768, 12, 12), _tower(384, 4, 6), 16),
    "large": (_tower(1024, 24, 16), _tower(512, 4, 8), 16),
    "huge": (_tower(1280, 32, 16), _tower(512, 4, 8), 16),
    # 48/11 is applied in the decoder too: int(512 * 48 / 11) = 2234 (published modeling_pretrain.py:467)
    "giant": (_tower(1408, 40, 16, 6144), _tower(512, 4, 8, 2234), 14),
    # Planning only, never trained by the paper: the encoder shape of InternVideo2-6B (arXiv 2403.15377), g's decoder.
    "6b": (_tower(3200, 48, 25, 12800), _tower(512, 4, 8), 14),
}
"""Model sizes by name: encoder, decoder, patch edge in pixels."""


class EncoderConfig(StrictModel):
    """What pre-training and everything after it have in common."""

    encoder: TowerConfig
    """Encoder blocks."""
    patch: Edge = 16
    """Cube edge in pixels."""
    tubelet: ClipLength = 2
    """Cube length in frames."""
    positions_from: tuple[ClipLength, Edge] | None = None
    """Frames and size of another clip, as in "16 224", whose position table is interpolated to this one's grid; default: this
    clip's own table (published)."""
    attention: AttentionName = "auto"
    """Attention kernel. A name never falls back; auto measures once for this device, dtype and shape, and logs it."""
    checkpoint_every: Layer = 2
    """With checkpointing=every_k: one block in this many is recomputed."""
    drop_path: PartBelow1 = 0.0
    """Stochastic depth rate at the last encoder block, rising linearly from 0 (published pre-training: 0)."""

    @property
    def positions_geometry(self) -> ClipGeometry | None:
        """The clip of `positions_from` as cubes; raises ConfigError where it does not divide."""
        if self.positions_from is None:
            return None
        frames, size = self.positions_from
        return ClipGeometry(frames, size, size, self.tubelet, self.patch)


class ModelConfig(EncoderConfig):
    """The masked autoencoder: its encoder sees visible cubes only."""

    decoder: TowerConfig
    """Decoder blocks, on encoder output plus mask tokens."""
    checkpointing: CheckpointingName = "none"
    """Activation checkpointing: recompute no block, the decoder's, one in every_k, all, or all through DeepSpeed's own."""

    @property
    def recomputed_blocks(self) -> tuple[range, range]:
        """Numbers of the encoder's and the decoder's blocks that `checkpointing` computes again."""
        step = self.checkpoint_every if self.checkpointing == "every_k" else 1
        encoder, decoder = range(0, self.encoder.depth, step), range(0, self.decoder.depth, step)
        if self.checkpointing == "none":
            return range(0), range(0)
        return range(0) if self.checkpointing == "decoder" else encoder, decoder

    @classmethod
    def of_size(cls, size: str, **changes: object) -> ModelConfig:
        """The published shape called `size` (a key of SIZES), with fields changed."""
        encoder, decoder, patch = SIZES[size]
        return cls.model_validate({"encoder": encoder, "decoder": decoder, "patch": patch, **changes})


class ClassifierConfig(EncoderConfig):
    """The encoder with a head: it sees all cubes."""

    num_classes: int = Field(400, ge=2, le=2**24)
    """Classes C; labels are 0 .. C-1."""
    checkpointing: Literal["none", "every_k", "all", "deepspeed"] = "none"
    """Activation checkpointing: recompute no block, one in every_k, all, or all through DeepSpeed's own."""
    head_dropout: PartBelow1 = 0.0
    """Dropout in front of the head."""
    head_init_scale: Size = 1e-3
    """The head's first weights are drawn and multiplied by this."""
    positions: Literal["own", "published_resize"] = "own"
    """own: the clip's own position table, or that of positions_from; published_resize: what the published fine-tuning script
    makes of the table for other clips than 16 frames of 224, which weights that it trained at 64 frames of 266 need."""

    @model_validator(mode="after")
    def _one_table(self) -> ClassifierConfig:
        if self.positions != "own" and self.positions_from is not None:
            raise ValueError(f"positions={self.positions} and positions_from={self.positions_from}: keep one of them")
        return self

    @property
    def recomputed_blocks(self) -> range:
        """Numbers of the blocks that `checkpointing` computes again."""
        if self.checkpointing == "none":
            return range(0)
        return range(0, self.encoder.depth, self.checkpoint_every if self.checkpointing == "every_k" else 1)

    @classmethod
    def of_size(cls, size: str, **changes: object) -> ClassifierConfig:
        """The published encoder called `size` (a key of SIZES), with fields changed."""
        encoder, _, patch = SIZES[size]
        return cls.model_validate({"encoder": encoder, "patch": patch, **changes})


AnyModel = ModelConfig | ClassifierConfig
"""What a file of weights can hold."""
