"""Video mAP: average precision of tubes, as ACT's, MOC's or MultiSports's scorer counts them.

T thresholds of tube overlap, C classes, N found tubes in the order by class and falling score, G true tubes, P pairs.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from vmae2_ds.downstream.ava.protocols import FrameProtocolName
from vmae2_ds.downstream.ava.tubes import Floats, Ints, Tubes, overlaps, ranges, suppress
from vmae2_ds.downstream.detection_map import AVERAGE_PRECISION
from vmae2_ds.downstream.in_turn import choose_in_turn
from vmae2_ds.errors import ConfigError

TubeProtocolName = Literal["act", "multisports", "plain"]
HIGH = tuple(round(0.5 + 0.05 * step, 2) for step in range(10))
"""0.5, 0.55, ... 0.95: their mean is what tables of UCF101-24, JHMDB and MultiSports call 0.5:0.95."""
THRESHOLDS = (0.2, *HIGH)


@dataclass(frozen=True)
class TubeProtocol:
    """What counts as a hit, and as average precision (docs/PAPER.md#tubes)."""

    about: str
    """What a user reads: whose numbers are counted so."""
    pixel_ends: bool
    """Whether a box reaches to the end of the pixel that it names last, so that widths and heights are one more."""
    last_counts: bool
    """Whether a tube of frames 1 to 3 is 3 long in time, or 2."""
    tries_next: bool
    """Whether a tube whose best truth is taken has the next best that overlaps it enough, or none."""
    average: Literal["all points", "trapezoids"]
    suppress: float | None
    """Tubes of a class and video that overlap a better one by more are left out; None: none are."""
    frames: FrameProtocolName
    """How frame mAP is counted, by all boxes of all frames."""
    without: tuple[str, ...] = ()
    """Classes that are not scored."""


MULTISPORTS_WITHOUT = (
    *("aerobic kick jump", "aerobic off axis jump", "aerobic butterfly jump", "aerobic balance turn"),
    *("basketball save", "basketball jump ball"),
)
TUBE_PROTOCOLS: dict[TubeProtocolName, TubeProtocol] = {
    "act": TubeProtocol(
        "ACT's and MOC's scorer, the usual one for UCF101-24 and JHMDB: pixels have a width, precision by trapezoids",
        pixel_ends=True,
        last_counts=True,
        tries_next=True,
        average="trapezoids",
        suppress=0.3,
        frames="act",
    ),
    "multisports": TubeProtocol(
        "MultiSports's scorer: pixels without a width, time without its last frame, the best truth or none, 60 of 66 classes",
        pixel_ends=False,
        last_counts=False,
        tries_next=False,
        average="all points",
        suppress=None,
        frames="legacy",
        without=MULTISPORTS_WITHOUT,
    ),
    "plain": TubeProtocol(
        "for sets of one's own, as AVA's scorer counts boxes: pixels without a width, the best truth or none; all frames count",
        pixel_ends=False,
        last_counts=True,
        tries_next=False,
        average="all points",
        suppress=None,
        frames="legacy",
    ),
}


@dataclass(frozen=True)
class TubeScores:
    """Average precision by class and threshold."""

    thresholds: tuple[float, ...]
    ap_CT: Floats
    """nan for a class without truth."""
    num_truths_C: Ints
    num_found_C: Ints
    """After suppression."""
    num_suppressed: int
    truth_TN: Ints
    """The true tube that each one found hits, or -1."""
    found: Tubes
    """What was scored, by class and falling score."""

    def map_of(self) -> dict[float, float]:
        """Threshold -> mean over the classes that have truth."""
        has_truth_C = self.num_truths_C > 0
        return dict(zip(self.thresholds, self.ap_CT[has_truth_C].mean(axis=0).tolist(), strict=True))


def score_tubes(
    truth: Tubes,
    found: Tubes,
    num_classes: int,
    how: TubeProtocol,
    thresholds: tuple[float, ...] = THRESHOLDS,
) -> TubeScores:
    """Match the best tube of a class first, each to its best free truth of the video, and take average precision.

    Args:
        truth: True tubes.
        found: Found ones, over the same `videos`; what they have is not changed.
        num_classes: All of the set.
        how: Whose way of counting.
        thresholds: Of tube overlap, each above 0 and at most 1.

    Raises:
        ConfigError: A threshold that cannot be.
    """
    assert truth.videos == found.videos, "found tubes count their videos as the truth does"
    if not thresholds or not all(0 < threshold <= 1 for threshold in thresholds):
        raise ConfigError(f"thresholds of tube overlap must lie above 0 and at most at 1, not {thresholds}")
    order = found.by_score()
    kept = order if how.suppress is None else _unsuppressed(found, order, how)
    found = found.some(kept)
    found_P, truth_P, overlap_P = _pairs(truth, found, min(thresholds), how)
    truth_TN = np.stack(
        [
            choose_in_turn(found_P[enough], truth_P[enough], len(found), len(truth))
            for enough in (overlap_P >= threshold for threshold in thresholds)
        ]
    )
    num_truths_C = np.bincount(truth.class_T, minlength=num_classes)
    bounds = np.searchsorted(found.class_T, np.arange(num_classes + 1))
    ap_CT = np.full((num_classes, len(thresholds)), np.nan)
    for klass in np.flatnonzero(num_truths_C).tolist():
        is_hit_TN = truth_TN[:, bounds[klass] : bounds[klass + 1]] >= 0
        ap_CT[klass] = AVERAGE_PRECISION[how.average](is_hit_TN, int(num_truths_C[klass]))
    return TubeScores(tuple(thresholds), ap_CT, num_truths_C, np.diff(bounds), len(order) - len(kept), truth_TN, found)


def _unsuppressed(found: Tubes, order: Ints, how: TubeProtocol) -> Ints:
    """The tubes that no better one of their class and video takes away, in the same order."""
    assert how.suppress is not None, "asked for"
    by_group = order[np.lexsort((np.arange(len(order)), found.video_T[order], found.class_T[order]))]
    group = found.class_T[by_group] * len(found.videos) + found.video_T[by_group]

    def overlap(one: Ints, other: Ints) -> Floats:
        return overlaps(found, found, by_group[one], by_group[other], last_counts=how.last_counts)

    taken_by, _ = suppress(group, overlap, how.suppress)
    stays = np.zeros(len(found), np.bool_)
    stays[by_group[taken_by < 0]] = True
    return order[stays[order]]


def _pairs(truth: Tubes, found: Tubes, least: float, how: TubeProtocol) -> tuple[Ints, Ints, Floats]:
    """Found and true tubes of a video and class that overlap by `least` or more, each found one's truths by falling overlap."""
    key_N, key_G = (tubes.class_T * len(truth.videos) + tubes.video_T for tubes in (found, truth))
    order_G = np.argsort(key_G, kind="stable")
    first_N = np.searchsorted(key_G[order_G], key_N, "left")
    count_N = np.searchsorted(key_G[order_G], key_N, "right") - first_N
    found_P, truth_P = np.repeat(np.arange(len(found)), count_N), order_G[ranges(first_N, count_N)]
    overlap_P = overlaps(found, truth, found_P, truth_P, last_counts=how.last_counts)
    enough = np.flatnonzero(overlap_P >= least)
    enough = enough[np.lexsort((truth_P[enough], -overlap_P[enough], found_P[enough]))]
    if not how.tries_next:
        enough = enough[np.r_[True, np.diff(found_P[enough]) != 0][: len(enough)]]
    return found_P[enough], truth_P[enough], overlap_P[enough]
