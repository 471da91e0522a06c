"""What a row says of speed, by hand: clips, FLOPs and their share of the peak, of one device."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from vmae2_ds.config.pretrain import PretrainDataConfig
from vmae2_ds.config.run_plan import RunPlan
from vmae2_ds.dist import Ranks
from vmae2_ds.guard.loader_watch import DataWaitWatch
from vmae2_ds.train.metrics import MetricsWriter, Reporter

PLAN = RunPlan(
    global_batch=48, micro_batch=2, views=3, accumulation=2, world_size=4, num_videos=100, steps_per_epoch=6.25,
    num_steps=20, warmup_steps=2, base_lr=1e-3, lr_batch=256, peak_lr=1e-3, min_lr=0.0,
)  # fmt: skip
ROW: dict[str, Any] = {"step": 5, "loss": 0.5, "step_time_s": 1.5, "lr": 1e-3, "grad_norm": 0.1, "data_wait_share": 0.0}


def rows_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def reporter(path: Path, rank: int = 0, peak_flops: float | None = 4e10) -> Reporter:
    watch = DataWaitWatch(PretrainDataConfig(), ranks=4, cores=8)
    return Reporter(path, None, Ranks(rank, rank, 4), PLAN, 0, 1_500_000_000, peak_flops, watch, "pretrain")


def test_speed_is_of_clips_and_utilisation_of_one_device(tmp_path: Path) -> None:
    """48 clips in 1.5 s are 32 a second; 1.5 GFLOP each over four devices are 12 GFLOP/s each, 30 % of 40."""
    told = reporter(tmp_path / "metrics.jsonl")
    told.row(ROW)
    told.close()
    (row,) = rows_of(tmp_path / "metrics.jsonl")
    assert row["clips_per_s"] == pytest.approx(32)
    assert row["flops_per_s"] == pytest.approx(12e9)
    assert row["mfu"] == pytest.approx(0.3)
    assert row.items() >= ROW.items()


def test_without_a_known_peak_there_is_no_utilisation_and_other_ranks_write_nothing(tmp_path: Path) -> None:
    told = reporter(tmp_path / "metrics.jsonl", peak_flops=None)
    told.row({**ROW, "loss": float("inf"), "grad_norm": float("nan")})
    told.close()
    (row,) = rows_of(tmp_path / "metrics.jsonl")
    assert (row["mfu"], row["loss"], row["grad_norm"]) == (None, None, None), "JSON has no inf and no nan"
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
