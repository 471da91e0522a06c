"""What a run says of itself while it trains: its line in the log, and files whose folder is gone."""

from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path
from typing import Any

import pytest

from vmae2_ds.dist import Ranks
from vmae2_ds.train.metrics import MetricsWriter, Progress

ROW: dict[str, Any] = {"step": 40, "loss": 1.0, "clips_per_s": 8.0, "step_time_s": 2.0, "lr": 3e-4, "grad_norm": 0.5,
                       "data_wait_share": 0.01, "time": 0.0}  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({}, "lr 0.0003, gradient norm 0.5, data wait 1 %, 4 min left"),  # 100 steps of 2 s
        ({"step": 125}, "30 s left"),
        ({"step": 140}, ", 0 s left"),
        ({"step": 1, "lr": 0.0}, "lr 0 (warm-up starts there),"),
    ],
)
def test_a_line_says_the_time_left_and_why_the_rate_is_nought(
    changes: dict[str, Any], said: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    Progress(Ranks(), 0, 140, "pretrain").row({**ROW, **changes})
    assert said in caplog.records[-1].message


@pytest.mark.parametrize(
    ("first", "log_every", "lines"),
    [(0, 20, ["step 1/140 is done; figures come every 20 steps"]), (0, 1, []), (139, 20, [])],
)
def test_the_first_step_of_a_start_is_said_where_its_figures_come_later(
    first: int, log_every: int, lines: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    progress = Progress(Ranks(), first, 140, "pretrain", log_every)
    for step in range(first + 1, 141):
        progress.step(step)
    assert caplog.messages == lines


@pytest.mark.filterwarnings("error::pytest.PytestUnhandledThreadExceptionWarning")
def test_rows_of_a_folder_that_is_gone_cost_a_line_and_no_traceback(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    run.mkdir()
    writer = MetricsWriter(run / "metrics.jsonl", run / "tensorboard", 0)
    writer.write(ROW)
    assert json.loads((run / "metrics.jsonl").read_text())["step"] == 40
    assert writer._tensorboard is not None
    writer._tensorboard.flush()  # its thread has written the row: it would else race with the removal, and not with us
    shutil.rmtree(run)
    for step in (41, 42):
        writer.write({**ROW, "step": step})
    writer.close()
    assert [record.message for record in caplog.records if "TensorBoard" in record.message] == [caplog.messages[-1]]
    assert "none from step 41 on" in caplog.messages[-1]
    assert "Traceback" not in capfd.readouterr().err
    assert not run.exists()
