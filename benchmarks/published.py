"""A training step in the published style: what people run who take the published recipe as it is, written here from its facts.

Boolean masks over all cubes, a convolution that embeds every cube, math attention with two biases joined by cat, labels made
of every cube and then chosen, float32 weights, 16 bit by autocast alone, torch's AdamW (docs/PAPER.md#numerics). The same
mathematics as ours: tests/benchmarks/test_published.py holds both against the published outputs.
"""

from __future__ import annotations

from functools import cached_property
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.devices import Step
from benchmarks.steps import LEARNING_RATE, SEED, geometry_of, make_batch
from vmae2_ds.config.model import ModelConfig, TowerConfig
from vmae2_ds.config.pretrain import MaskConfig
from vmae2_ds.contracts import TARGET_EPS, ClipGeometry, PretrainBatch
from vmae2_ds.model.block import NORM_EPS
from vmae2_ds.model.embed import IMAGENET_MEAN, IMAGENET_STD, normalise_pixels, sinusoid_table
from vmae2_ds.model.mae import MaskedAutoencoder
from vmae2_ds.weights.layouts import to_layout

# B clips, C = 3 colours, T frames, H x W pixels, N cubes, V visible, M decoded, P values in a cube, D width, H heads, K wide.

AutocastName = Literal["fp32", "autocast"]
"""Of float32 weights: plain, or 16 bit by autocast: float16 with a scaled loss on a GPU, as published, bfloat16 on a CPU."""


class PublishedBatch(NamedTuple):
    """What a loader hands over: clips that it has normalised, and masks over all cubes."""

    clip_BCTHW: Tensor
    is_hidden_BN: Tensor
    """From the encoder."""
    is_left_out_BN: Tensor
    """Of the decoder's cubes."""

    @classmethod
    def of(cls, batch: PretrainBatch, geometry: ClipGeometry) -> PublishedBatch:
        """The same clips and cubes."""
        hidden, left_out = (
            torch.ones(len(index), geometry.num_cubes, dtype=torch.bool, device=index.device).scatter_(1, index, False)
            for index in (batch.visible_BV, batch.decode_BM)
        )
        clip_BTHWC = normalise_pixels(batch.clip_BTHWC.flatten(3)).view(batch.clip_BTHWC.shape)
        return cls(clip_BTHWC.permute(0, 4, 1, 2, 3).contiguous(), hidden, left_out)


class Attention(nn.Module):
    """Two products and a softmax."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.q_bias, self.v_bias = (nn.Parameter(torch.zeros(width)) for _ in range(2))
        self.proj = nn.Linear(width, width)

    def forward(self, x_BND: Tensor) -> Tensor:
        """(B, N, D) -> (B, N, D)."""
        no_bias = torch.zeros_like(self.v_bias, requires_grad=False)
        packed = F.linear(x_BND, self.qkv.weight, torch.cat((self.q_bias, no_bias, self.v_bias)))
        q_BHNK, k_BHNK, v_BHNK = packed.unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        scores_BHNN = (q_BHNK * q_BHNK.shape[-1] ** -0.5) @ k_BHNK.transpose(-2, -1)
        seen_BHNK = scores_BHNN.softmax(dim=-1) @ v_BHNK
        return self.proj(seen_BHNK.transpose(1, 2).flatten(2))


class Block(nn.Module):
    """Pre-norm."""

    def __init__(self, tower: TowerConfig) -> None:
        super().__init__()
        self.norm1, self.norm2 = (nn.LayerNorm(tower.width, eps=NORM_EPS) for _ in range(2))
        self.attn = Attention(tower.width, tower.heads)
        self.mlp = nn.Sequential()
        self.mlp.add_module("fc1", nn.Linear(tower.width, tower.mlp))
        self.mlp.add_module("act", nn.GELU())
        self.mlp.add_module("fc2", nn.Linear(tower.mlp, tower.width))

    def forward(self, x_BND: Tensor) -> Tensor:
        """(B, N, D) -> (B, N, D)."""
        x_BND = x_BND + self.attn(self.norm1(x_BND))
        return x_BND + self.mlp(self.norm2(x_BND))


class PublishedStyle(nn.Module):
    """Encoder and decoder under the published names of their parameters."""

    def __init__(self, config: ModelConfig, geometry: ClipGeometry) -> None:
        super().__init__()
        encoder, decoder, edges = config.encoder, config.decoder, (geometry.tubelet, geometry.patch, geometry.patch)
        embed = nn.ModuleDict({"proj": nn.Conv3d(3, encoder.width, kernel_size=edges, stride=edges)})
        self.encoder = _tower(encoder, patch_embed=embed)
        self.decoder = _tower(decoder, head=nn.Linear(decoder.width, geometry.cube_values))
        self.encoder_to_decoder = nn.Linear(encoder.width, decoder.width, bias=False)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, decoder.width))
        for name, width in (("encoder_places_ND", encoder.width), ("decoder_places_ND", decoder.width)):
            self.register_buffer(name, sinusoid_table(geometry.num_cubes, width)[None], persistent=False)
        self.encoder_places_ND: Tensor
        self.decoder_places_ND: Tensor

    def forward(self, batch: PublishedBatch) -> Tensor:
        """The prediction of every cube that the decoder has to fill: (B, M, P)."""
        clip_BCTHW, hidden_BN, left_out_BN = batch
        clips = len(clip_BCTHW)
        tokens_BND = self.encoder["patch_embed"]["proj"](clip_BCTHW).flatten(2).transpose(1, 2)  # type: ignore[index]
        tokens_BND = tokens_BND + self.encoder_places_ND.type_as(tokens_BND)
        tokens_BVD = tokens_BND[~hidden_BN].reshape(clips, -1, tokens_BND.shape[-1])
        seen_BVD = self.encoder_to_decoder(self.encoder["norm"](self.encoder["blocks"](tokens_BVD)))
        places_BND = self.decoder_places_ND.expand(clips, -1, -1).type_as(seen_BVD)
        seen_at, fill_at = (
            places_BND[keep].reshape(clips, -1, seen_BVD.shape[-1]) for keep in (~hidden_BN, ~left_out_BN)
        )
        x_BND = torch.cat([seen_BVD + seen_at, self.mask_token + fill_at], dim=1)
        filled_BMD = self.decoder["blocks"](x_BND)[:, -fill_at.shape[1] :]
        return self.decoder["head"](self.decoder["norm"](filled_BMD))


def _tower(tower: TowerConfig, **more: nn.Module) -> nn.ModuleDict:
    blocks = nn.Sequential(*(Block(tower) for _ in range(tower.depth)))
    return nn.ModuleDict({"blocks": blocks, "norm": nn.LayerNorm(tower.width, eps=NORM_EPS), **more})


def loss_of(model: PublishedStyle, batch: PublishedBatch, geometry: ClipGeometry) -> Tensor:
    """Mean squared error of a cube, over the cubes that are decoded and were hidden from the encoder."""
    labels_BMP, is_counted_BM = labels_of(batch, geometry)
    error_BM = F.mse_loss(model(batch), labels_BMP, reduction="none").mean(dim=-1)
    return (error_BM * is_counted_BM).sum() / is_counted_BM.sum()


@torch.no_grad()
def labels_of(batch: PublishedBatch, geometry: ClipGeometry) -> tuple[Tensor, Tensor]:
    """Normalised pixels of the decoded cubes, (B, M, P), of all cubes' at first; and which of them count, (B, M)."""
    mean, std = (torch.tensor(each).to(batch.clip_BCTHW)[:, None, None, None] for each in (IMAGENET_MEAN, IMAGENET_STD))
    unit_BCTHW = batch.clip_BCTHW * std + mean
    steps, rows, columns = geometry.grid
    tubelet, patch = geometry.tubelet, geometry.patch
    clips = len(unit_BCTHW)
    cubes = unit_BCTHW.view(clips, 3, steps, tubelet, rows, patch, columns, patch).permute(0, 2, 4, 6, 3, 5, 7, 1)
    cubes = cubes.reshape(clips, geometry.num_cubes, tubelet * patch * patch, 3)
    spread = cubes.var(dim=-2, unbiased=True, keepdim=True).sqrt() + TARGET_EPS
    labels_BNP = ((cubes - cubes.mean(dim=-2, keepdim=True)) / spread).flatten(-2)
    decoded_BN = ~batch.is_left_out_BN
    return (
        labels_BNP[decoded_BN].reshape(clips, -1, geometry.cube_values),
        batch.is_hidden_BN[decoded_BN].reshape(clips, -1),
    )


class PublishedBench:
    """One model in the published style with its optimizer, shared by its steps; the weights are those that ours start from."""

    def __init__(self, size: str, device: torch.device) -> None:
        self.size, self.device, self.geometry = size, device, geometry_of(size)

    @cached_property
    def model(self) -> PublishedStyle:
        """Float32 weights on the device."""
        config = ModelConfig.of_size(self.size)
        model = PublishedStyle(config, self.geometry)
        ours = MaskedAutoencoder(config, self.geometry, seed=SEED)
        model.load_state_dict(to_layout(ours.state_dict(), config))
        return model.to(self.device).train()

    @cached_property
    def optimizer(self) -> torch.optim.Optimizer:
        """AdamW as torch comes: on a CPU a loop over parameters, on a GPU its foreach functions."""
        return torch.optim.AdamW(self.model.parameters(), lr=LEARNING_RATE, betas=(0.9, 0.95), weight_decay=0.05)

    def step(self, mask: MaskConfig, batch_size: int, how: AutocastName) -> Step:
        """Forward, loss, backward and update; the clips are float and normalised before, as the published loader has them."""
        batch = PublishedBatch.of(make_batch(mask, self.geometry, batch_size).to(self.device), self.geometry)
        model, optimizer, kind = self.model, self.optimizer, self.device.type
        dtype = torch.float16 if kind == "cuda" else torch.bfloat16
        autocast = torch.autocast(kind, dtype, enabled=how == "autocast")
        scaler = torch.amp.GradScaler(kind, enabled=how == "autocast" and kind == "cuda")

        def step() -> None:
            optimizer.zero_grad(set_to_none=True)
            with autocast:
                loss = loss_of(model, batch, self.geometry)
            scaler.scale(loss).backward()
            scaler.step(optimizer)
            scaler.update()

        return step
