"""Action tubes as columns: one person's box in every frame of a stretch of a video, and how far two tubes overlap.

T tubes, F boxes of all of them one tube after the other, P pairs, 4: x1, y1, x2, y2.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vmae2_ds.downstream.ava.matching import iou_of
from vmae2_ds.errors import DataError

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

BOXES_AT_ONCE = 1 << 20
"""Pairs of boxes whose overlap is computed together: 8 MB a column."""


@dataclass(frozen=True)
class Tubes:
    """Tubes of one set of videos and classes; boxes in one unit throughout, pixels or shares of a frame."""

    videos: tuple[str, ...]
    """Names; `video_T` holds places in it."""
    video_T: Ints
    class_T: Ints
    """From 0."""
    score_T: Floats
    first_T: Ints
    """Number of the first frame; the others follow without a gap."""
    start_T1: Ints
    """Where a tube's boxes begin in `box_F4`, (T + 1,)."""
    box_F4: Floats

    def __len__(self) -> int:
        return len(self.video_T)

    def lasts(self) -> Ints:
        """Number of each one's last frame, (T,)."""
        return self.first_T + np.diff(self.start_T1) - 1

    def some(self, kept: Ints) -> Tubes:
        """Those at the places `kept`, in that order."""
        count = np.diff(self.start_T1)[kept]
        return Tubes(
            self.videos,
            self.video_T[kept],
            self.class_T[kept],
            self.score_T[kept],
            self.first_T[kept],
            np.r_[0, np.cumsum(count)],
            self.box_F4[ranges(self.start_T1[kept], count)],
        )

    def by_score(self) -> Ints:
        """The order of the tubes by class and falling score; equal scores go by video, first frame and first box."""
        x1_T, y1_T, x2_T, y2_T = self.box_F4[self.start_T1[:-1]].T
        names = np.argsort(np.argsort(self.videos, kind="stable"), kind="stable")
        return np.lexsort((y2_T, x2_T, y1_T, x1_T, self.first_T, names[self.video_T], -self.score_T, self.class_T))


def make_tubes(
    videos: tuple[str, ...],
    video_T: Ints,
    class_T: Ints,
    score_T: Floats,
    tube_F: Ints,
    frame_F: Ints,
    box_F4: Floats,
    said: str,
) -> Tubes:
    """Tubes of boxes in any order; `tube_F` says which tube a box belongs to, and every tube has at least one.

    Raises:
        DataError: A tube has two boxes in a frame, or a frame between its ends without a box; the line begins with `said`.
    """
    order = np.lexsort((frame_F, tube_F))
    tube_F, frame_F = tube_F[order], frame_F[order]
    step_F = np.diff(frame_F)
    odd = np.flatnonzero((tube_F[1:] == tube_F[:-1]) & (step_F != 1))
    if len(odd):
        at = odd[0]
        tube = tube_F[at]
        problem = "two boxes in frame" if not step_F[at] else f"no box between frames {frame_F[at]} and"
        raise DataError(
            f"{said}: the tube of class {class_T[tube]} in {videos[video_T[tube]]!r} that begins at frame "
            f"{frame_F[tube_F == tube][0]} has {problem} {frame_F[at + 1]}; a tube has one box in each of its frames: "
            "make two tubes of it, or fill the gap"
        )
    start_T1 = np.searchsorted(tube_F, np.arange(len(video_T) + 1))
    return Tubes(videos, video_T, class_T, score_T, frame_F[start_T1[:-1]], start_T1, box_F4[order])


def ranges(start: Ints, count: Ints) -> Ints:
    """start[0], start[0] + 1, ... (count[0] of them), start[1], ..."""
    return np.repeat(start - (np.cumsum(count) - count), count) + np.arange(count.sum())


def box_iou(one_P4: Floats, other_P4: Floats) -> Floats:
    """Intersection over union of boxes pair by pair, (P,); 0 where both are empty.

    Where a box ends with its last pixel, as in ACT's files, x2 and y2 are one more here: that is that code's + 1 throughout.
    """
    iou_P = iou_of(one_P4, other_P4)
    return np.where(np.isnan(iou_P), 0.0, iou_P)


def overlaps(one: Tubes, other: Tubes, one_P: Ints, other_P: Ints, *, last_counts: bool) -> Floats:
    """How far tubes of the same video overlap, (P,): overlap in time times the mean box overlap over the common frames.

    Overlap in time is the length that both cover over the length from the first frame of either to the last
    (docs/PAPER.md#tubes). last_counts: whether a tube of frames 1 to 3 is 3 long (ACT, MOC), or 2, so that tubes with a single
    common frame do not overlap (MultiSports). Work and memory go with the common frames, `BOXES_AT_ONCE` of them at a time.
    """
    first_P = np.maximum(one.first_T[one_P], other.first_T[other_P])
    last_P = np.minimum(one.lasts()[one_P], other.lasts()[other_P])
    begin_P = np.minimum(one.first_T[one_P], other.first_T[other_P])
    end_P = np.maximum(one.lasts()[one_P], other.lasts()[other_P])
    common_P = np.maximum(last_P - first_P + 1, 0)
    one_start_P = one.start_T1[one_P] + first_P - one.first_T[one_P]
    other_start_P = other.start_T1[other_P] + first_P - other.first_T[other_P]
    box_P = np.zeros(len(common_P))
    together = np.flatnonzero(common_P)
    piece_of = np.cumsum(common_P[together]) // BOXES_AT_ONCE
    for some in np.split(together, np.flatnonzero(np.diff(piece_of)) + 1):
        count = common_P[some]
        iou = box_iou(one.box_F4[ranges(one_start_P[some], count)], other.box_F4[ranges(other_start_P[some], count)])
        box_P[some] = np.bincount(np.repeat(np.arange(len(some)), count), iou, len(some)) / count
    both_P, all_P = last_P - first_P + last_counts, end_P - begin_P + last_counts
    return box_P * np.divide(both_P, all_P, out=np.zeros(len(box_P)), where=all_P > 0)


def suppress(group_N: Ints, overlap: Callable[[Ints, Ints], Floats], most: float) -> tuple[Ints, Floats]:
    """Greedy suppression in all groups at once: (the one that takes a row away or -1, its overlap with it), (N,) both.

    In each group the first row stays and takes away those that it overlaps by more than `most`, then the next that is left, and
    so on.

    Args:
        group_N: Equal and next to each other for the rows of a group, the best first.
        overlap: Of rows at these places, pair by pair.
        most: How much overlap stays.
    """
    by_N, overlap_N = np.full(len(group_N), -1), np.zeros(len(group_N))
    left = np.arange(len(group_N))
    while len(left):
        is_first = np.r_[True, group_N[left[1:]] != group_N[left[:-1]]]
        head, others = left[is_first][np.cumsum(is_first) - 1][~is_first], left[~is_first]
        found = overlap(head, others)
        gone = found > most
        by_N[others[gone]], overlap_N[others[gone]] = head[gone], found[gone]
        left = others[~gone]
    return by_N, overlap_N
