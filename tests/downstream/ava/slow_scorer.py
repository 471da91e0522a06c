"""Frame mAP of AVA's form in plain loops over tuples, written from the description of the published scorers alone."""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Collection, Sequence

import numpy as np

Row = tuple[str, int, tuple[float, float, float, float], int, float]
"""Video, time in ms, box, action id, score."""


def overlap(one: Sequence[float], other: Sequence[float], single: bool) -> float:
    number = np.float32 if single else np.float64
    with np.errstate(all="ignore"):
        ax1, ay1, ax2, ay2 = map(number, one)
        bx1, by1, bx2, by2 = map(number, other)
        both = max(min(ay2, by2) - max(ay1, by1), number(0)) * max(min(ax2, bx2) - max(ax1, bx1), number(0))
        return float(both / ((ay2 - ay1) * (ax2 - ax1) + (by2 - by1) * (bx2 - bx1) - both))


def average_precision(flags: Sequence[bool], truths: int) -> float:
    """Flags of hits, the best first; at each recall the best precision from there on."""
    points, hits = [], 0
    for place, flag in enumerate(flags, 1):
        hits += flag
        points.append((hits / truths, hits / place))
    area, before = 0.0, 0.0
    for place, (recall, _) in enumerate(points):
        area += (recall - before) * max(precision for _, precision in points[place:])
        before = recall
    return area


def trapezoids(flags: Sequence[bool], truths: int) -> float:
    """Straight lines from point to point, the first with precision 1 at recall 0."""
    points = [(0.0, 1.0)] + [
        (sum(flags[:place]) / truths, sum(flags[:place]) / place) for place in range(1, len(flags) + 1)
    ]
    return sum((after[0] - before[0]) * (after[1] + before[1]) / 2 for before, after in itertools.pairwise(points))


def slow_score(
    truth: Sequence[Row],
    bare_frames: Collection[tuple[str, int]],
    found: Sequence[Row],
    ids: Sequence[int],
    excluded: Collection[tuple[str, int]],
    protocol: str,
    iou: float = 0.5,
    cap: int = 50,
) -> tuple[float, dict[int, float | None], tuple[float, float]]:
    """mAP, average precision by class (None: not in the mean), and the mAP with equal scores' false or true positives first."""
    named = {row[:2] for row in truth} | set(bare_frames)
    known = [row for row in truth if row[3] in ids]
    rows = [row for row in found if row[3] in ids]
    if protocol == "activitynet":
        rows = [row for row in rows if row[:2] in named]
        by_frame = defaultdict(list)
        for place, row in enumerate(rows):
            by_frame[row[:2]].append((-row[4], place))
        kept = sorted(place for places in by_frame.values() for _, place in sorted(places)[:cap])
        rows = [rows[place] for place in kept]
    elif protocol == "act":
        pass
    elif protocol == "mmaction2":
        rows = [row for row in rows if row[:2] not in excluded and row[:2] in {row[:2] for row in known}]
    else:
        known = [row for row in known if row[:2] not in excluded]
        rows = [row for row in rows if row[:2] not in excluded]
    if protocol != "mmaction2":
        rows = [row for row in rows if row[2][0] < row[2][2] and row[2][1] < row[2][3]]
    average = trapezoids if protocol == "act" else average_precision
    results: dict[int, float | None] = {}
    bounds = []
    for action in ids:
        mine = [row for row in rows if row[3] == action]
        true = [row for row in known if row[3] == action]
        if not true or (protocol == "mmaction2" and not mine):
            results[action] = None
            continue
        by_score = sorted(range(len(mine)), key=lambda place: -mine[place][4])
        taken, hits = set(), set()
        for place in range(len(mine)) if protocol == "legacy_pyslowfast" else by_score:
            video, time, box, _, _ = mine[place]
            best, best_iou = None, -1.0
            for number, (other_video, other_time, other, _, _) in enumerate(true):
                if (other_video, other_time) == (video, time) and not (protocol == "act" and number in taken):
                    shared = overlap(box, other, protocol == "mmaction2")
                    if shared > best_iou:
                        best, best_iou = number, shared
            if best is not None and best_iou >= iou and best not in taken:
                taken.add(best)
                hits.add(place)
        results[action] = average([place in hits for place in by_score], len(true))
        ends = []
        for hits_first in (False, True):
            flags = []
            for _, run in itertools.groupby(by_score, key=lambda place: mine[place][4]):
                flags += sorted((place in hits for place in run), reverse=hits_first)
            ends.append(average(flags, len(true)))
        bounds.append(ends)
    meant = [value for value in results.values() if value is not None]
    mean = sum(meant) / len(meant) if meant else 0.0
    low, high = np.mean(bounds, axis=0).tolist() if bounds else (0.0, 0.0)
    return mean, results, (low, high)
