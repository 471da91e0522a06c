"""Mean average precision and recall of temporal detections, as one of the published scorers counts them (protocols.py).

T thresholds of tIoU, N detections.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from vmae2_ds.downstream.detection_map import AVERAGE_PRECISION
from vmae2_ds.downstream.tad.annotations import Annotations
from vmae2_ds.downstream.tad.detections import Detections, Floats, Ints
from vmae2_ds.downstream.tad.matching import (
    Bools,
    Pairs,
    at_least,
    first_of_each_group,
    group_keys,
    match,
    pairs_of,
    touches,
)
from vmae2_ds.downstream.tad.protocols import PROTOCOLS, Protocol, ProtocolName
from vmae2_ds.downstream.tad.tables import Tables, make_tables
from vmae2_ds.errors import ConfigError

THUMOS14_TIOUS = (0.3, 0.4, 0.5, 0.6, 0.7)
"""What THUMOS14's average mAP is over; ActivityNet's and FineAction's is over 0.5:0.95:0.05."""
RECALL_AT = (1, 5)
"""Recall among the k times as many best detections of a class in a video as it has true segments there."""


@dataclass(frozen=True)
class Matches:
    """Which detection hits which truth, at each tIoU."""

    tables: Tables
    tious: tuple[float, ...]
    pairs: Pairs
    """Detections and truths of one class and video that overlap by the smallest tIoU or more."""
    truth_TN: Ints
    """Index into the table's truths, or -1."""
    counts_TN: Bools
    """Whether a detection counts: False for one that hits nothing and touches a region that is ignored."""


@dataclass(frozen=True)
class TadScores:
    """What a protocol says of a file of detections; shares of 1."""

    protocol: ProtocolName
    average_map: float
    """Mean of `map_of`."""
    map_of: dict[float, float]
    """tIoU -> mean over the classes that have truth."""
    ap_of: dict[str, dict[float, float]]
    """Class -> tIoU -> average precision; 0 where nothing was detected of it."""
    recall_of: dict[int, dict[float, float]]
    """k of RECALL_AT -> tIoU -> mean recall, counted as OpenTAD does under every protocol."""
    matches: Matches


def score_detections(
    annotations: Annotations,
    detections: Detections,
    *,
    subset: str | Sequence[str] | None,
    tious: Iterable[float] = THUMOS14_TIOUS,
    protocol: ProtocolName = "activitynet",
    without: Sequence[str] = (),
    drop_unknown: bool | None = None,
) -> TadScores:
    """Score detections of a subset.

    Args:
        annotations: The truth.
        detections: What was detected.
        subset: Name or names; None: the only one that there is.
        tious: Thresholds, each above 0 and at most 1.
        protocol: Whose way of counting.
        without: Labels that are taken out of truth and detections first, such as Ambiguous.
        drop_unknown: Whether detections of labels without truth are left out; None: as the protocol does.

    Raises:
        ConfigError: There is no such protocol, or a threshold that cannot be.
        DataError: As `make_tables` says: nothing true in the subset, another set's annotations, labels without truth.
    """
    if protocol not in PROTOCOLS:
        raise ConfigError(f"there is no protocol {protocol!r}; choose one of {', '.join(PROTOCOLS)}")
    thresholds = tuple(tious)
    if not thresholds or not all(0 < tiou <= 1 for tiou in thresholds):
        raise ConfigError(f"tIoU thresholds must lie above 0 and at most at 1, not {thresholds}")
    how = PROTOCOLS[protocol]
    tables = make_tables(annotations, detections, subset, how, without, drop_unknown)
    matches = match_all(tables, thresholds, how)
    ap_CT = average_precisions(matches, how)
    map_T = ap_CT.mean(axis=0)
    recall_KT = _recalls(matches, how)
    return TadScores(
        protocol=protocol,
        average_map=float(map_T.mean()),
        map_of=_by_tiou(thresholds, map_T),
        ap_of={name: _by_tiou(thresholds, ap_T) for name, ap_T in zip(tables.classes, ap_CT, strict=True)},
        recall_of={k: _by_tiou(thresholds, recall_T) for k, recall_T in zip(RECALL_AT, recall_KT, strict=True)},
        matches=matches,
    )


def match_all(tables: Tables, tious: tuple[float, ...], how: Protocol) -> Matches:
    """Match detections and truths at each tIoU."""
    num_videos, found = len(tables.videos), tables.detections
    num_N, num_G = len(found.row), len(tables.truths.row)
    keys = group_keys(found, num_videos), group_keys(tables.truths, num_videos)
    pairs = at_least(pairs_of(found, tables.truths, *keys, by_hull=how.is_by_truth), min(tious))
    truth_TN = np.stack(
        [match(pairs, tiou, num_N, num_G, by_truth=how.is_by_truth, must_exceed=how.must_exceed) for tiou in tious]
    )
    is_free_N = ~touches(found, tables.regions)
    return Matches(tables, tious, pairs, truth_TN, (truth_TN >= 0) | is_free_N)


def average_precisions(matches: Matches, how: Protocol, truths_of: Ints | None = None) -> Floats:
    """Average precision of each class at each tIoU, (C, T); `truths_of`: other numbers of truths than the classes have."""
    tables, average = matches.tables, AVERAGE_PRECISION[how.average]
    if truths_of is None:
        truths_of = np.bincount(tables.truths.klass, minlength=len(tables.classes))
    bounds = np.searchsorted(tables.detections.klass, np.arange(len(tables.classes) + 1))
    ap_CT = np.zeros((len(tables.classes), len(matches.tious)))
    for klass, num_truths in enumerate(truths_of.tolist()):
        mine = slice(*bounds[klass : klass + 2])
        is_hit_TN, counts_TN = matches.truth_TN[:, mine] >= 0, matches.counts_TN[:, mine]
        if not how.hits_first and counts_TN.all():
            ap_CT[klass] = average(is_hit_TN, num_truths)
            continue
        for t, (is_hit_N, counts_N) in enumerate(zip(is_hit_TN, counts_TN, strict=True)):
            order = np.lexsort((~is_hit_N, -tables.score_N[mine])) if how.hits_first else np.arange(len(is_hit_N))
            ap_CT[klass, t] = average(is_hit_N[order][counts_N[order]][None], num_truths)[0]
    return ap_CT


def _recalls(matches: Matches, how: Protocol) -> Floats:
    """Mean over classes of the share of truths that a detection reaches, with no regard to whether another does, (K, T)."""
    tables, pairs = matches.tables, matches.pairs
    num_videos, num_classes = len(tables.videos), len(tables.classes)
    place_N = first_of_each_group(group_keys(tables.detections, num_videos))
    key_G = group_keys(tables.truths, num_videos)
    _, group_G, size = np.unique(key_G, return_inverse=True, return_counts=True)
    share_P = place_N[pairs.detection_P] / size[group_G][pairs.truth_P]
    truths_of = np.bincount(tables.truths.klass, minlength=num_classes)
    recall_KT = np.zeros((len(RECALL_AT), len(matches.tious)))
    for t, tiou in enumerate(matches.tious):
        reaches_P = pairs.tiou_P > tiou if how.must_exceed else pairs.tiou_P >= tiou
        for k, times in enumerate(RECALL_AT):
            reached = np.unique(pairs.truth_P[reaches_P & (share_P < times)])
            found_of = np.bincount(tables.truths.klass[reached], minlength=num_classes)
            recall_KT[k, t] = (found_of / truths_of).mean()
    return recall_KT


def _by_tiou(tious: tuple[float, ...], values: Floats) -> dict[float, float]:
    return dict(zip(tious, values.tolist(), strict=True))
