"""The rates of a device from times measured on it: what the case `prediction` fits at one size to foretell others."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields
from itertools import combinations

import numpy as np

from vmae2_ds.cost.compute_time import DeviceRates, Work
from vmae2_ds.errors import ConfigError


@dataclass(frozen=True)
class Observation:
    """Something measured: what it did, and how long it took."""

    work: Work
    seconds: float


_UNITS = tuple(field.name for field in fields(Work))
_NEEDED = ("linear_flops", "attention_flops", "memory_bytes", "optimizer_bytes")


def fit_rates(observations: Sequence[Observation]) -> DeviceRates:
    """The rates that explain measured times best: least squares of relative errors, no time per unit below zero.

    Observations without scores in memory leave their rate equal to the memory rate.

    Raises:
        ConfigError: too few observations, or such that some rate cannot be told from the others.
    """
    # Relative errors: a row is divided by its time, and its target is 1. Columns to one size: FLOPs are 1e11, operations 1e3.
    matrix = np.array([[getattr(seen.work, unit) / seen.seconds for unit in _UNITS] for seen in observations])
    scale = matrix.reshape(-1, len(_UNITS)).max(axis=0, initial=0)
    seen = [unit for unit, size in zip(_UNITS, scale, strict=True) if size > 0]
    columns = [_UNITS.index(unit) for unit in seen]
    unseen = [unit for unit in _NEEDED if unit not in seen]
    scaled = matrix[:, columns] / scale[columns] if columns else matrix
    if unseen or np.linalg.matrix_rank(scaled) < len(seen):
        without = f" and are without {', '.join(unseen)}" if unseen else ""
        raise ConfigError(
            f"{len(observations)} observations cannot tell {len(seen)} rates apart{without}; "
            "add linear layers, attention, softmax and the optimizer, each alone"
        )
    solution = _non_negative_least_squares(scaled, np.ones(len(scaled))) / scale[columns]
    seconds_per = {unit: float(value) for unit, value in zip(seen, solution, strict=True)}
    seconds_per.setdefault("score_bytes", seconds_per["memory_bytes"])
    kernel_s = seconds_per.pop("kernels", 0.0)
    lost = [unit for unit, value in seconds_per.items() if value == 0]
    if lost:
        raise ConfigError(
            f"the observations contradict each other: they leave no time for {', '.join(lost)}; measure on a quieter machine"
        )
    return DeviceRates(**{unit: 1 / value for unit, value in seconds_per.items()}, kernel_s=kernel_s)


def _non_negative_least_squares(matrix: np.ndarray, target: np.ndarray) -> np.ndarray:
    """Best x >= 0 for matrix @ x = target, by trying every set of columns: there are at most 2^6."""
    best, least = np.zeros(matrix.shape[1]), math.inf
    for size in range(1, matrix.shape[1] + 1):
        for columns in combinations(range(matrix.shape[1]), size):
            values = np.linalg.lstsq(matrix[:, columns], target, rcond=None)[0]
            error = float(np.square(matrix[:, columns] @ values - target).sum())
            if values.min() >= 0 and error < least:
                best, least = np.zeros(matrix.shape[1]), error
                best[list(columns)] = values
    return best
