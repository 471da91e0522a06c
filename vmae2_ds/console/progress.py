"""What long work says of itself while it goes on: how many, how far, how long still."""

from __future__ import annotations

import contextlib
import logging
import math
import sys
import threading
import time
from collections.abc import Callable, Iterator

TELL_EVERY_S, REDRAW_EVERY_S = 10.0, 0.5
"""Between two lines of a log, and between two states of the one line on a terminal."""


def counted(number: float, one: str, many: str | None = None) -> str:
    """A number with its noun: 1 pass, 2.5 passes, 36 passes."""
    said = f"{number:.4g}" if isinstance(number, float) else str(number)
    return f"{said} {one if said == '1' else many or one + 's'}"


def time_left(seconds: float) -> str:
    """Rounded up: 28 s left, 3 min left, 15.9 h left, 10.3 days left."""
    if seconds < 120:
        return f"{math.ceil(seconds)} s left"
    if seconds < 2 * 3600:
        return f"{math.ceil(seconds / 60)} min left"
    if seconds < 48 * 3600:
        return f"{math.ceil(seconds / 360) / 10:g} h left"
    return f"{math.ceil(seconds / 8640) / 10:g} days left"


class Ticker:
    """How far work has come, with the time left: a line every 10 s in a log, the same line over and over on a terminal.

    Args:
        log: Whose log it is.
        what: What is counted, with its verb: "videos scored".
        total: How many there are; None: not known, or told with the first `tell`, whose number was done before.
        done: How many were done before: they say nothing about the speed.
        clock: Seconds that only grow.
        draws: Whether a terminal gets the line over and over; else it has the log's lines.
        speaks: Whether anything is said at all: of several ranks one speaks.
        also: What else is said each time, such as a rate.
    """

    def __init__(
        self,
        log: logging.Logger,
        what: str,
        total: int | None,
        done: int = 0,
        clock: Callable[[], float] = time.monotonic,
        *,
        draws: bool = True,
        speaks: bool = True,
        also: Callable[[], str] | None = None,
    ) -> None:
        self._log, self._what, self._total, self._before, self._clock = log, what, total, done, clock
        self._done, self._draws, self._lock = done, draws, threading.Lock()
        self._told = self._began = clock()
        self._is_drawn, self._part, self.speaks, self._also = False, "", speaks, also

    def tell(self, done: int, total: int | None = None) -> None:
        """`done` are done now, the earlier ones included."""
        with self._lock:
            if self._total is None and total is not None:
                self._total, self._before, self._began = total, done, self._clock()
            self._done, self._part = done, ""
            self._say()

    def again(self, part: str | None = None) -> None:
        """Nothing more is done; say so when it is time, with how far the next is where that is known: "8 of 15 views"."""
        with self._lock:
            self._part = self._part if part is None else part
            self._say()

    def _say(self) -> None:
        now, on_terminal = self._clock(), self._draws and sys.stderr.isatty()
        if not self.speaks or now - self._told < (REDRAW_EVERY_S if on_terminal else TELL_EVERY_S):
            return
        self._told = now
        line = f"{self._done} {self._what}"
        if self._total is not None:
            line = f"{self._done} of {self._total} {self._what}"
            if new := self._done - self._before:
                line += f", {time_left((self._total - self._done) * (now - self._began) / new)}"
        if self._also is not None and (also := self._also()):
            line += f", {also}"
        if self._part:
            line += f"; of the next {self._part}"
        if on_terminal:
            print(f"\r\033[K{line}", end="", file=sys.stderr, flush=True)
            self._is_drawn = True
        else:
            self._log.info("%s", line)

    def close(self) -> None:
        """Take the line off the terminal."""
        if self._is_drawn:
            print("\r\033[K", end="", file=sys.stderr, flush=True)
            self._is_drawn = False


@contextlib.contextmanager
def heard(ticker: Ticker) -> Iterator[Ticker]:
    """Around work whose items may take longer each than people wait for a word: the ticker speaks, whatever is done."""
    if not ticker.speaks:
        yield ticker
        return
    ended = threading.Event()

    def beat() -> None:
        while not ended.wait(REDRAW_EVERY_S):
            ticker.again()

    thread = threading.Thread(target=beat, daemon=True)
    thread.start()
    try:
        yield ticker
    finally:
        ended.set()
        thread.join()
        ticker.close()
