"""Products in 8 bit against bf16 at ViT-g's shapes: what the linear layers of a step would gain, each of their three products.

e4m3 with one scale a matrix, out in bf16: alone, on operands that are 8 bit already, and with the casts that a step would pay
for (largest value, scale, cast and the layout that the kernel wants, of both operands).
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from benchmarks.case import Bench, Case, Group, timed
from benchmarks.devices import Step
from benchmarks.harness import Variant, measured_row, reason_of
from benchmarks.record import Row
from benchmarks.steps import MASKS, geometry_of
from vmae2_ds.config.model import ModelConfig
from vmae2_ds.masking import count_masks

# A product is (M, K) @ (K, N) -> (M, N).

BASE = "bf16"
SIZE = "giant"
CLIPS = {"cpu": 1, "cuda": 64}
CALLS = {"cpu": 1, "cuda": 32}
"""Products in one timed call: one alone takes a GPU little longer than its launch takes the host."""
LARGEST = 448.0
"""Of e4m3."""


class Product(NamedTuple):
    """One product of a linear layer."""

    layer: str
    kind: str
    """forward, or the gradient of input or weight."""
    shape_MKN: tuple[int, int, int]


def products(clips: int) -> Iterator[Product]:
    """Those of the encoder's linear layers on the visible tokens of `clips` clips; the gradients are the forward one turned."""
    tower = ModelConfig.of_size(SIZE).encoder
    tokens = clips * count_masks(MASKS["dual"], geometry_of(SIZE)).visible
    layers = {"qkv": (tower.width, 3 * tower.width), "proj": (tower.width, tower.width),
              "fc1": (tower.width, tower.mlp), "fc2": (tower.mlp, tower.width)}  # fmt: skip
    for layer, (fan_in, fan_out) in layers.items():
        yield Product(layer, "forward", (tokens, fan_in, fan_out))
        yield Product(layer, "gradient of input", (tokens, fan_out, fan_in))
        yield Product(layer, "gradient of weight", (fan_out, tokens, fan_in))


def groups(bench: Bench) -> Iterator[Group]:
    """By layer and product."""
    for product in products(CLIPS[bench.device.type]):
        yield Group(f"{SIZE} {product.layer}, {product.kind}", partial(measure, bench, product))


def measure(bench: Bench, product: Product) -> list[Row]:
    """`values.relative_error` is the result's over bf16's; a device or torch without such products has a row that says so."""
    M, K, N = product.shape_MKN
    times = CALLS[bench.device.type]
    config = {"size": SIZE, "layer": product.layer, "product": product.kind, "M": M, "K": K, "N": N, "calls": times}
    left_MK, right_NK = (torch.randn(rows, K, device=bench.device).bfloat16() for rows in (M, N))
    fast = product.kind == "forward"  # gradients are added up in float32 all the way
    calls = {
        BASE: lambda: left_MK @ right_NK.t(),
        "fp8": partial(multiply, *to_fp8(left_MK), *to_fp8(right_NK), fast),
        "fp8 with casts": lambda: multiply(*to_fp8(left_MK), *to_fp8(right_NK), fast),
    }
    missing = why_not_fp8(bench.device)
    variants = [
        Variant(
            name, partial(_keep_nothing, call, times), {**config, "dtype": name.split()[0]}, times * 2.0 * M * K * N
        )
        for name, call in calls.items()
        if name == BASE or missing is None
    ]
    rows = timed(variants, bench, BASE, memory=False)
    exact = calls[BASE]().float()
    for row in rows:
        if row["variant"] != BASE and not row["error"]:
            off = (calls[row["variant"]]().float() - exact).norm() / exact.norm()
            row |= {"values": {"relative_error": float(off)}, "kind": "measured"}
    if missing is not None:
        rows.append(measured_row("fp8", {**config, "not_possible": missing}, []))
    return rows


def why_not_fp8(device: torch.device) -> str | None:
    """Why this device or torch has no product of 8-bit matrices, by trying a small one; None where it has."""
    try:
        small = to_fp8(torch.ones(32, 32, device=device))
        multiply(*small, *small, fast=True)
    except (RuntimeError, AttributeError, TypeError) as error:  # NotImplementedError is a RuntimeError
        return reason_of(error)
    return None


def to_fp8(x: Tensor) -> tuple[Tensor, Tensor]:
    """(e4m3, the scale that gives x back): the largest value becomes the largest of e4m3. Nothing waits for the device."""
    scale = x.abs().amax().float() / LARGEST
    return (x / scale).to(torch.float8_e4m3fn), scale


def multiply(left_MK: Tensor, left_scale: Tensor, right_NK: Tensor, right_scale: Tensor, fast: bool) -> Tensor:
    """(M, N) in bf16; `fast` adds up with fewer bits where the chip can, as is usual in forward passes."""
    return torch._scaled_mm(
        left_MK, right_NK.t(), scale_a=left_scale, scale_b=right_scale, out_dtype=torch.bfloat16, use_fast_accum=fast
    )


def _keep_nothing(call: partial[Tensor], times: int) -> Step:
    def step() -> None:
        for _ in range(times):
            call()

    return step


CASE = Case(groups, "8-bit products against bf16 at ViT-g's shapes: forward and both gradients, with and without casts")
