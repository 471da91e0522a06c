"""When a run is asked to stop: by a signal, or because its time is nearly over. The loop finishes its step and saves first."""

from __future__ import annotations

import contextlib
import signal
import time
from collections.abc import Iterator
from types import FrameType

import psutil

from vmae2_ds.errors import Preempted
from vmae2_ds.host import signals_handled

STOP_SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)
"""What queues, launchers and people send; SLURM's --signal takes USR1."""

SAVE_SHARE, MOST_SAVE_S = 0.05, 600.0
"""What a save is taken to cost before one was measured: this share of the time limit, at most so many seconds."""


class StopRequests:
    """Signals caught by this process, and the end of its time."""

    def __init__(self, time_limit_s: float | None = None) -> None:
        self.caught: list[int] = []
        self.is_training = False
        """Whether there is a step to finish and save; before, a signal ends the process at once."""
        self.is_saving = False
        """Whether a save is under way behind training, which has to end before the last one begins."""
        limit_s = float("inf") if time_limit_s is None else time_limit_s
        self._ends = time.monotonic() + limit_s - (time.time() - psutil.Process().create_time())
        self._save_s = min(SAVE_SHARE * limit_s, MOST_SAVE_S)
        self._longest_s, self._asked = 0.0, float("inf")
        self._was_measured = False

    def is_time_over(self) -> bool:
        """Whether another step and a save would end after the limit. Asked once a step, which measures the steps.

        The longest time from one step to the next counts, with the save or validation that fell into it.
        """
        now = time.monotonic()
        self._longest_s, self._asked = max(self._longest_s, now - self._asked), now
        return now + self._longest_s + self._save_s * (1 + self.is_saving) > self._ends

    def save_took(self, seconds: float) -> None:
        """Told after each save, of the time from its start until it counts: the longest one is kept free at the end."""
        self._save_s = max(seconds, self._save_s) if self._was_measured else seconds
        self._was_measured = True


@contextlib.contextmanager
def stop_signals(time_limit_s: float | None = None) -> Iterator[StopRequests]:
    """Collect STOP_SIGNALS instead of dying of them.

    While nothing is trained they end the process at once, SIGINT with KeyboardInterrupt and the others with Preempted; a
    second SIGINT always does.
    """
    requests = StopRequests(time_limit_s)

    def remember(number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT and (number in requests.caught or not requests.is_training):
            raise KeyboardInterrupt
        if not requests.is_training:
            raise Preempted(
                f"stopped by {signal.Signals(number).name} before its first step: nothing is lost; start again"
            )
        requests.caught.append(number)

    with signals_handled(remember, *STOP_SIGNALS):
        yield requests
