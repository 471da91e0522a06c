"""What asks a run to stop: signals that are collected, and a clock that leaves room for a save."""

from __future__ import annotations

import os
import signal
import threading
import time
from datetime import timedelta
from pathlib import Path

import pytest
from pydantic import TypeAdapter

from tests.distributed.ranks import tiny_pretraining
from vmae2_ds.checkpoint.whole import find_newest_whole
from vmae2_ds.cli.main import main
from vmae2_ds.config.run import TrainConfig
from vmae2_ds.config.strict import seconds_of
from vmae2_ds.data.tools.synthetic import SynthArguments, write_synthetic_set
from vmae2_ds.errors import EXIT_PREEMPTED, Preempted
from vmae2_ds.guard import stopping
from vmae2_ds.guard.stopping import STOP_SIGNALS, StopRequests, stop_signals


def test_spans_of_time() -> None:
    for text in ("23:50:00", "0:00:59", "100:00:01"):
        assert seconds_of(text) == TypeAdapter(timedelta).validate_python(text.zfill(8)).total_seconds()
    assert seconds_of("1-12:00:30") == timedelta(days=1, hours=12, seconds=30).total_seconds()
    assert [seconds_of(text) for text in ("90m", "1.5h", "600s")] == [5400, 5400, 600]
    for text in ("23:50", "90", "1:60:00", "10m30s", "-1h", ""):  # SLURM reads 23:50 as minutes, people as hours
        with pytest.raises(ValueError, match="is no time; write"):
            TrainConfig(time_limit=text)


class Clock:
    """Stands for the module `time`."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now

    def time(self) -> float:
        return stopping.psutil.Process().create_time()  # the process has just started


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(stopping, "time", made)
    return made


def test_the_last_step_and_its_save_end_before_the_limit(clock: Clock) -> None:
    requests = StopRequests(100)
    first_s, step_s, save_s = 20, 3, 7
    clock.now += first_s  # the start is nobody's step
    while not requests.is_time_over():
        clock.now += step_s
        if clock.now < 1000 + first_s + 4:
            clock.now += save_s
            requests.save_took(save_s)
    ended = clock.now - 1000 + save_s
    longest_s = step_s + save_s  # a save fell into one step
    assert 100 - longest_s < ended <= 100


def test_before_a_save_was_measured_a_share_is_kept_free(clock: Clock) -> None:
    requests = StopRequests(1000)
    clock.now += 949
    assert not requests.is_time_over()
    clock.now += 2
    assert requests.is_time_over()
    assert not StopRequests(None).is_time_over()


def test_the_longest_save_is_kept_free_and_a_shorter_one_after_it_changes_nothing(clock: Clock) -> None:
    requests = StopRequests(1000)
    for save_s in (80, 10):
        clock.now += save_s
        requests.save_took(save_s)
    clock.now = 1000 + 919.0
    assert not requests.is_time_over()
    clock.now = 1000 + 921.0
    requests._asked = float("inf")  # nobody's step
    assert requests.is_time_over()


def test_room_is_kept_for_the_save_behind_training_and_for_the_last_one(clock: Clock) -> None:
    requests = StopRequests(1000)
    requests.save_took(80)
    clock.now = 1000 + 841.0
    assert not requests.is_time_over()
    requests.is_saving, requests._asked = True, float("inf")
    assert requests.is_time_over()


def test_the_time_before_the_run_was_ready_counts(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    """The process started 300 s ago: imports and the wait for other ranks are part of a job's time."""
    monkeypatch.setattr(clock, "time", lambda: stopping.psutil.Process().create_time() + 300)
    requests = StopRequests(1000)
    clock.now += 649
    assert not requests.is_time_over()
    clock.now += 2
    requests._asked = float("inf")
    assert requests.is_time_over()


@pytest.mark.parametrize("number", STOP_SIGNALS)
def test_signals_are_collected_once_there_is_a_step_to_finish(number: signal.Signals) -> None:
    before = signal.getsignal(number)
    at_once = KeyboardInterrupt if number == signal.SIGINT else Preempted
    with stop_signals() as requests:
        with pytest.raises(at_once):
            os.kill(os.getpid(), number)
        assert not requests.caught
        requests.is_training = True
        os.kill(os.getpid(), number)
        assert requests.caught == [number]
        if number == signal.SIGINT:
            with pytest.raises(KeyboardInterrupt):
                os.kill(os.getpid(), number)
    assert signal.getsignal(number) == before


@pytest.mark.slow
@pytest.mark.parametrize("number", STOP_SIGNALS)
def test_each_signal_saves_and_exits_with_its_code(number: signal.Signals, tmp_path: Path) -> None:
    manifest = write_synthetic_set(
        SynthArguments(folder=tmp_path / "videos", train_videos=4, val_videos=1, size=64, frames=16)
    ).train
    run = tmp_path / "run"

    def signal_after_a_step() -> None:
        while not (run / "metrics.jsonl").is_file() or not (run / "metrics.jsonl").read_text():
            time.sleep(0.01)
        os.kill(os.getpid(), number)

    threading.Thread(target=signal_after_a_step, daemon=True).start()
    with pytest.raises(SystemExit) as stop:
        main([*tiny_pretraining(manifest, run, 1000), "--train.save-every", "1000"])
    assert stop.value.code == EXIT_PREEMPTED
    assert find_newest_whole(run / "ckpt") is not None
