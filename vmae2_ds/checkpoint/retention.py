"""Which checkpoints of a run stay: the newest, one every some hours, and the best."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple


class RetentionRules(NamedTuple):
    """What is kept; the rest is removed, oldest first, once a newer checkpoint is whole."""

    newest: int = 2
    every_hours: float = 0.0
    """Besides the newest, one checkpoint for every this many hours of wall time; 0 keeps none for that."""
    best: str | None = None
    """Besides the newest, the checkpoint with the best value of this figure: the lowest of a loss, the highest of all else."""
    for_now: frozenset[str] = frozenset()
    """Names that stay this time, because they are being copied."""


class SavedCheckpoint(NamedTuple):
    """A whole checkpoint as its manifest tells of it."""

    name: str
    """Sorts by step."""
    time: float
    """Seconds since the epoch, when it was written."""
    figures: dict[str, float]
    """The newest figures at that time."""


def survivors(checkpoints: Sequence[SavedCheckpoint], keep: RetentionRules) -> set[str]:
    """Names of those that stay.

    What stays for its hour stays at every later call: the oldest does, and each that is `every_hours` younger than the last.
    """
    ordered = sorted(checkpoints)
    stay = {saved.name for saved in ordered[-keep.newest :]}
    if keep.every_hours:
        last = -math.inf
        for saved in ordered:
            if saved.time - last >= keep.every_hours * 3600:
                stay.add(saved.name)
                last = saved.time
    if keep.best is not None and (best := best_of(ordered, keep.best)) is not None:
        stay.add(best.name)
    return stay | (keep.for_now & {saved.name for saved in ordered})


def best_of(checkpoints: Sequence[SavedCheckpoint], figure: str) -> SavedCheckpoint | None:
    """The one with the best value of a figure, of equal ones the oldest, which younger ones may only repeat; None where none
    has it."""
    having = [saved for saved in sorted(checkpoints) if figure in saved.figures]
    return min(having, key=lambda saved: badness(figure, saved.figures[figure]), default=None)


def badness(figure: str, value: float) -> float:
    """The value of a figure, turned round where the highest is best."""
    return value if figure.endswith("loss") else -value
