"""A run keeps what it measured: through failures, deaths and kills, and it does nothing twice."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest

from benchmarks import run, worker
from benchmarks.flight import IN_FLIGHT
from benchmarks.record import RESULTS, WHOLE_GROUP, Row, newest, read_rows
from benchmarks.run import run_cases
from tests.benchmarks.made_cases import HOLD, OPTIONS, use_made_cases
from tests.distributed.zygote import Rank, Zygote

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.slow


@pytest.fixture
def measure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, zygote: Zygote):
    """Run a made case into tmp_path: `measure(name, fresh=False)` returns (errors, rows of the folder).

    Its workers are forks with their imports behind them; those of the run that is killed are started as a user's are.
    """

    def start(command: list[str], env: dict[str, str]) -> Rank:
        python, dash_m, module, *words = command
        assert (python, dash_m) == (sys.executable, "-m")
        return zygote.start(words, env, tmp_path / "log", module)

    monkeypatch.setattr(run, "subprocess", SimpleNamespace(Popen=start))
    monkeypatch.setattr(run, "_launchers", run._launchers)  # put back afterwards
    monkeypatch.setattr(run, "CASES", run.CASES)
    monkeypatch.setattr(worker, "CASES", worker.CASES)
    use_made_cases()
    monkeypatch.chdir(ROOT)

    def go(name: str, fresh: bool = False, rounds: int = 2) -> tuple[int, list[Row]]:
        options = OPTIONS.model_copy(update={"rounds": rounds})
        failed = run_cases([name], options, tmp_path, "typed", fresh=fresh, show=lambda *_: None)
        return failed, read_rows(tmp_path)

    return go


def names(rows: list[Row]) -> list[tuple[str, str]]:
    return [(row["group"], row["variant"]) for row in rows]


ALL = [(group, variant) for group in ("first", "second", "third") for variant in ("a", "b")]


def test_a_second_run_measures_nothing_and_fresh_measures_all(measure) -> None:
    assert measure("steady") == (0, rows := measure("steady")[1])
    assert names(rows) == ALL
    assert all(row["command"] == "typed" and row["device"] == "cpu" and row["fingerprint"] for row in rows)
    failed, again = measure("steady", fresh=True)
    assert (failed, names(again)) == (0, ALL + ALL)
    assert again[:6] == rows
    assert len(newest(again)) == 6


def test_rows_of_other_settings_do_not_count(measure) -> None:
    measure("steady")
    assert names(measure("steady", rounds=3)[1]) == ALL + ALL


def test_a_group_that_kills_its_process_is_a_row_and_the_others_go_on(measure) -> None:
    failed, rows = measure("deadly")
    assert failed == 1
    assert names(rows) == [*ALL[:2], ("second", WHOLE_GROUP), *ALL[4:]]
    assert rows[2]["error"] == "the process was ended by SIGKILL; the machine may be out of memory"
    assert names(measure("deadly")[1])[5:] == [("second", WHOLE_GROUP)], "tried again, and only that"


def test_a_group_that_is_refused_is_a_row(measure) -> None:
    failed, rows = measure("refusing")
    assert failed == 1
    assert (rows[2]["variant"], rows[2]["error"]) == (WHOLE_GROUP, "ConfigError: no such thing here")
    assert names(rows)[3:] == ALL[4:]


def test_a_killed_run_loses_the_group_in_flight_alone_and_goes_on(
    measure, zygote: Zygote, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hold = tmp_path / "hold"
    monkeypatch.setenv(HOLD, str(hold))
    hold.touch()
    words = ["run", str(tmp_path), "held"]
    running = zygote.start(words, dict(os.environ), tmp_path / "log", "tests.benchmarks.made_cases")
    workers = send_in_second_group(running, signal.SIGKILL, tmp_path)
    running.wait()
    assert names(read_rows(tmp_path)) == ALL[:2]
    wait_for(lambda: not any(child.is_running() for child in workers))  # it would measure beside the next run
    with (tmp_path / "held.jsonl").open("a") as file:
        file.write('{"case": "held", "gro')  # as if it had died while it wrote
    hold.unlink()
    assert measure("held") == (0, read_rows(tmp_path))
    assert names(read_rows(tmp_path)) == ALL


def send_in_second_group(running: Rank, number: signal.Signals, out: Path) -> list[psutil.Process]:
    """Signal a run when it is in its second group; returns what it had started."""
    try:
        wait_for(lambda: (out / IN_FLIGHT).exists() and '"second"' in (out / IN_FLIGHT).read_text())
        return psutil.Process(running.pid).children(recursive=True)
    finally:
        running.send_signal(number)


def wait_for(happens, limit_s: float = 120) -> None:
    end = time.monotonic() + limit_s
    while not happens():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.05)


def test_the_folder_for_figures_is_not_the_usual_one() -> None:
    from benchmarks.__main__ import Run

    assert Run().out == RESULTS / "mine"
    ignored = subprocess.run(["git", "check-ignore", "-q", "benchmarks/results/mine/x.jsonl"], cwd=ROOT)
    assert ignored.returncode == 0 or not (ROOT / ".git").exists()
