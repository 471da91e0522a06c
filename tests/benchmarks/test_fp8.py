"""8-bit products: at the shapes of ViT-g's linear layers, close to bf16's, and named where they cannot be."""

from __future__ import annotations

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.case import Bench, Options
from benchmarks.cases import fp8
from benchmarks.cases.fp8 import LARGEST, Product, multiply, products, to_fp8, why_not_fp8
from benchmarks.harness import Variant

CPU = torch.device("cpu")
BENCH = Bench(Options(device="cpu", rounds=1, warmup=0))
SMALL = Product("fc1", "forward", (48, 32, 64))
runs = pytest.mark.skipif(why_not_fp8(CPU) is not None, reason=f"no 8-bit products here: {why_not_fp8(CPU)}")


def test_shapes_are_those_of_a_step() -> None:
    """docs/PAPER.md#sizes: 208 visible cubes, width 1408, MLP 6144; 8-bit kernels want edges in 16s."""
    found = {(each.layer, each.kind): each.shape_MKN for each in products(64)}
    assert found["qkv", "forward"] == (13312, 1408, 4224)
    assert found["fc1", "gradient of input"] == (13312, 6144, 1408)
    assert found["fc2", "gradient of weight"] == (1408, 13312, 6144)
    assert len(found) == 12
    assert all(edge % 16 == 0 for shape in found.values() for edge in shape)


def test_a_scale_brings_the_largest_value_to_the_largest_number() -> None:
    x = torch.tensor([[-3.0, 0.5], [1.5, 0.75]])
    eight, scale = to_fp8(x)
    assert eight.float().abs().max() == LARGEST == torch.finfo(torch.float8_e4m3fn).max
    torch.testing.assert_close(eight.float() * scale, x, rtol=2**-4, atol=0)  # 3 bits behind the point, rounded


@runs
def test_the_product_is_that_of_what_the_8_bits_hold() -> None:
    (left, left_scale), (right, right_scale) = to_fp8(torch.randn(32, 48)), to_fp8(torch.randn(16, 48))
    exact = (left.double() * left_scale) @ (right.double() * right_scale).t()
    torch.testing.assert_close(
        multiply(left, left_scale, right, right_scale, fast=True).double(), exact, rtol=1e-2, atol=1e-1
    )


@runs
def test_rows_tell_the_gain_and_the_error() -> None:
    rows = {row["variant"]: row for row in fp8.measure(BENCH, SMALL)}
    assert set(rows) == {"bf16", "fp8", "fp8 with casts"}
    for name in ("fp8", "fp8 with casts"):
        assert rows[name]["speedup"]["against"] == "bf16"
        assert 0.01 < rows[name]["values"]["relative_error"] < 0.06
    assert rows["fp8"]["flops"] == 2 * 48 * 32 * 64


def test_a_call_of_several_products_counts_them_all(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch's counter sees as many FLOPs as a row claims."""
    made: list[Variant] = []
    monkeypatch.setitem(fp8.CALLS, "cpu", 3)
    monkeypatch.setattr(fp8, "why_not_fp8", lambda _: "none here")
    monkeypatch.setattr(fp8, "timed", lambda variants, *_, **__: made.extend(variants) or [])
    fp8.measure(BENCH, SMALL)
    (bf16,) = made
    with FlopCounterMode(display=False) as counter:
        bf16.build()()
    assert counter.get_total_flops() == bf16.flops == bf16.config["calls"] * 2 * 48 * 32 * 64
    assert bf16.config["calls"] == 3


def test_where_there_are_none_a_row_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise RuntimeError("torch._scaled_mm is only supported on CUDA devices with compute capability >= 9.0\nmore")

    monkeypatch.setattr(torch, "_scaled_mm", refuse)
    rows = {row["variant"]: row for row in fp8.measure(BENCH, SMALL)}
    assert set(rows) == {"bf16", "fp8"}
    assert rows["fp8"]["error"] is None
    assert rows["fp8"]["config"]["not_possible"].startswith("RuntimeError: torch._scaled_mm is only supported on CUDA")
    monkeypatch.delattr(torch, "_scaled_mm")
    assert "AttributeError" in str(why_not_fp8(CPU))
