"""Small sets of tubes: the golden one, random ones, and answers by plain loops that share nothing with the code under test."""

from __future__ import annotations

import pickle
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tests.golden_data import golden_json
from vmae2_ds.downstream.ava.linking import FoundBoxes
from vmae2_ds.downstream.ava.tubes import Floats, Tubes, make_tubes

GOLDEN = "ava/tubes.json"
Tube = tuple[int, int, float, int, Floats]
"""Video, class, score, first frame, boxes."""


def tubes_of(tubes: Sequence[Tube], videos: Sequence[str]) -> Tubes:
    """Tubes as columns."""
    columns = list(zip(*tubes, strict=True)) if tubes else [(), (), (), (), ()]
    video, klass, score, first, boxes = columns
    frames = [np.arange(begin, begin + len(box)) for begin, box in zip(first, boxes, strict=True)]
    return make_tubes(
        tuple(videos),
        np.array(video, np.int64),
        np.array(klass, np.int64),
        np.array(score, np.float64),
        np.repeat(np.arange(len(tubes)), [len(box) for box in boxes]),
        np.concatenate([np.zeros(0, np.int64), *frames]),
        np.concatenate([np.zeros((0, 4)), *boxes]),
        "these tubes",
    )


def as_list(tubes: Tubes) -> list[Tube]:
    """Columns as tubes."""
    pieces = [tubes.box_F4[a:b] for a, b in zip(tubes.start_T1[:-1], tubes.start_T1[1:], strict=True)]
    columns = (tubes.video_T, tubes.class_T, tubes.score_T, tubes.first_T)
    return list(zip(*(column.tolist() for column in columns), pieces, strict=True))


def found_boxes(rows: Sequence[Sequence[float]] | Floats, videos: Sequence[str] = ("v",)) -> FoundBoxes:
    """Boxes of rows of video, frame, class, score, x1, y1, x2, y2."""
    table = np.array(rows, np.float64).reshape(-1, 8)
    video, frame, klass = table[:, :3].astype(np.int64).T
    return FoundBoxes(tuple(videos), video, frame, klass, table[:, 3], table[:, 4:])


def golden_set() -> tuple[dict[str, Any], Floats, dict[str, Any]]:
    """The annotations as the sets' pickles have them, found boxes as MultiSports's, and what published code says of them."""
    data = golden_json(GOLDEN)
    size = tuple(data["resolution"])
    annotations = {
        "labels": data["labels"],
        "nframes": data["nframes"],
        "resolution": dict.fromkeys(data["nframes"], size),
        "train_videos": [data["train_videos"]],
        "test_videos": [data["test_videos"]],
        "gttubes": {video: _arrays(tubes) for video, tubes in data["gttubes"].items()},
    }
    boxes = np.array(data["boxes"])
    each = [np.c_[boxes[:, :2], np.full(len(boxes), k), boxes[:, 6 + k], boxes[:, 2:6]] for k in range(4)]
    return annotations, np.concatenate(each), data["expected"]


def _arrays(tubes: Mapping[str, Any]) -> dict[int, list[Floats]]:
    def array(first: int, *boxes: float) -> Floats:
        table = np.array(boxes).reshape(-1, 4)
        return np.c_[first + np.arange(len(table)), table]

    return {int(klass): [array(*tube) for tube in some] for klass, some in tubes.items()}


def write_pickle(content: Any, file: Path) -> Path:
    """Pickled as the published files are, by Python 2's newest protocol."""
    file.write_bytes(pickle.dumps(content, protocol=2))
    return file


def random_tubes(
    rng: np.random.Generator, number: int, num_videos: int, num_classes: int, *, is_truth: bool
) -> list[Tube]:
    """Tubes whose boxes move around; some scores and overlaps are equal."""
    tubes = []
    for _ in range(number):
        length = int(rng.integers(2, 12))
        corner = rng.integers(0, 6, (1, 2)) + rng.integers(-1, 2, (1, 2)) * np.arange(length)[:, None] // 3
        size = rng.integers(3, 8, (1, 2))
        score = 1.0 if is_truth else float(rng.integers(1, 12)) / 12
        box = np.concatenate((corner, corner + size), axis=1).astype(np.float64)
        tubes.append(
            (int(rng.integers(num_videos)), int(rng.integers(num_classes)), score, int(rng.integers(1, 9)), box)
        )
    return tubes


def iou_by_hand(one: Sequence[float], other: Sequence[float]) -> float:
    """Intersection over union of two boxes."""
    width = max(0.0, min(one[2], other[2]) - max(one[0], other[0]))
    height = max(0.0, min(one[3], other[3]) - max(one[1], other[1]))
    areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (one, other)]
    return width * height / (sum(areas) - width * height)


def overlap_by_hand(one: Tube, other: Tube, last_counts: bool) -> float:
    """Frame by frame."""
    frames = [{tube[3] + place: box for place, box in enumerate(tube[4].tolist())} for tube in (one, other)]
    common, every = sorted(set(frames[0]) & set(frames[1])), sorted(set(frames[0]) | set(frames[1]))
    if not common:
        return 0.0
    space = sum(iou_by_hand(frames[0][frame], frames[1][frame]) for frame in common) / len(common)
    lengths = [some[-1] - some[0] + int(last_counts) for some in (common, every)]
    return space * lengths[0] / lengths[1] if lengths[1] else 0.0


def ap_by_hand(hits: Sequence[bool], num_truths: int, average: str) -> float:
    """Average precision from its definition, point by point."""
    points = [(1.0, 0.0)]
    for number in range(1, len(hits) + 1):
        points.append((sum(hits[:number]) / number, sum(hits[:number]) / num_truths))
    total = 0.0
    for place in range(1, len(points)):
        rise = points[place][1] - points[place - 1][1]
        if average == "trapezoids":
            total += rise * (points[place][0] + points[place - 1][0]) / 2
        else:
            total += rise * max(precision for precision, _ in points[place:])
    return total


def video_ap_by_hand(
    truth: Sequence[Tube],
    found: Sequence[Tube],
    threshold: float,
    *,
    last_counts: bool,
    tries_next: bool,
    average: str,
    suppress: float | None,
) -> float:
    """Average precision of one class; `found` in the order in which they choose."""
    kept: list[Tube] = []
    for tube in found:
        rivals = [other for other in kept if other[0] == tube[0]]
        if suppress is None or all(overlap_by_hand(tube, other, last_counts) <= suppress for other in rivals):
            kept.append(tube)
    taken: set[int] = set()
    hits = []
    for tube in kept:
        near = [
            (overlap_by_hand(tube, true, last_counts), -place) for place, true in enumerate(truth) if true[0] == tube[0]
        ]
        near = sorted((pair for pair in near if pair[0] >= threshold), reverse=True)
        if not tries_next:
            near = near[:1]
        free = [-place for _, place in near if -place not in taken]
        taken.update(free[:1])
        hits.append(bool(free))
    return ap_by_hand(hits, len(truth), average)
