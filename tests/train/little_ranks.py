"""Ranks without DeepSpeed and without processes: an engine that does the arithmetic of a step for real, on one weight vector.

Ranks are threads of which one runs at a time and hands over where it waits for the others, so that torch's one generator is
used by one rank after another.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from vmae2_ds.contracts import LossOutput, StepResult
from vmae2_ds.dist import Ranks
from vmae2_ds.engine.step import LargestNorm

GIVE_UP_S = 60


class Meeting:
    """Where the threads of `size` ranks wait for each other."""

    def __init__(self, size: int) -> None:
        self.size = size
        self._turn = threading.Condition()
        self._given: dict[int, Any] = {}
        self._all: list[Any] = []
        self._rounds = 0
        self._failed: list[BaseException] = []

    def exchange(self, rank: int, value: Any) -> list[Any]:
        """The values of all ranks, in their order."""
        assert rank not in self._given, "a rank is here twice: the ranks do not ask the same"
        self._given[rank], mine = value, self._rounds
        if len(self._given) == self.size:
            self._all = [self._given[each] for each in range(self.size)]
            self._given, self._rounds = {}, self._rounds + 1
            self._turn.notify_all()
        elif not self._turn.wait_for(lambda: self._rounds > mine or self._failed, GIVE_UP_S) or self._failed:
            raise RuntimeError("the other ranks did not come")
        return self._all

    def run(self, rank_of: Callable[[int], None]) -> None:
        """Call `rank_of` with each rank in a thread of its own; the first error of one is raised here."""

        def work(rank: int) -> None:
            with self._turn:
                try:
                    rank_of(rank)
                except BaseException as error:
                    self._failed.append(error)
                    self._turn.notify_all()

        threads = [threading.Thread(target=work, args=(rank,), daemon=True) for rank in range(self.size)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(2 * GIVE_UP_S)
        if self._failed:
            raise self._failed[0]


@dataclass(frozen=True)
class LittleRanks(Ranks):
    """Sums and maxima over a meeting's ranks."""

    meeting: Meeting = field(default_factory=lambda: Meeting(1))

    def add_up(self, values: Tensor) -> Tensor:
        return torch.stack(self.meeting.exchange(self.rank, values)).sum(0)

    def _reduce(self, values: tuple[float, ...], operation: str) -> list[float]:
        of_all = self.meeting.exchange(self.rank, values)
        return [{"SUM": math.fsum, "MAX": max}[operation](column) for column in zip(*of_all, strict=True)]


class LittleEngine:
    """The contract of `Engine` around least squares: loss = mean (x w - y)^2, w -= rate x mean gradient over all ranks."""

    def __init__(self, first: Tensor, accumulation: int, rank: int, meeting: Meeting) -> None:
        self.device = torch.device("cpu")
        self.weights = first.clone().requires_grad_()
        self.parameter_groups: list[dict[str, Any]] = [{"params": [self.weights], "lr": 0.0}]
        self.shards = SimpleNamespace(masters=[self.weights])
        self._accumulation, self._rank, self._meeting = accumulation, rank, meeting
        self.draws: list[float] = []
        """What torch's generator gave in each micro step."""

    def micro_step(self, batch: tuple[Tensor, Tensor]) -> LossOutput:
        self.draws.append(float(torch.rand(())))
        x_BD, y_B = batch
        loss = (x_BD @ self.weights - y_B).square().mean()
        (loss / self._accumulation).backward()
        return LossOutput(loss.detach(), torch.tensor(len(y_B)), y_B.square().mean())

    def update(self, largest_norm: LargestNorm, told: Tensor) -> StepResult:
        assert self.weights.grad is not None, "a micro step was taken"
        of_all = self._meeting.exchange(self._rank, self.weights.grad)
        mean = torch.stack(of_all).mean(0)
        self.weights.grad = None
        norm = float(mean.norm())
        largest = largest_norm(told.tolist())
        applied = math.isfinite(norm) and norm <= largest
        if applied:
            with torch.no_grad():
                self.weights -= self.parameter_groups[0]["lr"] * mean
        return StepResult(applied, norm)
