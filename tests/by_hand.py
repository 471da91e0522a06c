"""The classifier and its training written out from the paper: plain torch in float64, nothing of vmae2_ds but the weights.

Weights are named as the project names them. What is random is drawn from torch's global generator in float32, in the order
of the forward pass: block by block a keep mask for attention and one for the MLP where the block's rate is not zero, then
the head's. That is the order of timm's DropPath and of nn.Dropout, so that the same seed gives the same masks.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

# B clips, T frames, N cubes, D width, H heads, K = D / H, C classes.

State = dict[str, Tensor]
COLOUR_MEAN, COLOUR_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet


class Shape(NamedTuple):
    """What the weights do not tell."""

    depth: int
    heads: int
    patch: int
    tubelet: int = 2
    drop_path: float = 0.0
    """Rate of the last block; it rises linearly from 0 at the first."""
    head_dropout: float = 0.0


def layer_norm(x: Tensor, weights: State, name: str) -> Tensor:
    mean, variance = x.mean(-1, keepdim=True), x.var(-1, correction=0, keepdim=True)
    return (x - mean) / torch.sqrt(variance + 1e-6) * weights[f"{name}.weight"] + weights[f"{name}.bias"]


def linear(x: Tensor, weights: State, name: str) -> Tensor:
    return x @ weights[f"{name}.weight"].T + weights[f"{name}.bias"]


def gelu(x: Tensor) -> Tensor:
    return x * 0.5 * (1 + torch.erf(x / math.sqrt(2)))


def attention(x_BND: Tensor, weights: State, name: str, heads: int) -> Tensor:
    """softmax(q k' / sqrt K) v of each head, keys without a bias."""
    q_weight, k_weight, v_weight = weights[f"{name}.qkv.weight"].chunk(3)
    q_BND = x_BND @ q_weight.T + weights[f"{name}.qkv.q_bias"]
    k_BND = x_BND @ k_weight.T
    v_BND = x_BND @ v_weight.T + weights[f"{name}.qkv.v_bias"]
    found = []
    for q_BNK, k_BNK, v_BNK in zip(*(x.chunk(heads, dim=-1) for x in (q_BND, k_BND, v_BND)), strict=True):
        scores_BNN = q_BNK @ k_BNK.transpose(1, 2) / math.sqrt(q_BNK.shape[-1])
        exponents_BNN = torch.exp(scores_BNN - scores_BNN.amax(-1, keepdim=True))
        found.append(exponents_BNN / exponents_BNN.sum(-1, keepdim=True) @ v_BNK)
    return linear(torch.cat(found, dim=-1), weights, f"{name}.proj")


def normalised(clip_BTHWC: Tensor) -> Tensor:
    """uint8 pixels to float64 ones of mean 0 and deviation 1 over ImageNet."""
    mean, std = (torch.tensor(x, dtype=torch.float64) for x in (COLOUR_MEAN, COLOUR_STD))
    return (clip_BTHWC.double() / 255 - mean) / std


def sinusoids(positions: int, width: int) -> Tensor:
    """sin(n / 10000^(2i / D)) in channel 2i, the cosine in channel 2i + 1; kept in float32 (docs/PAPER.md#numerics)."""
    table = np.zeros((positions, width))
    for channel in range(width):
        angle = np.arange(positions) / 10000 ** (2 * (channel // 2) / width)
        table[:, channel] = np.cos(angle) if channel % 2 else np.sin(angle)
    return torch.from_numpy(table).float().double()


def embedded(pixels_BTHWC: Tensor, weights: State, shape: Shape) -> Tensor:
    """A convolution with kernel = stride: every cube's dot product with each channel's weights, plus its place's table."""
    weight_DP, t, p = weights["encoder.embed.proj.weight"], shape.tubelet, shape.patch
    kernel = weight_DP.reshape(-1, t, p, p, 3).permute(
        0, 4, 1, 2, 3
    )  # a row lists its cube in the order t, h, w, colour
    x = torch.nn.functional.conv3d(pixels_BTHWC.permute(0, 4, 1, 2, 3), kernel, stride=(t, p, p))
    x_BND = x.flatten(2).transpose(1, 2) + weights["encoder.embed.proj.bias"]
    return x_BND + sinusoids(x_BND.shape[1], x_BND.shape[2])


def kept(x: Tensor, shape: tuple[int, ...], rate: float) -> Tensor:
    """x where a draw keeps it, over the chance of that, so that its expectation stays x."""
    return x * torch.empty(shape).bernoulli_(1 - rate).double() / (1 - rate) if rate else x


def features(pixels_BTHWC: Tensor, weights: State, shape: Shape, *, training: bool) -> Tensor:
    """The normed mean token (B, D)."""
    x_BND = embedded(pixels_BTHWC, weights, shape)
    for i in range(shape.depth):
        rate = shape.drop_path * i / (shape.depth - 1) if training else 0.0
        one, block = (len(x_BND), 1, 1), f"encoder.blocks.{i}"
        branch = attention(layer_norm(x_BND, weights, f"{block}.norm1"), weights, f"{block}.attn", shape.heads)
        x_BND = x_BND + kept(branch, one, rate)
        hidden = gelu(linear(layer_norm(x_BND, weights, f"{block}.norm2"), weights, f"{block}.mlp.fc1"))
        x_BND = x_BND + kept(linear(hidden, weights, f"{block}.mlp.fc2"), one, rate)
    return layer_norm(x_BND.mean(dim=1), weights, "fc_norm")


def logits(pixels_BTHWC: Tensor, weights: State, shape: Shape, *, training: bool = False) -> Tensor:
    """Normalised pixels of whole clips to (B, C)."""
    x_BD = features(pixels_BTHWC, weights, shape, training=training)
    return linear(kept(x_BD, tuple(x_BD.shape), shape.head_dropout if training else 0.0), weights, "head")


def mixed_loss(
    clip_BTHWC: Tensor,
    label_B: Tensor,
    keep_pixels: float,
    keep_label: float,
    smoothing: float,
    weights: State,
    shape: Shape,
) -> Tensor:
    """Mean cross entropy of a mixed micro batch in training: clip b is mixed with clip B - 1 - b, and so is its target."""
    pixels = normalised(clip_BTHWC)
    logits_BC = logits(keep_pixels * pixels + (1 - keep_pixels) * pixels.flip(0), weights, shape, training=True)
    log_probability_BC = logits_BC - torch.log(torch.exp(logits_BC).sum(-1, keepdim=True))
    num_clips, num_classes = logits_BC.shape
    loss = torch.zeros((), dtype=torch.float64)
    for clip in range(num_clips):
        for label, part in ((label_B[clip], keep_label), (label_B[num_clips - 1 - clip], 1 - keep_label)):
            own = log_probability_BC[clip, label]
            loss = loss - part * ((1 - smoothing) * own + smoothing * log_probability_BC[clip].sum() / num_classes)
    return loss / num_clips


def layer_scale(name: str, depth: int, layer_decay: float) -> float:
    """ld^(L + 1 - i); i is 0 for the embedding, b + 1 for block b, L + 1 for norm and head (docs/PAPER.md#learning-rate)."""
    words = name.split(".")
    layer = 0 if words[1] == "embed" else int(words[2]) + 1 if words[1] == "blocks" else depth + 1
    return layer_decay ** (depth + 1 - layer)


class AdamW:
    """Decoupled weight decay (arXiv 1711.05101, algorithm 2) on weights in place; none on what has one dimension."""

    def __init__(
        self, weights: State, scale: dict[str, float], decay: float, betas: tuple[float, float], eps: float
    ) -> None:
        self.weights, self.scale, self.decay, self.betas, self.eps, self.steps = weights, scale, decay, betas, eps, 0
        self.first = {name: torch.zeros_like(x) for name, x in weights.items()}
        self.second = {name: torch.zeros_like(x) for name, x in weights.items()}

    @torch.no_grad()
    def step(self, gradients: State, rate: float) -> None:
        self.steps += 1
        for name, x in self.weights.items():
            own, (beta, beta_squares) = rate * self.scale[name], self.betas
            if x.ndim > 1:
                x -= own * self.decay * x
            self.first[name] = beta * self.first[name] + (1 - beta) * gradients[name]
            self.second[name] = beta_squares * self.second[name] + (1 - beta_squares) * gradients[name] ** 2
            mean, square = self.first[name] / (1 - beta**self.steps), self.second[name] / (1 - beta_squares**self.steps)
            x -= own * mean / (torch.sqrt(square) + self.eps)


def published_rate(step: int, peak: float, end: float, warmup: int, steps: int) -> float:
    """docs/PAPER.md#learning-rate: np.linspace(0, peak, warm-up) with its end point, then half a cosine down to `end`."""
    if step < warmup:
        return float(np.linspace(0, peak, warmup)[step])
    return end + (peak - end) * (1 + math.cos(math.pi * (step - warmup) / (steps - warmup))) / 2
