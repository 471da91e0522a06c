"""From scores of points to detections: suppression against a plain loop over pairs, thresholds, windows, seconds, classes."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from vmae2_ds.config.tad_head import DetectConfig, HeadConfig
from vmae2_ds.downstream.tad.decode import TimeGrid, candidates_of, detections_of, merged
from vmae2_ds.downstream.tad.pyramid import PyramidOutput
from vmae2_ds.downstream.tad.suppress import Candidates, suppress

HEAD = HeadConfig(width=16, heads=2, ranges=(4,))


def some_candidates(number: int, classes: int, seed: int = 0) -> Candidates:
    rng = np.random.default_rng(seed)
    start = rng.uniform(0, 100, number)
    ends = start + rng.exponential(10, number) + 0.1
    return Candidates(
        np.stack([start, ends], axis=1), rng.permutation(number) / number, rng.integers(0, classes, number)
    )


def iou(a: np.ndarray, b: np.ndarray) -> float:
    common = max(0.0, min(a[1], b[1]) - max(a[0], b[0]))
    return common / ((a[1] - a[0]) + (b[1] - b[0]) - common)


def by_pairs(found: Candidates, config: DetectConfig) -> list[tuple[float, int, tuple[float, ...]]]:
    """Class by class: take the best, lower or drop the rest one by one, until nothing is left. Score, class and segment."""
    answers = []
    groups = sorted(set(found.label_N.tolist())) if config.by_class else [None]
    for group in groups:
        rows = [i for i in range(len(found.score_N)) if group is None or found.label_N[i] == group]
        left = {i: float(found.score_N[i]) for i in rows}
        while left:
            best = max(left, key=lambda i: left[i])
            score = left.pop(best)
            if score <= config.min_score:
                continue
            segment = found.segment_N2[best]
            if config.voting and not config.by_class:
                voters = [(i, iou(segment, found.segment_N2[i])) for i in rows]
                weights = {i: found.score_N[i] * o for i, o in voters if o >= config.voting}
                segment = sum(w * found.segment_N2[i] for i, w in weights.items()) / sum(weights.values())
            answers.append((score, int(found.label_N[best]), tuple(segment)))
            for i in list(left):
                overlap = iou(found.segment_N2[best], found.segment_N2[i])
                if config.suppression == "soft":
                    left[i] *= math.exp(-(overlap**2) / config.sigma)
                elif overlap >= config.max_overlap:
                    del left[i]
    return sorted(answers, reverse=True)[: config.most]


@pytest.mark.parametrize("most", [7, 1000])
@pytest.mark.parametrize(
    "config",
    [
        DetectConfig(),
        DetectConfig(sigma=0.05, min_score=0.2),
        DetectConfig(suppression="hard", max_overlap=0.3),
        DetectConfig(by_class=False, voting=0),
        DetectConfig(by_class=False, voting=0.4),
        DetectConfig(by_class=False, voting=0.4, suppression="hard"),
    ],
    ids=lambda config: "_".join(f"{value}" for value in config.model_dump(exclude_unset=True).values()) or "default",
)
def test_suppression_is_that_of_a_loop_over_pairs(config: DetectConfig, most: int) -> None:
    config = config.model_copy(update={"most": most})
    found = some_candidates(150, classes=4)
    kept = suppress(found, config)
    expected = by_pairs(found, config)
    assert kept.label_N.tolist() == [label for _, label, _ in expected]
    np.testing.assert_allclose(kept.score_N, [score for score, *_ in expected], rtol=1e-9)
    np.testing.assert_allclose(kept.segment_N2, [segment for *_, segment in expected], rtol=1e-9)


def test_without_suppression_the_best_are_kept_as_they_are() -> None:
    found = some_candidates(50, classes=2)
    kept = suppress(found, DetectConfig(suppression="none", most=10))
    assert kept.score_N.tolist() == sorted(found.score_N.tolist(), reverse=True)[:10]


@pytest.mark.parametrize("suppression", ["soft", "hard", "none"])
@pytest.mark.parametrize("by_class", [True, False])
def test_no_candidates_give_no_detections(suppression: str, by_class: bool) -> None:
    config = DetectConfig.model_validate({"suppression": suppression, "by_class": by_class})
    nothing = some_candidates(0, classes=3)
    found = detections_of(nothing, config, TimeGrid(4, 8, 30, 10), np.array([0.5, 0.25, 0.25]))
    assert [column.shape for column in found] == [(0, 2), (0,), (0,)]


def some_output() -> PyramidOutput:
    """Two windows of four positions, two classes; the second window ends after three."""
    logits = [torch.full((2, 4, 2), -20.0), torch.full((2, 2, 2), -20.0)]
    logits[0][0, 3, 1], logits[0][0, 1, 0], logits[1][0, 1, 0], logits[0][1, 3, 0] = 2.0, 1.0, 3.0, 5.0
    offsets = (torch.full((2, 4, 2), 0.5), torch.tensor([[[0.0, 0.0], [0.25, 1.0]]]).repeat(2, 1, 1))
    is_real = torch.tensor([[True] * 4, [True, True, True, False]])
    return PyramidOutput(tuple(logits), offsets, (is_real, is_real[:, ::2]))


def as_rows(found: Candidates) -> list[tuple[float, ...]]:
    return [
        (*segment, round(score, 6), label)
        for segment, score, label in zip(*(column.tolist() for column in found), strict=True)
    ]


def sigmoid(logit: float) -> float:
    return round(1 / (1 + math.exp(-logit)), 6)


def test_candidates_are_the_best_of_each_level_that_are_real_and_long_enough() -> None:
    first, second = candidates_of(some_output(), HEAD, DetectConfig())
    assert as_rows(first) == [
        (2.5, 3.5, sigmoid(2), 1),
        (0.5, 1.5, sigmoid(1), 0),
        (1.5, 4.0, sigmoid(3), 0),
    ]
    assert as_rows(second) == []
    assert len(candidates_of(some_output(), HEAD, DetectConfig(top_k=1))[0].score_N) == 2
    assert as_rows(candidates_of(some_output(), HEAD, DetectConfig(min_length=1.0))[0]) == [(1.5, 4.0, sigmoid(3), 0)]
    assert as_rows(candidates_of(some_output(), HEAD, DetectConfig(threshold=0.8))[0]) == [
        (2.5, 3.5, sigmoid(2), 1),
        (1.5, 4.0, sigmoid(3), 0),
    ]


def test_windows_are_merged_before_suppression() -> None:
    found = Candidates(np.array([[2.0, 6.0]]), np.array([0.9]), np.array([1]))
    again = Candidates(np.array([[-2.0, 2.0]]), np.array([0.8]), np.array([1]))
    both = merged([(0, found), (4, again)])
    assert both.segment_N2.tolist() == [[2, 6], [2, 6]]
    # one on top of the other: exp(-1 / sigma)
    kept = detections_of(both, DetectConfig(), TimeGrid(4, 8, 30, 10))
    np.testing.assert_allclose(kept.score_N, [0.9, 0.8 * math.exp(-1 / 0.5)])


def test_seconds_stay_within_the_video() -> None:
    grid = TimeGrid(stride=4, offset_frames=8, fps=25, duration_s=9.5)
    assert grid.seconds(np.array([[-5.0, 0.0], [10.0, 70.0]])).tolist() == [[0, 0.32], [1.92, 9.5]]
    # 1000 frames were resized to 192 positions: the middle of them is the middle of the video
    assert TimeGrid(1000 / 192, 0, 25, 40).seconds(np.array([96.0])).tolist() == [20]


def test_classes_of_the_whole_video_come_with_the_root_of_both_scores() -> None:
    found = Candidates(np.array([[0.0, 10.0], [50.0, 60.0]]), np.array([0.81, 0.25]), np.array([0, 0]))
    config = DetectConfig(by_class=False, external_top_k=2, voting=0)
    kept = detections_of(found, config, TimeGrid(1, 0, 10, 100), np.array([0.04, 0.36, 0.0, 0.16]))
    assert [
        (*segment, round(score, 9), label)
        for *segment, score, label in zip(
            *kept.segment_N2.T.tolist(), kept.score_N.tolist(), kept.label_N.tolist(), strict=True
        )
    ] == [(0, 1, 0.54, 1), (0, 1, 0.36, 3), (5, 6, 0.3, 1), (5, 6, 0.2, 3)]
