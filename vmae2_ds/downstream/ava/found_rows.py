"""What a model says of the boxes of key frames, as rows of AVA's csv: a row for each box and action."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from vmae2_ds.downstream.ava.key_frames import KeyFrames
from vmae2_ds.downstream.ava.rows import BoxRows, make_rows

# F key frames, G boxes of one, C actions, N rows.

DIGITS = 6
"""How many a box and a score have in a file."""


def found_rows(
    frames: KeyFrames,
    probability_FGC: Sequence[NDArray[np.float32] | None],
    *,
    person_score: bool,
    threshold: float = 0.0,
) -> BoxRows:
    """Detections of these key frames in their order, box by box, action by action.

    Values are rounded to the DIGITS that a file has: figures of these rows are those of the file.

    Args:
        frames: Key frames, and the boxes that were asked about.
        probability_FGC: How likely each action is in each box of each; None where its frames could not be read.
        person_score: Whether an action's score is its probability times the person's score, or its probability alone.
        threshold: Least score of a row.
    """
    keys, boxes, labels, scores = [], [], [], []
    ids_C = np.array(frames.label_map.ids, np.int64)
    for frame, probability_GC in zip(frames, probability_FGC, strict=True):
        if probability_GC is None:
            continue
        score_GC = probability_GC.astype(np.float64)
        if person_score:
            score_GC *= frame.score_G[:, None]
        score_GC = rounded(score_GC)
        box_N, class_N = np.nonzero(score_GC >= threshold)
        keys += [frame.key] * len(box_N)
        boxes.append(rounded(frame.box_G4)[box_N])
        labels.append(ids_C[class_N])
        scores.append(score_GC[box_N, class_N])
    return make_rows(
        keys,
        np.concatenate([np.zeros((0, 4)), *boxes]),
        np.concatenate([ids_C[:0], *labels]),
        np.concatenate([np.zeros(0), *scores]),
        frames=[frame.key for frame in frames],
        source="these detections",
    )


def rounded(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """To so many DIGITS: the numbers that reading what was written gives."""
    return np.rint(values * 10**DIGITS) / 10**DIGITS
