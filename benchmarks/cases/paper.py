"""The paper's Tables 1 and 2 without its GPUs: work counted, memory counted on a fake GPU, hours from the closed form."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Literal

import torch
from torch._subclasses import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.case import Bench, Case, Group
from benchmarks.fake_memory import measure as count_memory
from benchmarks.fake_memory import measure_published
from benchmarks.record import Row
from benchmarks.steps import DECODER_MASKS, MASKS, geometry_of
from vmae2_ds.config.model import ModelConfig
from vmae2_ds.config.pretrain import MaskConfig
from vmae2_ds.contracts import ClipGeometry
from vmae2_ds.cost.activations import mae_activations
from vmae2_ds.cost.assumptions import Assumptions, Range
from vmae2_ds.cost.flops import mae_macs
from vmae2_ds.cost.paper_hours import compare_with_paper
from vmae2_ds.cost.traffic import AttentionKind
from vmae2_ds.masking import count_masks
from vmae2_ds.model.mae import MaskedAutoencoder

PAPER_SIZES = ("base", "giant")
"""Of the paper's Table 2; other sizes are added as the options name them."""
NORM_WORK = 5
"""What the paper's counter charges for an element of a layer norm: with it ViT-B's digits come out (docs/PAPER.md#macs)."""


def groups(bench: Bench) -> Iterator[Group]:
    """Work and memory of every size, hours of the paper's two; the same on any machine."""
    sizes = PAPER_SIZES[:1] if bench.options.quick else tuple(dict.fromkeys((*PAPER_SIZES, *bench.options.sizes)))
    for size in sizes:
        yield Group(f"flops {size}", partial(flops, size))
        yield Group(f"memory {size}", partial(memory, size))
    for size in PAPER_SIZES:
        yield Group(f"hours {size}", partial(hours, size))


def flops(size: str) -> list[Row]:
    """MACs of one clip's forward pass under each mask, as published and as computed here; the latter also counted by torch."""
    return [
        _row(variant, size, "counted", count_flops(size, mask))
        for variant, mask in {**DECODER_MASKS, "disjoint_50": MASKS["dual_disjoint"]}.items()
    ]


def count_flops(size: str, mask: MaskConfig) -> dict[str, float]:
    """MACs of one clip: closed forms with all cubes embedded (plain, with norms) or the visible ones; a count by torch."""
    model, geometry = ModelConfig.of_size(size, attention="math"), geometry_of(size)
    visible, decode, _ = count_masks(mask, geometry)
    published = mae_macs(model, geometry, visible, decode, embed_all=True).total
    # Fake tensors: no weight is allocated, and torch counts by shapes.
    with FakeTensorMode(), torch.no_grad(), FlopCounterMode(display=False) as counter:
        cubes, places = torch.empty(1, visible, geometry.cube_values), torch.empty(1, visible, dtype=torch.long)
        MaskedAutoencoder(model, geometry, seed=None)(cubes, places, torch.empty(1, decode, dtype=torch.long))
    return {
        "macs_published": published,
        "macs_published_with_norms": published + NORM_WORK * norm_elements(model, visible, decode),
        "macs_ours": mae_macs(model, geometry, visible, decode).total,
        "macs_ours_counted": counter.get_total_flops() / 2,
    }


def norm_elements(model: ModelConfig, visible: int, decode: int) -> int:
    """Elements that the layer norms of one clip's forward pass see: two to a block, one behind each tower."""
    encoder, decoder = model.encoder, model.decoder
    in_encoder = (2 * encoder.depth + 1) * visible * encoder.width
    return in_encoder + (2 * decoder.depth * (visible + decode) + decode) * decoder.width


def memory(size: str) -> list[Row]:
    """Bytes of activations per clip under fp16 autocast, which the paper's runs used, with either kind of attention."""
    kinds: tuple[AttentionKind, ...] = ("math", "flash")
    return [
        _row(f"{name} {kind}", size, "counted", _memory(ModelConfig.of_size(size), mask, geometry_of(size), kind))
        for name, mask in MASKS.items()
        for kind in kinds
    ]


def _memory(model: ModelConfig, mask: MaskConfig, geometry: ClipGeometry, kind: AttentionKind) -> dict[str, float]:
    visible, decode, _ = count_masks(mask, geometry)
    form = mae_activations(model, geometry, visible, decode, attention=kind, precision="autocast")
    values = {
        "held_bytes_counted": count_memory(model, mask, geometry, kind, "autocast").held,
        "held_bytes": float(form.held),
        "peak_bytes": float(form.peak),
    }
    if kind == "math":
        loop = mae_activations(
            model, geometry, visible, decode, attention=kind, precision="autocast", published_loop=True
        )
        values["published_loop_peak_bytes"] = float(loop.peak)
        values["published_held_bytes_counted"] = measure_published(model, mask, geometry)
    return values


def hours(size: str) -> list[Row]:
    """Hours of the paper's runs on 64 A100: computing alone, expected efficiencies and their range; nothing is fitted."""
    letter = {"base": "B", "giant": "g"}[size]
    of = {each.name: each.predicted for each in compare_with_paper(Assumptions())}
    variants = {"encoder_only": f"{letter} encoder-only", "dual": f"{letter} dual"}
    rows = [_row(name, size, "modelled", _spelled("hours", of[key])) for name, key in variants.items()]
    return [*rows, _row("speedup", size, "modelled", _spelled("ratio", of[f"{letter} dual over encoder-only"]))]


def _spelled(name: str, value: Range) -> dict[str, float]:
    return {name: value.value, f"{name}_low": value.low, f"{name}_high": value.high}


def _row(variant: str, size: str, kind: Literal["counted", "modelled"], values: dict[str, float]) -> Row:
    config = {"size": size, "clip": [16, 224, 224]}
    return {"variant": variant, "config": config, "error": None, "samples_s": [], "kind": kind, "values": values}


CASE = Case(groups, "the paper's Tables 1 and 2: FLOPs and memory counted without a GPU, hours from closed forms")
