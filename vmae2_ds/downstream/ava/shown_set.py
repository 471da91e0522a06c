"""What `vmae2 ava show` draws: the rows of its files, compared where there are two kinds of them, and sums for each video."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import numpy as np

from vmae2_ds.console.spelling import did_you_mean
from vmae2_ds.downstream.ava.compared import Compared, alone, compare
from vmae2_ds.downstream.ava.label_map import LabelMap, read_label_map
from vmae2_ds.downstream.ava.person_boxes import read_person_boxes
from vmae2_ds.downstream.ava.protocols import FrameProtocolName
from vmae2_ds.downstream.ava.rows import BoxRows, make_rows, read_detections, read_excluded, read_truth
from vmae2_ds.downstream.ava.score import FrameScores, score_frames
from vmae2_ds.errors import DataError

PERSON = 1
"""Action id of people whose actions are not asked for."""


class VideoSum(NamedTuple):
    """What is wrong in one video."""

    name: str
    key_frames: int
    truths: int
    """Labels to be found."""
    missed: int
    predicted: int
    """Labels of a score of at least the threshold."""
    false: int
    false_score: float
    """The scores of the false ones, summed."""

    @property
    def mistakes(self) -> int:
        """Truths missed and detections false."""
        return self.missed + self.false


@dataclass(frozen=True)
class ShownPeople:
    """All that was read."""

    compared: Compared
    label_map: LabelMap | None
    scores: FrameScores | None
    """None where nothing is compared."""
    sources: tuple[str, ...]
    """The files."""

    def find(self, video: str) -> str:
        """The name that a video, or its file, has in the files; raises DataError where it has none."""
        known = self.compared.times_of
        for name in (video, Path(video).name, Path(video).stem):
            if name in known:
                return name
        stem = Path(video).stem
        said = f"{did_you_mean(stem, known)}there are {len(known)}: {', '.join(list(known)[:3])}, ..."
        raise DataError(f"{video}: no video {stem!r} in {' and '.join(self.sources)}; {said}")

    @cached_property
    def videos(self) -> list[VideoSum]:
        """The videos, those with most mistakes first; of equals the one with the higher false scores."""
        compared = self.compared
        place_of = {name: place for place, name in enumerate(compared.times_of)}

        def count(rows: BoxRows, weight_N: np.ndarray) -> np.ndarray:
            place_V = np.array([place_of[name] for name in rows.videos], np.int64)
            return np.bincount(place_V[rows.video_N], weight_N.astype(np.float64), len(place_of))

        scores_N = compared.detections.score_N * compared.is_false
        columns = (
            count(compared.truth, compared.asked_G),
            count(compared.truth, compared.is_missed),
            count(compared.detections, compared.is_judged),
            count(compared.detections, compared.is_false),
            count(compared.detections, scores_N),
        )
        sums = [
            VideoSum(name, len(compared.times_of[name]), int(truths), int(missed), int(predicted), int(false), score)
            for name, truths, missed, predicted, false, score in zip(place_of, *map(list, columns), strict=True)
        ]
        return sorted(sums, key=lambda one: (-one.mistakes, -one.false_score))


def read_set(
    gt: Path | None,
    det: Path | None,
    boxes: Path | None,
    labelmap: Path | None,
    exclude: Path | None,
    protocol: FrameProtocolName,
    iou: float,
    threshold: float | None,
) -> ShownPeople:
    """Read what is given, and compare detections, or else people's boxes, with the truth.

    Raises DataError as the readers and the scorer do.
    """
    label_map = None if labelmap is None else read_label_map(labelmap)
    excluded = frozenset() if exclude is None else read_excluded(exclude)
    truth = None if gt is None else read_truth(gt)
    found = None if det is None else read_detections(det)
    if boxes is not None:
        found = _people_of_boxes(boxes)
        if truth is not None:
            truth, label_map = _people_of_truth(truth), LabelMap(boxes, (PERSON,), ("person",))
    sources = tuple(str(path) for path in (gt, det, boxes) if path is not None)
    if truth is not None and found is not None:
        assert label_map is not None, "what compares truth with detections"
        scores = score_frames(truth, found, label_map, excluded=excluded, protocol=protocol, iou=iou)
        return ShownPeople(compare(truth, found, scores, threshold), label_map, scores, sources)
    rows = truth if truth is not None else found
    assert rows is not None, "something to draw"
    if not rows.keys:
        raise DataError(f"{sources[0]} names no key frame; there is nothing to draw")
    return ShownPeople(alone(rows, truth=truth is not None, threshold=threshold), label_map, None, sources)


def _people_of_boxes(file: Path) -> BoxRows:
    """People's boxes as detections of one action."""
    people = read_person_boxes(file)
    keys = [key for key, boxes in people.items() for _ in boxes]
    box_N5 = np.concatenate([np.zeros((0, 5)), *people.values()])
    return make_rows(
        keys, box_N5[:, :4], np.full(len(keys), PERSON), box_N5[:, 4], frames=list(people), source=str(file)
    )


def _people_of_truth(truth: BoxRows) -> BoxRows:
    """The true boxes, each once, whatever is done in them."""
    seen = np.column_stack([truth.frame_N, truth.box_N4])
    _, first = np.unique(seen, axis=0, return_index=True)
    people = truth.of(np.sort(first))
    keys = people.keys
    return make_rows(
        [keys[frame] for frame in people.frame_N.tolist()],
        people.box_N4,
        np.full(len(people), PERSON),
        person_N=people.person_N,
        frames=keys,
        source=truth.source,
    )
