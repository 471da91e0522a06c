"""Heads that learn on frozen features, several at once: a linear layer, and V-JEPA's attentive pooling (arXiv 2404.08471)."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from vmae2_ds.model.block import NORM_EPS, Mlp
from vmae2_ds.model.embed import Linear

# M heads that learn side by side, B videos, N tokens, D width, F features, H attention heads, K = D / H, C classes.

WEIGHT_STD = 0.02  # of V-JEPA's pooling and head
HEAD_WIDTH = 64
"""Channels of an attention head, as in every published encoder."""


class LinearHead(nn.Module):
    """One linear layer."""

    def __init__(self, width: int, num_classes: int) -> None:
        super().__init__()
        self.head = Linear(width, num_classes)

    def forward(self, x_BF: Tensor) -> Tensor:
        """(B, F) -> (B, C)."""
        return self.head(x_BF)


class AttentiveHead(nn.Module):
    """One learned query that attends to a video's tokens, an MLP behind it, both residual, and a linear layer.

    With a single query the keys need not be computed: q . (W x) = (W' q) . x, and a key's bias moves all scores alike; and as
    the shares add up to 1, values can be projected behind the sum. So a token costs 4 H D operations instead of 4 D D.
    """

    def __init__(self, width: int, num_classes: int) -> None:
        super().__init__()
        self.num_heads = max(heads for heads in range(1, max(1, width // HEAD_WIDTH) + 1) if width % heads == 0)
        self.query = nn.Parameter(torch.empty(width))
        self.key = nn.Parameter(torch.empty(width, width))
        self.value = Linear(width, width)
        self.norm = nn.LayerNorm(width, eps=NORM_EPS)
        self.mlp = Mlp(width, 4 * width)
        self.head = Linear(width, num_classes)

    def lookups(self) -> Tensor:
        """What each attention head's query looks for in a token: (H, D)."""
        query_HK = self.query.unflatten(0, (self.num_heads, -1))
        key_HKD = self.key.unflatten(0, (self.num_heads, -1))
        return torch.einsum("hk,hkd->hd", query_HK, key_HKD) / math.sqrt(query_HK.shape[1])

    def forward(self, pooled_BHD: Tensor) -> Tensor:
        """Each attention head's weighted mean token (B, H, D) -> (B, C)."""
        value_HKD = self.value.weight.unflatten(0, (self.num_heads, -1))
        x_BD = self.query + torch.einsum("bhd,hkd->bhk", pooled_BHD, value_HKD).flatten(1) + self.value.bias
        return self.head(x_BD + self.mlp(self.norm(x_BD)))


def linear_logits(heads: Sequence[Any], x_BF: Tensor) -> Tensor:
    """(B, F) -> (M, B, C)."""
    return torch.stack([head(x_BF) for head in heads])


def attentive_logits(heads: Sequence[Any], x_BND: Tensor) -> Tensor:
    """(B, N, D) -> (M, B, C); the tokens are read once for all heads."""
    lookup_SD = torch.cat([head.lookups() for head in heads])  # S = M H
    share_BSN = (lookup_SD @ x_BND.mT).softmax(dim=-1)
    pooled_BMHD = (share_BSN @ x_BND).unflatten(1, (len(heads), -1))
    return torch.stack([head(pooled_BMHD[:, number]) for number, head in enumerate(heads)])


class HeadKind(NamedTuple):
    """How a probe's heads are made and used, and what is tried."""

    make: Callable[[int, int], nn.Module]
    """(width, classes) -> a head, its weights not drawn."""
    logits: Callable[[Sequence[Any], Tensor], Tensor]
    lrs: tuple[float, ...]
    """Peak learning rates that are tried, each with every decay of WEIGHT_DECAYS."""


HEADS: dict[str, HeadKind] = {
    "linear": HeadKind(LinearHead, linear_logits, (1e-3, 3e-3, 1e-2)),
    "attentive": HeadKind(AttentiveHead, attentive_logits, (3e-4, 1e-3, 3e-3)),
}
WEIGHT_DECAYS = (0.01, 0.1, 1.0)


def draw_weights(head: nn.Module, generator: torch.Generator) -> nn.Module:
    """First weights, in place: normal ones where there is more than one dimension or none of a layer; biases zero."""
    for name, parameter in head.named_parameters():
        if name.endswith("bias"):
            nn.init.zeros_(parameter)
        elif not name.startswith("norm."):
            nn.init.trunc_normal_(parameter, std=WEIGHT_STD, generator=generator)
    return head
