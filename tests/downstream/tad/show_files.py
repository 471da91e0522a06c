"""A set of videos for the tests of `vmae2 tad show`, small enough to work out by hand what of its predictions is what."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

from vmae2_ds.downstream.tad.show import ShowArguments

TRUTH: dict[str, Any] = {
    "two words": ("validation", 100, [("jump", 10, 20), ("run", 30, 50), ("jump", 60, 70), ("run", 80, 90)]),
    "good": ("validation", 50, [("run", 10, 20)]),
    "идти <b>": ("validation", 60, [("jump", 0, 5), ("Ambiguous", 20, 30)]),
    "other": ("training", 10, [("run", 1, 2)]),
}
PREDICTIONS: dict[str, list[tuple[str, float, float, float]]] = {
    "two words": [
        ("jump", 10, 20, 0.9),  # correct
        ("jump", 11, 20, 0.8),  # the same again, tIoU 0.9
        ("run", 31, 49, 0.7),  # correct, tIoU 0.9
        ("jump", 30, 50, 0.6),  # on a run
        ("jump", 65, 80, 0.5),  # tIoU 5 / 20 with a jump
        ("run", 95, 99, 0.4),  # on nothing
        ("run", 80, 90, 0.05),  # correct, and hardly meant
    ],
    "good": [("run", 10, 20, 0.95)],
    "идти <b>": [],
}
HAND_MADE_KINDS = ["correct", "double", "correct", "wrong label", "localisation", "background", "correct"]
"""What the predictions of the first video are."""


class Written(NamedTuple):
    """Both files."""

    gt: Path
    pred: Path

    def asking(self, out: Path, video: str | None = None, **more: Any) -> ShowArguments:
        """Arguments with both files."""
        return ShowArguments(**{"video": video, "gt": self.gt, "pred": self.pred, "out": out, **more})


def write_files(folder: Path) -> Written:
    """Write the set."""
    database = {
        name: {
            "subset": subset,
            "duration": duration,
            "annotations": [{"label": label, "segment": [start, end]} for label, start, end in segments],
        }
        for name, (subset, duration, segments) in TRUTH.items()
    }
    results = {
        name: [{"label": label, "segment": [start, end], "score": score} for label, start, end, score in rows]
        for name, rows in PREDICTIONS.items()
    }
    (folder / "gt.json").write_text(json.dumps({"database": database}))
    (folder / "pred.json").write_text(json.dumps({"results": results}))
    return Written(folder / "gt.json", folder / "pred.json")
