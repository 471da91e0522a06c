"""What detections are beside the truth: hits as the scorer counts them, and what kind of mistake each of the others is.

N detections, G truths, F key frames, P pairs of a detection and a truth of the same key frame.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from vmae2_ds.downstream.ava.matching import iou_of
from vmae2_ds.downstream.ava.rows import BoxRows, Key
from vmae2_ds.downstream.ava.score import FrameScores
from vmae2_ds.downstream.detection_map import balanced_score

Ints = NDArray[np.int64]
LOWEST_IOU = 0.1
"""Overlap with a person who does it from which on a detection is one of that person, badly placed."""
NOT_COMPARED = "prediction"
KINDS_OF_DETECTIONS = {
    "correct": "the first on a person who does that",
    "double": "on a person who does that, whom another detection found",
    "wrong label": "on a person who does other things",
    "localisation": f"overlaps a person who does that by {LOWEST_IOU:g} at least, and too little",
    "background": "on nobody",
    NOT_COMPARED: "there is nothing to compare it with",
}
"""Each detection is the first of these that it can be called; the names are those of draw/looks.py:KINDS."""
FOUND, MISSED, NOT_ASKED = "truth found", "truth missed", "truth"
_KINDS = tuple(KINDS_OF_DETECTIONS)
DETECTIONS_AT_ONCE = 1 << 18


@dataclass(frozen=True)
class Compared:
    """Truth and detections of some videos, one of both perhaps without rows, and what came of comparing them."""

    truth: BoxRows
    detections: BoxRows
    """Those of a score of at least `threshold`."""
    kind_N: NDArray[np.int8]
    """Kind of each detection, an index into KINDS_OF_DETECTIONS."""
    found_at_G: NDArray[np.float64]
    """Score of the detection that finds each truth; nan: none does, whatever its score."""
    asked_G: NDArray[np.bool_]
    """Whether a truth is to be found: its action is scored, and its key frame is not excluded."""
    threshold: float
    iou: float
    has_truth: bool = True
    has_detections: bool = True

    @property
    def is_compared(self) -> bool:
        """Whether there are both, so that truth is found or missed."""
        return self.has_truth and self.has_detections

    @cached_property
    def is_missed(self) -> NDArray[np.bool_]:
        """Truth that is to be found, and is not by a detection of at least `threshold`."""
        return self.asked_G & ~(self.found_at_G >= self.threshold)

    @cached_property
    def is_false(self) -> NDArray[np.bool_]:
        """Detections that are mistakes."""
        return self.is_judged & (self.kind_N != _KINDS.index("correct"))

    @cached_property
    def keys(self) -> tuple[Key, ...]:
        """The key frames of both."""
        return tuple(dict.fromkeys((*self.truth.keys, *self.detections.keys)))

    @cached_property
    def is_judged(self) -> NDArray[np.bool_]:
        """Detections that are right or wrong."""
        return self.kind_N < _KINDS.index(NOT_COMPARED)

    @cached_property
    def times_of(self) -> dict[str, list[int]]:
        """The times of each video's key frames, ascending."""
        found: dict[str, list[int]] = {}
        for video, time_ms in self.keys:
            found.setdefault(video, []).append(time_ms)
        return {video: sorted(times) for video, times in found.items()}

    def kind_of(self, row: int) -> str:
        """The kind of a detection."""
        return _KINDS[self.kind_N[row]]

    def kind_of_truth(self, row: int) -> str:
        """The kind of a truth."""
        if not (self.is_compared and self.asked_G[row]):
            return NOT_ASKED
        return MISSED if self.is_missed[row] else FOUND

    def truth_of(self, key: Key) -> list[int]:
        """The rows of a key frame's truth."""
        return self._truth_rows.get(key, [])

    def detections_of(self, key: Key) -> list[int]:
        """The rows of a key frame's detections, the best score first."""
        return self._detection_rows.get(key, [])

    @cached_property
    def _truth_rows(self) -> dict[Key, list[int]]:
        return _by_frame(self.truth)

    @cached_property
    def _detection_rows(self) -> dict[Key, list[int]]:
        return _by_frame(self.detections)


def compare(truth: BoxRows, detections: BoxRows, scores: FrameScores, threshold: float | None) -> Compared:
    """Say what each detection is, by the hits that the scorer counted.

    Args:
        truth: The rows that were scored.
        detections: Likewise.
        scores: What the scorer says of them.
        threshold: Detections of a lower score are left out; None: the score from which on those that are counted have the
            largest F1.
    """
    counted = scores.counted
    asked_G, counted_N, is_hit_N = (
        np.zeros(len(truth), bool),
        np.zeros(len(detections), bool),
        np.zeros(len(detections), bool),
    )
    asked_G[counted.truth.row_K] = True
    counted_N[counted.found.row_K] = True
    hit = counted.found.row_K[scores.hit_H]
    is_hit_N[hit] = True
    found_at_G = np.full(len(truth), np.nan)
    found_at_G[counted.truth.row_K[scores.truth_H]] = detections.score_N[hit]
    if threshold is None:
        threshold = balanced_score(detections.score_N[counted_N], is_hit_N[counted_N], int(asked_G.sum()))
        threshold = max(threshold, float(detections.score_N.min(initial=0.0)))  # finite, where nothing counts
    kept = np.flatnonzero(detections.score_N >= threshold)
    shown = detections.of(kept)
    kind_N = np.full(len(kept), _KINDS.index(NOT_COMPARED), np.int8)
    kind_N[is_hit_N[kept]] = _KINDS.index("correct")
    false = np.flatnonzero(counted_N[kept] & ~is_hit_N[kept])
    kind_N[false] = _kinds_of_false(truth.of(np.flatnonzero(asked_G)), shown.of(false), scores.iou)
    return Compared(truth, shown, kind_N, found_at_G, asked_G, threshold, scores.iou)


def alone(rows: BoxRows, *, truth: bool, threshold: float | None) -> Compared:
    """Rows that nothing is compared with."""
    nothing = rows.of(np.zeros(0, np.int64))
    least = -math.inf if threshold is None else threshold
    shown = nothing if truth else rows.of(np.flatnonzero(rows.score_N >= least))
    kind_N = np.full(len(shown), _KINDS.index(NOT_COMPARED), np.int8)
    true = rows if truth else nothing
    return Compared(
        true, shown, kind_N, np.full(len(true), np.nan), np.zeros(len(true), bool), least, math.nan, truth, not truth
    )


def _kinds_of_false(truth: BoxRows, false: BoxRows, iou: float) -> NDArray[np.int8]:
    """The kinds of detections that found nothing."""
    place_of = {key: place for place, key in enumerate(truth.keys)}
    frame_F = np.array([place_of.get(key, -1) for key in false.keys], np.int64)
    order_G = np.argsort(truth.frame_N, kind="stable")
    first_F = np.searchsorted(truth.frame_N[order_G], np.arange(len(truth.keys) + 1))
    same_N, other_N = np.zeros(len(false)), np.zeros(len(false))
    for start in range(0, len(false), DETECTIONS_AT_ONCE):
        some = np.arange(start, min(start + DETECTIONS_AT_ONCE, len(false)))
        frame_N = frame_F[false.frame_N[some]]
        some, frame_N = some[frame_N >= 0], frame_N[frame_N >= 0]
        count_N = first_F[frame_N + 1] - first_F[frame_N]
        detection_P = np.repeat(some, count_N)
        within_P = np.arange(len(detection_P)) - np.repeat(np.cumsum(count_N) - count_N, count_N)
        truth_P = order_G[np.repeat(first_F[frame_N], count_N) + within_P]
        overlap_P = iou_of(false.box_N4[detection_P], truth.box_N4[truth_P])
        is_same_P = false.label_N[detection_P] == truth.label_N[truth_P]
        np.fmax.at(same_N, detection_P[is_same_P], overlap_P[is_same_P])
        np.fmax.at(other_N, detection_P[~is_same_P], overlap_P[~is_same_P])
    kinds = [_KINDS.index(name) for name in ("double", "wrong label", "localisation")]
    return np.select([same_N >= iou, other_N >= iou, same_N >= LOWEST_IOU], kinds, _KINDS.index("background")).astype(
        np.int8
    )


def overlaps_between(one_A4: NDArray[np.float64], other_B4: NDArray[np.float64]) -> NDArray[np.float64]:
    """Intersection over union of every box with every other one, (A, B)."""
    pairs = (np.repeat(one_A4, len(other_B4), axis=0), np.tile(other_B4, (len(one_A4), 1)))
    return np.nan_to_num(iou_of(*pairs)).reshape(len(one_A4), len(other_B4)).astype(np.float64)


def _by_frame(rows: BoxRows) -> dict[Key, list[int]]:
    order = np.lexsort((-rows.score_N, rows.frame_N))
    frame_N, starts = np.unique(rows.frame_N[order], return_index=True)
    keys = rows.keys
    pieces = np.split(order, starts[1:]) if len(starts) else []
    return {keys[frame]: piece.tolist() for frame, piece in zip(frame_N.tolist(), pieces, strict=True)}
