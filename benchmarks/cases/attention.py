"""Attention kernels alone, forward and backward, at every shape that the model gives them."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from benchmarks.case import Bench, Case, Group, batch_suffix, timed
from benchmarks.devices import Step
from benchmarks.filling import at_batch, planned_batch
from benchmarks.harness import Variant
from benchmarks.held import count_held_bytes
from benchmarks.record import Row
from benchmarks.steps import MASKS, Precision, geometry_of
from vmae2_ds.config.model import ModelConfig, TowerConfig
from vmae2_ds.cost.flops import block_parts, training_flops
from vmae2_ds.engine.device_peak import DTYPES
from vmae2_ds.masking import count_masks
from vmae2_ds.model.attention import get_attention

# B clips, N tokens, H heads, K channels in a head.

BASE = "math"
MOST_CLIPS = 64
"""Of one launch: its rate no longer rises, and math holds all its scores."""


class Place(NamedTuple):
    """Where attention runs in the model."""

    tower: TowerConfig
    tokens: int


def places(size: str) -> dict[str, Place]:
    """The encoder, and the decoder under dual and under encoder-only masking, with their tokens a clip."""
    model, geometry = ModelConfig.of_size(size), geometry_of(size)
    decoders = {}
    for name in ("dual", "encoder_only"):
        counts = count_masks(MASKS[name], geometry)
        decoders[f"decoder {name}"] = Place(model.decoder, counts.visible + counts.decode)
    return {"encoder": Place(model.encoder, counts.visible), **decoders}


def groups(bench: Bench) -> Iterator[Group]:
    """By size, precision and place."""
    for size in bench.options.sizes:
        for precision in bench.options.precisions:
            for name, place in places(size).items():
                for batch in bench.batches:
                    title = f"{size} {precision} {name}, {place.tokens} tokens{batch_suffix(batch)}"
                    plan = partial(planned_batch, size, precision, "flash", (MASKS["dual"],), most=MOST_CLIPS)
                    taken = partial(measure, size=size, precision=precision, name=name)
                    yield Group(title, partial(at_batch, bench, batch, plan, taken))


def measure(bench: Bench, size: str, precision: Precision, name: str, batch_size: int) -> list[Row]:
    """As many calls of each kernel as the tower has blocks; `values.held_bytes` is what one block keeps for its backward."""
    tower, tokens = places(size)[name]
    config: dict[str, Any] = {
        "size": size, "place": name, "precision": precision, "batch_size": batch_size, "tokens": tokens,
        "heads": tower.heads, "head_width": tower.width // tower.heads, "blocks": tower.depth,
    }  # fmt: skip
    shape_BN3HK = (batch_size, tokens, 3, tower.heads, tower.width // tower.heads)
    flops = batch_size * tower.depth * training_flops(block_parts(tower, tokens)["attention"])
    variants = [
        Variant(
            kernel,
            partial(blocks_step, kernel, shape_BN3HK, precision, tower.depth, bench.device),
            {**config, "attention": kernel},
            flops,
        )
        for kernel in bench.attentions(precision)
    ]
    rows = timed(variants, bench, BASE, peak=precision, count=True)
    for row in rows:
        if row["config"].get("attention") and not row["error"]:
            qkv_BN3HK = _leaf(shape_BN3HK, precision, bench.device)
            held = count_held_bytes(partial(get_attention(row["variant"]), qkv_BN3HK))
            row |= {"values": {"held_bytes": held}, "kind": "counted"}
    return rows


def blocks_step(
    kernel: str, shape_BN3HK: tuple[int, ...], precision: Precision, blocks: int, device: torch.device
) -> Step:
    """Forward and backward, `blocks` times one after another, on inputs that are made once."""
    attend, qkv_BN3HK = get_attention(kernel), _leaf(shape_BN3HK, precision, device)
    batch_size, tokens, _, heads, channels = shape_BN3HK
    gradient_BNHK = torch.randn(batch_size, tokens, heads, channels, device=device).to(DTYPES[precision])

    def step() -> None:
        for _ in range(blocks):
            attend(qkv_BN3HK).backward(gradient_BNHK)
            qkv_BN3HK.grad = None

    return step


def _leaf(shape: tuple[int, ...], precision: Precision, device: torch.device) -> Tensor:
    return torch.randn(shape, device=device).to(DTYPES[precision]).requires_grad_()


CASE = Case(groups, "attention kernels alone at the shapes of encoder and decoder: time, FLOP/s, memory")
