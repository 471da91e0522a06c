"""The desk experiment on optimizers: which rate is best, how long equal time is, which runs are made, and their table."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.desk import muon
from benchmarks.desk.muon import MuonDesk, Trial, markdown, steps_in_equal_time
from benchmarks.record import Row


def test_the_best_rates_are_run_again_and_adamw_for_as_long_as_muon(monkeypatch: pytest.MonkeyPatch) -> None:
    """Made-up runs: AdamW is best at its own rate, Muon at twice it and 25 % slower."""
    ran: list[Trial] = []

    def run(asked: MuonDesk, trial: Trial) -> Row:
        ran.append(trial)
        best, seconds = (2, 0.25) if trial.optimizer == "muon" else (1, 0.2)
        return {"loss": 0.01 + abs(trial.rate - best), "step_time_s": seconds + 0.01 * trial.seed}

    monkeypatch.setattr(muon, "_run", run)
    asked = MuonDesk(Path("videos.csv"), steps=400, adamw=(0.5, 1), muon=(1, 2), seeds=(3, 4))
    rows: list[Row] = []
    assert len(list(muon._measure(asked, rows))) == len(rows) == len(ran)
    assert [(one.optimizer, one.rate, one.seed, one.at) for one in ran[4:]] == [
        ("adamw", 1, 4, "equal steps"),
        ("muon", 2, 4, "equal steps"),
        ("adamw", 1, 3, "equal time"),
        ("adamw", 1, 4, "equal time"),
    ]
    assert {one.steps for one in ran if one.at == "equal time"} == {round(400 * 0.28 / 0.23)}
    assert steps_in_equal_time(rows, 100) == 122
    assert list(muon._measure(asked, rows)) == []
    assert (
        markdown(rows).splitlines()[3] == "| adamw, equal steps | 1 | 400 | 0.01000 (0.01000 to 0.01000; 2) | 0.230 |"
    )
