"""Low-rank adapters beside linear layers: what they add, how they are drawn, and how they become part of the weights.

Their names are those of the layer with `lora.` behind: `attn.proj.lora.down.weight`, `attn.qkv.lora.q.up.weight`.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from vmae2_ds.config.lora import LETTERS, LoraConfig, LoraTarget
from vmae2_ds.model.embed import Linear

# B clips, N tokens, I and O channels of a layer's input and output, R the rank.

MARK = ".lora."
"""In the name of each parameter of an adapter, and in no other."""


class LowRank(nn.Module):
    """scale * up(down(x)): nothing at first, since `up` starts as zeros."""

    def __init__(self, width_in: int, width_out: int, rank: int, scale: float) -> None:
        super().__init__()
        self.scale = scale
        self.down = Linear(width_in, rank, bias=False)
        self.up = Linear(rank, width_out, bias=False)

    def forward(self, x_BNI: Tensor) -> Tensor:
        """(B, N, I) -> (B, N, O)."""
        return self.up(self.scale * self.down(x_BNI))


class AdaptedLinear(Linear):
    """A linear layer and the adapter beside it."""

    def __init__(self, width_in: int, width_out: int, rank: int, scale: float) -> None:
        super().__init__(width_in, width_out)
        self.lora = LowRank(width_in, width_out, rank, scale)

    def forward(self, x_BNI: Tensor) -> Tensor:
        """(B, N, I) -> (B, N, O)."""
        return super().forward(x_BNI) + self.lora(x_BNI)


def linear(width_in: int, width_out: int, lora: LoraConfig, target: LoraTarget) -> Linear:
    """A linear layer, with an adapter beside it where it is a target."""
    if rank := lora.rank_of(target):
        return AdaptedLinear(width_in, width_out, rank, lora.scale)
    return Linear(width_in, width_out)


def draw_low_rank(name: str, values: Tensor, rng: torch.Generator) -> None:
    """Draw a parameter of an adapter into `values`, which are zeros: `down` within 1 / sqrt(I), as published
    (docs/PAPER.md#low-rank-adapters); `up` stays zero."""
    if name.endswith(".down.weight"):
        bound = values.shape[1] ** -0.5
        values.uniform_(-bound, bound, generator=rng)


def merged(state: Mapping[str, Tensor], name: str, scale: float) -> Tensor:
    """The weight `name` of `state` as it is with the adapters beside it: W + scale * up down, in W's dtype; of a packed
    projection row block by row block."""
    weight = state[name]
    inside = name.removesuffix("weight") + MARK.removeprefix(".")
    adapters = {part: inside + part for part in ("", *(f"{letter}." for letter in LETTERS))}
    there = {part: prefix for part, prefix in adapters.items() if f"{prefix}up.weight" in state}
    if not there:
        return weight
    whole = weight.to(torch.float64, copy=True)
    rows = {"": whole, **{f"{letter}.": x for letter, x in zip(LETTERS, whole.chunk(len(LETTERS)), strict=False)}}
    for part, prefix in there.items():
        up, down = (state[f"{prefix}{layer}.weight"].double() for layer in ("up", "down"))
        rows[part].addmm_(up, down, alpha=scale)
    return whole.to(weight.dtype)
