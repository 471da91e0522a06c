"""What detections are beside the truth: hits and kinds of mistakes agree with a short computation, one by one."""

from __future__ import annotations

import math
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from vmae2_ds.downstream.ava.compared import KINDS_OF_DETECTIONS, Compared, alone, compare
from vmae2_ds.downstream.ava.label_map import LabelMap
from vmae2_ds.downstream.ava.rows import BoxRows, make_rows
from vmae2_ds.downstream.ava.score import score_frames
from vmae2_ds.downstream.detection_map import balanced_score

ACTIONS = LabelMap(Path("actions"), (3, 5, 8), ("sit", "eat", "walk"))
Box = tuple[float, float, float, float]


def overlap(one: Box, other: Box) -> float:
    """Intersection over union, by hand."""
    width = min(one[2], other[2]) - max(one[0], other[0])
    height = min(one[3], other[3]) - max(one[1], other[1])
    shared = max(width, 0) * max(height, 0)
    areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (one, other)]
    return shared / (sum(areas) - shared)


def made_up(seed: int = 0) -> tuple[BoxRows, BoxRows]:
    """Truth and detections of 12 key frames of 3 videos: people who do several things, boxes jittered, some of nobody."""
    rng = np.random.default_rng(seed)
    truth: list[tuple[tuple[str, int], Box, int]] = []
    found: list[tuple[tuple[str, int], Box, int, float]] = []
    for key in [(video, 1000 * second) for video in "abc" for second in range(4)]:
        for _ in range(rng.integers(0, 4)):
            corner = rng.uniform(0, 0.6, 2)
            box = (*corner, *(corner + rng.uniform(0.2, 0.4, 2)))
            for action in rng.choice([3, 5, 8, 99], rng.integers(1, 4), replace=False):
                truth.append((key, box, int(action)))
            for _ in range(rng.integers(0, 3)):
                moved = tuple(np.array(box) + rng.normal(0, 0.03, 4))
                found += [(key, moved, action, float(rng.random())) for action in (3, 5, 8)]
        if rng.random() < 0.4:
            found.append((key, (0.9, 0.9, 0.99, 0.99), 5, float(rng.random())))
    keys, boxes, actions = zip(*truth, strict=True)
    found_keys, found_boxes, found_actions, scores = zip(*found, strict=True)
    return make_rows(keys, boxes, actions), make_rows(found_keys, found_boxes, found_actions, scores)


def keys_of(rows: BoxRows) -> list[tuple[str, int]]:
    return [rows.keys[frame] for frame in rows.frame_N.tolist()]


def compared_of(truth: BoxRows, found: BoxRows, threshold: float | None = 0.0) -> Compared:
    return compare(truth, found, score_frames(truth, found, ACTIONS), threshold)


@pytest.mark.parametrize("seed", range(3))
def test_kinds_agree_with_a_computation_by_hand(seed: int) -> None:
    truth, found = made_up(seed)
    compared = compared_of(truth, found)
    true_rows = [
        (truth.keys[truth.frame_N[row]], tuple(truth.box_N4[row]), int(truth.label_N[row])) for row in range(len(truth))
    ]
    named = set(truth.keys)
    taken: set[int] = set()
    kinds: dict[int, str] = {}
    for row in np.argsort(-found.score_N, kind="stable").tolist():
        key, box, action = found.keys[found.frame_N[row]], tuple(found.box_N4[row]), int(found.label_N[row])
        if key not in named:
            kinds[row] = "prediction"
            continue
        here = [
            (overlap(box, other), place, label)
            for place, (at, other, label) in enumerate(true_rows)
            if at == key and label != 99
        ]
        same = max(((share, -place) for share, place, label in here if label == action), default=(0.0, 0))
        other = max((share for share, _, label in here if label != action), default=0.0)
        if same[0] >= 0.5 and -same[1] not in taken:
            taken.add(-same[1])
            kinds[row] = "correct"
        elif same[0] >= 0.5:
            kinds[row] = "double"
        elif other >= 0.5:
            kinds[row] = "wrong label"
        else:
            kinds[row] = "localisation" if same[0] >= 0.1 else "background"
    assert [compared.kind_of(row) for row in range(len(found))] == [kinds[row] for row in range(len(found))]
    assert set(kinds.values()) >= {"correct", "double", "wrong label", "background"}
    for row, (_, _, action) in enumerate(true_rows):
        expected = "truth" if action == 99 else "truth found" if row in taken else "truth missed"
        assert compared.kind_of_truth(row) == expected
    assert compared.is_missed.sum() == sum(action != 99 for _, _, action in true_rows) - len(taken)
    assert compared.is_false.sum() == sum(kind not in ("correct", "prediction") for kind in kinds.values())


def test_a_threshold_leaves_out_detections_and_the_truth_that_they_find() -> None:
    truth, found = made_up()
    every, some = compared_of(truth, found), compared_of(truth, found, 0.6)
    assert len(some.detections) == (found.score_N >= 0.6).sum()
    kinds = [every.kind_of(row) for row in np.flatnonzero(found.score_N >= 0.6)]
    assert [some.kind_of(row) for row in range(len(some.detections))] == kinds
    hits = {every.found_at_G[row] for row in np.flatnonzero(every.asked_G & ~every.is_missed)}
    assert some.is_missed.sum() == every.is_missed.sum() + sum(score < 0.6 for score in hits)


def test_the_default_threshold_has_the_largest_f1() -> None:
    truth, found = made_up(1)
    compared = compared_of(truth, found, None)
    every = compared_of(truth, found)
    judged = [
        (float(found.score_N[row]), every.kind_of(row))
        for row in range(len(found))
        if every.kind_of(row) != "prediction"
    ]

    def f1(least: float) -> float:
        kinds = Counter(kind for score, kind in judged if score >= least)
        return 2 * kinds["correct"] / (sum(kinds.values()) + int(every.asked_G.sum()))

    assert compared.threshold == max((score for score, _ in judged), key=lambda score: (f1(score), score))


def test_the_balanced_score_of_ties_of_nothing_right_and_of_nothing() -> None:
    assert (
        balanced_score(np.array([0.2, 0.9, 0.9, 0.5]), np.array([True, True, False, False]), 2) == 0.2
    )  # F1 2/3, not 1/2
    assert balanced_score(np.array([0.3, 0.9, 0.4, 0.5]), np.array([True, True, False, False]), 2) == 0.9  # 2/3 at both
    assert balanced_score(np.array([0.9, 0.2]), np.array([False, False]), 3) == 0.2
    assert balanced_score(np.zeros(0), np.zeros(0, bool), 3) == -math.inf


def test_rows_of_key_frames_that_are_not_scored_are_not_judged() -> None:
    box = (0.1, 0.1, 0.5, 0.5)
    truth = make_rows([("a", 1000), ("a", 2000)], [box, box], [3, 3])
    found = make_rows([("a", 1000), ("a", 2000), ("b", 0)], [box] * 3, [3, 3, 3], [0.9, 0.8, 0.7])
    scores = score_frames(truth, found, ACTIONS, excluded=frozenset({("a", 2000)}), protocol="legacy")
    compared = compare(truth, found, scores, 0.0)
    assert [compared.kind_of_truth(row) for row in (0, 1)] == ["truth found", "truth"]
    assert [compared.kind_of(row) for row in range(3)] == ["correct", "prediction", "background"]
    assert compared.times_of == {"a": [1000, 2000], "b": [0]}


def test_rows_that_nothing_is_compared_with_are_as_they_are() -> None:
    truth, found = made_up()
    one = alone(truth, truth=True, threshold=None)
    assert one.has_truth
    assert not one.has_detections
    assert not one.is_compared
    assert {one.kind_of_truth(row) for row in range(len(truth))} == {"truth"}
    assert not one.is_missed.any()
    other = alone(found, truth=False, threshold=0.5)
    assert len(other.detections) == (found.score_N >= 0.5).sum()
    assert {other.kind_of(row) for row in range(len(other.detections))} == {"prediction"}
    key = found.keys[0]
    scores = [float(other.detections.score_N[row]) for row in other.detections_of(key)]
    assert scores == sorted(scores, reverse=True)
    assert other.truth_of(key) == []


def test_every_kind_can_be_drawn() -> None:
    from vmae2_ds.draw.looks import KINDS

    assert set(KINDS_OF_DETECTIONS) | {"truth", "truth found", "truth missed"} <= set(KINDS)
