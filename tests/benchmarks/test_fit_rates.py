"""Rates fitted to made times are those the times were made with, and what cannot be told apart is refused."""

from __future__ import annotations

from dataclasses import astuple, replace

import numpy as np
import pytest

from benchmarks.fit_rates import Observation, fit_rates
from tests.cost.test_compute_time import RATES, step_work
from vmae2_ds.config.model import ModelConfig
from vmae2_ds.cost.compute_time import (
    Work,
    optimizer_work,
    time_of,
)
from vmae2_ds.cost.flops import count_parameters
from vmae2_ds.errors import ConfigError


def observations(works: list[Work], noise: float = 0.0) -> list[Observation]:
    rng = np.random.default_rng(0)
    return [
        Observation(work, time_of(work, RATES).total_s * float(np.exp(noise * rng.standard_normal()))) for work in works
    ]


def of_one_size() -> list[Work]:
    """Parts alone, and whole steps: as benchmarks/cases/prediction.py measures ViT-S."""
    parts = [
        Work(linear_flops=5e10, kernels=200),
        Work(attention_flops=1.6e10, memory_bytes=1e8, score_bytes=3e8),
        Work(score_bytes=4e8),
        Work(kernels=400),
    ]
    update = optimizer_work(count_parameters(ModelConfig.of_size("small")).total, "bf16")
    return [*parts, update, *(step_work(decode=decode) + update for decode in (1408, 784, 704))]


def test_fit_recovers_the_rates() -> None:
    assert astuple(fit_rates(observations(of_one_size()))) == pytest.approx(astuple(RATES), rel=1e-6)


def test_fit_under_noise_still_tells_other_sizes() -> None:
    rates = fit_rates(observations(of_one_size(), noise=0.03))
    for size in ("tiny", "base"):
        update = optimizer_work(count_parameters(ModelConfig.of_size(size)).total, "bf16")
        work = step_work(size) + update
        assert time_of(work, rates).total_s == pytest.approx(time_of(work, RATES).total_s, rel=0.06)


def test_scores_never_seen_take_the_memory_rate() -> None:
    works = [replace(work, score_bytes=0) for work in of_one_size() if work != Work(score_bytes=4e8)]
    rates = fit_rates(observations(works))
    assert rates.score_bytes == rates.memory_bytes == pytest.approx(RATES.memory_bytes)


def test_what_cannot_be_fitted_is_refused() -> None:
    works = of_one_size()
    with pytest.raises(ConfigError, match="without optimizer_bytes"):
        fit_rates(observations([replace(work, optimizer_bytes=0) for work in works if work.linear_flops]))
    with pytest.raises(ConfigError, match="cannot tell 6 rates apart"):
        fit_rates(observations(works[-3:]))
    with pytest.raises(ConfigError, match="0 observations"):
        fit_rates([])
    # twice the time for the linear layers alone as whole steps take leaves nothing for the rest of the step
    seen = [*observations(works[1:])]
    with pytest.raises(ConfigError, match=r"leave no time for .*memory_bytes"):
        fit_rates([Observation(works[0], 3 * time_of(works[0], RATES).total_s), *seen])
