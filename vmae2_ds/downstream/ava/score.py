"""Frame mAP of detections of people's actions, as one of the published scorers of AVA counts it (protocols.py).

C classes, K detections that count, H of them that find a true box.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from vmae2_ds.downstream.ava.counted_rows import Counted, CountedRows, Ints, count_rows, pieces_of
from vmae2_ds.downstream.ava.label_map import LabelMap
from vmae2_ds.downstream.ava.matching import area_of, found_truths
from vmae2_ds.downstream.ava.protocols import FRAME_PROTOCOLS, FrameProtocol, FrameProtocolName
from vmae2_ds.downstream.ava.rows import BoxRows, Key
from vmae2_ds.downstream.detection_map import OF_RANKS
from vmae2_ds.errors import ConfigError, DataError

SIZES = ("small", "medium", "large")
SIZE_LIMITS = (0.05, 0.25)
"""Shares of the frame's area between small, medium and large boxes. They are ours: COCO's limits are pixels, which AVA's
files do not know. Of AVA's true boxes about a sixth is small, two fifths medium and the rest large."""


class ClassScore(NamedTuple):
    """What one class gets."""

    ap: float | None
    """None: not in the mean, for want of truth (or of detections, where the protocol says so)."""
    ap_of_size: tuple[float | None, ...]
    """The same for small, medium and large boxes alone."""
    truths: int
    detections: int
    lowest: float
    """Average precision with every false positive before the hits of equal score."""
    highest: float
    """With the hits before."""
    tied_rows: int
    """Detections that share their score with another one of the class."""


NOTHING = ClassScore(None, (None,) * len(SIZES), 0, 0, 0.0, 0.0, 0)


@dataclass(frozen=True)
class FrameScores:
    """What a protocol says of detections; shares of 1."""

    protocol: FrameProtocolName
    iou: float
    frame_map: float
    """Mean of the classes' average precisions; 0 where the protocol leaves all out, for nothing was detected."""
    interval: tuple[float, float]
    """Lowest and highest mAP that the order of equal scores leaves open, with the true boxes taken as in the file's order."""
    classes: dict[int, ClassScore]
    """Action id -> its score, of every class of the label map."""
    map_of_size: dict[str, float | None]
    """Mean over the classes with true boxes of that size, counted as COCO does: a detection that finds a true box has the size
    of that box, another one its own."""
    map_of_group: dict[str, float | None]
    """Mean over AVA's groups of actions; empty for another set's label map."""
    counted: Counted
    hit_H: Ints
    """Place in `counted.found` of each detection that finds a true box."""
    truth_H: Ints
    """Place in `counted.truth` of the box that it finds."""
    num_excluded: int
    """Excluded key frames that were given."""

    @property
    def ap_of(self) -> dict[int, float | None]:
        """Action id -> average precision."""
        return {action: score.ap for action, score in self.classes.items()}

    @property
    def tied_rows(self) -> int:
        """Detections that share their score with another one of their class."""
        return sum(score.tied_rows for score in self.classes.values())


def score_frames(
    truth: BoxRows,
    detections: BoxRows,
    label_map: LabelMap,
    *,
    excluded: frozenset[Key] = frozenset(),
    protocol: FrameProtocolName = "activitynet",
    iou: float = 0.5,
) -> FrameScores:
    """Score detections. Among equal scores the order of the file stays, in matching and in the curve.

    Args:
        truth: True boxes, and the key frames without any.
        detections: What was detected.
        label_map: The classes; rows of others are left out.
        excluded: Key frames to leave out, where the protocol does that.
        protocol: Whose way of counting.
        iou: Overlap from which on a detection finds a true box, above 0 and at most 1.

    Raises:
        ConfigError: There is no such protocol or overlap.
        DataError: No true box is left to score; a score that is no number; the protocol stops at boxes inside out.
    """
    if protocol not in FRAME_PROTOCOLS:
        raise ConfigError(f"there is no protocol {protocol!r}; choose one of {', '.join(FRAME_PROTOCOLS)}")
    if not 0 < iou <= 1:
        raise ConfigError(f"the overlap that counts must lie above 0 and at most at 1, not {iou}")
    for some in pieces_of(len(detections)):
        if not (np.isfinite(detections.score_N[some]).all() and np.isfinite(detections.box_N4[some]).all()):
            raise DataError(f"{detections.source}: a score or a box is no finite number")
    how = FRAME_PROTOCOLS[protocol]
    counted = count_rows(truth, detections, label_map, excluded, how)
    score_N = detections.score_N if how.by_score else None
    hit_H, truth_H = found_truths(
        counted.found,
        counted.truth,
        iou,
        score_N,
        np.float32 if how.is_float32 else np.float64,
        tries_next=how.tries_next,
    )
    scores = _class_scores(counted, hit_H, truth_H, how)
    classes = dict(zip(label_map.ids, scores, strict=True))
    meant = [score for score in scores if score.ap is not None]
    return FrameScores(
        protocol=protocol,
        iou=iou,
        frame_map=_mean(score.ap for score in scores) or 0.0,
        interval=(_mean(score.lowest for score in meant) or 0.0, _mean(score.highest for score in meant) or 0.0),
        classes=classes,
        map_of_size={name: _mean(score.ap_of_size[size] for score in meant) for size, name in enumerate(SIZES)},
        map_of_group={
            name: _mean(classes[action].ap for action in actions if action in classes)
            for name, actions in label_map.groups.items()
        },
        counted=counted,
        hit_H=hit_H,
        truth_H=truth_H,
        num_excluded=len(excluded),
    )


def _class_scores(counted: Counted, hit_H: Ints, truth_H: Ints, how: FrameProtocol) -> list[ClassScore]:
    found, truth = counted.found, counted.truth
    num_classes = truth.num_classes
    size_G = _sizes(truth)
    size_K = _sizes(found)
    size_K[hit_H] = size_G[truth_H]
    is_hit_K = np.zeros(len(found), np.bool_)
    is_hit_K[hit_H] = True
    truths_CS = np.bincount(truth.class_K * len(SIZES) + size_G, minlength=num_classes * len(SIZES)).reshape(
        -1, len(SIZES)
    )
    # 16 bits: numpy then sorts by radix
    order = np.argsort(found.class_K.astype(np.int16) if num_classes < 2**15 else found.class_K, kind="stable")
    ends = np.cumsum(np.bincount(found.class_K, minlength=num_classes))
    scores = []
    for klass, truths_S in enumerate(truths_CS):
        mine = order[ends[klass - 1] if klass else 0 : ends[klass]]
        if not len(mine) and not truths_S.any():
            scores.append(NOTHING)
            continue
        score = found.rows.score_N[found.row_K[mine]]
        by_score = np.argsort(-score, kind="stable")
        mine = mine[by_score]
        is_meant = truths_S.sum() > 0 and (len(mine) > 0 or not how.leaves_out_undetected)
        average = OF_RANKS[how.average] if is_meant else None
        scores.append(_class_score(score[by_score], is_hit_K[mine], size_K[mine], truths_S, average))
    return scores


def _class_score(
    score_K: NDArray[np.float64],
    is_hit_K: NDArray[np.bool_],
    size_K: NDArray[np.int8],
    truths_S: Ints,
    average: Callable[[Ints, int], float] | None,
) -> ClassScore:
    """Score the K detections of a class, which come the best first.

    truths_S: the class's true boxes of each size; average: None where the class is not in the mean.
    """
    truths = int(truths_S.sum())
    start_T = np.flatnonzero(np.r_[True, score_K[1:] != score_K[:-1]])[: len(score_K)]  # T runs of equal scores
    length_T = np.diff(np.r_[start_T, len(score_K)])
    tied = int(length_T[length_T > 1].sum())
    if average is None:
        return ClassScore(None, (None,) * len(SIZES), truths, len(score_K), 0.0, 0.0, tied)
    place_H = np.flatnonzero(is_hit_K)
    run_H = np.searchsorted(start_T, place_H, "right") - 1
    hits_T = np.bincount(run_H, minlength=len(start_T))
    first_H = start_T[run_H] + np.arange(1, len(place_H) + 1) - (np.cumsum(hits_T) - hits_T)[run_H]
    last_H = first_H + (length_T - hits_T)[run_H]
    of_size: list[float | None] = []
    for size, number in enumerate(truths_S.tolist()):
        is_of_size_K = size_K == size
        rank_K = np.cumsum(is_of_size_K)
        of_size.append(average(rank_K[is_of_size_K & is_hit_K], number) if number else None)
    return ClassScore(
        average(place_H + 1, truths),
        tuple(of_size),
        truths,
        len(score_K),
        average(last_H, truths),
        average(first_H, truths),
        tied,
    )


def _sizes(rows: CountedRows) -> NDArray[np.int8]:
    """Index into SIZES of each row's box."""
    size_K = np.empty(len(rows), np.int8)
    for some in pieces_of(len(rows)):
        size_K[some] = np.searchsorted(SIZE_LIMITS, area_of(rows.boxes_of(some)), "right")
    return size_K


def _mean(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None
