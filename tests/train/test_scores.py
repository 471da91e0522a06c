"""Accuracies against scikit-like definitions written out by hand."""

from __future__ import annotations

import numpy as np
import pytest

from vmae2_ds.train.scores import Scores, confusion, summary, top_k


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
