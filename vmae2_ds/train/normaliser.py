"""A running number that an objective divides its sums by: the same in every micro batch of a step, on every rank.

ActionFormer divides by a running mean of how many points of a batch learn an action, this batch among them. What a step learns
must not depend on how ranks and micro steps share its batch, so the batch is the global one: a step's micro batches are all
fetched and counted, one sum over the ranks goes after them, and only then is the first one learnt from. The count is a function
of the truth alone and stays on the device: nothing waits for it. The micro batches of a step are in memory together for it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from vmae2_ds.checkpoint.state import TrainState
from vmae2_ds.contracts import LoadedBatch, Movable
from vmae2_ds.dist import Ranks
from vmae2_ds.engine.step import Engine


@dataclass(frozen=True)
class Normaliser:
    """How the number runs on; `objective.normaliser`, a float64 tensor on the device, is its value of the step."""

    start: float
    """The value before the first step."""
    after: Callable[[float, Tensor], Tensor]
    """(value, number in a step over all ranks) -> the value in that step and after it."""
    count: Callable[[nn.Module, Movable], Tensor]
    """(objective, micro batch on the device) -> the number in it, equal to the `num_supervised` of its loss."""

    def counted(
        self, batches: Iterator[LoadedBatch], engine: Engine, state: TrainState, ranks: Ranks
    ) -> Iterator[LoadedBatch]:
        """The micro batches of one step, all of them; sets the step's `objective.normaliser`. All ranks together."""
        found = [loaded._replace(batch=loaded.batch.to(engine.device)) for loaded in batches]  # type: ignore[arg-type]
        objective = engine.objective
        number = torch.zeros((), dtype=torch.float64, device=engine.device)
        for loaded in found:
            number += self.count(objective, loaded.batch)
        objective.normaliser = self.after(self._before(state), ranks.add_up(number))
        return iter(found)

    def follow(self, state: TrainState, number: float) -> None:
        """Take a finished step into the state: the same value as on the device."""
        state.normaliser = float(self.after(self._before(state), torch.tensor(number, dtype=torch.float64)))

    def _before(self, state: TrainState) -> float:
        return self.start if state.normaliser is None else state.normaliser
