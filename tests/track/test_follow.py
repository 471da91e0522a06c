"""What a tracker gets of a run's files, whatever becomes of the run or of the tracker."""

from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.track.clients import Notes
from vmae2_ds.config.trackers import PACKAGES, TrackConfig, check_installed
from vmae2_ds.disk import is_held
from vmae2_ds.doctor.needs import Needs
from vmae2_ds.doctor.packages import look_at_requirements
from vmae2_ds.errors import ConfigError
from vmae2_ds.track import child
from vmae2_ds.track.child import Follower
from vmae2_ds.track.rows import Steps
from vmae2_ds.track.start import Trackers
from vmae2_ds.train.metrics import MetricsWriter


def write(run: Path, first: int, steps: range, name: str = "metrics", **figures: Any) -> None:
    """Rows as a run writes them that goes on behind step `first`."""
    writer = MetricsWriter(run / f"{name}.jsonl", None, first)
    for step in steps:
        writer.write({"step": step, **figures})
    writer.close()


def told_by(steps: Steps, *, is_over: bool = False) -> list[int]:
    return [row["step"] for row in steps.take(is_over=is_over)]


def test_a_step_is_told_once_it_is_whole_with_its_validation(tmp_path: Path) -> None:
    steps = Steps(tmp_path, -1)
    assert told_by(steps, is_over=True) == [], "before there are files"
    write(tmp_path, 0, range(2, 3), "validation", val_loss=0.5)
    assert told_by(steps) == []
    write(tmp_path, 0, range(1, 4), loss=1.0)
    assert list(steps.take()) == [
        {"step": 1, "loss": 1.0},
        {"step": 2, "val_loss": 0.5, "loss": 1.0},
        {"step": 3, "loss": 1.0},
    ]
    write(tmp_path, 3, range(4, 5), "validation", val_loss=0.25)
    assert told_by(steps) == []
    assert told_by(steps, is_over=True) == [4]


def test_steps_done_again_after_a_rollback_are_told_once(tmp_path: Path) -> None:
    steps = Steps(tmp_path, 2)
    write(tmp_path, 0, range(1, 8))
    assert told_by(steps) == [3, 4, 5, 6, 7]
    write(tmp_path, 4, range(5, 7))  # a file of the same length or shorter, under its old name
    assert told_by(steps) == []
    write(tmp_path, 6, range(7, 10))
    assert told_by(steps) == [8, 9]


def test_half_a_row_waits_for_its_other_half(tmp_path: Path) -> None:
    steps, file = Steps(tmp_path, -1), tmp_path / "metrics.jsonl"
    file.write_text('{"step": 1}\n{"st')
    assert told_by(steps) == [1]
    file.write_text('{"step": 1}\n{"step": 2}\n')
    assert told_by(steps) == [2]


class Failing(Notes):
    """A tracker that is away while `fails` says so."""

    fails = True

    def row(self, row: Any) -> None:
        if self.fails:
            raise RuntimeError("the server\nis away")
        super().row(row)


def follower_of(run: Path, tracker: Notes, said: list[tuple[int, str]]) -> Follower:
    (run / "trackers").mkdir(exist_ok=True)
    return Follower("notes", run, TrackConfig(), os.getpid(), lambda about: tracker, lambda *what: said.append(what))


def test_a_tracker_that_fails_costs_one_warning_and_gets_all_in_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(child, "RETRY_S", (0.0, 0.0))
    said: list[tuple[int, str]] = []
    tracker = Failing()
    follower = follower_of(tmp_path, tracker, said)
    follower._pause_s = 0.0
    write(tmp_path, 0, range(1, 4))
    for _ in range(3):
        assert not follower.follow()
    tracker.fails = False
    write(tmp_path, 1, range(2, 6), again=True)  # after a rollback: what was not taken is taken as it is now
    assert follower.close("stopped")
    assert [row["step"] for row in tracker.rows] == [1, 2, 3, 4, 5]
    assert [row.get("again", False) for row in tracker.rows] == [False, True, True, True, True]
    assert tracker.state == "stopped"
    warnings = [text for level, text in said if level >= logging.WARNING]
    assert len(warnings) == 1
    assert "RuntimeError: the server is away" in warnings[0]


def test_a_failure_is_not_tried_again_at_once(tmp_path: Path) -> None:
    tracker = Failing()
    follower = follower_of(tmp_path, tracker, [])
    write(tmp_path, 0, range(1, 4))
    assert not follower.follow()
    tracker.fails = False
    assert not follower.follow()
    assert not tracker.rows
    assert follower.close("finished"), "but at the end it is"
    assert len(tracker.rows) == 3


def test_each_picture_is_told_once_with_its_step_over_all_starts(tmp_path: Path) -> None:
    folder = tmp_path / "pictures" / "step00000003"
    folder.mkdir(parents=True)
    for name in ("clip0", "clip1"):
        (folder / f"{name}.png").touch()
        tracker = Notes()
        assert follower_of(tmp_path, tracker, []).close("finished")
        assert tracker.pictures == [(f"pictures/step00000003/{name}", 3)]
    assert json.loads((tmp_path / "trackers" / "notes.json").read_text())["is_new"] is False


def wait_for(true: Callable[[], object], limit_s: float = 60) -> None:
    until = time.monotonic() + limit_s
    while not true() and time.monotonic() < until:
        time.sleep(0.02)
    assert true()


def test_the_end_of_a_run_waits_no_longer_than_it_says_for_a_tracker_that_hangs(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    openers = {
        name: f"tests.track.clients:open_{kind}"
        for name, kind in (("wandb", "hanging"), ("mlflow", "refusing"), ("comet", "crashing"))
    }
    with Trackers(tmp_path, TrackConfig(to=tuple(openers)), openers) as trackers:
        processes = list(trackers._processes.values())
        wait_for(lambda: (tmp_path / "hangs").exists() and len(caplog.records) == 2)
        trackers.close("finished", 0.2)
    assert None not in [process.poll() for process in processes], "none is left behind"
    assert [record.levelname for record in caplog.records] == ["WARNING"] * 3, caplog.messages
    by_name = {message.partition(" ")[0].strip(":"): message for message in caplog.messages}
    assert "did not take all within 0.2 s" in by_name["wandb"]
    assert "ConnectionError: no route to host" in by_name["mlflow"]
    assert "has ended by itself" in by_name["comet"]


def test_a_run_that_is_killed_is_told_to_its_last_row_as_one_that_failed(tmp_path: Path) -> None:
    """Neither a signal to all processes of the job nor the end of their parent ends the tracker's process before that."""
    code = (
        "import sys, time; from pathlib import Path; from vmae2_ds.config.trackers import TrackConfig; "
        "from vmae2_ds.track.start import Trackers; "
        "trackers = Trackers(Path(sys.argv[1]), TrackConfig(to=('wandb',)), {'wandb': 'tests.track.clients:open_writer'}); "
        "print(trackers._processes['wandb'].pid, flush=True); time.sleep(600)"
    )
    parent = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    tracker = int(parent.stdout.readline())
    wait_for(lambda: (tmp_path / "trackers" / "wandb.json").exists())
    os.kill(tracker, signal.SIGTERM)
    write(tmp_path, 0, range(1, 4))
    parent.kill()
    parent.wait()
    parent.stdout.close()
    wait_for(lambda: (tmp_path / "got.json").exists())
    assert json.loads((tmp_path / "got.json").read_text()) == ["failed", [1, 2, 3]]


def test_a_tracker_that_hangs_does_not_outlive_a_run_that_is_killed(tmp_path: Path) -> None:
    code = (
        "import sys, time; from pathlib import Path; from vmae2_ds.config.trackers import TrackConfig; "
        "from vmae2_ds.track import start; start.CHILD = 'tests.track.soon_orphaned'; "
        "start.Trackers(Path(sys.argv[1]), TrackConfig(to=('wandb',)), {'wandb': 'tests.track.clients:open_hanging'}); "
        "time.sleep(600)"
    )
    parent = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)])
    wait_for((tmp_path / "hangs").exists)
    parent.kill()
    parent.wait()
    wait_for(lambda: is_held(tmp_path / "trackers" / ".wandb.lock") is False, 20)


def test_a_tracker_of_a_run_that_was_killed_before_it_said_what_for_ends() -> None:
    subprocess.run([sys.executable, "-m", child.__name__], stdin=subprocess.DEVNULL, timeout=60, check=True)


def test_no_log_holds_the_login_of_a_server(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    class Reached(Failing):
        place = "https://ann:hush@tracks.example:5000/"

        def row(self, row: Any) -> None:
            raise ConnectionError(f"API request to {self.place}api/2.0 failed")

    said: list[tuple[int, str]] = []
    write(tmp_path, 0, range(1, 2))
    assert not follower_of(tmp_path, Reached(), said).follow()
    assert [text.count("https://tracks.example:5000/") for _, text in said] == [1, 1]
    assert not [text for text in (str(said), capsys.readouterr().out) if "ann" in text or "hush" in text]


def test_a_tracker_that_is_not_installed_is_refused_with_the_command_that_installs_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A folder of its name, which W&B makes where it is used, is no package."""
    (tmp_path / "gramophone").mkdir()
    monkeypatch.syspath_prepend(tmp_path)
    for package in ("gramophone", "phonograph"):
        monkeypatch.setitem(PACKAGES, "comet", package)
        with pytest.raises(ConfigError, match=rf"--track.to comet: {package} is not .*pip install 'vmae2_ds\[comet\]'"):
            check_installed(TrackConfig(to=("wandb", "comet")))
    needs = Needs("r", 1, {}, trackers=("phonograph",))
    (finding,) = look_at_requirements(needs)
    assert (finding.light, finding.figures["missing"]) == ("red", ["phonograph"])
    assert Needs.of_json(needs.to_json()) == needs
