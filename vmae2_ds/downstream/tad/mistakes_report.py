"""The error analysis of `vmae2 tad score --mistakes`, as text and as what `--json` holds."""

from __future__ import annotations

from typing import Any

import numpy as np

from vmae2_ds.console.tables import table
from vmae2_ds.downstream.tad.detections import Floats
from vmae2_ds.downstream.tad.mistakes import (
    DETECTION_KINDS,
    FALSE_KINDS,
    MISSED_KINDS,
    NOT_COUNTED,
    TRUTH_KINDS,
    LengthFifths,
    Mistakes,
    counts_of,
)


def mistakes_json(found: Mistakes) -> dict[str, Any]:
    """Counts and gains of mAP by kind, in the order of `tiou`; lengths by size."""
    kind_TN, is_best_N = found.kind_TN, found.is_among_best_N
    return {
        "tiou": [float(f"{tiou:.4g}") for tiou in found.tious],
        "kinds": {**FALSE_KINDS},
        "detections": counts_of(kind_TN, DETECTION_KINDS),
        "detections_among_best": counts_of(kind_TN[:, is_best_N], DETECTION_KINDS),
        "map_gained_without": _lists(found.gain_of),
        "missed_kinds": {**MISSED_KINDS},
        "truths": counts_of(found.missed_TG, TRUTH_KINDS),
        "map_gained_without_missed": _lists(found.missed_gain_of),
        "length_s": _sizes_json(found.seconds),
        "length_share": None if found.share is None else _sizes_json(found.share),
    }


def describe_mistakes(found: Mistakes) -> str:
    """The analysis as tables, with what each kind means."""
    head = ["", *(f"{tiou:.4g}" for tiou in found.tious)]
    kinds = tuple(
        kind for kind in DETECTION_KINDS if kind != NOT_COUNTED or (found.kind_TN == len(FALSE_KINDS) + 1).any()
    )
    best = found.kind_TN[:, found.is_among_best_N]
    parts = [
        "false positives",
        *(f"  {kind}: {meaning}" for kind, meaning in FALSE_KINDS.items()),
        "",
        table("detections of each kind at each tIoU", head, _rows(counts_of(found.kind_TN, kinds))),
        "",
        table(
            "the same of the N best of each class alone, N being its number of true segments",
            head,
            _rows(counts_of(best, kinds)),
        ),
        "",
        table("points of mAP gained if there were no false positives of a kind", head, _points(found.gain_of)),
        "",
        "missed true segments",
        *(f"  {kind}: {meaning}" for kind, meaning in MISSED_KINDS.items()),
        "",
        table("true segments of each kind at each tIoU", head, _rows(counts_of(found.missed_TG, TRUTH_KINDS))),
        "",
        table(
            "points of mAP gained if the missed segments of a kind were not in the truth",
            head,
            _points(found.missed_gain_of),
        ),
        "",
        _by_size("fifths of the true segments by length in seconds", found.seconds),
    ]
    if found.share is not None:
        parts += ["", _by_size("fifths by the share of the video that they last", found.share)]
    return "\n".join([*parts, "normalised mAP: precision as if each class had the mean number of true segments"])


def _by_size(title: str, sizes: LengthFifths) -> str:
    head = ["", "from", "to", "segments", "found", "normalised mAP"]
    rows = []
    for size, count in sizes.truths.items():
        shares = (100 * float(np.mean(values[size])) for values in (sizes.found, sizes.normalised_map))
        low, high = sizes.bounds[size]
        rows.append([size, f"{low:.3g}", f"{high:.3g}", count, *(f"{share:.2f}" for share in shares)])
    return table(f"{title}, percent, means over tIoU", head, rows)


def _sizes_json(sizes: LengthFifths) -> dict[str, Any]:
    return {
        size: {
            "from": sizes.bounds[size][0],
            "to": sizes.bounds[size][1],
            "truths": count,
            "found": sizes.found[size].tolist(),
            "normalised_map": sizes.normalised_map[size].tolist(),
        }
        for size, count in sizes.truths.items()
    }


def _lists(values: dict[str, Floats]) -> dict[str, list[float]]:
    return {kind: value_T.tolist() for kind, value_T in values.items()}


def _rows(counts: dict[str, list[int]]) -> list[list[object]]:
    return [[kind, *numbers] for kind, numbers in counts.items()]


def _points(gains: dict[str, Floats]) -> list[list[object]]:
    # adding 0 turns the -0.0 of rounding into 0.0
    return [[kind, *(f"{round(100 * gain, 2) + 0.0:+.2f}" for gain in gain_T)] for kind, gain_T in gains.items()]
