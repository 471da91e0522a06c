"""The transformer block of VideoMAE V2 and the row of blocks that both towers are made of."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vmae2_ds.config.lora import LETTERS, LoraConfig
from vmae2_ds.config.model import TowerConfig
from vmae2_ds.model.attention import AttentionFn, sdpa_attention
from vmae2_ds.model.kept import once_per_device
from vmae2_ds.model.lora import LowRank, linear

# B clips, N tokens, D width, H heads, K = D / H channels in a head.

NORM_EPS = 1e-6  # in every published factory, against 1e-5 as PyTorch's default (docs/PAPER.md#numerics)

NO_LORA = LoraConfig()

CheckpointFn = Callable[..., Any]
"""(module, x) -> module(x), dropping what is inside and computing it again for the backward pass."""


class QKV(nn.Module):
    """Packed projection to queries, keys and values; keys have no bias.

    The module owns its three parameters and is called as a module, so that ZeRO-3's hooks gather them and torch.compile
    can trace it (a parent's F.linear on a child's weight does neither).
    """

    def __init__(self, width: int, lora: LoraConfig = NO_LORA) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(3 * width, width))
        self.q_bias = nn.Parameter(torch.empty(width))
        self.v_bias = nn.Parameter(torch.empty(width))
        ranks = {letter: lora.rank_of(letter) for letter in LETTERS}
        self.lora = None
        if any(ranks.values()):
            self.lora = nn.ModuleDict(
                {str(letter): LowRank(width, width, rank, lora.scale) for letter, rank in ranks.items() if rank}
            )

    def forward(self, x_BND: Tensor) -> Tensor:
        """(B, N, D) -> (B, N, 3 D)."""
        # A copy for every pass, and not one kept from step to step: DeepSpeed writes new weights where torch cannot see it.
        no_bias = _zeros(len(self.q_bias), self.q_bias.dtype, like=x_BND)
        qkv_BN3D = F.linear(x_BND, self.weight, torch.cat([self.q_bias, no_bias, self.v_bias]))
        if self.lora is None:
            return qkv_BN3D
        parts = {str(letter): x for letter, x in zip(LETTERS, qkv_BN3D.chunk(3, dim=-1), strict=True)}
        parts |= {letter: parts[letter] + adapter(x_BND) for letter, adapter in self.lora.items()}
        return torch.cat(list(parts.values()), dim=-1)


@once_per_device
def _zeros(number: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    return torch.zeros(number, dtype=dtype, device=device)


class Attention(nn.Module):
    """Multi-head self-attention."""

    def __init__(self, width: int, heads: int, lora: LoraConfig = NO_LORA) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = QKV(width, lora)
        self.proj = linear(width, width, lora, "proj")
        self.attend: AttentionFn = sdpa_attention

    def forward(self, x_BND: Tensor) -> Tensor:
        """(B, N, D) -> (B, N, D)."""
        qkv_BN3HK = self.qkv(x_BND).unflatten(-1, (3, self.heads, -1))
        return self.proj(self.attend(qkv_BN3HK).flatten(-2))


class Mlp(nn.Module):
    """Two linear layers around an exact GELU, no dropout."""

    def __init__(self, width: int, hidden: int, lora: LoraConfig = NO_LORA) -> None:
        super().__init__()
        self.fc1 = linear(width, hidden, lora, "mlp")
        self.fc2 = linear(hidden, width, lora, "mlp")

    def forward(self, x_BND: Tensor) -> Tensor:
        """(B, N, D) -> (B, N, D)."""
        return self.fc2(F.gelu(self.fc1(x_BND)))


def stochastic_depth(rate: float) -> nn.Module:
    """A branch's stochastic depth, (B, N, D) -> (B, N, D); at a rate of 0 none, and timm is not imported."""
    if not rate:
        return nn.Identity()
    from vmae2_ds.model.stochastic_depth import StochasticDepth

    return StochasticDepth(rate)


class Block(nn.Module):
    """Pre-norm block: x + attention(norm(x)), then x + mlp(norm(x)), each under stochastic depth."""

    def __init__(self, config: TowerConfig, drop_path: float, lora: LoraConfig = NO_LORA) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(config.width, eps=NORM_EPS)
        self.attn = Attention(config.width, config.heads, lora)
        self.norm2 = nn.LayerNorm(config.width, eps=NORM_EPS)
        self.mlp = Mlp(config.width, config.mlp, lora)
        self.drop_path = stochastic_depth(drop_path)

    def forward(self, x_BND: Tensor) -> Tensor:
        """(B, N, D) -> (B, N, D)."""
        x_BND = x_BND + self.drop_path(self.attn(self.norm1(x_BND)))
        return x_BND + self.drop_path(self.mlp(self.norm2(x_BND)))


class Blocks(nn.Sequential):
    """A row of blocks, some of which keep only their input and are computed again in the backward pass."""

    def __init__(self, config: TowerConfig, drop_path: float = 0.0, lora: LoraConfig = NO_LORA) -> None:
        rise = drop_path / max(1, config.depth - 1)
        super().__init__(*(Block(config, rise * i, lora) for i in range(config.depth)))
        self.config = config
        self.recomputed: frozenset[int] = frozenset()
        self.checkpoint: CheckpointFn | None = None

    def use_attention(self, attend: AttentionFn) -> None:
        """Let every block attend with this kernel."""
        for module in self.modules():
            if isinstance(module, Attention):
                module.attend = attend

    def forward(self, x_BND: Tensor) -> Tensor:
        """(B, N, D) -> (B, N, D)."""
        for i, block in enumerate(self):
            if i in self.recomputed and torch.is_grad_enabled():
                assert self.checkpoint is not None, "give a checkpoint function before the first forward pass"
                x_BND = self.checkpoint(block, x_BND)
            else:
                x_BND = block(x_BND)
        return x_BND
