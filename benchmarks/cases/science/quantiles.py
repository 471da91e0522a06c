"""Student's t without scipy: quantiles, intervals of a mean, power of a paired test, and Holm's correction.

The distribution function is a finite sum for whole degrees of freedom (Abramowitz and Stegun 1964, 26.7.3 and 26.7.4).
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np


class Interval(NamedTuple):
    """Where the mean of differences lies with the confidence that was asked for."""

    mean: float
    low: float
    high: float


def t_cdf(t: float, freedom: int) -> float:
    """P(T <= t) of Student's t with so many degrees of freedom."""
    angle = math.atan2(t, math.sqrt(freedom))
    sine, cosine = math.sin(angle), math.cos(angle)
    total, term = 0.0, 1.0
    if freedom % 2:
        term = cosine
        for step in range(1, freedom - 1, 2):
            total += term
            term *= cosine**2 * (step + 1) / (step + 2)
        inner = 2 / math.pi * (angle + sine * total)
    else:
        for step in range(1, freedom, 2):
            total += term
            term *= cosine**2 * step / (step + 1)
        inner = sine * total
    return 0.5 + inner / 2


def t_quantile(share: float, freedom: int) -> float:
    """The t below which `share` of the distribution lies, to a part in 10**12; 0 < share < 1."""
    assert 0 < share < 1, f"no quantile of {share}"
    assert freedom > 0, f"no distribution of {freedom} degrees of freedom"
    if share < 0.5:
        return -t_quantile(1 - share, freedom)
    low, high = 0.0, 1.0
    while t_cdf(high, freedom) < share:
        high *= 2
    while high - low > 1e-12 * high:
        middle = (low + high) / 2
        low, high = (middle, high) if t_cdf(middle, freedom) < share else (low, middle)
    return (low + high) / 2


def t_interval(values: Sequence[float], confidence: float = 0.95) -> Interval | None:
    """Mean and its interval by t; None for fewer than two values, whose spread nothing tells."""
    if len(values) < 2:
        return None
    mean, error = statistics.fmean(values), statistics.stdev(values) / math.sqrt(len(values))
    half = t_quantile((1 + confidence) / 2, len(values) - 1) * error
    return Interval(mean, mean - half, mean + half)


def p_value(values: Sequence[float]) -> float | None:
    """Two-sided, that the mean is zero (one-sample t, which of paired differences is the paired test); None for fewer than two.

    Equal values other than zero have no spread: p is 0, as the limit has it; all zero: 1.
    """
    if len(values) < 2:
        return None
    mean, deviation = statistics.fmean(values), statistics.stdev(values)
    if deviation == 0:
        return 1.0 if mean == 0 else 0.0
    return 2 * (1 - t_cdf(abs(mean) * math.sqrt(len(values)) / deviation, len(values) - 1))


def holm(p_values: Sequence[float]) -> list[float]:
    """Each p corrected for all of them (Holm 1979): the k-th smallest of m times m - k + 1, never below one before it."""
    order = sorted(range(len(p_values)), key=lambda number: p_values[number])
    corrected, most = [0.0] * len(p_values), 0.0
    for rank, number in enumerate(order):
        most = max(most, min(1.0, (len(p_values) - rank) * p_values[number]))
        corrected[number] = most
    return corrected


def detectable(deviation: float, seeds: int, power: float = 0.8, level: float = 0.05) -> float:
    """The least mean difference that a paired t-test at `level` finds in `power` of all experiments of so many seeds.

    `deviation` is that of the paired differences. Power is of the noncentral t, integrated over the sample's deviation.
    """
    assert seeds > 1, "the spread of one seed is not known"
    low, high = 0.0, 1.0
    while _power(high, seeds, level) < power:
        high *= 2
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if _power(middle, seeds, level) < power else (low, middle)
    return high * deviation


def _power(effect: float, seeds: int, level: float) -> float:
    """P(|t| > critical) where the true mean is `effect` deviations."""
    freedom = seeds - 1
    critical, shift = t_quantile(1 - level / 2, freedom), effect * math.sqrt(seeds)
    # the sample's deviation over the true one is chi / sqrt(freedom): Simpson over its density
    chi = np.linspace(0, math.sqrt(freedom) + 10, 4001)
    log_density = (freedom - 1) * np.log(np.maximum(chi, 1e-300)) - chi**2 / 2
    log_density -= (freedom / 2 - 1) * math.log(2) + math.lgamma(freedom / 2)
    edge = critical * chi / math.sqrt(freedom)
    beyond = np.array([_above(at - shift) + _above(at + shift) for at in edge])
    weight = np.ones(len(chi))
    weight[1:-1:2], weight[2:-1:2] = 4, 2
    return float((np.exp(log_density) * beyond * weight).sum() * (chi[1] - chi[0]) / 3)


def _above(z: float) -> float:
    """Share of the normal distribution above z."""
    return math.erfc(z / math.sqrt(2)) / 2
