"""Boxes found in single frames become tubes: class by class, the best tube first, each takes the best box near its last.

N boxes, L tubes that may still grow, T tubes, F boxes of all tubes, P pairs of a tube and a box of a step.
Where each setting comes from: docs/PAPER.md#tubes.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from pydantic import Field

from vmae2_ds.config.strict import StrictModel
from vmae2_ds.downstream.ava.tubes import Floats, Ints, Tubes, box_iou, make_tubes, ranges, suppress
from vmae2_ds.downstream.in_turn import choose_in_turn
from vmae2_ds.errors import DataError


class LinkConfig(StrictModel):
    """How boxes found in single frames are linked into tubes. The defaults are MOC's, for detectors of one frame at a time as
    mmaction2 has them for MultiSports."""

    iou: float = Field(0.5, ge=0, le=1)
    """Least overlap of a box with the tube's last one (MOC and mmaction2 0.5, ACT 0.2, ROAD 0.1)."""
    overlap_weight: float = Field(0.0, ge=0, le=10**6)
    """What overlap is worth beside the score where several boxes are near enough. 0: the best score wins (ACT, MOC, ROAD);
    1: the largest sum of score and overlap, as Gkioxari and Malik add them."""
    gap: int = Field(0, ge=0, le=1000)
    """Steps in a row without a box that a tube outlives; frames between get interpolated boxes (mmaction2 0, ROAD 2, ACT 4)."""
    stride: int = Field(1, ge=1, le=1000)
    """Frames from one detected frame to the next, a step; frames between get interpolated boxes."""
    nms: float = Field(0.6, ge=0, le=1)
    """Boxes of a class and frame that overlap a better one by more have their score times 1 - overlap (MOC 0.6). 1: none."""
    most: int = Field(10, ge=1, le=10**6)
    """Boxes kept of each class and frame, the best (ACT, MOC and ROAD 10)."""
    min_length: int = Field(15, ge=1, le=10**6)
    """Frames of the shortest tube that counts (ACT and MOC 15, ROAD 8)."""
    min_score: float = Field(0.005, ge=0, le=1)
    """Least mean score of a tube that counts (ACT and MOC 0.005)."""
    trim: float | None = Field(None, ge=0, le=10**6)
    """Cut tubes in time where the class is no longer seen: frames are labelled action or not, and what a change of label costs
    is this (ROAD 3 or 5, there with all classes as labels); default: tubes are not cut."""


@dataclass(frozen=True)
class FoundBoxes:
    """Boxes that a detector found in single frames; units as in `Tubes`."""

    videos: tuple[str, ...]
    video_N: Ints
    frame_N: Ints
    class_N: Ints
    score_N: Floats
    box_N4: Floats

    def some(self, kept: Ints) -> FoundBoxes:
        """The rows at the places `kept`, in that order."""
        columns = ("video_N", "frame_N", "class_N", "score_N", "box_N4")
        return replace(self, **{name: getattr(self, name)[kept] for name in columns})


@dataclass(frozen=True)
class Linked:
    """The tubes, and what was left out."""

    tubes: Tubes
    num_short: int
    """Tubes of fewer frames than `min_length`."""
    num_weak: int
    """Tubes of a mean score below `min_score`."""


def link(found: FoundBoxes, how: LinkConfig) -> Linked:
    """Link boxes into tubes. What comes out does not depend on the order of the rows: equal scores go by their boxes.

    Cost: a sort of the boxes, and for each step of a video a few operations on the boxes and live tubes of all videos at once.

    Raises:
        DataError: Two frames of a video fall into one step of `stride` frames.
    """
    step_N = _steps(found, how.stride)
    rows, score_N = _best_of_each_frame(found, step_N, how)
    tube_R = _grow(found, step_N, score_N, rows, how)
    order = np.lexsort((step_N[rows], tube_R))
    rows, tube_R = rows[order], tube_R[order]
    if how.trim is not None:
        kept, tube_R = trimmed(tube_R, score_N[rows], how.trim)
        rows = rows[kept]
    return _finished(found, score_N, rows, tube_R, how)


def _steps(found: FoundBoxes, stride: int) -> Ints:
    step_N = found.frame_N // stride
    if stride > 1:
        frames = np.unique(np.stack((found.video_N, found.frame_N)), axis=1)
        twice = np.flatnonzero((np.diff(frames[0]) == 0) & (np.diff(frames[1] // stride) == 0))
        if len(twice):
            video, frame = frames[:, twice[0]]
            raise DataError(
                f"{found.videos[video]}: boxes in frames {frame} and {frames[1, twice[0] + 1]}, closer than the stride of "
                f"{stride} frames; give --link.stride as many frames as lie from one detected frame to the next"
            )
    return step_N


def _best_of_each_frame(found: FoundBoxes, step_N: Ints, how: LinkConfig) -> tuple[Ints, Floats]:
    """Rows that are kept, by step, video, class and falling score, and every row's score after suppression (soft, as MOC's)."""
    num_classes = int(found.class_N.max(initial=0)) + 1
    group_N = (step_N * len(found.videos) + found.video_N) * num_classes + found.class_N
    order = _by_score(group_N, found.score_N, found.box_N4)
    group_R = group_N[order]
    score_N = found.score_N.copy()
    if how.nms < 1:
        boxes = found.box_N4[order]
        _, overlap_R = suppress(group_R, lambda one, other: box_iou(boxes[one], boxes[other]), how.nms)
        score_N[order] *= 1 - overlap_R
        if overlap_R.any():
            order = _by_score(group_N, score_N, found.box_N4)
    place_R = np.arange(len(order)) - np.searchsorted(group_R, group_R, "left")
    return order[place_R < how.most], score_N


def _by_score(group_N: Ints, score_N: Floats, box_N4: Floats) -> Ints:
    """Order by group and falling score; among equals by box, for which only these are sorted again."""
    order = np.lexsort((-score_N, group_N))
    group_R, score_R = group_N[order], score_N[order]
    same = (group_R[1:] == group_R[:-1]) & (score_R[1:] == score_R[:-1])
    tied = np.flatnonzero(np.r_[False, same] | np.r_[same, False])
    run = np.cumsum(~np.r_[False, same])[tied]
    order[tied] = order[tied][np.lexsort((*box_N4[order[tied]].T[::-1], run))]
    return order


def _grow(found: FoundBoxes, step_N: Ints, score_N: Floats, rows: Ints, how: LinkConfig) -> Ints:
    """The tube of each row, named by the place of its first among `rows`: step by step, all videos and classes together."""
    num_classes = int(found.class_N.max(initial=0)) + 1
    step_R, group_R = step_N[rows], (found.video_N * num_classes + found.class_N)[rows]
    box_R4, score_R = found.box_N4[rows], score_N[rows]
    tube_R = np.arange(len(rows))
    last_R, sum_R, count_R = tube_R.copy(), score_R.copy(), np.ones(len(rows))  # of the tube that begins at this row
    live_L = np.zeros(0, np.int64)
    bounds = np.flatnonzero(np.r_[True, np.diff(step_R) != 0, True]) if len(rows) else np.zeros(1, np.int64)
    for begin, end in zip(bounds[:-1].tolist(), bounds[1:].tolist(), strict=True):
        live_L = live_L[step_R[begin] - step_R[last_R[live_L]] <= how.gap + 1]
        live_L = live_L[np.lexsort((live_L, -sum_R[live_L] / count_R[live_L]))]
        groups = group_R[begin:end]
        first_L = np.searchsorted(groups, group_R[live_L], "left")
        pairs_L = np.searchsorted(groups, group_R[live_L], "right") - first_L
        place_P, row_P = np.repeat(np.arange(len(live_L)), pairs_L), ranges(first_L, pairs_L)
        iou_P = box_iou(box_R4[last_R[live_L[place_P]]], box_R4[begin + row_P])
        near = np.flatnonzero(iou_P >= how.iou)
        place_P, row_P = place_P[near], row_P[near]
        worth_P = score_R[begin + row_P] + how.overlap_weight * iou_P[near]
        order = np.lexsort((row_P, -worth_P, place_P))
        taken_L = choose_in_turn(place_P[order], row_P[order], len(live_L), end - begin)
        grown = np.flatnonzero(taken_L >= 0)
        tubes, taken = live_L[grown], begin + taken_L[grown]
        tube_R[taken], last_R[tubes] = tubes, taken
        sum_R[tubes] += score_R[taken]
        count_R[tubes] += 1
        is_new = np.ones(end - begin, np.bool_)
        is_new[taken - begin] = False
        live_L = np.r_[live_L, begin + np.flatnonzero(is_new)]
    return tube_R


def trimmed(tube_F: Ints, score_F: Floats, change_costs: float) -> tuple[Ints, Ints]:
    """Cut tubes where their class is not seen: places of the boxes that stay, and new numbers of their tubes.

    Each box is labelled action, worth its score, or not, worth 1 - score, so that the sum less `change_costs` for each change
    of label is largest (two labels of ROAD's). Every stretch of action is a tube of its own.

    Args:
        tube_F: Tube of each box; a tube's boxes next to each other and in time.
        score_F: Their scores.
        change_costs: What a change of label costs.
    """
    is_first = np.r_[True, tube_F[1:] != tube_F[:-1]][: len(tube_F)]
    place_F = np.arange(len(tube_F)) - np.flatnonzero(is_first)[np.cumsum(is_first) - 1]
    worth_F2 = np.stack((score_F, 1 - score_F), axis=1)  # action, not
    came_from_F2 = np.zeros((len(tube_F), 2), np.int8)
    by_place = np.argsort(place_F, kind="stable")
    bounds = np.searchsorted(place_F[by_place], np.arange(1, place_F.max(initial=0) + 2))
    steps = [by_place[begin:end] for begin, end in zip(bounds[:-1].tolist(), bounds[1:].tolist(), strict=True)]
    for at in steps:
        before_2 = worth_F2[at - 1]
        for label in (0, 1):
            stay, change = before_2[:, label], before_2[:, 1 - label] - change_costs
            changes = change > stay
            came_from_F2[at, label] = np.where(changes, 1 - label, label)
            worth_F2[at, label] += np.where(changes, change, stay)
    label_F = (worth_F2[:, 1] > worth_F2[:, 0]).astype(np.int8)  # right for the last box of each tube
    for at in reversed(steps):
        label_F[at - 1] = came_from_F2[at, label_F[at]]
    kept = np.flatnonzero(label_F == 0)
    begins = is_first[kept] | (np.r_[-2, kept[:-1]] + 1 != kept)
    return kept, np.cumsum(begins) - 1


def _finished(found: FoundBoxes, score_N: Floats, rows: Ints, tube_F: Ints, how: LinkConfig) -> Linked:
    """Tubes of rows in time order: mean score, the shortest and weakest left out, a box in each frame."""
    starts = np.flatnonzero(np.r_[True, tube_F[1:] != tube_F[:-1]][: len(tube_F)])
    count_T = np.diff(np.r_[starts, len(tube_F)])
    number_F = np.repeat(np.arange(len(starts)), count_T)
    frame_F = found.frame_N[rows]
    length_T = frame_F[starts + count_T - 1] - frame_F[starts] + 1
    mean_T = np.bincount(number_F, score_N[rows], len(starts)) / count_T
    is_weak_T, is_long_T = mean_T < how.min_score, length_T >= how.min_length
    stays_T = is_long_T & ~is_weak_T
    stay_F = stays_T[number_F]
    rows, number_F = rows[stay_F], (np.cumsum(stays_T) - 1)[number_F[stay_F]]
    tube_F, frame_F, box_F4 = _filled(number_F, found.frame_N[rows], found.box_N4[rows])
    first_T = rows[np.flatnonzero(np.r_[True, np.diff(number_F) != 0][: len(number_F)])]
    tubes = make_tubes(
        found.videos,
        found.video_N[first_T],
        found.class_N[first_T],
        mean_T[stays_T],
        tube_F,
        frame_F,
        box_F4,
        "linked tubes",
    )
    return Linked(tubes, int((~is_long_T & ~is_weak_T).sum()), int(is_weak_T.sum()))


def _filled(tube_F: Ints, frame_F: Ints, box_F4: Floats) -> tuple[Ints, Ints, Floats]:
    """A box in each frame: between two boxes of a tube they move evenly."""
    has_next = np.r_[tube_F[1:] == tube_F[:-1], False][: len(tube_F)]
    after = np.where(has_next, np.arange(1, len(tube_F) + 1), np.arange(len(tube_F)))
    count_F = np.where(has_next, frame_F[after] - frame_F, 1)
    from_F = np.repeat(np.arange(len(tube_F)), count_F)
    step_F = ranges(np.zeros(len(tube_F), np.int64), count_F)
    share_F1 = (step_F / count_F[from_F])[:, None]
    boxes = box_F4[from_F] * (1 - share_F1) + box_F4[after[from_F]] * share_F1
    return tube_F[from_F], frame_F[from_F] + step_F, boxes
