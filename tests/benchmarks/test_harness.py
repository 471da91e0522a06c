"""The harness against clocks that we move by hand: no time is asserted, only what is made of times."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from benchmarks.__main__ import table_of
from benchmarks.devices import Step, Timer, clock_timer
from benchmarks.harness import Variant, paired_ratio, rows_of, spread, time_interleaved
from benchmarks.record import append_rows, provenance, read_rows


class FakeClock:
    """Time that passes only when a step says so, slower and slower as on a machine that gets busier."""

    def __init__(self, drift: float = 0.0) -> None:
        self.now = 0.0
        self.drift = drift
        self.calls: list[str] = []

    @property
    def timer(self) -> Timer:
        return clock_timer(lambda: self.now)

    def variant(self, name: str, cost_s: float, flops: float | None = None, fails_at: int | None = None) -> Variant:
        def build() -> Step:
            def step() -> None:
                self.calls.append(name)
                if fails_at is not None and self.calls.count(name) > fails_at:
                    raise torch.OutOfMemoryError("tried to allocate 8 GiB\nmore lines")
                self.now += cost_s * (1 + self.drift * len(self.calls))

            return step

        return Variant(name, build, {"cost_s": cost_s}, flops)


def test_spread_is_median_and_quartiles() -> None:
    assert spread([5.0, 1.0, 3.0, 2.0, 4.0]) == (3.0, 2.0, 4.0)
    assert spread([7.0]) == (7.0, 7.0, 7.0)


def test_warmup_is_thrown_out_and_turns_rotate() -> None:
    clock = FakeClock()
    timings = time_interleaved([clock.variant("a", 2), clock.variant("b", 1)], rounds=3, warmup=1, timer=clock.timer)
    assert timings["a"].samples_s == [2, 2, 2]
    assert timings["b"].samples_s == [1, 1, 1]
    assert clock.calls == ["a", "b", "b", "a", "b", "a", "a", "b"]


def test_ratios_are_paired_so_that_drift_cancels() -> None:
    clock = FakeClock(drift=0.05)  # the last call takes 6 times as long as the first
    variants = [clock.variant("slow", 3), clock.variant("fast", 1)]
    timings = time_interleaved(variants, rounds=50, warmup=0, timer=clock.timer)
    ratio = paired_ratio(timings["slow"].samples_s, timings["fast"].samples_s)
    assert spread(timings["slow"].samples_s).high / spread(timings["slow"].samples_s).low > 1.5
    assert ratio.low < 3 < ratio.high
    # neighbours differ by one step of drift, 5 % at first and less later; taking turns, half up and half down
    assert ratio.median == pytest.approx(3, rel=0.03)


def test_rows() -> None:
    clock = FakeClock()
    variants = [clock.variant("base", 4, flops=8.0), clock.variant("ours", 1, flops=6.0)]
    timings = time_interleaved(variants, rounds=3, timer=clock.timer)
    base, ours = rows_of(variants, timings, "base")
    assert base["speedup"] == {"against": "base", "median": 1, "low": 1, "high": 1}
    assert ours["speedup"]["median"] == 4
    assert (base["flops_per_s"], ours["flops_per_s"]) == (2, 6)
    assert ours["samples_s"] == [1, 1, 1]
    assert ours["time_s"] == {"median": 1, "low": 1, "high": 1}
    assert ours["flop_ratio"] == pytest.approx(8 / 6)
    assert (ours["variant"], ours["config"], ours["error"]) == ("ours", {"cost_s": 1}, None)


@pytest.mark.parametrize("fails_at", [0, 2])
def test_a_failure_is_a_row_and_the_others_go_on(fails_at: int) -> None:
    clock = FakeClock()
    variants = [clock.variant("big", 1, fails_at=fails_at), clock.variant("small", 1)]
    rows = rows_of(variants, time_interleaved(variants, rounds=4, warmup=1, timer=clock.timer), "big")
    assert rows[0]["error"] == "OutOfMemoryError: tried to allocate 8 GiB"
    assert rows[0]["samples_s"] == []
    assert rows[1]["samples_s"] == [1, 1, 1, 1]
    assert "speedup" not in rows[1]  # its base failed: no ratio rather than a wrong one
    assert clock.calls.count("big") == fails_at + 1
    table_of("case", rows)


def test_a_variant_that_cannot_be_built_is_a_row() -> None:
    def build() -> Step:
        raise ImportError("No module named 'transformers'")

    clock = FakeClock()
    timings = time_interleaved([Variant("peer", build), clock.variant("ours", 1)], rounds=2, timer=clock.timer)
    assert timings["peer"].error == "ImportError: No module named 'transformers'"
    assert timings["ours"].samples_s == [1, 1]


def test_an_error_of_ours_is_not_hidden() -> None:
    def build() -> Step:
        raise AttributeError("a slip in the case itself")

    with pytest.raises(AttributeError):
        time_interleaved([Variant("broken", build)], rounds=1)


def test_rows_can_be_checked(tmp_path: Path) -> None:
    path = tmp_path / "results" / "case.jsonl"
    append_rows(path, [{"case": "case", **provenance()}])
    append_rows(path, [{"case": "case", **provenance()}])
    first, second = (json.loads(line) for line in path.read_text().splitlines())
    assert first["machine"] == {**second["machine"], "load": first["machine"]["load"]}
    assert {"schema", "command", "commit", "time", "machine", "versions"} <= set(first)
    assert first["versions"]["torch"] == torch.__version__.partition("+")[0]


def test_a_torn_line_costs_itself_alone(tmp_path: Path) -> None:
    path = tmp_path / "case.jsonl"
    append_rows(path, [{"schema": 2, "number": 1}])
    with path.open("a") as file:
        file.write('{"schema": 2, "num')
    append_rows(path, [{"schema": 2, "number": 2}, {"schema": 1, "number": 3}])
    assert [row["number"] for row in read_rows(tmp_path)] == [1, 2]
