"""What long work says of itself: words that are right for one, two and none, and lines that come in time."""

from __future__ import annotations

import logging
import sys
import threading

import pytest

from vmae2_ds.console.progress import Ticker, counted, heard, time_left


@pytest.mark.parametrize(
    ("number", "words"),
    [
        (0, "0 passes"),
        (1, "1 pass"),
        (1.0, "1 pass"),
        (1.5, "1.5 passes"),
        (36, "36 passes"),
        (197_400, "197400 passes"),
    ],
)
def test_one_is_singular_and_all_others_plural(number: float, words: str) -> None:
    assert counted(number, "pass", "passes") == words


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (0, "0 s left"), (0.2, "1 s left"), (29.5, "30 s left"), (119, "119 s left"), (120, "2 min left"),
        (121, "3 min left"), (7199, "120 min left"), (7200, "2 h left"), (57_240, "15.9 h left"),
        (241 * 3600, "10.1 days left"),
    ],
)  # fmt: skip
def test_the_time_left_is_rounded_up_and_in_seconds_below_two_minutes(seconds: float, words: str) -> None:
    assert time_left(seconds) == words


def test_a_log_gets_a_line_every_ten_seconds_with_the_time_left(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    now = 0.0
    ticker = Ticker(logging.getLogger("work"), "videos scored", 100, done=10, clock=lambda: now)
    for done in range(11, 101):  # one a second
        now += 1
        ticker.tell(done)
    ticker.close()
    assert [record.message for record in caplog.records] == [
        f"{done} of 100 videos scored, {100 - done} s left" for done in range(20, 101, 10)
    ]


def test_a_terminal_has_one_line_that_is_gone_at_the_end(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    now = 0.0
    ticker = Ticker(logging.getLogger("work"), "files", 3, clock=lambda: now)
    for done in (1, 2, 3):
        now += 1
        ticker.tell(done)
    ticker.close()
    shown = capsys.readouterr().err
    assert "1 of 3 files, 2 s left" in shown
    assert "\n" not in shown
    assert shown.endswith("\r\033[K")


def test_nothing_is_foretold_before_anything_is_done_and_what_was_done_before_counts_for_nothing(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO)
    now = 0.0
    ticker = Ticker(logging.getLogger("work"), "files checked", None, clock=lambda: now)
    now = 100.0  # until the list was read
    ticker.tell(40, total=100)
    now = 110.0
    ticker.again()
    now = 120.0
    ticker.tell(50, total=100)
    assert [record.message for record in caplog.records] == [
        "40 of 100 files checked",
        "40 of 100 files checked",
        "50 of 100 files checked, 100 s left",  # ten took 20 s
    ]


def test_how_far_is_said_without_a_total(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    now = 0.0
    ticker = Ticker(logging.getLogger("work"), "rows read", None, clock=lambda: now)
    now = 10.0
    ticker.tell(7000)
    assert [record.message for record in caplog.records] == ["7000 rows read"]


def test_how_far_the_next_one_is_is_said_until_it_is_done(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    now = 0.0
    ticker = Ticker(logging.getLogger("work"), "videos scored", 2, clock=lambda: now)
    for step in ("8 of 15 views", None, 1):
        now += 10
        if isinstance(step, int):
            ticker.tell(step)
        else:
            ticker.again(step)
    assert [record.message for record in caplog.records] == [
        "0 of 2 videos scored; of the next 8 of 15 views",
        "0 of 2 videos scored; of the next 8 of 15 views",
        "1 of 2 videos scored, 30 s left",
    ]


def test_of_several_ranks_the_others_say_nothing(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    now = 0.0
    with heard(Ticker(logging.getLogger("work"), "videos scored", 2, clock=lambda: now, speaks=False)) as ticker:
        now = 10.0
        ticker.tell(1)
        now = 20.0
        ticker.again()
    assert not caplog.records


def test_one_long_item_does_not_keep_it_silent(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("TELL_EVERY_S", "REDRAW_EVERY_S"):
        monkeypatch.setattr(f"vmae2_ds.console.progress.{name}", 0.001)
    said = threading.Event()

    class Heard(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if record.getMessage() == "1 of 3 films read":
                said.set()

    log = logging.getLogger("work")
    log.setLevel(logging.INFO)
    handler = Heard()
    log.addHandler(handler)
    try:
        with heard(Ticker(log, "films read", 3, done=1)):  # nothing is done in here
            assert said.wait(60)
    finally:
        log.removeHandler(handler)
