"""Average precision of detections that were matched already: the four ways that published scorers take it from a curve.

T thresholds, N detections, the best score first.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Hits = NDArray[np.bool_]


def precision_recall(is_hit_TN: Hits, num_truths: int) -> tuple[Floats, Floats]:
    """Precision and recall after each detection, (T, N) both: every detection that is no hit is a false positive."""
    hits_TN = np.cumsum(is_hit_TN, axis=1, dtype=np.float64)
    return hits_TN / np.arange(1, is_hit_TN.shape[1] + 1), hits_TN / num_truths


def all_points(is_hit_TN: Hits, num_truths: int, as_if: float | None = None) -> Floats:
    """Area under the precision that no later point exceeds, (T,): VOC 2011, ActivityNet, AVA.

    as_if: normalised precision, of a class that had so many truths at the same recall, so that classes and parts of a set
    with few and with many truths can be compared (Hoiem et al., 2012).
    """
    precision_TN, recall_TN = precision_recall(is_hit_TN, num_truths)
    if as_if is not None:
        hits_TN, false_TN = recall_TN * as_if, np.cumsum(~is_hit_TN, axis=1)
        precision_TN = hits_TN / np.maximum(hits_TN + false_TN, 1e-300)
    envelope_TN = np.maximum.accumulate(precision_TN[:, ::-1], axis=1)[:, ::-1]
    return np.asarray(
        (envelope_TN * is_hit_TN).sum(axis=1) / num_truths
    )  # recall grows by 1 / num_truths at a hit, else not


def all_points_of_ranks(rank_H: NDArray[np.int64], num_truths: int) -> float:
    """The same area from the places of the hits alone, 1 for the first of the detections, in rising order, (H,)."""
    precision_H = (
        np.arange(1, len(rank_H) + 1) / rank_H
    )  # between hits it only falls, so that the envelope bends at hits
    return float(np.maximum.accumulate(precision_H[::-1]).sum() / num_truths)


def eleven_points(is_hit_TN: Hits, num_truths: int) -> Floats:
    """Mean over recalls of 0, 0.1, ... 1 of the best precision at that recall or a higher one, (T,): VOC 2007, THUMOS14."""
    precision_TN, recall_TN = precision_recall(is_hit_TN, num_truths)
    at_least = [np.where(recall_TN >= recall, precision_TN, 0.0).max(axis=1, initial=0.0) for recall in ELEVEN]
    return np.asarray(np.mean(at_least, axis=0))


def not_interpolated(is_hit_TN: Hits, num_truths: int) -> Floats:
    """Sum of the precisions at the hits over the number of truths, (T,): THUMOS14's kit of 2015."""
    precision_TN, _ = precision_recall(is_hit_TN, num_truths)
    return np.asarray((precision_TN * is_hit_TN).sum(axis=1) / num_truths)


def balanced_score(score_N: Floats, is_right_N: Hits, num_truths: int) -> float:
    """The score from which on detections, in any order, have the largest F1 (harmonic mean of precision and recall).

    The highest of several such; where none is right the lowest that there is, and -inf without any.
    """
    if not is_right_N.any():
        return float(score_N.min()) if len(score_N) else -math.inf
    order = np.argsort(-score_N, kind="stable")
    score_N, hits_N = score_N[order], np.cumsum(is_right_N[order])
    f1_N = 2 * hits_N / (np.arange(1, len(score_N) + 1) + num_truths)
    f1_N[:-1][score_N[:-1] == score_N[1:]] = -1  # equal scores are taken together
    return float(score_N[f1_N.argmax()])


def trapezoids_of_ranks(rank_H: NDArray[np.int64], num_truths: int) -> float:
    """What `trapezoids` has, from the places of the hits alone, as `all_points_of_ranks`."""
    hits_H = np.arange(1, len(rank_H) + 1)
    before_H = np.divide(hits_H - 1, rank_H - 1, out=np.ones(len(rank_H)), where=rank_H > 1)
    return float((hits_H / rank_H + before_H).sum() / 2 / num_truths)


def trapezoids(is_hit_TN: Hits, num_truths: int) -> Floats:
    """Area under straight lines between the points, from precision 1 at recall 0, (T,): ACT, MOC."""
    precision_TN, _ = precision_recall(is_hit_TN, num_truths)
    before_TN = np.concatenate((np.ones_like(precision_TN[:, :1]), precision_TN[:, :-1]), axis=1)
    return np.asarray(((precision_TN + before_TN) / 2 * is_hit_TN).sum(axis=1) / num_truths)


ELEVEN = np.arange(11) / 10
OF_RANKS: dict[str, Callable[[NDArray[np.int64], int], float]] = {
    "all points": all_points_of_ranks,
    "trapezoids": trapezoids_of_ranks,
}
AVERAGE_PRECISION: dict[str, Callable[[Hits, int], Floats]] = {
    "all points": all_points,
    "11 points": eleven_points,
    "not interpolated": not_interpolated,
    "trapezoids": trapezoids,
}
