"""The benchmark harness on a CUDA device: events as clock, the allocator's peaks, flash among the kernels."""

from __future__ import annotations

import pytest
import torch

from benchmarks.case import MATMUL, Bench, Options
from benchmarks.cases import decoder_masking, dual_masking, peers, step_parts
from benchmarks.devices import attentions_on, find_device, measure_memory, timer_of
from benchmarks.steps import MASKS

pytestmark = pytest.mark.gpu
BENCH = Bench(Options(device="cuda", sizes=("small",), precisions=("bf16",), rounds=3, warmup=1))


def test_events_time_what_the_device_does() -> None:
    left = torch.randn(4096, 4096, device="cuda")
    torch.mm(
        left, left
    )  # the first product of a size brings cuBLAS's handle and its kernels: up to 0.3 s between two events
    torch.cuda.synchronize()
    clock, timer = timer_of(find_device("auto"))
    once, often = (timer(lambda: [left @ left for _ in range(n)] and None) for n in (1, 20))  # noqa: B023
    assert clock == "cuda_events"
    assert often > 5 * once > 0


def test_memory_is_what_the_allocator_gave() -> None:
    def call() -> None:
        torch.empty(2**26, device="cuda", dtype=torch.uint8)

    measured = measure_memory(call, find_device("cuda"))
    assert measured is not None
    assert measured.peak_bytes == 2**26


def test_dual_masking_has_every_figure_with_every_kernel() -> None:
    for attention in attentions_on(torch.device("cuda"), "bf16"):
        rows = {row["variant"]: row for row in dual_masking.measure(BENCH, "small", "bf16", attention, 8, keep=False)}
        assert set(rows) == set(MASKS), f"{MATMUL} is for CPUs"
        for row in rows.values():
            assert row["error"] is None
            assert row["clock"] == "cuda_events"
            assert row["memory"]["source"] == "torch.cuda.max_memory_allocated"
            assert (row["flops_counted"] is None) == attention.startswith("flash")
        assert rows["dual"]["memory"]["peak_bytes"] < rows["encoder_only"]["memory"]["peak_bytes"]


def test_step_parts_and_the_other_cases_run() -> None:
    for row in step_parts.measure(BENCH, "small", "bf16", 8):
        assert sum(part["median"] for part in row["segments_s"].values()) > 0
    assert not any(row["error"] for row in decoder_masking.measure(BENCH, "small", "bf16", 8))
    pytest.importorskip("transformers")
    assert not any(row["error"] for row in peers.measure(BENCH, "small", "bf16", 8))
