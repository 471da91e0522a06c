"""How many of the true persons a file of boxes has: what no head on top of it can find is lost.

T true persons, P pairs of a true person and a box of the same key frame.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vmae2_ds.console.progress import counted
from vmae2_ds.console.tables import table
from vmae2_ds.downstream.ava.matching import iou_of
from vmae2_ds.downstream.ava.person_boxes import PersonBoxes
from vmae2_ds.downstream.ava.rows import BoxRows

IOUS = (0.5, 0.75)
THRESHOLDS = (0.0, 0.5, 0.8, 0.9)
"""Scores from which on boxes count; 0.8 and 0.9 are what the published recipes take."""
FRAMES_AT_ONCE = 1 << 13


@dataclass(frozen=True)
class Recall:
    """Boxes from some score on, beside the truth."""

    threshold: float
    iou_T: NDArray[np.float64]
    """Overlap of each true person with its box; 0 where there is none."""
    boxes: int
    """In key frames of the truth."""
    elsewhere: int
    """In other key frames."""
    frames: int
    """Key frames with true persons."""
    empty: int
    """Those among them without a box."""

    def at(self, iou: float) -> float | None:
        """Share of the true persons that a box of their own overlaps by so much; None without any."""
        return float((self.iou_T >= iou).mean()) if len(self.iou_T) else None

    def json(self) -> dict[str, Any]:
        """What `--json` prints."""
        return {
            "threshold": self.threshold,
            "persons": len(self.iou_T),
            "recall": {str(iou): self.at(iou) for iou in IOUS},
            "boxes": self.boxes,
            "boxes_elsewhere": self.elsewhere,
            "key_frames": self.frames,
            "key_frames_without_boxes": self.empty,
        }


def recalls_of(truth: BoxRows, boxes: PersonBoxes) -> list[Recall]:
    """Recall with the boxes from each of THRESHOLDS on, which is a part of what any score may have."""
    return [recall_of(truth, boxes, threshold) for threshold in THRESHOLDS]


def recall_of(truth: BoxRows, boxes: PersonBoxes, threshold: float = 0.0) -> Recall:
    """Pair true persons and boxes, one with one, the largest overlap first, as mmaction2 and its relatives count proposals.

    A true person is a box of a key frame, however many actions it has.
    """
    kept = boxes.of(boxes.box_N5[:, 4] >= threshold) if threshold else boxes
    frame_N6 = np.column_stack([truth.frame_N, truth.box_N4])
    person_T5 = np.unique(frame_N6, axis=0) if len(truth) else np.zeros((0, 5))
    frame_T = person_T5[:, 0].astype(np.int64)
    place_of = {key: place for place, key in enumerate(kept)}
    place_F = np.array([place_of.get(key, -1) for key in truth.keys], np.int64)
    place_T = place_F[frame_T]
    iou_T = np.zeros(len(frame_T))
    for person_P, box_P in _pairs(place_T, kept.first_F):
        iou_P = iou_of(person_T5[person_P, 1:], kept.box_N5[box_P, :4])
        taken: set[int] = set()
        order_P = np.lexsort((box_P, person_P, -iou_P))
        for pair in order_P[iou_P[order_P] > 0].tolist():
            person, box = int(person_P[pair]), int(box_P[pair])
            if not iou_T[person] and box not in taken:
                iou_T[person] = iou_P[pair]
                taken.add(box)
    in_truth = int(np.diff(kept.first_F)[np.unique(place_F[place_F >= 0])].sum())
    with_persons = np.unique(frame_T)
    return Recall(
        threshold,
        iou_T,
        in_truth,
        len(kept.box_N5) - in_truth,
        len(with_persons),
        int((place_F[with_persons] < 0).sum()),
    )


def describe_recalls(recalls: list[Recall]) -> str:
    """A table, a line for each threshold."""
    first = recalls[0]
    rows = [
        (
            f"{recall.threshold:g}",
            *(f"{100 * share:.2f}" if (share := recall.at(iou)) is not None else "-" for iou in IOUS),
            recall.boxes,
            f"{recall.boxes / max(recall.frames, 1):.3g}",
            recall.empty,
        )
        for recall in recalls
    ]
    head = ["score from", *(f"recall at IoU {iou:g}, %" for iou in IOUS), "boxes", "a key frame", "key frames without"]
    title = f"boxes beside {counted(len(first.iou_T), 'true person')} at {counted(first.frames, 'key frame')}"
    said = table(title, head, rows)
    if first.elsewhere:
        said += f"\n{counted(first.elsewhere, 'box is', 'boxes are')} at key frames that the truth does not name"
    return said


def _pairs(place_T: NDArray[np.int64], first_F: NDArray[np.int64]) -> Iterator[tuple[NDArray[Any], NDArray[Any]]]:
    """Places of true persons and of boxes in the same key frame, those of some key frames at a time."""
    count_T = np.where(place_T >= 0, np.diff(first_F, append=first_F[-1:])[place_T], 0)
    changes = np.flatnonzero(np.diff(place_T)) + 1
    ends = [0, *changes[FRAMES_AT_ONCE - 1 :: FRAMES_AT_ONCE].tolist(), len(place_T)]
    for start, end in pairwise(ends):
        count = count_T[start:end]
        person_P = start + np.repeat(np.arange(end - start), count)
        step_P = np.arange(count.sum()) - np.repeat(np.cumsum(count) - count, count)
        yield person_P, first_F[place_T[person_P]] + step_P
