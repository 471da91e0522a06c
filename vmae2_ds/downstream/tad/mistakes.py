"""What went wrong in a file of detections: a kind for each false positive and each missed truth, what each kind costs, lengths.

The kinds of false positives are after Alwassel et al. (docs/PAPER.md#scorers-of-temporal-detection).
N detections, G truths, T thresholds of tIoU.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from vmae2_ds.downstream.detection_map import all_points
from vmae2_ds.downstream.tad.annotations import Annotations
from vmae2_ds.downstream.tad.detections import Floats, Ints
from vmae2_ds.downstream.tad.matching import Bools, first_of_each_group, pairs_of
from vmae2_ds.downstream.tad.protocols import PROTOCOLS, Protocol
from vmae2_ds.downstream.tad.score import Matches, TadScores, average_precisions
from vmae2_ds.downstream.tad.tables import Tables

LOWEST_TIOU = 0.1
"""Overlap with truth of its label from which on a detection is one of it, badly placed (Alwassel et al.)."""
CORRECT, NOT_COUNTED = "correct", "not counted"
FALSE_KINDS = {
    "double": "on a true segment of its label that another detection found",
    "wrong label": "on a true segment of another label",
    "localisation": f"overlaps a true segment of its label by {LOWEST_TIOU:g} at least, and too little",
    "background": "none of these",
}
"""Kinds of false positives: each is the first of these that it can be called."""
MISSED_KINDS = {
    "taken": "a detection of its label is on it, and found another true segment",
    "wrong label": "detections of other labels are on it",
    "localisation": f"a detection of its label overlaps it by {LOWEST_TIOU:g} at least, and too little",
    "nothing near": "none of these",
}
"""Kinds of missed truths: each is the first of these that it can be called."""
DETECTION_KINDS = (CORRECT, *FALSE_KINDS, NOT_COUNTED)
TRUTH_KINDS = (CORRECT, *MISSED_KINDS)
SIZES = ("XS", "S", "M", "L", "XL")

Kinds = NDArray[np.int8]
"""Indices into DETECTION_KINDS or TRUTH_KINDS."""


class Overlaps(NamedTuple):
    """The best tIoU of each detection and of each truth with those of the other kind in its video."""

    same_N: Floats
    """A detection's with truths of its class."""
    other_N: Floats
    """A detection's with truths of other classes."""
    same_G: Floats
    other_G: Floats


class LengthFifths(NamedTuple):
    """Fifths of the true segments, by one measure of length."""

    bounds: dict[str, tuple[float, float]]
    """Size -> the shortest and the longest of it."""
    truths: dict[str, int]
    """Size -> true segments."""
    found: dict[str, Floats]
    """Size -> share of them that is found, (T,)."""
    normalised_map: dict[str, Floats]
    """Size -> mAP of them alone, precision taken as if each class had the mean number of truths, (T,)."""


@dataclass(frozen=True)
class Mistakes:
    """The error analysis of a score."""

    tious: tuple[float, ...]
    kind_TN: Kinds
    """Kind of each detection of the tables, an index into DETECTION_KINDS."""
    missed_TG: Kinds
    """Kind of each truth of the tables, an index into TRUTH_KINDS: correct where it is found."""
    is_among_best_N: Bools
    """Whether a detection is among the best of its class, as many as the class has truths."""
    gain_of: dict[str, Floats]
    """Kind of false positives -> what mAP gains where there are none of it, (T,)."""
    missed_gain_of: dict[str, Floats]
    """Kind of missed truths -> what mAP gains where they are no truths, (T,)."""
    seconds: LengthFifths
    """Fifths by length in seconds."""
    share: LengthFifths | None
    """Fifths by the share of its video that a true segment lasts; None where no duration is known."""


def find_mistakes(annotations: Annotations, scores: TadScores) -> Mistakes:
    """Look at what a score counted: the kind of every detection and truth at each tIoU, and what the kinds cost."""
    matches, how = scores.matches, PROTOCOLS[scores.protocol]
    tables, tious = matches.tables, matches.tious
    overlaps = overlaps_of(tables)
    kinds = [
        kinds_of_detections(overlaps, truth_N, tiou) for truth_N, tiou in zip(matches.truth_TN, tious, strict=True)
    ]
    kind_TN = np.where(matches.counts_TN, np.stack(kinds), DETECTION_KINDS.index(NOT_COUNTED)).astype(np.int8)
    missed_TG = np.stack(
        [_kinds_of_truths(overlaps, hit, tiou) for hit, tiou in zip(matches.truth_TN, tious, strict=True)]
    )
    truths_of = np.bincount(tables.truths.klass, minlength=len(tables.classes))
    base_T = average_precisions(matches, how).mean(axis=0)
    length_s = tables.truths.end_s - tables.truths.start_s
    durations = [annotations.videos[name].duration_s or np.nan for name in tables.videos[: tables.num_videos]]
    share_G = length_s / np.array(durations)[tables.truths.video]
    return Mistakes(
        tious=tious,
        kind_TN=kind_TN,
        missed_TG=missed_TG,
        is_among_best_N=first_of_each_group(tables.detections.klass) < truths_of[tables.detections.klass],
        gain_of={kind: _without(matches, how, kind_TN == DETECTION_KINDS.index(kind)) - base_T for kind in FALSE_KINDS},
        missed_gain_of={
            kind: _without_truths(matches, how, missed_TG == TRUTH_KINDS.index(kind)) - base_T for kind in MISSED_KINDS
        },
        seconds=_sizes(matches, length_s),
        share=None if np.isnan(share_G).all() else _sizes(matches, share_G),
    )


def overlaps_of(tables: Tables) -> Overlaps:
    """What detections and truths overlap most, with and without a look at their classes."""
    found, truths = tables.detections, tables.truths
    best = Overlaps(*(np.zeros(len(found.row)) for _ in range(2)), *(np.zeros(len(truths.row)) for _ in range(2)))
    for pairs in pairs_of(found, truths, found.video, truths.video):
        tiou_P = np.nan_to_num(pairs.tiou_P)
        is_same_P = found.klass[pairs.detection_P] == truths.klass[pairs.truth_P]
        for best_N, best_G, chosen in ((best.same_N, best.same_G, is_same_P), (best.other_N, best.other_G, ~is_same_P)):
            np.maximum.at(best_N, pairs.detection_P[chosen], tiou_P[chosen])
            np.maximum.at(best_G, pairs.truth_P[chosen], tiou_P[chosen])
    return best


def kinds_of_detections(overlaps: Overlaps, truth_N: Ints, tiou: float) -> Kinds:
    """What each detection is, given the truth that it finds or -1: an index into DETECTION_KINDS, (N,)."""
    is_kind = {CORRECT: truth_N >= 0, **_by_overlap(overlaps.same_N, overlaps.other_N, tiou, "double")}
    return _first_that_holds(is_kind, DETECTION_KINDS, "background")


def _kinds_of_truths(overlaps: Overlaps, truth_N: Ints, tiou: float) -> Kinds:
    is_found_G = np.zeros(len(overlaps.same_G), np.bool_)
    is_found_G[truth_N[truth_N >= 0]] = True
    is_kind = {CORRECT: is_found_G, **_by_overlap(overlaps.same_G, overlaps.other_G, tiou, "taken")}
    return _first_that_holds(is_kind, TRUTH_KINDS, "nothing near")


def _by_overlap(same: Floats, other: Floats, tiou: float, matched: str) -> dict[str, Bools]:
    """The kinds that overlaps tell: `matched` is what overlaps one of its label enough."""
    return {matched: same >= tiou, "wrong label": other >= tiou, "localisation": same >= LOWEST_TIOU}


def _first_that_holds(is_kind: dict[str, Bools], kinds: tuple[str, ...], otherwise: str) -> Kinds:
    codes = [kinds.index(kind) for kind in is_kind]
    return np.asarray(np.select(list(is_kind.values()), codes, kinds.index(otherwise)).astype(np.int8))


def _without(matches: Matches, how: Protocol, is_kind_TN: Bools) -> Floats:
    """The mAP at each tIoU without some of the false positives, (T,)."""
    left = replace(matches, counts_TN=matches.counts_TN & ~is_kind_TN)
    return np.asarray(average_precisions(left, how).mean(axis=0))


def _without_truths(matches: Matches, how: Protocol, is_kind_TG: Bools) -> Floats:
    """The mAP at each tIoU where some of the missed truths are none; a class without others is left out of the mean, (T,)."""
    tables, maps = matches.tables, []
    for t, is_kind_G in enumerate(is_kind_TG):
        one = replace(
            matches,
            tious=matches.tious[t : t + 1],
            truth_TN=matches.truth_TN[t : t + 1],
            counts_TN=matches.counts_TN[t : t + 1],
        )
        left_of = np.bincount(tables.truths.klass[~is_kind_G], minlength=len(tables.classes))
        ap_C = average_precisions(one, how, np.maximum(left_of, 1))[:, 0]
        maps.append(ap_C[left_of > 0].mean() if left_of.any() else 0.0)
    return np.array(maps)


def _sizes(matches: Matches, length_G: Floats) -> LengthFifths:
    """How each fifth of the truths fares: those of unknown length are in none."""
    tables, known = matches.tables, length_G[~np.isnan(length_G)]
    edges = np.quantile(known, np.arange(1, len(SIZES)) / len(SIZES))
    size_G = np.where(np.isnan(length_G), -1, np.searchsorted(edges, length_G, "left"))
    mean_truths = len(tables.truths.row) / len(tables.classes)
    bounds, truths, found, normalised = {}, {}, {}, {}
    for size, name in enumerate(SIZES):
        is_mine_G = size_G == size
        if is_mine_G.any():
            bounds[name] = float(length_G[is_mine_G].min()), float(length_G[is_mine_G].max())
            truths[name] = int(is_mine_G.sum())
            hit_TG = np.stack([np.isin(np.flatnonzero(is_mine_G), truth_N) for truth_N in matches.truth_TN])
            found[name] = hit_TG.mean(axis=1)
            normalised[name] = _map_of_some(matches, is_mine_G, mean_truths)
    return LengthFifths(bounds, truths, found, normalised)


def _map_of_some(matches: Matches, is_mine_G: Bools, mean_truths: float) -> Floats:
    """The normalised mAP of some of the truths; detections that find others do not count, (T,)."""
    tables = matches.tables
    truths_of = np.bincount(tables.truths.klass[is_mine_G], minlength=len(tables.classes))
    bounds = np.searchsorted(tables.detections.klass, np.arange(len(tables.classes) + 1))
    maps = []
    for truth_N, counts_N in zip(matches.truth_TN, matches.counts_TN, strict=True):
        is_hit_N = (truth_N >= 0) & is_mine_G[truth_N]
        counts_N = counts_N & (is_hit_N | (truth_N < 0))
        ap = []
        for klass in np.flatnonzero(truths_of):
            mine = slice(*bounds[klass : klass + 2])
            ap.append(all_points(is_hit_N[mine][counts_N[mine]][None], int(truths_of[klass]), mean_truths)[0])
        maps.append(np.mean(ap))
    return np.array(maps)


def counts_of(kind_TN: Kinds, kinds: tuple[str, ...]) -> dict[str, list[int]]:
    """How many there are of each kind at each tIoU."""
    return {kind: (kind_TN == code).sum(axis=1).tolist() for code, kind in enumerate(kinds)}
