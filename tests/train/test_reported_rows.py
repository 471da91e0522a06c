"""What a row says of speed, by hand: clips, FLOPs and their share of the peak, of one device."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from vmae2_ds.checkpoint.state import TrainState
from vmae2_ds.config.pretrain import PretrainDataConfig
from vmae2_ds.config.run_plan import RunPlan
from vmae2_ds.contracts import StepResult
from vmae2_ds.dist import Ranks
from vmae2_ds.guard.loader_watch import DataWaitWatch
from vmae2_ds.train.metrics import MetricsWriter, Reporter
from vmae2_ds.train.row import Interval, ModelFlops, Row

PLAN = RunPlan(
    global_batch=48, micro_batch=2, views=3, accumulation=2, world_size=4, num_videos=100, steps_per_epoch=6.25,
    num_steps=20, warmup_steps=2, base_lr=1e-3, lr_batch=256, peak_lr=1e-3, min_lr=0.0,
)  # fmt: skip
ROW: dict[str, Any] = {"step": 5, "loss": 0.5, "step_time_s": 1.5, "lr": 1e-3, "grad_norm": 0.1, "data_wait_share": 0.0,
                       "clips_per_s": 32.0}  # fmt: skip


def rows_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def row_after_3_s(
    monkeypatch: pytest.MonkeyPatch, peak_flops: float | None, plan: RunPlan = PLAN, encoder_backward: int = 0
) -> Row:
    """Of two steps without a micro batch, whose clips take 1.5 GFLOP each."""
    clock = SimpleNamespace(perf_counter=lambda: 100.0, time=lambda: 0.0)
    monkeypatch.setattr("vmae2_ds.train.row.time", clock)
    state = TrainState(step=3)
    interval = Interval(torch.device("cpu"), plan, ModelFlops(1_500_000_000, peak_flops, encoder_backward), state)
    state.step, clock.perf_counter = 5, lambda: 103.0
    return interval.row(Ranks(), 1e-3, StepResult(True, 0.1), 0.0, lambda: (0.0, 0.0))


def reporter(path: Path, rank: int = 0) -> Reporter:
    watch = DataWaitWatch(PretrainDataConfig(), ranks=4, cores=8)
    return Reporter(path, None, Ranks(rank, rank, 4), PLAN, 0, watch, "pretrain")


def test_speed_is_of_clips_and_utilisation_of_one_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """48 clips in 1.5 s are 32 a second; 1.5 GFLOP each over four devices are 12 GFLOP/s each, 30 % of 40."""
    row = row_after_3_s(monkeypatch, peak_flops=4e10)
    assert row.step_time_s == pytest.approx(1.5)
    assert row.clips_per_s == pytest.approx(32)
    assert row.flops_per_s == pytest.approx(12e9)
    assert row.mfu == pytest.approx(0.3)


def test_a_frozen_encoder_s_backward_pass_is_no_work(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of two steps the first is frozen, which saves 1 of 1.5 GFLOP a clip: 1 on average, at 32 clips/s on four devices."""
    row = row_after_3_s(monkeypatch, 4e10, replace(PLAN, frozen_steps=4), encoder_backward=1_000_000_000)
    assert row.flops_per_s == pytest.approx(8e9)


def test_without_a_known_peak_there_is_no_utilisation(monkeypatch: pytest.MonkeyPatch) -> None:
    assert row_after_3_s(monkeypatch, peak_flops=None).mfu is None


def test_rows_are_json_and_rank_0_alone_writes_them(tmp_path: Path) -> None:
    told = reporter(tmp_path / "metrics.jsonl")
    told.row({**ROW, "loss": float("inf"), "grad_norm": float("nan")})
    told.close()
    (row,) = rows_of(tmp_path / "metrics.jsonl")
    assert row == {**ROW, "loss": None, "grad_norm": None}, "JSON has no inf and no nan"
    other = reporter(tmp_path / "other.jsonl", rank=1)
    other.row(ROW)
    other.close()
    assert not (tmp_path / "other.jsonl").exists()


def test_rows_of_steps_that_are_done_again_are_dropped_and_those_before_stay(tmp_path: Path) -> None:
    """Up to the step gone back to; a row torn by a kill is none."""
    path = tmp_path / "metrics.jsonl"
    path.write_text("".join(json.dumps({"step": step}) + "\n" for step in (2, 4, 6)) + '{"step": 5, "lo')
    writer = MetricsWriter(path, None, first_step=4)
    writer.write({"step": 6, "again": True})
    writer.go_back(4)
    writer.write({"step": 5, "again": True})
    writer.close()
    assert rows_of(path) == [{"step": 2}, {"step": 4}, {"step": 5, "again": True}]
