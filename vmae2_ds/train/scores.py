"""What a table of class scores says: accuracies, per class and as a confusion matrix, and the files that keep them."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

# N videos, C classes.


class Scores(NamedTuple):
    """Class probabilities of every video that could be read, in the order of the list."""

    row_N: np.ndarray
    """Rows of the list."""
    label_N: np.ndarray
    score_NC: np.ndarray
    """float32, the mean of the views' softmax."""
    failures: list[str]
    """The videos that could not be read, and why."""


def top_k(scores: Scores, k: int) -> float:
    """Share of videos whose label is among the k highest scores; of equal scores the lower class counts as higher."""
    if not len(scores.label_N):
        return float("nan")
    own_N1 = scores.score_NC[np.arange(len(scores.label_N)), scores.label_N][:, None]
    classes = np.arange(scores.score_NC.shape[1])
    ahead_NC = (scores.score_NC > own_N1) | ((scores.score_NC == own_N1) & (classes < scores.label_N[:, None]))
    return float((ahead_NC.sum(axis=1) < k).mean())


def confusion(scores: Scores) -> np.ndarray:
    """(C, C) int64 counts: label by row, prediction by column."""
    num_classes = scores.score_NC.shape[1]
    matrix = np.zeros((num_classes, num_classes), np.int64)
    np.add.at(matrix, (scores.label_N, scores.score_NC.argmax(axis=1)), 1)
    return matrix


def summary(scores: Scores) -> dict[str, Any]:
    """Figures of the whole list. `mean_class` is the mean accuracy of the classes that occur."""
    matrix = confusion(scores)
    counts = matrix.sum(axis=1)
    with np.errstate(invalid="ignore"):
        per_class = matrix.diagonal() / counts
    return {
        "videos": len(scores.label_N),
        "unreadable": len(scores.failures),
        "top1": top_k(scores, 1),
        "top5": top_k(scores, 5),
        "mean_class": float(np.nanmean(per_class)) if counts.any() else float("nan"),
    }


def write_scores(
    scores: Scores, names: list[str], paths: list[str], folder: Path, about: dict[str, Any]
) -> dict[str, Any]:
    """Write result.json, scores.npz, per_class.csv, confusion.png and unreadable.txt; returns the result.

    Args:
        names: of the classes.
        paths: of the rows scored.
    """
    from vmae2_ds.draw import draw_confusion

    folder.mkdir(parents=True, exist_ok=True)
    matrix, result = confusion(scores), {**about, **summary(scores)}
    np.savez_compressed(
        folder / "scores.npz", path=np.array(paths), row=scores.row_N, label=scores.label_N, score=scores.score_NC
    )
    with (folder / "per_class.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(("class", "name", "videos", "correct", "accuracy", "most often taken for"))
        for label, name in enumerate(names):
            videos, correct = int(matrix[label].sum()), int(matrix[label, label])
            others = np.where(np.arange(len(names)) == label, -1, matrix[label])
            wrong = names[int(others.argmax())] if others.max() > 0 else ""
            writer.writerow((label, name, videos, correct, f"{correct / videos:.4f}" if videos else "", wrong))
    (folder / "unreadable.txt").write_text("".join(f"{failure}\n" for failure in scores.failures))
    draw_confusion(matrix, names, folder / "confusion.png")
    (folder / "result.json").write_text(json.dumps(result, indent=1) + "\n")
    return result
