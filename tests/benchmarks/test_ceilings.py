"""What the device reaches: the rates are work over time, and other cases find them among the rows."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.case import Bench, Options, _add_measured_mfu
from benchmarks.cases import CASES, ceilings
from benchmarks.ceiling import CASE_NAME, copy_ceiling, product_ceiling
from benchmarks.devices import describe
from benchmarks.record import append_rows, provenance

CPU = torch.device("cpu")
BENCH = Bench(Options(device="cpu", rounds=2, warmup=1))


def written(folder: Path, group: str, rows: list[dict], **more: object) -> Path:
    """The rows as a worker writes them."""
    shared = {"case": CASE_NAME, "group": group, "fingerprint": "f00d", "device": describe(CPU), **provenance()}
    append_rows(folder / f"{CASE_NAME}.jsonl", [{**shared, **row, **more} for row in rows])
    return folder


@pytest.mark.parametrize("number_format", ["bf16", "fp32"])
def test_a_product_does_the_work_that_its_row_is_charged_with(number_format: str) -> None:
    with FlopCounterMode(display=False) as counter:
        ceilings.product_step(number_format, 24, 3, CPU)()  # type: ignore[arg-type]
    assert counter.get_total_flops() == 3 * 2 * 24**3


def test_tf32_is_on_within_the_products_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    monkeypatch.setattr(torch, "mm", lambda *_, **__: seen.append(torch.get_float32_matmul_precision()))
    before = torch.get_float32_matmul_precision()
    for number_format in ("fp32", "tf32"):
        ceilings.product_step(number_format, 8, 1, CPU)()  # type: ignore[arg-type]
    assert seen == ["highest", "high"]
    assert torch.get_float32_matmul_precision() == before


def test_rates_are_work_over_the_median_time() -> None:
    for row in ceilings.measure_products(BENCH, "fp32", (16, 64)):
        assert row["error"] is None
        assert row["values"]["flops_per_s"] == 2 * row["config"]["edge"] ** 3 / row["time_s"]["median"]
    for row in ceilings.measure_copies(BENCH, (1, 4)):
        assert row["values"]["bytes_per_s"] == 2 * row["config"]["copied_bytes"] / row["time_s"]["median"]


def test_a_step_finds_the_fastest_product_of_its_format_on_its_own_device(tmp_path: Path) -> None:
    assert product_ceiling(tmp_path, CPU, "bf16") is None
    assert product_ceiling(None, CPU, "bf16") is None
    rows = [
        {"variant": f"{edge}^3", "error": None, "values": {"flops_per_s": rate}} for edge, rate in ((8, 1.0), (16, 4.0))
    ]
    written(tmp_path, "products bf16", rows)
    written(tmp_path, "products fp32", [{**rows[0], "values": {"flops_per_s": 9.0}}])
    written(
        tmp_path,
        "products bf16",
        [{**rows[0], "values": {"flops_per_s": 99.0}}],
        device="NVIDIA Other",
        fingerprint="2",
    )
    assert product_ceiling(tmp_path, CPU, "bf16") == (4.0, "measured here: ceilings, products bf16, 16^3")
    bench = replace(BENCH, folder=tmp_path)
    step = {"flops": 8.0, "samples_s": [1.0, 4.0, 8.0]}
    _add_measured_mfu([step], bench, "bf16")
    assert (step["mfu_measured"]["median"], step["mfu_measured"]["peak_flops"]) == (0.5, 4.0)


def test_the_copy_that_counts_is_the_largest(tmp_path: Path) -> None:
    rows = [
        {"variant": f"{mib} MiB", "error": None, "config": {"copied_bytes": mib}, "values": {"bytes_per_s": rate}}
        for mib, rate in ((16, 50.0), (256, 8.0))
    ]
    assert copy_ceiling(written(tmp_path, "copy", rows), CPU) == (8.0, "measured here: ceilings, copy, 256 MiB")


def test_the_groups_are_those_that_steps_look_for() -> None:
    assert CASES[CASE_NAME] is ceilings.CASE
    names = [group.name for group in ceilings.CASE.groups(BENCH)]
    assert names == ["products bf16", "products fp32", "copy"]
