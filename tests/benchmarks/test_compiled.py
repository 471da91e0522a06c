"""A compiled step is the same step: it trains the same weights, and its row says what preparing it took."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from types import SimpleNamespace

import pytest
import torch

from benchmarks import case
from benchmarks.case import Bench, Options
from benchmarks.cases import compiled
from benchmarks.cases.compiled import BLOCKS, GRAPH, compiled_step, graph_step
from benchmarks.devices import Step
from benchmarks.harness import has_failed, is_device_broken
from benchmarks.steps import MASKS, Workbench

CPU = torch.device("cpu")
BENCH = Bench(Options(device="cpu", rounds=1, warmup=0))
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
    rows = {row["variant"]: row for row in compiled.measure(BENCH, "tiny", "fp32", 1)}
    assert rows["eager"]["values"]["prepare_s"] > 0
    assert rows["compiled blocks"]["error"] == "RuntimeError: InvalidCxxCompiler: No working C++ compiler found"
    assert "CUDA graph" not in rows


def test_blocks_and_loss_are_compiled_for_these_shapes_as_a_run_does_it(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[bool | None] = []
    compile_one = torch.compile

    def note(*args: object, dynamic: bool | None = None, **others: object) -> object:
        asked.append(dynamic)
        return compile_one(*args, dynamic=dynamic, **others)  # type: ignore[call-overload]

    monkeypatch.setattr(torch, "compile", note)
    monkeypatch.setattr(torch.nn.Module, "compile", lambda self, *, dynamic=None, **_: asked.append(dynamic))
    bench = Workbench("tiny", "fp32", CPU)
    compiled_step(bench, 1, MATH, "aot_eager")
    blocks = len(bench.model.encoder.blocks) + len(bench.model.decoder.blocks)
    assert asked == [False] * (blocks + 1)


def test_no_compiler_is_a_row_and_no_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiled, "why_no_compiler", lambda: "needs a C++ compiler, and g++ is not here")
    row = next(row for row in compiled.measure(BENCH, "tiny", "fp32", 1) if row["variant"] == BLOCKS)
    assert row["error"] == "ImportError: torch.compile needs a C++ compiler, and g++ is not here"
    assert not has_failed(row)


def test_preparing_begins_when_model_and_optimizer_are_there_and_a_replay_has_no_memory(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seen: list[str] = []

    class Noted(Workbench):
        @property
        def update(self) -> Step:  # type: ignore[override]
            assert self.objective
            seen.append("built")
            return lambda: None

    monkeypatch.setattr(compiled, "Workbench", Noted)
    monkeypatch.setattr(compiled, "time", SimpleNamespace(perf_counter=lambda: float(not seen.append("clock"))))
    monkeypatch.setattr(compiled, "graph_step", lambda *_: lambda: None)
    rows = {row["variant"]: row for row in compiled.measure(BENCH, "tiny", "fp32", 1, how=GRAPH)}
    assert [what for what in seen if what != "built"] == ["clock"] * 4
    assert seen[:2] == ["built", "clock"]
    assert seen[-3:] == ["built", "clock", "clock"]
    assert rows[GRAPH]["memory"] is None
    assert rows["eager"]["memory"] is not None


def test_on_a_gpu_the_graph_is_a_group_of_its_own_behind_all_others(monkeypatch: pytest.MonkeyPatch) -> None:
    bench = Bench(Options(sizes=("small", "base"), precisions=("bf16",)))
    for device, graphs in (("cpu", 0), ("cuda", 2)):
        monkeypatch.setattr(case, "find_device", lambda _, device=device: torch.device(device))
        names = [group.name for group in compiled.CASE.groups(bench)]
        assert [name.endswith(GRAPH) for name in names] == [False, False] + [True] * graphs
        assert len(set(names)) == len(names)


def capture(monkeypatch: pytest.MonkeyPatch, inside: Exception | None, at_end: Exception | None) -> list[str]:
    """CUDA's calls around a capture on a CPU: it fails `inside` or `at_end`; what was called."""
    called: list[str] = []

    @contextmanager
    def graph(_: object) -> Iterator[None]:
        try:
            yield
            if inside:
                raise inside
        finally:
            if at_end:
                raise at_end

    stream = SimpleNamespace(wait_stream=lambda _: None)
    for name, stand_in in {
        "Stream": lambda: stream, "current_stream": lambda: stream, "stream": lambda _: nullcontext(),
        "CUDAGraph": object, "graph": graph, "synchronize": lambda: called.append("synchronize"),
    }.items():  # fmt: skip
        monkeypatch.setattr(torch.cuda, name, stand_in)
    monkeypatch.setattr(compiled, "WARM_UP", 1)
    return called


INVALID = "CUDA error: operation failed due to a previous error during capture"
REFUSED = "CUDA error: operation not permitted when stream is capturing"


def test_a_capture_that_fails_is_no_broken_device(monkeypatch: pytest.MonkeyPatch) -> None:
    broken: type[Exception] = getattr(torch, "AcceleratorError", RuntimeError)
    called = capture(monkeypatch, broken(f"{REFUSED}\nmore"), broken(INVALID))
    with pytest.raises(RuntimeError, match=f"^not captured: {broken.__name__}: {REFUSED}$") as raised:
        graph_step(Workbench("tiny", "fp32", CPU), 1, MATH)
    assert not is_device_broken(raised.value)
    assert called == ["synchronize"]


@pytest.mark.parametrize("at_end", [None, RuntimeError(INVALID)])
def test_a_capture_without_memory_is_out_of_memory(at_end: Exception | None, monkeypatch: pytest.MonkeyPatch) -> None:
    capture(monkeypatch, torch.OutOfMemoryError("CUDA out of memory"), at_end)
    with pytest.raises(torch.OutOfMemoryError):
        graph_step(Workbench("tiny", "fp32", CPU), 1, MATH)


@pytest.mark.skipif(
    not hasattr(torch, "AcceleratorError"), reason="torch before 2.8 has no error of its own for a device"
)
def test_a_device_that_is_broken_behind_a_capture_ends_the_process(monkeypatch: pytest.MonkeyPatch) -> None:
    capture(monkeypatch, torch.AcceleratorError(REFUSED), None)

    def fail() -> None:
        raise torch.AcceleratorError("CUDA error: an illegal memory access was encountered")

    monkeypatch.setattr(torch.cuda, "synchronize", fail)
    with pytest.raises(torch.AcceleratorError, match="illegal"):
        graph_step(Workbench("tiny", "fp32", CPU), 1, MATH)
