"""The cube embedding, forward and backward: all cubes of a float clip and then a choice, against visible cubes from uint8.

And cutting visible cubes out of a clip alone: whole runs of neighbouring values, against indexing a 7-D view of the clip.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor, nn

from benchmarks.case import Bench, Case, Group, batch_suffix, timed
from benchmarks.devices import Step
from benchmarks.filling import at_batch, planned_batch
from benchmarks.harness import Variant
from benchmarks.held import count_held_bytes
from benchmarks.record import Row
from benchmarks.steps import MASKS, SEED, Precision, geometry_of, make_batch
from vmae2_ds.config.model import ModelConfig
from vmae2_ds.contracts import ClipGeometry, PretrainBatch
from vmae2_ds.engine.device_peak import DTYPES
from vmae2_ds.masking import count_masks
from vmae2_ds.model.embed import CubeEmbed, gather_cubes, normalise_pixels

# B clips, T frames, H x W pixels, C = 3 colours, N cubes, V visible cubes, P values in a cube, D width.

BASE = "published"
MOST_CLIPS = 64
"""Of an automatic batch: one variant holds them as normalised float32."""
PRODUCTS = 2
"""Forward and the weights' gradient: pixels need none, so a training step has two products here, not three."""


class Embedding:
    """One set of weights behind every variant, and the batch in the form in which each of them gets it."""

    def __init__(self, size: str, precision: Precision, batch_size: int, device: torch.device) -> None:
        self.geometry = geometry_of(size)
        self.dtype, width = DTYPES[precision], ModelConfig.of_size(size).encoder.width
        rng = torch.Generator().manual_seed(SEED)
        self.ours = CubeEmbed(self.geometry, width)
        nn.init.normal_(self.ours.proj.weight, std=self.geometry.cube_values**-0.5, generator=rng)
        nn.init.normal_(self.ours.proj.bias, generator=rng)
        self.published = conv_of(self.ours, self.geometry)
        for module in (self.ours.proj, self.published):
            module.to(device, self.dtype)
        self.ours.to(device)
        self.batch: PretrainBatch = make_batch(MASKS["dual"], self.geometry, batch_size).to(device)

    def conv_all(self) -> Callable[[], Tensor]:
        """As published (VideoMAEv2 modeling_finetune.py PatchEmbed, modeling_pretrain.py): Conv3d, positions, then x[mask].

        Starts from the normalised float32 clip (B, C, T, H, W) that published loaders deliver: making it is not timed.
        """
        clip_BCTHW = normalise_pixels(self.batch.clip_BTHWC).permute(0, 4, 1, 2, 3).contiguous()
        positions_ND = self.ours.positions_ND.to(self.dtype)
        is_visible_BN = torch.zeros(
            len(clip_BCTHW), self.geometry.num_cubes, dtype=torch.bool, device=clip_BCTHW.device
        )
        is_visible_BN.scatter_(1, self.batch.visible_BV, True)

        def forward() -> Tensor:
            x_BND = self.published(clip_BCTHW.to(self.dtype)).flatten(2).transpose(1, 2) + positions_ND
            return x_BND[is_visible_BN].reshape(len(x_BND), -1, x_BND.shape[-1])

        return forward

    def linear_all(self) -> Callable[[], Tensor]:
        """Our embedding of all cubes of the uint8 clip, then a choice: what is left of the gain without masks."""
        clip_BTHWC, visible_BV = self.batch.clip_BTHWC, self.batch.visible_BV
        every_BN = torch.arange(self.geometry.num_cubes, device=clip_BTHWC.device).expand(len(clip_BTHWC), -1)

        def forward() -> Tensor:
            x_BND = self.ours(normalise_pixels(gather_cubes(clip_BTHWC, every_BN, self.geometry)), every_BN)
            return x_BND.gather(1, visible_BV[..., None].expand(-1, -1, x_BND.shape[-1]))

        return forward

    def visible(self) -> Callable[[], Tensor]:
        """Our embedding as the model uses it."""
        clip_BTHWC, visible_BV = self.batch.clip_BTHWC, self.batch.visible_BV
        return lambda: self.ours(normalise_pixels(gather_cubes(clip_BTHWC, visible_BV, self.geometry)), visible_BV)

    def step(self, forward: Callable[[], Tensor]) -> Step:
        """Forward and backward into the weights' gradients, which are dropped."""
        gradient_BVD = torch.randn_like(forward())

        def step() -> None:
            forward().backward(gradient_BVD)
            self.ours.zero_grad(set_to_none=True)
            self.published.zero_grad(set_to_none=True)

        return step


def conv_of(embed: CubeEmbed, geometry: ClipGeometry) -> nn.Conv3d:
    """The published layer with the weights of ours: kernel (D, C, t, h, w) from (D, P) in the order t, h, w, c."""
    edges = (geometry.tubelet, geometry.patch, geometry.patch)
    width = embed.proj.out_features
    conv = nn.Conv3d(3, width, kernel_size=edges, stride=edges)
    with torch.no_grad():
        conv.weight.copy_(embed.proj.weight.view(width, *edges, 3).permute(0, 4, 1, 2, 3))
        conv.bias.copy_(embed.proj.bias)  # type: ignore[union-attr]  # made with one
    return conv


class Way(NamedTuple):
    """A variant."""

    forward: Callable[[Embedding], Callable[[], Tensor]]
    """What makes its forward pass."""
    embeds_all: bool
    """All cubes, not only visible ones."""
    pixel_bytes: int
    """Of one pixel value on its way to the device."""


WAYS = {
    "published": Way(Embedding.conv_all, True, 4),
    "all_cubes": Way(Embedding.linear_all, True, 1),
    "visible": Way(Embedding.visible, False, 1),
}


def groups(bench: Bench) -> Iterator[Group]:
    """By size and precision; cutting out alone by batch size."""
    for batch in bench.batches:
        taken = partial(
            at_batch, bench, batch, partial(planned_batch, "base", "bf16", "flash", (MASKS["dual"],), most=MOST_CLIPS)
        )
        yield Group(f"gather{batch_suffix(batch)}", partial(taken, measure_gather))
    for size in bench.options.sizes:
        for precision in bench.options.precisions:
            for batch in bench.batches:
                title = f"{size} {precision}{batch_suffix(batch)}"
                plan = partial(planned_batch, size, precision, "flash", (MASKS["dual"],), most=MOST_CLIPS)
                taken = partial(measure, size=size, precision=precision)
                yield Group(title, partial(at_batch, bench, batch, plan, taken))


def measure(bench: Bench, size: str, precision: Precision, batch_size: int) -> list[Row]:
    """`values`: bytes of pixels that go to the device, and bytes that are kept for the backward pass."""
    embedding, geometry = Embedding(size, precision, batch_size, bench.device), geometry_of(size)
    width, seen = ModelConfig.of_size(size).encoder.width, count_masks(MASKS["dual"], geometry).visible
    variants = []
    for name, way in WAYS.items():
        embedded = geometry.num_cubes if way.embeds_all else seen
        config = {
            "size": size, "precision": precision, "batch_size": batch_size, "visible": seen, "embedded": embedded,
            "clip": [geometry.num_frames, geometry.height, geometry.width], "width": width,
            "input": "normalised float32" if name == "published" else "uint8",
        }  # fmt: skip
        flops = 2.0 * PRODUCTS * batch_size * embedded * geometry.cube_values * width
        variants.append(Variant(name, partial(_step, embedding, way), config, flops))
    rows = timed(variants, bench, BASE, peak=precision, count=True)
    pixels = batch_size * geometry.num_frames * geometry.height * geometry.width * 3
    for row in rows:
        if row["variant"] in WAYS and not row["error"]:
            way = WAYS[row["variant"]]
            held = count_held_bytes(way.forward(embedding))
            row |= {"values": {"input_bytes": pixels * way.pixel_bytes, "held_bytes": held}, "kind": "counted"}
    return rows


def measure_gather(bench: Bench, batch_size: int) -> list[Row]:
    """The visible cubes of a batch by both ways; the cubes are those of every size with patches of 16."""
    geometry = geometry_of("base")
    batch = make_batch(MASKS["dual"], geometry, batch_size).to(bench.device)
    clip_BTHWC, visible_BV = batch.clip_BTHWC, batch.visible_BV
    config = {"batch_size": batch_size, "visible": visible_BV.shape[1], "clip": list(clip_BTHWC.shape[1:4])}
    variants = [
        Variant(name, lambda cut=cut: partial(_cut, cut, clip_BTHWC, visible_BV, geometry), config)  # type: ignore[misc]
        for name, cut in (("indexed view", index_view), ("runs", gather_cubes))
    ]
    return timed(variants, bench, "indexed view", memory=False)


def _cut(
    cut: Callable[[Tensor, Tensor, ClipGeometry], Tensor],
    clip_BTHWC: Tensor,
    visible_BV: Tensor,
    geometry: ClipGeometry,
) -> None:
    cut(clip_BTHWC, visible_BV, geometry)


def index_view(clip_BTHWC: Tensor, index_BV: Tensor, geometry: ClipGeometry) -> Tensor:
    """`gather_cubes` as one would write it first: (B, V, P)."""
    (steps, rows, columns), (tubelet, patch) = geometry.grid, (geometry.tubelet, geometry.patch)
    cubes = clip_BTHWC.view(-1, steps, tubelet, rows, patch, columns, patch, 3)
    clip_BV = torch.arange(len(index_BV), device=index_BV.device)[:, None].expand_as(index_BV)
    where = index_BV // (rows * columns), index_BV // columns % rows, index_BV % columns
    return cubes[clip_BV, where[0], :, where[1], :, where[2]].flatten(2)


def _step(embedding: Embedding, way: Way) -> Step:
    return embedding.step(way.forward(embedding))


CASE = Case(groups, "cube embedding: Conv3d over all cubes and then a choice, against visible cubes only")
