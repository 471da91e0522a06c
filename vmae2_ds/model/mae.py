"""The masked autoencoder: encoder on visible cubes, bridge, decoder on mask tokens; and the published first weights."""

from __future__ import annotations

import math
from functools import partial

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from vmae2_ds.config.model import ModelConfig
from vmae2_ds.contracts import ClipGeometry
from vmae2_ds.model.attention import get_attention
from vmae2_ds.model.block import NORM_EPS, Blocks, CheckpointFn
from vmae2_ds.model.embed import Linear, position_table, positions_at
from vmae2_ds.model.encoder import Encoder
from vmae2_ds.model.seeded import SeededModel

# B clips, N cubes, V visible cubes, M decoded cubes, P values in a cube, D encoder width, E decoder width.

MASK_TOKEN_STD = 0.02


class Decoder(nn.Module):
    """Blocks over encoder tokens and mask tokens; norm and head on the mask tokens only."""

    def __init__(self, config: ModelConfig, geometry: ClipGeometry) -> None:
        super().__init__()
        width = config.decoder.width
        self.mask_token = nn.Parameter(torch.empty(1, 1, width))
        self.blocks = Blocks(config.decoder)
        self.norm = nn.LayerNorm(width, eps=NORM_EPS)
        self.head = Linear(width, geometry.cube_values)
        table_NE = position_table(geometry, width, config.positions_geometry)
        self.register_buffer("positions_NE", table_NE, persistent=False)
        self.positions_NE: Tensor

    def forward(self, seen_BVE: Tensor, visible_BV: Tensor, decode_BM: Tensor) -> Tensor:
        """Encoder tokens (B, V, E), their places, and the places to predict (B, M) -> (B, M, P)."""
        num_clips, num_decoded = decode_BM.shape
        tokens_BLE = torch.cat([seen_BVE, self.mask_token.expand(num_clips, num_decoded, -1)], dim=1)
        place_BL = torch.cat([visible_BV, decode_BM], dim=1)
        x_BLE = self.blocks(tokens_BLE + positions_at(self.positions_NE, place_BL, tokens_BLE.dtype))
        return self.head(self.norm(x_BLE[:, -num_decoded:]))


class MaskedAutoencoder(SeededModel):
    """VideoMAE V2 for pre-training, computing in the dtype of its parameters.

    With `config.attention="auto"` both towers use sdpa until `use_attention` names kernels. `seed=None` leaves the
    weights undrawn: on the meta device, before loading a checkpoint, or where zero.Init partitions them (then call
    `init_parameter` on each gathered parameter).
    """

    def __init__(self, config: ModelConfig, geometry: ClipGeometry, seed: int | None = 0) -> None:
        super().__init__(geometry)
        self.config = config
        self.encoder = Encoder(config, geometry)
        self.is_encoder_frozen = False
        """Whether the encoder's forward pass keeps nothing for a backward pass, so that only what is behind it learns."""
        self.bridge = Linear(config.encoder.width, config.decoder.width, bias=False)
        self.decoder = Decoder(config, geometry)
        name = "sdpa" if config.attention == "auto" else config.attention
        self.use_attention(name, name)
        self._choose_recomputed()
        if seed is not None:
            self.init_weights(seed)

    def forward(self, cubes_BVP: Tensor, visible_BV: Tensor, decode_BM: Tensor) -> Tensor:
        """Predict cubes: normalised visible cubes (B, V, P), their places, places to predict (B, M) -> (B, M, P)."""
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.is_encoder_frozen):
            seen_BVD = self.encoder(cubes_BVP, visible_BV)
        return self.decoder(self.bridge(seen_BVD), visible_BV, decode_BM)

    def use_attention(self, encoder: str, decoder: str) -> None:
        """Name each tower's kernel: their shapes differ, so the fastest may too. ConfigError as `get_attention`."""
        self.encoder.blocks.use_attention(get_attention(encoder))
        self.decoder.blocks.use_attention(get_attention(decoder))

    def use_checkpoint_function(self, function: CheckpointFn) -> None:
        """Recompute through `function(block, x)`; checkpointing=deepspeed has no other way to get it."""
        self.encoder.blocks.checkpoint = self.decoder.blocks.checkpoint = function

    def _choose_recomputed(self) -> None:
        """Turn config.checkpointing into the blocks of each tower that are recomputed."""
        encoder, decoder = self.config.recomputed_blocks
        self.encoder.blocks.recomputed, self.decoder.blocks.recomputed = frozenset(encoder), frozenset(decoder)
        if self.config.checkpointing != "deepspeed":
            self.use_checkpoint_function(partial(checkpoint, use_reentrant=False))

    def draw(self, name: str, values: Tensor, rng: torch.Generator) -> None:
        """Draw first weights as published (docs/PAPER.md#numerics; init_stats_S of tests/golden/model.json)."""
        layer, _, kind = name.rpartition(".")
        if name == "decoder.mask_token":
            nn.init.trunc_normal_(values, std=MASK_TOKEN_STD, a=-MASK_TOKEN_STD, b=MASK_TOKEN_STD, generator=rng)
        elif layer == "bridge":
            # PyTorch's default: the published code never initialises it (modeling_pretrain.py:324 is not applied)
            nn.init.kaiming_uniform_(values, a=math.sqrt(5), generator=rng)
        elif kind == "weight":
            nn.init.xavier_uniform_(values, generator=rng)  # qkv as one (3D, D) matrix
