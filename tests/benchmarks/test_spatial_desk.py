"""The desk experiment of spatial detection: what its person detector is shown, and what chance is."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks.desk.person_detector import TILE, drawn
from benchmarks.desk.spatial import by_chance, markdown
from vmae2_ds.downstream.ava.rows import make_rows

BOXES = np.array([[0.05, 0.1, 0.3, 0.9], [0.6, 0.2, 0.95, 0.7]])


@pytest.mark.parametrize("width", [TILE, 2 * TILE])
def test_the_detector_is_shown_people_where_its_boxes_are(width: int) -> None:
    picture = np.zeros((120, width, 3), np.uint8)
    for number, (left, top, right, bottom) in enumerate(BOXES * [width, 120, width, 120], start=1):
        picture[round(top) : round(bottom), round(left) : round(right)] = 60 * number
    counts = set()
    for seed in range(20):
        seen, box_G4 = drawn((picture, BOXES), np.random.default_rng(seed))
        counts.add(len(box_G4))
        for left, top, right, bottom in np.round(box_G4).astype(int):
            inside = seen[:, top:bottom, left:right]
            assert float(inside.min()) == float(inside.max()) > 0
        covered = sum(int(np.prod(np.round(box[2:]) - np.round(box[:2]))) for box in box_G4)
        assert int((seen[0] > 0).sum()) == covered, "all of each person, and nobody without a box"
    assert counts == ({2} if width == TILE else {1, 2})


def test_chance_keeps_what_is_known_of_people_and_nothing_of_actions() -> None:
    keys, boxes = [("a", 1000)] * 6, np.repeat(BOXES, 3, axis=0)
    score_N = np.array([0.5, 0.2, 0.1, 0.01, 0.02, 0.03])
    found = make_rows(keys, boxes, np.tile([1, 2, 3], 2), score_N, frames=[("a", 1000)], source="made")
    drawn_NS = np.stack([by_chance(found, 3, seed).score_N for seed in range(2000)], axis=1)
    assert drawn_NS.mean(axis=1) == pytest.approx([0.4] * 3 + [0.03] * 3, rel=0.05)
    assert np.array_equal(by_chance(found, 3, 1).box_N4, found.box_N4)


def test_the_table_gives_mean_and_range_over_seeds() -> None:
    rows = [
        {"model": "chance", "seed": seed, "boxes": kind, "frame_map": value}
        for kind, values in (("true", (0.1, 0.2)), ("detected", (0.05,)))
        for seed, value in enumerate(values)
    ]
    assert markdown(rows).splitlines()[2] == "| chance | 15.0 (10.0 to 20.0; 2) | 5.0 (5.0 to 5.0; 1) |"
