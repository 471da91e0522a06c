"""The planner beside measured steps: what is predicted is what the planner says, and a GPU in no table gets measured rates."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from benchmarks import ceiling
from benchmarks.case import Bench, Options
from benchmarks.cases import planner
from benchmarks.cases.zero_plan import Planner
from benchmarks.steps import MASKS, step_flops
from tests.benchmarks.test_ceilings import written
from vmae2_ds.cost.assumptions import Assumptions, Range
from vmae2_ds.cost.cluster import make_cluster
from vmae2_ds.cost.hardware import get_accelerator
from vmae2_ds.errors import ConfigError

BENCH = Bench(Options(device="cpu", rounds=1, warmup=0))
ODD = "NVIDIA Odd 42"


def planner_of(gpu: str, **assumed: float) -> Planner:
    changed = {name: Range(low=value, value=value, high=value) for name, value in assumed.items()}
    assumptions = Assumptions(**changed)  # type: ignore[arg-type]
    return Planner(make_cluster(get_accelerator(gpu), 1, 1, None, assumptions.usable_memory), assumptions, "made")


def test_rows_have_prediction_and_residual_of_time_and_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(planner, "planner_for", lambda _: planner_of("h100"))
    rows = {row["variant"]: row for row in planner.measure(BENCH, "tiny", "bf16", "math", 1)}
    assert set(rows) == set(MASKS)
    for row in rows.values():
        assert row["residual"]["time"] == row["predicted"]["time_s"] / row["time_s"]["median"] - 1
        assert row["residual"]["memory"] == row["predicted"]["peak_bytes"] / row["memory"]["peak_bytes"] - 1
        # resident pages on a CPU: kernels' scratch space counts, and gradients come while activations go
        assert abs(row["residual"]["memory"]) < 0.6
    assert rows["encoder_only"]["predicted"]["peak_bytes"] > rows["dual"]["predicted"]["peak_bytes"]


def test_where_only_products_take_time_the_prediction_is_work_over_rate() -> None:
    """An H100 that reaches its datasheet in products, with endless bandwidth and launches for nothing."""
    perfect = planner_of("h100", matmul_efficiency=1.0, half_rate_tokens=0.0, launch_s=0.0, memory_efficiency=1e9)
    found = planner.predicted_seconds(perfect, "giant", "dual", "bf16", "flash", 64)
    # the kernel recomputes its scores, and nobody asks for the gradient of the pixels: within 3 % of the usual count
    assert found == pytest.approx(step_flops("giant", MASKS["dual"], 64) / 989.4e12, rel=0.03)


def test_memory_that_is_predicted_grows_by_a_clip_s_activations() -> None:
    one, two, three = (planner.predicted_bytes("base", "dual", "bf16", "flash", clips) for clips in (1, 2, 3))
    assert three - two == two - one
    assert one - (two - one) == 2 * 94_210_944  # 16-bit gradients


def test_a_gpu_in_no_table_is_planned_with_the_rates_measured_on_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Properties:
        total_memory = 40 * 2**30

    monkeypatch.setattr(planner, "find_planner", lambda *_: None)
    monkeypatch.setattr(ceiling, "describe", lambda _: ODD)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: ODD)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: Properties)
    bench = replace(BENCH, folder=tmp_path)
    with pytest.raises(ConfigError, match="run the case ceilings"):
        planner.planner_for(bench)
    product = {"variant": "8192^3", "error": None, "values": {"flops_per_s": 4e14}}
    written(tmp_path, "products bf16", [product], device=ODD)
    copied = {"variant": "2048 MiB", "error": None, "config": {"copied_bytes": 9}, "values": {"bytes_per_s": 2e12}}
    written(tmp_path, "copy", [copied], device=ODD)
    found = planner.planner_for(bench)
    assert found.cluster.gpu.peak_flops("bf16") == 4e14
    assert found.cluster.gpu.bandwidth_gb_s == 2000
    assert found.cluster.gpu.memory_gb == 40
    assert "measured here" in found.source
