"""Automatic batches: what fills a device by count, one for a group, halved where memory runs out, and said in the rows."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from benchmarks import case, filling
from benchmarks.case import AUTO, Bench, Options
from benchmarks.cases import CASES
from benchmarks.filling import at_batch, planned_batch
from benchmarks.harness import Variant, has_failed
from benchmarks.record import Row
from benchmarks.steps import MASKS, geometry_of
from vmae2_ds.config.model import ModelConfig
from vmae2_ds.cost.activations import mae_activations
from vmae2_ds.masking import count_masks

GIB = 2**30
CPU = Bench(Options(device="cpu", rounds=1, warmup=0))


@pytest.fixture
def on_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """A device that says it is CUDA and has 80 GiB free; nothing may run on it."""
    monkeypatch.setattr(case, "find_device", lambda _: torch.device("cuda"))
    monkeypatch.setattr(case, "attentions_on", lambda *_: ("math", "sdpa"))
    monkeypatch.setattr(filling, "free_bytes", lambda _: 80.0 * GIB)


@pytest.mark.parametrize("clips", [1, 5, 8, 40, 192])
def test_a_planned_batch_fits_and_one_more_would_not(clips: int) -> None:
    """Memory that just holds some clips: 20 bytes a weight (2 and its gradient, the master's 4, 8, 4), activations of the mask
    that takes most, the clips of all masks; 6 % that the allocator loses, and half a GiB of workspaces."""
    model, geometry = ModelConfig.of_size("base"), geometry_of("base")
    counts = {name: count_masks(mask, geometry)[:2] for name, mask in MASKS.items()}
    steps = {
        name: mae_activations(model, geometry, *seen, attention="math", precision="bf16")
        for name, seen in counts.items()
    }
    most = steps["encoder_only"]
    tensors = 20 * 94_210_944 + clips * (most.peak + steps["dual"].clip + steps["dual_disjoint"].clip)
    free = tensors / 0.94 + GIB / 2
    batches = [
        planned_batch("base", "bf16", "math", tuple(MASKS.values()), bytes_) for bytes_ in (free + 9, free - 2**20)
    ]
    assert batches[0] == clips
    assert batches[1] == max(1, clips - 8 if clips > 8 else clips - 1)


@pytest.mark.parametrize("more", [{"kernel": "flash"}, {"masks": (MASKS["dual"],)}, {"checkpointing": "all"}])
def test_less_memory_a_clip_makes_a_larger_batch(more: dict[str, Any]) -> None:
    usual = {"size": "giant", "precision": "bf16", "kernel": "math", "masks": tuple(MASKS.values()), "free_bytes": 80e9}
    assert planned_batch(**usual) < planned_batch(**(usual | more))  # type: ignore[arg-type]


def test_kernels_of_one_kind_have_one_batch_and_states_take_room() -> None:
    batches = {
        kernel: planned_batch("giant", "bf16", kernel, (MASKS["dual"],), 80e9) for kernel in ("efficient", "cudnn")
    }
    assert batches["efficient"] == batches["cudnn"]
    assert planned_batch("giant", "bf16", "flash", (MASKS["dual"],), 80e9, models=3) < batches["cudnn"]
    assert planned_batch("giant", "bf16", "math", (MASKS["dual"],), 1e9) == 1, "tried, and a row where it does not fit"


def test_auto_is_the_default_and_on_a_cpu_the_usual_batch() -> None:
    assert Options().batch_sizes == (AUTO,)
    assert CPU.batches == (2,)
    assert Bench(Options(device="cpu", batch_sizes=(AUTO, 2, 4))).batches == (2, 4)


@pytest.mark.parametrize(
    "name", ["dual_masking", "decoder_masking", "step_parts", "peers", "attention", "checkpointing"]
)
def test_on_a_gpu_the_device_decides_unless_a_batch_was_asked_for(name: str, on_gpu: None) -> None:
    groups = [group.name for group in CASES[name].groups(Bench(Options(sizes=("base",), precisions=("bf16",))))]
    assert groups
    assert all(group.endswith("batch auto") for group in groups)
    asked = CASES[name].groups(Bench(Options(sizes=("base",), precisions=("bf16",), batch_sizes=(4,))))
    assert all(group.name.endswith("batch 4") for group in asked)


def out_of_memory_above(most: int, calls: list[int]) -> Any:
    """A measurement of two variants, of which one needs more memory than there is for more than `most` clips."""

    def measured(bench: Bench, batch_size: int) -> list[Row]:
        calls.append(batch_size)

        def build() -> Any:
            if batch_size > most:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
            return lambda: None

        variants = [Variant("small", lambda: lambda: None), Variant("large", build)]
        return case.timed(variants, bench, memory=False)

    return measured


def on_cpu_at(most: int, planned: int, monkeypatch: pytest.MonkeyPatch) -> tuple[list[Row], list[int]]:
    monkeypatch.setattr(filling, "free_bytes", lambda _: 1.0)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
    calls: list[int] = []
    return at_batch(CPU, AUTO, lambda free_bytes: planned, out_of_memory_above(most, calls)), calls


def test_a_batch_is_halved_for_all_variants_until_none_runs_out(monkeypatch: pytest.MonkeyPatch) -> None:
    rows, calls = on_cpu_at(30, 96, monkeypatch)
    assert calls == [96, 48, 24]
    assert [(row["variant"], row["error"]) for row in rows] == [("small", None), ("large", None)]
    assert all(row["batch"] == {"clips": 24, "planned": 96, "out_of_memory_at": [96, 48]} for row in rows)


def test_at_one_clip_what_does_not_fit_is_a_row(monkeypatch: pytest.MonkeyPatch) -> None:
    rows, calls = on_cpu_at(0, 2, monkeypatch)
    assert calls == [2, 1]
    assert [row["error"] for row in rows] == [None, "OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB"]


def test_below_the_least_batch_a_group_is_left_out_and_nothing_has_failed(on_gpu: None) -> None:
    """80 GB do not hold four states of ViT-g: 20 bytes for each of a billion weights."""
    (group,) = CASES["peers"].groups(Bench(Options(sizes=("giant",), precisions=("bf16",))))
    (row,) = group.measure()
    assert row["error"] == "no room: memory for fewer than 2 clips a step"
    assert row["batch"] == {"clips": 1, "planned": 1, "out_of_memory_at": []}
    assert not has_failed(row)


def test_a_batch_that_was_asked_for_is_kept() -> None:
    calls: list[int] = []
    rows = at_batch(CPU, 4, lambda free_bytes: 96, out_of_memory_above(2, calls))
    assert calls == [4]
    assert [bool(row["error"]) for row in rows] == [False, True]
    assert "batch" not in rows[0]
