"""What long work says of itself: words that are right for one, two and none, and lines that come in time."""

from __future__ import annotations

import logging
import sys

import pytest

from vmae2_ds.progress import Ticker, counted, time_left


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
