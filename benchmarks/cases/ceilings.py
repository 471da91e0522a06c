"""What this device reaches where nothing stands in its way: square matrix products and copies in its own memory."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import torch

from benchmarks.case import Bench, Case, Group, timed
from benchmarks.ceiling import COPY, PRODUCTS, NumberFormat, product_step
from benchmarks.devices import Step
from benchmarks.harness import Variant
from benchmarks.record import Row

EDGES = {"cpu": (256, 1024, 2048), "cuda": (1024, 2048, 4096, 8192)}
COPIED_MIB = {"cpu": (16, 256), "cuda": (64, 2048)}
"""A small one may stay in a cache, the large one cannot."""
FORMATS: dict[str, tuple[NumberFormat, ...]] = {"cpu": ("bf16", "fp32"), "cuda": ("bf16", "fp16", "tf32", "fp32")}
SUSTAINED_FLOPS = 2e13
"""Least work of one timed call on a GPU: a single product would be done before the clock falls."""
MOST_PRODUCTS = 64


def groups(bench: Bench) -> Iterator[Group]:
    """Products, a group for each number format; and copies."""
    device = bench.device.type
    for number_format in FORMATS[device]:
        yield Group(f"{PRODUCTS} {number_format}", partial(measure_products, bench, number_format, EDGES[device]))
    yield Group(COPY, partial(measure_copies, bench, COPIED_MIB[device]))


def measure_products(bench: Bench, number_format: NumberFormat, edges: tuple[int, ...]) -> list[Row]:
    """`values.flops_per_s` of square products of random numbers, accumulated in float32."""
    variants = []
    for edge in edges:
        flops = 2.0 * edge**3
        products = 1 if bench.device.type == "cpu" else min(MOST_PRODUCTS, max(1, round(SUSTAINED_FLOPS / flops)))
        config = {"format": number_format, "edge": edge, "products": products}
        build = partial(product_step, number_format, edge, products, bench.device)
        variants.append(Variant(f"{edge}^3", build, config, products * flops))
    rows = timed(variants, bench, memory=False)
    return [
        _with_rate(row, "flops_per_s", row["config"]["products"] * 2.0 * row["config"]["edge"] ** 3) for row in rows
    ]


def measure_copies(bench: Bench, sizes_mib: tuple[int, ...]) -> list[Row]:
    """`values.bytes_per_s`: what a copy reads and writes."""
    variants = [
        Variant(f"{mib} MiB", partial(copy_step, mib, bench.device), {"copied_bytes": mib * 2**20}) for mib in sizes_mib
    ]
    rows = timed(variants, bench, memory=False)
    return [_with_rate(row, "bytes_per_s", 2.0 * row["config"]["copied_bytes"]) for row in rows]


def _with_rate(row: Row, name: str, amount: float) -> Row:
    if row["error"]:
        return row
    return row | {"values": {name: amount / row["time_s"]["median"]}, "kind": "measured"}


def copy_step(mib: int, device: torch.device) -> Step:
    """One copy of `mib` MiB of random bytes within the device's memory."""
    source = torch.randint(0, 256, (mib * 2**20,), dtype=torch.uint8, device=device)
    target = torch.empty_like(source)

    def step() -> None:
        target.copy_(source)

    return step


CASE = Case(groups, "what this device reaches: square matrix products by number format, and copies in its memory")
