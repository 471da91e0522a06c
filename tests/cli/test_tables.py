"""What the calculators print, on wide and narrow terminals, for GPUs and for ranks on a CPU."""

from __future__ import annotations

import pytest

from tests.cli.lines import answer
from vmae2_ds.console.tables import table
from vmae2_ds.cost.hardware import Accelerator
from vmae2_ds.tune.tables import hours

HEADER, ROWS = ("setting", "step", "binds"), [("zero1, 8 videos", "3.2 s", "compute"), ("zero3, 4 videos", "5 s", "")]


def test_a_table_is_a_list_on_a_terminal_that_is_narrower(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "20")
    assert table("Settings", HEADER, ROWS).splitlines() == [
        "Settings",
        "setting: zero1, 8",
        "    videos",
        "  step: 3.2 s",
        "  binds: compute",
        "setting: zero3, 4",
        "    videos",
        "  step: 5 s",
    ]


def test_a_table_is_whole_where_it_fits_and_in_files(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = table("Settings", HEADER, ROWS)
    assert len(whole.splitlines()) == 5
    monkeypatch.setenv("COLUMNS", "80")
    assert table("Settings", HEADER, ROWS) == whole


@pytest.mark.parametrize("columns", [40, 80])
def test_tune_s_tables_keep_to_the_terminal(
    columns: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: object
) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    line = f"tune vit_ti_pretrain_desk --gpus 8 --gpu h100 --no-offload --out {tmp_path}/x.json"
    code, out, _ = answer(line.split(), capsys)
    assert code == 0
    tables = out.split("Pareto front")[1].split("\ntaken: ")[0].splitlines()
    assert max(map(len, tables[1:])) <= columns


@pytest.mark.parametrize("columns", [40, 80])
@pytest.mark.parametrize(
    "line", ["memory", "flops", "plan vit_b_pretrain_hybrid --gpus 8 --gpu h100", "data", "pretrain --help"]
)
def test_prose_keeps_to_the_terminal_and_command_lines_are_whole(
    columns: int, line: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    _, out, _ = answer(line.split(), capsys)
    wide = [row for row in out.splitlines() if len(row) > columns]
    assert all(row.startswith("usage: ") or row.lstrip().startswith("Command: ") for row in wide), wide
    if line.startswith("pretrain"):
        assert "--module vmae2_ds pretrain vit_ti_pretrain_desk --data.manifest L" in out


def test_a_plan_on_a_cpu_speaks_of_ranks(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    fields = {"memory_gb": 8, "bandwidth_gb_s": 10, "link_gb_s": 1, "peak_tflops": {"bf16": 0.1, "fp32": 0.1}}
    monkeypatch.setattr(
        "vmae2_ds.tune.arguments.this_cpu",
        lambda ranks: Accelerator.model_validate(
            {"key": "cpu", "name": "CPU, 1 core a rank", "source": "here", **fields}
        ),
    )
    code, out, _ = answer(["plan", "vit_ti_pretrain_desk", "--gpus", "2", "--gpu", "cpu", "--videos", "100"], capsys)
    assert code == 0
    assert "Memory of one rank, GiB" in out
    assert "rank hours" in out
    assert "CPU cores to feed a rank" in out
    assert "GPU" not in out.split("Assumed:")[0]


def test_hours_below_ten_are_not_rounded_to_none() -> None:
    assert [hours(value) for value in (0.0123, 0.5, 9.44, 10, 12345.6)] == ["0.012", "0.5", "9.4", "10", "12,346"]
