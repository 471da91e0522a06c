"""The loader's rate: as many clips as were delivered over the time they took, behind what was read ahead."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any

import pytest

from benchmarks.case import Bench, Options
from benchmarks.cases import loader_rate
from benchmarks.cases.loader import loader_config
from benchmarks.cases.loader_rate import deliver, measure, worker_counts

BENCH = Bench(Options(device="cpu", rounds=3, warmup=1))


@pytest.mark.parametrize(
    ("cores", "counts"),
    [(1, (1,)), (2, (1, 2)), (4, (1, 2, 3, 4)), (6, (4, 6)), (16, (4, 8, 16)), (24, (4, 8, 16, 24))],
)
def test_workers_go_from_few_to_all_cores(cores: int, counts: tuple[int, ...]) -> None:
    assert worker_counts(cores) == counts


def test_a_rate_is_clips_over_time_behind_what_was_read_ahead(monkeypatch: pytest.MonkeyPatch) -> None:
    """A loader by whose clock the first batch takes 5 s, each that lies in the queues no time, and each later one 2 s."""
    clock, taken = [0.0], [0]
    config = loader_config(workers=3, micro_batch=2)  # of 4 views: 8 clips
    ahead = 3 * config.data.prefetch

    def batches(*_: Any, num_steps: int, **__: Any) -> Iterator[int]:
        for number in range(num_steps):
            clock[0] += 5.0 if number == 0 else 0.0 if number <= ahead else 2.0
            taken[0] += 1
            yield number

    monkeypatch.setattr(loader_rate, "make_loader", batches)
    monkeypatch.setattr(loader_rate, "open_mixture", lambda _: None)
    monkeypatch.setattr(loader_rate, "PretrainDataset", lambda *_: None)
    monkeypatch.setattr(loader_rate.time, "perf_counter", lambda: clock[0])
    row = deliver(BENCH, config)
    assert row["samples_s"] == [2.0 / 8] * 3
    assert row["values"] == {"clips_per_s": 4.0, "clips_per_s_per_worker": pytest.approx(4 / 3), "first_batch_s": 5.0}
    assert taken[0] == 1 + ahead + (1 + 3) * 2 * 3


def test_a_missing_reader_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "decord", None)
    with pytest.raises(ImportError, match="decord"):
        measure(BENCH, "decord", "workers", (1,))


@pytest.mark.parametrize("crop_on", ["workers", "device"])
def test_a_real_loader_delivers(crop_on: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("av")
    monkeypatch.setattr(loader_rate, "VIDEOS", 2)
    bench = Bench(Options(device="cpu", rounds=1, warmup=0).model_copy(update={"quick": True}))
    (row,) = measure(bench, "pyav", crop_on, (1,))
    assert row["error"] is None
    assert row["values"]["clips_per_s"] == 1 / row["time_s"]["median"]
    assert row["config"]["crop_on"] == crop_on
