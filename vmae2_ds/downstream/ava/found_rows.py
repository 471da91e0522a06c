"""What a model says of the boxes of key frames, as rows of AVA's csv: a row for each box and action."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vmae2_ds.downstream.ava.key_frames import KeyFrames
from vmae2_ds.downstream.ava.rows import BoxRows, seconds_of
from vmae2_ds.errors import DataError

# F key frames, G boxes of one, C actions, N rows.

DIGITS = 6
"""How many a box and a score have in a file."""
SOURCE = "these detections"
"""What messages call them."""


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

    Raises:
        DataError: A probability that is no number.
    """
    ids_C = np.array(frames.label_map.ids, np.int32)
    kept: list[tuple[NDArray[Any], ...]] = [(np.zeros(0, np.int32), np.zeros((0, 4)), ids_C[:0], np.zeros(0))]
    for number, (frame, probability_GC) in enumerate(zip(frames, probability_FGC, strict=True)):
        if probability_GC is None:
            continue
        score_GC = probability_GC.astype(np.float64)
        if np.isnan(score_GC).any():
            raise DataError(
                f"what the model says of video {frame.video!r} at {seconds_of(frame.time_ms)} s is no number: take an earlier "
                "checkpoint, whose weights are finite, or --precision fp32 if they are"
            )
        if person_score:
            score_GC *= frame.score_G[:, None]
        score_GC = rounded(score_GC)
        box_N, class_N = np.nonzero(score_GC >= threshold)
        frame_N = np.full(len(box_N), number, np.int32)
        kept.append((frame_N, rounded(frame.box_G4)[box_N], ids_C[class_N], score_GC[box_N, class_N]))
    frame_N, box_N4, label_N, score_N = map(np.concatenate, zip(*kept, strict=True))
    nobody_N = np.broadcast_to(np.int64(-1), frame_N.shape)
    return BoxRows(SOURCE, frames.videos, frames.video_F, frames.time_ms_F, frame_N, box_N4, label_N, score_N, nobody_N)


def rounded(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """To so many DIGITS: the numbers that reading what was written gives."""
    return np.rint(values * 10**DIGITS) / 10**DIGITS
