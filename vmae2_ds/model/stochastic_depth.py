"""Stochastic depth: timm's, in a file of its own because timm takes a second to import and most pre-training has none."""

from __future__ import annotations

import torch
from torch import Tensor

from vmae2_ds.hidden_packages import hidden

with hidden("wandb"):  # timm imports it where it is installed, which takes longer than all else in it
    from timm.layers import DropPath


class StochasticDepth(DropPath):
    """timm's, and no part of a compiled graph: its rate, another in each block, would make each block a graph of its own."""

    @torch.compiler.disable
    def forward(self, x_BND: Tensor) -> Tensor:
        """(B, N, D) -> (B, N, D)."""
        return super().forward(x_BND)
