"""Steps whose loss or gradient norm is far above that of the steps before: found on all ranks alike, before the update.

The loss of every rank travels with the loop's own sum over ranks. The gradient's norm is taken by DeepSpeed inside `step`,
before anything is changed, and is the same on all ranks; the engine refuses the update there (Engine.update).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch

from vmae2_ds.config.guard import GuardConfig
from vmae2_ds.contracts import StepResult
from vmae2_ds.dist import Ranks
from vmae2_ds.errors import ConfigError

MAD_TO_DEVIATION = 1.4826
"""Standard deviation of a normal distribution in median absolute deviations: 1 / Phi^-1(3/4)."""

LOSS, RANK_LOSS, NORM = "loss", "rank_loss", "grad_norm"
"""What is watched: the mean over ranks, the largest of one rank, the global norm before clipping."""

Recent = dict[str, list[float]]
"""Values of the last good steps."""


class Spike(NamedTuple):
    """What was wrong with a step."""

    what: str
    value: float
    limit: float | None
    """Limit that the value exceeds; None where the value is not finite."""

    def __str__(self) -> str:
        if self.limit is None:
            return f"{self.what} is not finite ({self.value})"
        return f"{self.what} {self.value:.4g} is a spike, above {self.limit:.4g}"


class SpikeGuard:
    """The rule, the same on every rank.

    Args:
        config: the action and its limits; with `on_spike=off` only what is not finite is noticed, by its gradient.
        ranks: this process among all.
    """

    def __init__(self, config: GuardConfig, ranks: Ranks) -> None:
        self._config, self._ranks = config, ranks
        self._is_on = config.on_spike != "off"
        self.places = ranks.size if self._is_on else 0
        """Numbers that `own_place` adds to the sum over ranks."""

    def own_place(self, loss: torch.Tensor) -> torch.Tensor:
        """This rank's loss at its place among zeros, (places,) float64, to be summed over ranks; it stays on the device."""
        places = torch.zeros(self.places, dtype=torch.float64, device=loss.device)
        if self._is_on:
            places[self._ranks.rank] = loss
        return places

    def look_at_losses(self, recent: Recent, losses: Sequence[float]) -> Spike | None:
        """The spike among the losses of all ranks, before the update."""
        if not self._is_on:
            return None
        if not math.isfinite(sum(losses)):  # one look for all ranks: thousands of them are looked at in every step
            for rank, loss in enumerate(losses):
                if not math.isfinite(loss):
                    return Spike(f"the loss of rank {rank}", loss, None)
        for key, value in self._values(losses).items():
            limit = self._limit(recent, key)
            if value > limit:
                worst = f" of rank {losses.index(max(losses))}" if key == RANK_LOSS else ""
                return Spike(f"the loss{worst}", value, limit)
        return None

    def largest_norm(self, recent: Recent, spike: Spike | None) -> float:
        """The largest gradient norm whose update is applied; `spike` is what the losses showed."""
        if self._config.on_spike in ("off", "warn"):
            return math.inf
        return self._limit(recent, NORM) if spike is None else 0.0

    def look_at_norm(self, recent: Recent, result: StepResult) -> Spike | None:
        """The spike in the gradient's norm, after `Engine.update` applied or refused it."""
        if math.isnan(result.grad_norm) and result.applied:
            return None  # the ZeRO policy has no norm taken
        if not math.isfinite(result.grad_norm):
            return Spike("the gradient norm", result.grad_norm, None)
        limit = self._limit(recent, NORM) if self._is_on else math.inf
        return Spike("the gradient norm", result.grad_norm, limit) if result.grad_norm > limit else None

    def remember(
        self, recent: Recent, losses: Sequence[float], result: StepResult, spike: Spike | None
    ) -> dict[str, list[float]]:
        """`recent` with a step that was applied; a spike is left out, or with on_spike=warn taken in, as nothing was done."""
        if not self._is_on or not result.applied or (spike and spike.limit is None):
            return recent
        now = {**self._values(losses), NORM: result.grad_norm}
        now = {key: value for key, value in now.items() if math.isfinite(value)}
        keep = self._config.history
        return {key: [*recent.get(key, ()), value][-keep:] for key, value in now.items()}

    def _values(self, losses: Sequence[float]) -> dict[str, float]:
        mean = {LOSS: sum(losses) / len(losses)}
        return mean if len(losses) == 1 else {**mean, RANK_LOSS: max(losses)}

    def _limit(self, recent: Recent, key: str) -> float:
        ratio = self._config.norm_ratio if key == NORM else self._config.loss_ratio
        values = recent.get(key, ())
        if 2 * len(values) < self._config.history:
            return math.inf
        return spike_limit(values, self._config.deviations, ratio)


def spike_limit(values: Sequence[float], deviations: float, ratio: float) -> float:
    """The largest value that is no spike beside `values`: their median times at least `ratio`.

    In logarithms, in which losses and norms scatter alike at any level: median + max(log ratio, deviations x 1.4826 x MAD).
    """
    logs = np.log(np.maximum(values, np.finfo(np.float32).tiny))
    median = float(np.median(logs))
    spread = MAD_TO_DEVIATION * float(np.median(np.abs(logs - median)))
    return math.exp(median + max(math.log(ratio), deviations * spread))


def check_norm_is_taken(config: GuardConfig, ds_config: Mapping[str, Any]) -> None:
    """Raises ConfigError where the ZeRO policy leaves out the norm by which an update is refused."""
    acts = config.on_spike in ("skip", "rollback")
    if acts and ds_config.get("zero_optimization", {}).get("compute_grad_norm", True) is False:
        raise ConfigError(
            f"--guard.on-spike {config.on_spike} needs the gradient's norm, and the ds_config sets compute_grad_norm=false; "
            "take that out, or set --guard.on-spike warn"
        )
