"""Which detection finds which truth: all pairs that overlap enough, and the greedy choice for all videos and classes at once.

P pairs, N detections, G truths, T thresholds of tIoU.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from vmae2_ds.downstream.in_turn import choose_in_turn
from vmae2_ds.downstream.tad.detections import Floats, Ints
from vmae2_ds.downstream.tad.tables import Spans

PAIRS_AT_ONCE = 1 << 21
"""Pairs whose overlap is computed together: 16 MB a column."""


class Pairs(NamedTuple):
    """Detections and truths of one group, which overlap."""

    detection_P: Ints
    truth_P: Ints
    tiou_P: Floats
    """nan where both have no length."""


def group_keys(spans: Spans, num_videos: int) -> Ints:
    """One number for each pair of class and video."""
    return spans.klass * num_videos + spans.video


def pairs_of(detections: Spans, truths: Spans, key_N: Ints, key_G: Ints, *, by_hull: bool = False) -> Iterator[Pairs]:
    """Every pair of a detection and a truth with one key, in pieces, each detection's together and truths in their order.

    by_hull: the overlap over what both cover from first to last (THUMOS14), else over the sum of lengths less the overlap: the
    same but for rounding where they overlap.
    """
    order_G = np.argsort(key_G, kind="stable")
    sorted_G = key_G[order_G]
    first_N = np.searchsorted(sorted_G, key_N, "left")
    count_N = np.searchsorted(sorted_G, key_N, "right") - first_N
    with_truth = np.flatnonzero(count_N)
    pieces = np.cumsum(count_N[with_truth]) // PAIRS_AT_ONCE
    for piece in np.unique(pieces):
        some = with_truth[pieces == piece]
        count = count_N[some]
        detection_P = np.repeat(some, count)
        step_P = np.arange(len(detection_P)) - np.repeat(np.cumsum(count) - count, count)
        truth_P = order_G[np.repeat(first_N[some], count) + step_P]
        yield Pairs(detection_P, truth_P, _tiou(detections.of(detection_P), truths.of(truth_P), by_hull))


def _tiou(one: Spans, other: Spans, by_hull: bool) -> Floats:
    overlap = np.maximum(np.minimum(one.end_s, other.end_s) - np.maximum(one.start_s, other.start_s), 0.0)
    if by_hull:
        union = np.maximum(one.end_s, other.end_s) - np.minimum(one.start_s, other.start_s)
    else:
        union = (one.end_s - one.start_s) + (other.end_s - other.start_s) - overlap
    with np.errstate(divide="ignore", invalid="ignore"):
        found: Floats = overlap / union
    return np.where(union > 0, found, 0.0) if by_hull else found


def at_least(pieces: Iterator[Pairs], tiou: float) -> Pairs:
    """The pairs that overlap so much, and those without a length in common to tell by."""
    kept = [Pairs(np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0))]
    for detection_P, truth_P, tiou_P in pieces:
        enough = ~(tiou_P < tiou)
        kept.append(Pairs(detection_P[enough], truth_P[enough], tiou_P[enough]))
    detections, truths, tious = zip(*kept, strict=True)
    return Pairs(np.concatenate(detections), np.concatenate(truths), np.concatenate(tious))


def match(
    pairs: Pairs, tiou: float, num_detections: int, num_truths: int, *, by_truth: bool, must_exceed: bool
) -> Ints:
    """The truth that each detection finds, or -1, (N,).

    Detections choose in their order, each the free truth that it overlaps most (of equals the last, as a sort turned round
    gives); by_truth: truths choose in their order, each the free detection that overlaps it most (of equals the first).
    """
    # overlaps that are 0 / 0 compare as neither less nor more: ActivityNet's scorer takes such a pair first of all
    value_P = np.where(np.isnan(pairs.tiou_P), np.inf, pairs.tiou_P)
    enough = np.flatnonzero(value_P > tiou if must_exceed else value_P >= tiou)
    detection_P, truth_P, value_P = pairs.detection_P[enough], pairs.truth_P[enough], value_P[enough]
    if by_truth:
        order = np.lexsort((detection_P, -value_P, truth_P))
        detection_G = choose_in_turn(truth_P[order], detection_P[order], num_truths, num_detections)
        truth_N = np.full(num_detections, -1)
        finders = np.flatnonzero(detection_G >= 0)
        truth_N[detection_G[finders]] = finders
        return truth_N
    order = np.lexsort((-truth_P, -value_P, detection_P))
    return choose_in_turn(detection_P[order], truth_P[order], num_detections, num_truths)


def first_of_each_group(key_N: Ints) -> Ints:
    """Place of each row among the rows of its key, in their order, (N,)."""
    order = np.argsort(key_N, kind="stable")
    sorted_N = key_N[order]
    starts = np.flatnonzero(np.r_[True, sorted_N[1:] != sorted_N[:-1]])[: len(sorted_N)]
    place = np.empty(len(key_N), np.int64)
    place[order] = np.arange(len(key_N)) - np.repeat(starts, np.diff(np.r_[starts, len(key_N)]))
    return place


Bools = NDArray[np.bool_]


def touches(detections: Spans, regions: Spans) -> Bools:
    """Whether each detection overlaps a region of its video, whatever its class, (N,)."""
    touched = np.zeros(len(detections.row), np.bool_)
    for pairs in pairs_of(detections, regions, detections.video, regions.video, by_hull=True):
        touched[pairs.detection_P[pairs.tiou_P > 0]] = True
    return touched
