"""The prediction case: the parts do the work that their rows say, and a row tells what was predicted."""

from __future__ import annotations

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.cases.prediction import _comparison, _parts, _step
from benchmarks.steps import Precision, Workbench
from vmae2_ds.cost.compute_time import DeviceRates, Work

RATES = DeviceRates(1e11, 1e11, 1e10, 1e10, 1e10, 1e-5)


@pytest.mark.parametrize("precision", ["bf16", "fp32"])
def test_parts_of_a_step_make_the_step(precision: Precision) -> None:
    parts = {variant.name: work for variant, work in _parts(precision)}
    _, step = _step(Workbench("small", precision, torch.device("cpu")), "dual")
    attention = sum(parts[f"attention_{side}"].attention_flops for side in ("encoder", "decoder"))
    linear = sum(parts[f"linear_{side}"].linear_flops for side in ("encoder", "decoder"))
    assert attention == step.attention_flops
    assert 0.9 * step.linear_flops < linear < step.linear_flops  # without embedding, bridge and head
    assert parts["optimizer"].optimizer_bytes == step.optimizer_bytes
    assert sum(parts[f"attention_{side}"].score_bytes for side in ("encoder", "decoder")) == step.score_bytes


def test_parts_run_the_products_that_they_are_charged_with() -> None:
    for variant, work in _parts("bf16"):
        step = variant.build()
        with FlopCounterMode(display=False) as counter:
            step()
        assert counter.get_total_flops() == work.linear_flops + work.attention_flops, variant.name


def test_a_row_tells_prediction_and_residual() -> None:
    work = Work(linear_flops=2e11, kernels=1e4)
    row = {"samples_s": [2.0, 2.0, 2.1], "time_s": {"median": 2.0}}
    added = _comparison(row, work, RATES, calibrated=False)
    assert added["predicted"]["time_s"] == pytest.approx(2.1)
    assert added["residual"]["time"] == pytest.approx(0.05)
    assert "residual" not in _comparison({"samples_s": []}, work, RATES, calibrated=False)
