"""How much of a visit's time is left, and what a prediction is worth on this machine."""

from __future__ import annotations

import os
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

import psutil

LEAST_LIMIT_S = 40.0
"""A group may always take as long, whatever was predicted: a first call compiles and loads."""
LIMIT = 4.0
"""Times its prediction, after which a group is ended."""
WORST, BEST = 20.0, 0.05
"""Bounds of what measured groups make of the predictions of others."""


def age_s() -> float:
    """Seconds since this process began: its imports are part of a visit's time."""
    told = Path("/proc/self/stat")
    if not told.exists():
        return time.time() - psutil.Process().create_time()  # exact to the second only
    ticks = int(told.read_text().rpartition(")")[2].split()[19])  # proc(5): starttime is field 22, the name is field 2
    return time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK")


class Budget:
    """Seconds of a visit, `spent_s` of which are gone, with what is kept for the report at its end."""

    def __init__(self, minutes: float, spent_s: float = 0.0, clock: Callable[[], float] = time.monotonic) -> None:
        self.seconds, self.clock = 60 * minutes, clock
        self._began = clock() - spent_s
        self.kept_s = 0.0
        """Seconds that belong to the report."""
        self._predicted: dict[str, float] = defaultdict(float)
        self._took: dict[str, float] = defaultdict(float)

    @property
    def elapsed_s(self) -> float:
        """Since the command began."""
        return self.clock() - self._began

    @property
    def left_s(self) -> float:
        """For measuring: without what is kept for the report."""
        return self.seconds - self.kept_s - self.elapsed_s

    def learn(self, case: str, predicted_s: float, took_s: float) -> None:
        """A group of a case was measured."""
        self._predicted[case] += predicted_s
        self._took[case] += took_s

    def expected_s(self, case: str, predicted_s: float) -> float:
        """A prediction times what groups of the case took over theirs so far; of all cases where this one has none yet."""
        predicted, took = self._predicted[case], self._took[case]
        if not predicted:
            predicted, took = sum(self._predicted.values()), sum(self._took.values())
        return predicted_s * (min(WORST, max(BEST, took / predicted)) if predicted else 1.0)

    def limit_s(self, expected_s: float) -> float:
        """When a group is ended: well past what is expected of it, and never past the visit's own end."""
        return min(max(LEAST_LIMIT_S, LIMIT * expected_s), self.left_s)
