"""What the models of supervised stages have in common: an encoder that sees whole clips and learns, under a head."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from vmae2_ds.config.model import WholeClipConfig
from vmae2_ds.contracts import ClipGeometry
from vmae2_ds.model.attention import get_attention
from vmae2_ds.model.block import CheckpointFn
from vmae2_ds.model.encoder import Encoder
from vmae2_ds.model.lora import MARK, draw_low_rank
from vmae2_ds.model.seeded import SeededModel

WEIGHT_STD = 0.02


class WholeClipModel(SeededModel):
    """An encoder that sees all cubes and learns, under a head named `head`, which a subclass adds.

    It computes in the dtype of its parameters. Attention, weights and `seed=None` as in `MaskedAutoencoder`.
    """

    def __init__(
        self,
        config: WholeClipConfig,
        geometry: ClipGeometry,
        *,
        final_norm: bool,
        head_init_scale: float,
    ) -> None:
        super().__init__(geometry)
        self.head_init_scale = head_init_scale
        self.encoder = Encoder(config, geometry, final_norm=final_norm)
        self.use_attention("sdpa" if config.attention == "auto" else config.attention)
        self.encoder.blocks.recomputed = frozenset(config.recomputed_blocks)
        if config.checkpointing != "deepspeed":
            self.use_checkpoint_function(partial(checkpoint, use_reentrant=False))

    def use_attention(self, encoder: str) -> None:
        """Name the kernel. ConfigError as `get_attention`."""
        self.encoder.blocks.use_attention(get_attention(encoder))

    def use_checkpoint_function(self, function: CheckpointFn) -> None:
        """Recompute through `function(block, x)`; checkpointing=deepspeed has no other way to get it."""
        self.encoder.blocks.checkpoint = function

    def draw(self, name: str, values: Tensor, rng: torch.Generator) -> None:
        """Draw first weights as published (tests/golden/model.json, init_stats_S): the head is scaled down to start near
        zero."""
        if MARK in name:
            draw_low_rank(name, values, rng)
        elif name.endswith(".weight"):
            nn.init.trunc_normal_(values, std=WEIGHT_STD, generator=rng)
        if name.startswith("head."):
            values.mul_(self.head_init_scale)
