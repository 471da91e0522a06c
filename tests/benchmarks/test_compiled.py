"""A compiled step is the same step: it trains the same weights, and its row says what preparing it took."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from benchmarks.case import Bench, Options
from benchmarks.cases import compiled
from benchmarks.cases.compiled import compiled_step
from benchmarks.devices import Step
from benchmarks.steps import MASKS, Workbench

CPU = torch.device("cpu")
MATH = ("math", "math")


def weights_after(make: Callable[[Workbench], Step], device: torch.device, steps: int = 2) -> dict[str, torch.Tensor]:
    workbench = Workbench("tiny", "fp32", device)
    step = make(workbench)
    for _ in range(steps):
        step()
    return {name: parameter.detach().clone() for name, parameter in workbench.model.named_parameters()}


@pytest.mark.slow
def test_compiled_blocks_train_the_same_weights() -> None:
    """`aot_eager` traces forward and backward without a compiler."""
    eager = weights_after(lambda bench: bench.step(MASKS["dual"], 1, MATH), CPU)
    traced = weights_after(lambda bench: compiled_step(bench, 1, MATH, "aot_eager"), CPU)
    for name, weight in eager.items():
        torch.testing.assert_close(traced[name], weight, rtol=1e-4, atol=1e-5, msg=name)


def test_a_row_says_what_preparing_took_and_a_compiler_that_fails_is_a_row(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> Step:
        raise RuntimeError("InvalidCxxCompiler: No working C++ compiler found\nmore")

    monkeypatch.setattr(compiled, "compiled_step", fail)
    bench = Bench(Options(device="cpu", rounds=1, warmup=0))
    rows = {row["variant"]: row for row in compiled.measure(bench, "tiny", "fp32", 1)}
    assert rows["eager"]["values"]["prepare_s"] > 0
    assert rows["compiled blocks"]["error"] == "RuntimeError: InvalidCxxCompiler: No working C++ compiler found"
    assert "CUDA graph" not in rows
