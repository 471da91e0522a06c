"""The rows of finished quickstarts: whose run they are of, and both ratios as percent in a table."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks.desk import quickstart
from vmae2_ds.data.entry import VideoEntry
from vmae2_ds.downstream.hidden_error import HiddenError, MeasuredClip
from vmae2_ds.json_lines import rows_of
from vmae2_ds.recipes.pretrain import vit_ti_pretrain_quickstart


def test_a_row_for_each_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Made-up errors: 40 % of the mean colour's and 20 % of the nearest cube's with seed 3, twice as much with seed 4."""
    errors = {}
    for seed, model in ((3, 4.0), (4, 8.0)):
        run = tmp_path / f"seed{seed}"
        (run / "ckpt").mkdir(parents=True)
        curve = [{"step": 20, "step_time_s": 0.5, "loss": 0.2}, {"step": 50, "step_time_s": 0.25, "loss": 0.1}]
        (run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in curve))
        errors[run] = HiddenError(model, nearest_cube=20.0, mean_colour=10.0, values=100)

    def find(run: Path) -> tuple[object, Path]:
        config = vit_ti_pretrain_quickstart().changed(train={"seed": int(run.name[-1])})
        return config, run / "ckpt" / "step00000050"

    def measure(run: Path, videos: Path, clips: int) -> list[MeasuredClip]:
        assert videos == Path("unseen.csv")
        return [
            MeasuredClip(VideoEntry(f"{number}.mp4", None, "made", 0, None), errors[run]) for number in range(clips)
        ]

    monkeypatch.setattr(quickstart, "find_checkpoint", find)
    monkeypatch.setattr(quickstart, "measure_run", measure)
    rows_file = tmp_path / "rows.jsonl"
    line = [*map(str, errors), "--videos", "unseen.csv", "--clips", "5", "--out", str(rows_file)]
    assert quickstart.main(line) == 0
    rows = list(rows_of(rows_file))
    assert [(row["model"], row["seed"], row["videos"]) for row in rows] == [
        ("vit_ti_pretrain_quickstart", 3, 5),
        ("vit_ti_pretrain_quickstart", 4, 5),
    ]
    assert [(row["steps"], row["trained_s"], row["loss"]) for row in rows] == [
        (50, 18, 0.1)
    ] * 2  # 20 * 0.5 + 30 * 0.25
    assert [row["error_to_mean_colour"] for row in rows] == [0.4, 0.8]
    out = capsys.readouterr().out
    assert "| predicting each clip's mean colour | 60.0 (40.0 to 80.0; 2) |" in out
    assert "| copying the nearest visible cube | 30.0 (20.0 to 40.0; 2) |" in out


def test_what_is_no_run_is_said_in_a_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert quickstart.main([str(tmp_path / "nowhere"), "--out", str(tmp_path / "rows.jsonl")]) == 2
    said = capsys.readouterr().err
    assert said.startswith("benchmarks.desk.quickstart: ")
    assert "nowhere" in said
    assert said.count("\n") == 1
