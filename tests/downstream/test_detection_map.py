"""Average precision of matched detections, against the definitions written out point by point."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest

from vmae2_ds.downstream.detection_map import AVERAGE_PRECISION


def curve(hits: list[bool], num_truths: int) -> list[tuple[Fraction, Fraction]]:
    """(recall, precision) after each detection, exactly."""
    counts = [sum(hits[: n + 1]) for n in range(len(hits))]
    return [(Fraction(count, num_truths), Fraction(count, n)) for n, count in enumerate(counts, 1)]


def by_definition(way: str, hits: list[bool], num_truths: int) -> float:
    points = curve(hits, num_truths)

    def best_from(recall: Fraction) -> Fraction:
        return max((precision for reached, precision in points if reached >= recall), default=Fraction(0))

    if way == "trapezoids":
        before = [(Fraction(0), Fraction(1)), *points]
        areas = [(r - r0) * (p + p0) / 2 for (r, p), (r0, p0) in zip(points, before, strict=False)]
        return float(sum(areas, Fraction(0)))
    if way == "11 points":
        return float(sum(best_from(Fraction(i, 10)) for i in range(11)) / 11)
    steps = [Fraction(n + 1, num_truths) for n in range(sum(hits))]
    if way == "all points":
        return float(sum((best_from(recall) for recall in steps), Fraction(0)) / num_truths)
    return float(sum((p for (_, p), hit in zip(points, hits, strict=True) if hit), Fraction(0)) / num_truths)


@pytest.mark.parametrize("way", sorted(AVERAGE_PRECISION))
def test_average_precision_is_its_definition(way: str) -> None:
    rng = np.random.default_rng(0)
    for num_truths in (
        1,
        7,
        23,
    ):  # no multiple of 5 but 0: recalls of the 11 points then never equal a recall up to rounding
        for num in (0, 1, 12, 60):
            is_hit_TN = rng.random((3, num)) < 0.3
            is_hit_TN &= np.cumsum(is_hit_TN, axis=1) <= num_truths
            expected = [by_definition(way, hits.tolist(), num_truths) for hits in is_hit_TN]
            np.testing.assert_allclose(AVERAGE_PRECISION[way](is_hit_TN, num_truths), expected, rtol=0, atol=1e-12)


def test_the_ways_differ_on_a_curve_that_can_be_done_by_hand() -> None:
    is_hit_TN = np.array([[True, False, False, True]])  # precisions 1, 1/2, 1/3, 1/2 of 2 truths
    found = {way: function(is_hit_TN, 2)[0] for way, function in AVERAGE_PRECISION.items()}
    expected = {"all points": 0.75, "11 points": (6 * 1 + 5 * 0.5) / 11, "not interpolated": 0.75}
    assert found == pytest.approx({**expected, "trapezoids": (1 + (1 / 2 + 1 / 3) / 2) / 2})
    is_hit_TN = np.array([[False, True, True]])
    found = {way: function(is_hit_TN, 2)[0] for way, function in AVERAGE_PRECISION.items()}
    expected = {"all points": 2 / 3, "11 points": 2 / 3, "not interpolated": (1 / 2 + 2 / 3) / 2}
    assert found == pytest.approx({**expected, "trapezoids": ((0 + 1 / 2) / 2 + (1 / 2 + 2 / 3) / 2) / 2})
