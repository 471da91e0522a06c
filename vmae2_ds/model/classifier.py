"""The classifier of every stage after pre-training: the encoder on all cubes, mean pooling, one linear head."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from vmae2_ds.config.model import ClassifierConfig
from vmae2_ds.contracts import ClipGeometry
from vmae2_ds.model.attention import get_attention
from vmae2_ds.model.block import NORM_EPS, CheckpointFn
from vmae2_ds.model.embed import Linear
from vmae2_ds.model.encoder import Encoder
from vmae2_ds.model.seeded import SeededModel

# B clips, N cubes, P values in a cube, D width, C classes.

WEIGHT_STD = 0.02


class Classifier(SeededModel):
    """VideoMAE V2 for classification, computing in the dtype of its parameters.

    No norm behind the blocks; the mean over all tokens is normed instead (published `use_mean_pooling`). Attention, weights
    and `seed=None` as in `MaskedAutoencoder`.
    """

    def __init__(self, config: ClassifierConfig, geometry: ClipGeometry, seed: int | None = 0) -> None:
        super().__init__(geometry)
        self.config = config
        self.encoder = Encoder(config, geometry, final_norm=False)
        self.fc_norm = nn.LayerNorm(config.encoder.width, eps=NORM_EPS)
        self.head_drop = nn.Dropout(config.head_dropout)
        self.head = Linear(config.encoder.width, config.num_classes) if config.num_classes else nn.Identity()
        self.use_attention("sdpa" if config.attention == "auto" else config.attention)
        self.encoder.blocks.recomputed = frozenset(config.recomputed_blocks)
        if config.checkpointing != "deepspeed":
            self.use_checkpoint_function(partial(checkpoint, use_reentrant=False))
        if seed is not None:
            self.init_weights(seed)

    def forward(self, cubes_BNP: Tensor) -> Tensor:
        """Normalised cubes of whole clips, in order (B, N, P) -> logits (B, C)."""
        return self.classify(self.features(cubes_BNP))

    def features(self, cubes_BNP: Tensor) -> Tensor:
        """What the head sees: the normed mean token (B, D)."""
        return self.fc_norm(self.encoder(cubes_BNP).mean(dim=1))

    def classify(self, feature_BD: Tensor) -> Tensor:
        """`features` to logits (B, C); without a head the features themselves."""
        return self.head(self.head_drop(feature_BD))

    def use_attention(self, encoder: str) -> None:
        """Name the kernel. ConfigError as `get_attention`."""
        self.encoder.blocks.use_attention(get_attention(encoder))

    def use_checkpoint_function(self, function: CheckpointFn) -> None:
        """Recompute through `function(block, x)`; checkpointing=deepspeed has no other way to get it."""
        self.encoder.blocks.checkpoint = function

    def draw(self, name: str, values: Tensor, rng: torch.Generator) -> None:
        """Draw first weights as published (tests/golden/model.json, init_stats_S): the head is scaled down to start near
        zero."""
        if name.endswith(".weight"):
            nn.init.trunc_normal_(values, std=WEIGHT_STD, generator=rng)
        if name.startswith("head."):
            values.mul_(self.config.head_init_scale)
