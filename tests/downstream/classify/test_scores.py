"""Accuracies against scikit-like definitions written out by hand."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from vmae2_ds.downstream.classify.scores import Scores, confusion, summary, top_k, write_scores


def scores_of(score_NC: list[list[float]], label_N: list[int]) -> Scores:
    return Scores(
        np.arange(len(label_N)),
        np.array(label_N),
        np.array(score_NC, np.float32).reshape(len(label_N), len(score_NC[0]) if score_NC else 3),
        [],
    )


def test_figures_of_a_small_table() -> None:
    scores = scores_of([[0.7, 0.2, 0.1], [0.1, 0.3, 0.6], [0.5, 0.3, 0.2], [0.2, 0.5, 0.3]], [0, 1, 1, 1])
    assert confusion(scores).tolist() == [[1, 0, 0], [1, 1, 1], [0, 0, 0]]
    assert (top_k(scores, 1), top_k(scores, 2), top_k(scores, 5)) == (0.5, 1.0, 1.0)
    assert summary(scores)["mean_class"] == pytest.approx((1 + 1 / 3) / 2)


def test_equal_scores_do_not_count_as_right_by_chance() -> None:
    """A model that says the same of every class is right for one of them alone, as argmax has it."""
    scores = scores_of([[0.25] * 4] * 4, [0, 1, 2, 3])
    assert top_k(scores, 1) == 0.25 == float((scores.score_NC.argmax(1) == scores.label_N).mean())


def test_top_k_equals_sorting() -> None:
    n, classes, rng = 500, 30, np.random.default_rng(0)
    scores = scores_of(rng.random((n, classes)).tolist(), rng.integers(classes, size=n).tolist())
    best = np.argsort(-scores.score_NC, axis=1, kind="stable")
    for k in (1, 5):
        assert top_k(scores, k) == (best[:, :k] == scores.label_N[:, None]).any(axis=1).mean()


def test_nothing_readable_is_no_number() -> None:
    assert np.isnan(top_k(scores_of([], []), 1))


def test_five_guesses_of_six() -> None:
    scores = scores_of([[0.3, 0.25, 0.2, 0.1, 0.08, 0.07]] * 6, [0, 1, 2, 3, 4, 5])
    assert summary(scores)["top1"] == pytest.approx(1 / 6)
    assert summary(scores)["top5"] == pytest.approx(5 / 6)


def test_what_is_written_says_what_was_found(tmp_path: Path) -> None:
    """Class 0 has four videos: one right, two taken for 2, one for 1; class 1 is right; no video is of class 2."""
    sure = np.eye(3) * 0.7 + 0.1
    scores = scores_of([sure[guess].tolist() for guess in (0, 2, 1, 2, 1)], [0, 0, 0, 0, 1])
    scores = scores._replace(row_N=np.array([0, 1, 3, 4, 6]), failures=["c.mp4: torn", "f.mp4: empty"])
    paths = ["a.mp4", "b.mp4", "d.mp4", "e.mp4", "g.mp4"]
    result = write_scores(scores, ["jump", "run", "sit"], paths, tmp_path / "eval", {"clips": 2})
    expected = {"clips": 2, "videos": 5, "unreadable": 2, "top1": 0.4, "top5": 1.0, "mean_class": (0.25 + 1) / 2}
    assert result == pytest.approx(expected)
    assert json.loads((tmp_path / "eval/result.json").read_text()) == result
    assert (tmp_path / "eval/per_class.csv").read_text().splitlines() == [
        "class,name,videos,correct,accuracy,most often taken for",
        "0,jump,4,1,0.2500,sit",
        "1,run,1,1,1.0000,",
        "2,sit,0,0,,",
    ]
    assert (tmp_path / "eval/unreadable.txt").read_text().splitlines() == ["c.mp4: torn", "f.mp4: empty"]
    with np.load(tmp_path / "eval/scores.npz") as kept:
        assert kept["path"].tolist() == paths
        assert kept["row"].tolist() == [0, 1, 3, 4, 6]
        assert kept["label"].tolist() == [0, 0, 0, 0, 1]
        assert np.array_equal(kept["score"], scores.score_NC)
