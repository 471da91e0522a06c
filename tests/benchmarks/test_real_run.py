"""A real run: killed behind a save, it goes on from there with the losses that it had, and rows tell training from the rest."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from benchmarks.case import Bench, Options
from benchmarks.cases import real_run
from benchmarks.cases.real_run import Asked, Start, compare, row_of
from benchmarks.family import end_family

ASKED = Asked("made", "zero1", 8, 3, 4, 32, ())


def told(step: int, time_s: float, **more: float) -> dict[str, float]:
    return {"step": step, "loss": 1 / step, "step_time_s": time_s, "data_wait_share": 0.1, "clips_per_s": 8.0, **more}


def test_a_save_is_told_from_the_steps_around_it() -> None:
    """Rows of a run that saves every third step: its time lies in the row of the step behind it, or of its own."""
    times = {1: 9.0, 2: 5.0, 3: 1.0, 4: 3.0, 5: 1.0, 6: 2.5, 7: 1.0, 8: 1.2}
    rows = [told(step, time_s, mfu=0.5) for step, time_s in times.items()]
    row = row_of("resumed", {}, Start(rows, 12.0), ASKED, 77)
    assert row["samples_s"] == [1.0, 1.2], "steps 1 and 2 start up, 3, 4, 6 and 7 may hold a save"
    assert row["values"]["save_s"] == pytest.approx((3.0 + 2.5) / 2 - 1.1)
    assert (row["values"]["mfu_share"], row["values"]["checkpoint_bytes"]) == (0.5, 77)


def test_a_resumed_run_is_compared_step_by_step() -> None:
    before, after = [told(step, 1.0) for step in (1, 2, 3, 4, 5)], [told(step, 1.0) for step in (4, 5, 6)]
    same = {"from_step": 3, "newest_checkpoint": 3, "steps_in_both": [4, 5], "largest_difference": 0.0, "equal": True}
    assert compare(before, after, 3) == same
    after[1]["loss"] += 0.5
    assert compare(before, after, 3) == same | {"largest_difference": pytest.approx(0.5), "equal": False}
    assert not compare(before, after[2:], 5)["equal"], "nothing to compare is not equal"


def test_a_family_ends_by_its_ids() -> None:
    code = "import subprocess as s, sys, time; s.Popen([sys.executable, '-c', 'import time; time.sleep(60)']); time.sleep(60)"
    parent = subprocess.Popen([sys.executable, "-c", code])
    deadline = time.monotonic() + 30
    while not (children := psutil.Process(parent.pid).children()):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    end_family(parent)
    assert parent.wait(10) < 0
    _, alive = psutil.wait_procs(children, timeout=10)
    assert not alive
    end_family(parent)


def test_without_av_the_group_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(ImportError, match="av"):
        real_run.measure(Bench(Options(device="cpu")), "tiny", "zero1")


@pytest.mark.slow
def test_a_run_is_killed_and_goes_on_with_the_same_losses(tmp_path: Path) -> None:
    rows = real_run.measure(Bench(Options(device="cpu"), folder=tmp_path), "tiny", "zero3")
    first, second = rows
    assert second["resumed"]["from_step"] == second["resumed"]["newest_checkpoint"] >= 3
    assert second["resumed"]["equal"]
    assert all(row["samples_s"] and row["error"] is None for row in rows)
    assert first["values"]["checkpoint_bytes"] > 2**20
    assert 0 <= second["values"]["data_wait_share"] <= 1
    assert not list(tmp_path.iterdir())
