"""The ActionFormer pyramid (arXiv 2202.07925): features over time to classes and ends of actions at every point of every level.

A sequence that is shorter than the pyramid's length is followed by padding, whether its batch has any or not: as in the
published code, which pads every sequence to that length, padding leaves traces in the convolutions beside it
(docs/PAPER.md#detection-head).
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vmae2_ds.config.tad_head import HeadConfig
from vmae2_ds.downstream.tad.window_attention import attend_along_time
from vmae2_ds.model.block import stochastic_depth
from vmae2_ds.model.embed import Linear, sinusoid_table

# B videos, T positions (fewer on each level), D width, L levels, C classes.

KERNEL = 3


class PyramidOutput(NamedTuple):
    """What the pyramid says of every point: a tensor for each level, of T, T/2, T/4, ... points, rounded up."""

    logits_LBTC: tuple[Tensor, ...]
    """One for each class, by itself; 0 where there is only padding."""
    offsets_LBT2: tuple[Tensor, ...]
    """Distances back to the start and on to the end, in strides of the level, at least 0."""
    is_real_LBT: tuple[Tensor, ...]
    """Places where there is more than padding."""


class TimeConv(nn.Conv1d):
    """A convolution of three positions whose weights are left undrawn, and whose output is zero where nothing is real."""

    def __init__(self, width: int, out: int, *, stride: int = 1, by_channel: bool = False, bias: bool = False) -> None:
        groups = width if by_channel else 1
        super().__init__(width, out, KERNEL, stride, KERNEL // 2, groups=groups, bias=bias)

    def reset_parameters(self) -> None:
        """Do nothing."""

    def forward(self, x_BTD: Tensor, is_real_BT: Tensor) -> Tensor:  # type: ignore[override]
        """(B, T, D) and which of the T / stride results are real -> (B, T / stride, out)."""
        return super().forward(x_BTD.transpose(1, 2)).transpose(1, 2) * is_real_BT[..., None]


class ConvNorm(nn.Module):
    """A convolution, a norm over channels, a ReLU."""

    def __init__(self, width: int, out: int) -> None:
        super().__init__()
        self.conv = TimeConv(width, out)
        self.norm = nn.LayerNorm(out)

    def forward(self, x_BTD: Tensor, is_real_BT: Tensor) -> Tensor:
        """(B, T, D) -> (B, T, out)."""
        return F.relu(self.norm(self.conv(x_BTD, is_real_BT)))


class ConvHead(nn.Module):
    """What is shared by all levels: some ConvNorms and a last convolution."""

    def __init__(self, width: int, num_convs: int, out: int) -> None:
        super().__init__()
        self.convs = nn.ModuleList(ConvNorm(width, width) for _ in range(num_convs))
        self.last = TimeConv(width, out, bias=True)

    def forward(self, x_BTD: Tensor, is_real_BT: Tensor) -> Tensor:
        """(B, T, D) -> (B, T, out)."""
        for conv in self.convs:
            x_BTD = conv(x_BTD, is_real_BT)
        return self.last(x_BTD, is_real_BT)


class Projection(nn.Module):
    """Queries, keys or values: a convolution of each channel by itself, which may halve the rate, a norm, a linear layer."""

    def __init__(self, width: int, stride: int) -> None:
        super().__init__()
        self.conv = TimeConv(width, width, stride=stride, by_channel=True)
        self.norm = nn.LayerNorm(width)
        self.linear = Linear(width, width)

    def forward(self, x_BTD: Tensor, is_real_BT: Tensor) -> Tensor:
        """(B, T, D) -> (B, T / stride, D)."""
        return self.linear(self.norm(self.conv(x_BTD, is_real_BT)))


class TimeAttention(nn.Module):
    """Multi-head attention along time."""

    def __init__(self, config: HeadConfig, window: int, stride: int) -> None:
        super().__init__()
        self.heads, self.window = config.heads, window
        self.query = Projection(config.width, stride)
        self.key = Projection(config.width, stride)
        self.value = Projection(config.width, stride)
        self.proj = Linear(config.width, config.width)

    def forward(self, x_BTD: Tensor, is_real_BT: Tensor) -> Tensor:
        """(B, T, D) and which of the T / stride results are real -> (B, T / stride, D)."""
        q, k, v = (
            project(x_BTD, is_real_BT).unflatten(-1, (self.heads, -1)) for project in (self.query, self.key, self.value)
        )
        out_BTHK = attend_along_time(q, k, v, is_real_BT, self.window)
        return self.proj(out_BTHK.flatten(-2)) * is_real_BT[..., None]


class PyramidBlock(nn.Module):
    """Pre-norm block, x + attention(norm(x)), then x + mlp(norm(x)); with a stride of 2 it halves the rate."""

    def __init__(self, config: HeadConfig, window: int, stride: int) -> None:
        super().__init__()
        width, self.stride = config.width, stride
        self.norm1 = nn.LayerNorm(width)
        self.attn = TimeAttention(config, window, stride)
        self.norm2 = nn.LayerNorm(width)
        self.fc1 = Linear(width, 4 * width)
        self.fc2 = Linear(4 * width, width)
        self.gain1_D, self.gain2_D = (
            nn.Parameter(torch.empty(width)) if config.layer_scale else None for _ in range(2)
        )
        self.drop_path = stochastic_depth(config.drop_path)

    def forward(self, x_BTD: Tensor, is_real_BT: Tensor) -> Tensor:
        """(B, T, D) and which of the T / stride results are real -> (B, T / stride, D)."""
        real_BT1 = is_real_BT[..., None]
        out_BTD = _gained(self.attn(self.norm1(x_BTD), is_real_BT), self.gain1_D)
        if self.stride > 1:
            x_BTD = F.max_pool1d(x_BTD.transpose(1, 2), KERNEL, self.stride, KERNEL // 2).transpose(1, 2)
        x_BTD = x_BTD * real_BT1 + self.drop_path(out_BTD)
        out_BTD = self.fc2(F.gelu(self.fc1(self.norm2(x_BTD)))) * real_BT1
        return x_BTD + self.drop_path(_gained(out_BTD, self.gain2_D))


def _gained(x_BTD: Tensor, gain_D: Tensor | None) -> Tensor:
    return x_BTD if gain_D is None else x_BTD * gain_D


class ActionPyramid(nn.Module):
    """Features (B, T, input_width) to what every point of every level says of classes and ends.

    `max_length` is the length that sequences are padded to in training, in positions; longer ones work as well. Weights are
    undrawn until a SeededModel that holds this asks `draw`. It computes in the dtype of its parameters.
    """

    def __init__(self, input_width: int, num_classes: int, config: HeadConfig, max_length: int) -> None:
        super().__init__()
        self.config, self.num_classes, self.max_length = config, num_classes, max_length
        width = config.width
        self.embed = nn.ModuleList(ConvNorm(width if i else input_width, width) for i in range(config.embed_convs))
        first, *others = config.level_windows
        self.stem = nn.ModuleList(PyramidBlock(config, first, 1) for _ in range(config.stem))
        self.branch = nn.ModuleList(PyramidBlock(config, window, 2) for window in others)
        self.level_norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(config.levels))
        self.classify = ConvHead(width, config.head_convs, num_classes)
        self.locate = ConvHead(width, config.head_convs, 2)
        self.offset_scale_L = nn.Parameter(torch.empty(config.levels))
        self.positions_TD: Tensor | None
        table = sinusoid_table(max_length, width) / width**0.5 if config.absolute_positions else None
        self.register_buffer("positions_TD", table, persistent=False)

    def forward(self, feature_BTD: Tensor, is_real_BT: Tensor) -> PyramidOutput:
        """Features and which positions are real, the first of each sequence on.

        Values where nothing is real do not count.
        """
        length = feature_BTD.shape[1]
        x_BTD = self._prepared(feature_BTD, is_real_BT)
        x_BTD, is_real_BT = self._followed_by_padding(x_BTD, is_real_BT)
        for conv in self.embed:
            x_BTD = conv(x_BTD, is_real_BT)
        if self.positions_TD is not None:
            x_BTD = x_BTD + self._positions(length, x_BTD) * is_real_BT[..., None]
        for block in self.stem:
            x_BTD = block(x_BTD, is_real_BT)
        levels = [(x_BTD, is_real_BT)]
        for block in self.branch:
            is_real_BT = is_real_BT[:, ::2]
            x_BTD = block(x_BTD, is_real_BT)
            levels.append((x_BTD, is_real_BT))
        return self._answers(levels, length)

    def _answers(self, levels: list[tuple[Tensor, Tensor]], length: int) -> PyramidOutput:
        logits, offsets, is_real = [], [], []
        for level, (norm, (x_BTD, real_BT)) in enumerate(zip(self.level_norms, levels, strict=True)):
            points = -(-length // 2**level)
            x_BTD = norm(x_BTD)
            logits.append(self.classify(x_BTD, real_BT)[:, :points])
            offsets.append(F.relu(self.locate(x_BTD, real_BT) * self.offset_scale_L[level])[:, :points])
            is_real.append(real_BT[:, :points])
        return PyramidOutput(tuple(logits), tuple(offsets), tuple(is_real))

    def _prepared(self, feature_BTD: Tensor, is_real_BT: Tensor) -> Tensor:
        """Features in the dtype of the weights, with noise in training, zero where nothing is real."""
        x_BTD = feature_BTD.to(self.offset_scale_L.dtype)
        if self.training and self.config.input_noise:
            x_BTD = x_BTD + self.config.input_noise * torch.randn_like(x_BTD)
        # not a product: padding may hold anything
        return x_BTD.masked_fill(~is_real_BT[..., None], 0)

    def _followed_by_padding(self, x_BTD: Tensor, is_real_BT: Tensor) -> tuple[Tensor, Tensor]:
        """One position more on the coarsest level, so that all levels have padding; but none beyond the pyramid's length."""
        length, after = x_BTD.shape[1], self.config.strides[-1]
        if length <= self.max_length:
            after = min(after, self.max_length - length)
        if not after:
            return x_BTD, is_real_BT
        return F.pad(x_BTD, (0, 0, 0, after)), F.pad(is_real_BT, (0, after))

    def _positions(self, length: int, x_BTD: Tensor) -> Tensor:
        """The table at `length` positions, as long as x: (T, D)."""
        table_TD = self.positions_TD
        assert table_TD is not None, "only where there is a table"
        if length > self.max_length:
            table_TD = F.interpolate(table_TD.float().T[None], size=length, mode="linear")[0].T
        return F.pad(table_TD[:length], (0, 0, 0, x_BTD.shape[1] - length)).to(x_BTD.dtype)

    def draw(self, name: str, values: Tensor, rng: torch.Generator) -> None:
        """Draw first weights into `values`, zeros under their name in this module, as published: matrices and kernels as
        PyTorch's own, biases 0 but for the prior of the classes (docs/PAPER.md#detection-head)."""
        if values.ndim > 1:
            bound = math.prod(values.shape[1:]) ** -0.5
            values.uniform_(-bound, bound, generator=rng)
        elif name == "offset_scale_L" or name.endswith(".weight"):
            values.fill_(1.0)
        elif "gain" in name:
            values.fill_(self.config.layer_scale)
        elif name == "classify.last.bias":
            values.fill_(-math.log((1 - self.config.prior) / self.config.prior))
