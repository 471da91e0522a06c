"""Model configuration: towers, the published sizes, masked autoencoders and classifiers."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator
from typing_extensions import Self

from vmae2_ds.config.lora import LoraConfig
from vmae2_ds.config.strict import ClipLength, Edge, PartBelow1, Size, StrictModel
from vmae2_ds.contracts import ClipGeometry

AttentionName = Literal[
    "auto", "math", "by_head", "sdpa", "cudnn", "torch_flash", "efficient", "flash", "flash3", "flash4"
]
CheckpointingName = Literal["none", "decoder", "every_k", "all", "deepspeed"]
SizeName = Literal["tiny", "small", "base", "large", "huge", "giant", "6b"]
"""The keys of SIZES."""
Layer = Annotated[int, Field(ge=1, le=2**20)]
"""Channels, heads or blocks: a million of them is no model."""


class TowerConfig(StrictModel):
    """One transformer tower: the encoder or the decoder."""

    width: Layer
    """Width D of a token: channels of the residual stream."""
    depth: Layer
    """Number of transformer blocks."""
    heads: Layer
    """Number of attention heads; must divide the width."""
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
    # name: (encoder, decoder, patch). S to g: docs/PAPER.md#sizes. Tiny: DeiT-Ti's encoder (arXiv 2012.12877).
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
    """The encoder's transformer blocks."""
    patch: Edge = 16
    """Height and width of a cube in pixels."""
    tubelet: ClipLength = 2
    """Length of a cube in frames."""
    positions_from: tuple[ClipLength, Edge] | None = None
    """Number of frames and size in pixels of another clip, as in "16 224", whose position table is interpolated to this
    clip's grid; default: this clip's own table (published)."""
    attention: AttentionName = "auto"
    """Attention kernel. math: two products and a softmax, on any device; by_head: the same for CPUs, a few heads at a time;
    sdpa: whichever kernel torch's scaled_dot_product_attention takes, which the log names; cudnn, torch_flash, efficient:
    one of those by name, on CUDA; flash, flash3, flash4: the packages flash_attn 2, 3 and 4, on CUDA. A kernel named here is
    used or refused, never replaced; auto times those that can run with this device, dtype and shape, and logs its choice."""
    checkpoint_every: Layer = 2
    """With --model.checkpointing every_k: one block in this many is recomputed in the backward pass."""
    drop_path: PartBelow1 = 0.0
    """Stochastic depth: drop rate of the last encoder block, rising linearly from 0 at the first (published pre-training:
    0)."""

    @property
    def positions_geometry(self) -> ClipGeometry | None:
        """The clip of `positions_from` as cubes; raises ConfigError where it does not divide."""
        if self.positions_from is None:
            return None
        frames, size = self.positions_from
        return ClipGeometry(frames, size, size, self.tubelet, self.patch)

    @property
    def merged(self) -> Self:
        """The model that leaves a run: what low-rank adapters have learnt is part of its weights (model/lora.py:merged)."""
        return self


class ModelConfig(EncoderConfig):
    """The masked autoencoder: its encoder sees visible cubes only."""

    decoder: TowerConfig
    """The decoder's transformer blocks, which see the encoder's output and mask tokens."""
    checkpointing: CheckpointingName = "none"
    """Activation checkpointing: which blocks are recomputed in the backward pass to save memory. none; decoder: the
    decoder's; every_k: one in --model.checkpoint-every; all; deepspeed: all, through DeepSpeed's implementation."""

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


class WholeClipConfig(EncoderConfig):
    """An encoder that sees all cubes, under a head."""

    checkpointing: Literal["none", "every_k", "all", "deepspeed"] = "none"
    """Activation checkpointing: which blocks are recomputed in the backward pass to save memory. none; every_k: one in
    --model.checkpoint-every; all; deepspeed: all, through DeepSpeed's implementation."""

    @property
    def recomputed_blocks(self) -> range:
        """Numbers of the blocks that `checkpointing` computes again."""
        if self.checkpointing == "none":
            return range(0)
        return range(0, self.encoder.depth, self.checkpoint_every if self.checkpointing == "every_k" else 1)


class ClassifierConfig(WholeClipConfig):
    """The encoder with a head: it sees all cubes."""

    num_classes: int = Field(400, ge=2, le=2**24)
    """Number of classes C; labels are 0 to C-1."""
    head_dropout: PartBelow1 = 0.0
    """Dropout rate in front of the head."""
    head_init_scale: Size = 1e-3
    """Factor that the head's random initial weights are multiplied by."""
    positions: Literal["own", "published_resize"] = "own"
    """Where the position table comes from. own: this clip's own table, or that of --model.positions-from;
    published_resize: the table as the published fine-tuning script resizes it for clips other than 16 frames of 224
    pixels, which weights it trained at 64 frames of 266 pixels need."""
    lora: LoraConfig = LoraConfig()
    """Low-rank adapters, which learn in the place of the encoder's own weights."""

    @property
    def merged(self) -> Self:
        """The same without adapters."""
        return self.model_copy(update={"lora": LoraConfig()})

    @model_validator(mode="after")
    def _adapters_fit(self) -> ClassifierConfig:
        narrowest = min(self.encoder.width, self.encoder.mlp if "mlp" in self.lora.targets else self.encoder.width)
        if self.lora.rank > narrowest:
            raise ValueError(
                f"lora.rank={self.lora.rank}: no adapter can have a higher rank than the narrowest layer beside it, of "
                f"{narrowest} channels; a rank of 4 to 64 is usual"
            )
        if self.lora.rank and self.checkpointing == "deepspeed":
            raise ValueError(
                "checkpointing=deepspeed gives no gradient to an adapter behind a frozen embedding; checkpointing=all does, "
                "and takes no more memory"
            )
        return self

    @model_validator(mode="after")
    def _one_table(self) -> ClassifierConfig:
        if self.positions != "own" and self.positions_from is not None:
            raise ValueError(f"positions={self.positions} and positions_from={self.positions_from}: keep one of them")
        return self

    @classmethod
    def of_size(cls, size: str, **changes: object) -> ClassifierConfig:
        """The published encoder called `size` (a key of SIZES), with fields changed."""
        encoder, _, patch = SIZES[size]
        return cls.model_validate({"encoder": encoder, "patch": patch, **changes})
