"""Which detection finds which true box: of one key frame and class, and overlapping enough, for all of them at once.

N detections, G true boxes, P pairs of one key frame and class: a detection's pairs lie together.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vmae2_ds.downstream.ava.counted_rows import CountedRows, Ints, pieces_of
from vmae2_ds.downstream.in_turn import choose_in_turn

Boxes = NDArray[np.floating[Any]]


def found_truths(
    found: CountedRows,
    truth: CountedRows,
    iou: float,
    score_N: NDArray[np.float64] | None,
    dtype: type = np.float64,
    *,
    tries_next: bool = False,
) -> tuple[Ints, Ints]:
    """The detections that find a true box, and these boxes: places in `found` and in `truth`, (H,) both.

    Each detection goes for the true box of its key frame and class that it overlaps most, of equals the first, and never for a
    second one. Of those that overlap the same true box by the threshold or more, the best score finds it, of equals the first
    row: the published scorers' rule, which is not PASCAL's.

    Args:
        found: The detections that count.
        truth: The true boxes that count.
        iou: The threshold.
        score_N: Score of each row of the detections; None: the first row finds it.
        dtype: Precision of the overlaps.
        tries_next: Where its true box is taken by a better one, a detection goes for the next that it overlaps by the threshold
            or more (ACT, MOC).
    """
    claims = list(_claims(found, truth, iou, dtype, tries_next=tries_next))
    row, taken = (np.concatenate(column) for column in zip((_NONE, _NONE), *claims, strict=True))
    if tries_next:  # each one's claims lie together, its best first
        by_score = np.argsort(row if score_N is None else -score_N[found.row_K[row]], kind="stable")
        row, taken = row[by_score], taken[by_score]
        is_new = np.r_[True, row[1:] != row[:-1]][: len(row)]
        got = choose_in_turn(np.cumsum(is_new) - 1, taken, int(is_new.sum()), len(truth))
        return row[is_new][got >= 0], got[got >= 0]
    order = np.lexsort((row, taken) if score_N is None else (row, -score_N[found.row_K[row]], taken))
    row, taken = row[order], taken[order]
    is_first = np.r_[True, taken[1:] != taken[:-1]][: len(taken)]
    return row[is_first], taken[is_first]


_NONE = np.zeros(0, np.int64)


def _claims(
    found: CountedRows, truth: CountedRows, iou: float, dtype: type, *, tries_next: bool
) -> Iterator[tuple[Ints, Ints]]:
    """Detections that overlap a true box enough, with the one that each overlaps most, or with all such by falling overlap."""
    key_G = truth.keys_of(slice(None))
    order_G = np.argsort(key_G, kind="stable")
    keys, first, size = np.unique(key_G[order_G], return_index=True, return_counts=True)
    for some in pieces_of(len(found.row_K)) if len(keys) else ():
        key_N = found.keys_of(some)
        place_N = np.minimum(np.searchsorted(keys, key_N), len(keys) - 1)
        row = np.flatnonzero(keys[place_N] == key_N)
        if not len(row):
            continue
        group = place_N[row]
        count = size[group]
        starts = np.cumsum(count) - count
        step_P = np.arange(count.sum()) - np.repeat(starts, count)
        truth_P = order_G[np.repeat(first[group], count) + step_P]
        row += some.start
        iou_P = iou_of(found.boxes_of(np.repeat(row, count), dtype), truth.boxes_of(truth_P, dtype))
        if tries_next:
            row_P = np.repeat(row, count)
            order = np.lexsort((truth_P, -iou_P, row_P))
            order = order[iou_P[order] >= iou]
            yield row_P[order], truth_P[order]
            continue
        best = np.maximum.reduceat(iou_P, starts)
        best_P = np.flatnonzero(iou_P == np.repeat(best, count))
        enough = best >= iou
        yield row[enough], truth_P[best_P[np.searchsorted(best_P, starts[enough])]]


def iou_of(one_P4: Boxes, other_P4: Boxes) -> Boxes:
    """Overlap of boxes x1, y1, x2, y2 over their union, (P,); nan where both have no area.

    In the order of operations that published scorers have, so that it is theirs to the last digit, for boxes inside out too.
    """
    low, high = np.maximum(one_P4[:, :2], other_P4[:, :2]), np.minimum(one_P4[:, 2:], other_P4[:, 2:])
    overlap = np.maximum(high[:, 1] - low[:, 1], 0) * np.maximum(high[:, 0] - low[:, 0], 0)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.asarray(overlap / (area_of(one_P4) + area_of(other_P4) - overlap))


def area_of(box_P4: Boxes) -> Boxes:
    """Height times width, (P,)."""
    return np.asarray((box_P4[:, 3] - box_P4[:, 1]) * (box_P4[:, 2] - box_P4[:, 0]))
