"""Hooks of the loop that keep its rows and do nothing else."""

from __future__ import annotations

from typing import Any

from vmae2_ds.contracts import Movable
from vmae2_ds.train.loop import LoopHooks


class QuietHooks(LoopHooks):
    """For a test to override what it is about."""

    def __init__(self) -> None:
        self.rows: list[dict[str, Any]] = []

    def prepare(self, batch: Movable) -> Movable:
        return batch

    def worker_memory_gib(self) -> tuple[float, float]:
        return 0.25, 0.5

    def report(self, row: dict[str, Any]) -> None:
        self.rows.append(row)
