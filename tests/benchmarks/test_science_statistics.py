"""Student's t against tables and simulation, and the rule that decides on a sentence."""

from __future__ import annotations

import math

import numpy as np
import pytest

from benchmarks.cases.science.claims import CLAIMS, MARGIN, asked_of_errors, verdict_of
from benchmarks.cases.science.grid import OF_NAME
from benchmarks.cases.science.quantiles import detectable, holm, p_value, t_cdf, t_interval, t_quantile

TABLE = {
    (0.975, 1): 12.706, (0.975, 2): 4.303, (0.975, 3): 3.182, (0.975, 4): 2.776, (0.975, 9): 2.262, (0.975, 30): 2.042,
    (0.95, 4): 2.132, (0.95, 7): 1.895, (0.995, 2): 9.925, (0.995, 5): 4.032, (0.9, 10): 1.372,
}  # fmt: skip
"""Student's t as statistics books print it, to three decimals: share below, degrees of freedom."""


@pytest.mark.parametrize(("share", "freedom"), TABLE)
def test_quantiles_are_those_of_tables(share: float, freedom: int) -> None:
    assert t_quantile(share, freedom) == pytest.approx(TABLE[share, freedom], abs=5.1e-4)
    assert t_quantile(1 - share, freedom) == -t_quantile(share, freedom)


def test_closed_forms_of_one_and_two_degrees() -> None:
    for t in (-3.0, -0.2, 0.0, 1.0, 40.0):
        assert t_cdf(t, 1) == pytest.approx(0.5 + math.atan(t) / math.pi, abs=1e-12)
        assert t_cdf(t, 2) == pytest.approx(0.5 + t / (2 * math.sqrt(2 + t * t)), abs=1e-12)


def test_interval_and_p_by_hand() -> None:
    """1, 2, 3: mean 2, deviation 1, so half of the interval is 4.3027 / sqrt(3); t is 2 sqrt(3) and p is 1 - t / sqrt(14)."""
    interval = t_interval([1.0, 2.0, 3.0])
    assert interval is not None
    assert interval == pytest.approx((2.0, 2 - 4.302653 / math.sqrt(3), 2 + 4.302653 / math.sqrt(3)), abs=1e-5)
    assert p_value([1.0, 2.0, 3.0]) == pytest.approx(1 - 2 * math.sqrt(3) / math.sqrt(14), abs=1e-12)
    assert t_interval([1.0]) is p_value([1.0]) is None
    assert (p_value([0.0, 0.0]), p_value([1.0, 1.0])) == (1.0, 0.0)


def test_the_interval_leaves_out_zero_exactly_where_p_is_below_a_twentieth() -> None:
    rng = np.random.default_rng(0)
    for _ in range(200):
        values = rng.normal(1.0, 1.0, 4).tolist()
        interval, p = t_interval(values), p_value(values)
        assert interval is not None
        assert p is not None
        assert (interval.low > 0 or interval.high < 0) == (p < 0.05)


def test_holm_by_hand() -> None:
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.5, 0.9]) == [1.0, 1.0]
    assert holm([]) == []


@pytest.mark.parametrize("seeds", [3, 5])
def test_what_can_be_detected_is_detected_in_four_of_five_experiments(seeds: int) -> None:
    effect = detectable(2.0, seeds)
    drawn = np.random.default_rng(1).normal(effect, 2.0, (40_000, seeds))
    t = drawn.mean(axis=1) * math.sqrt(seeds) / drawn.std(axis=1, ddof=1)
    found = (abs(t) > t_quantile(0.975, seeds - 1)).mean()
    assert found == pytest.approx(0.8, abs=0.01)  # five deviations of a share of 40,000


@pytest.mark.parametrize(
    ("kind", "differences", "verdict"),
    [
        ("more", [1.0, 1.1, 0.9], "supports"),
        ("more", [-1.0, -1.1, -0.9], "contradicts"),
        ("more", [3.0, -1.0, 1.0], "cannot tell"),
        ("more", [5.0, 5.1], "cannot tell"),
        ("more", [], "cannot tell"),
        ("no loss", [-1.0, -1.1, -0.9], "supports"),
        ("no loss", [4.0, 4.1, 3.9], "supports"),
        ("no loss", [-MARGIN - 1, -MARGIN - 1.1, -MARGIN - 0.9], "contradicts"),
        ("no loss", [-MARGIN, -MARGIN + 0.1, -MARGIN - 0.1], "cannot tell"),
        ("no loss", [0.0, -9.0, 9.0], "cannot tell"),
    ],
)
def test_the_rule_on_made_differences(kind: str, differences: list[float], verdict: str) -> None:
    assert verdict_of(kind, differences) == verdict  # type: ignore[arg-type]


def test_sentences_name_cells_of_the_grid() -> None:
    for claim in CLAIMS:
        assert {claim.first, claim.second} <= OF_NAME.keys()
        assert claim.first != claim.second
    assert len({claim.sentence for claim in CLAIMS}) == len(CLAIMS)


def test_kinds_of_videos_are_not_compared_by_the_error_on_one_kind() -> None:
    pairs = [(OF_NAME[claim.first], OF_NAME[claim.second]) for claim in asked_of_errors()]
    assert pairs
    assert [(first.name, second.name) for first, second in pairs if first.data != second.data] == []
