"""What a table of class scores says: accuracies, per class and as a confusion matrix, and the files that keep them."""

from __future__ import annotations

import csv
import io
import json
import os
import re
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypedDict

import numpy as np

from vmae2_ds.disk import check_out_folder, flush_to_disk, refuse_inputs, whole_file, write_whole
from vmae2_ds.errors import ConfigError

# N videos, C classes.

RESULT = "result.json"
FILES = ("scores.npz", "per_class.csv", "unreadable.txt", "confusion.png", RESULT)
"""What an evaluation leaves in its folder."""
_HALF = re.compile(r"\.part\d+")
"""The folder in which they are written first."""


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


class Figures(TypedDict):
    """What a table of scores says of the whole list."""

    videos: int
    unreadable: int
    top1: float
    top5: float
    mean_class: float
    """Mean accuracy of the classes that occur."""


class Evaluation(Figures):
    """An evaluation's figures, and where they lie; `result.json` also says of which weights, list and settings they are."""

    clips: int
    crops: int
    folder: str


def summary(scores: Scores) -> Figures:
    """Figures of the whole list; nan where no video was scored."""
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


def folder_for(named: Path | None, default: Path, about: dict[str, Any], inputs: Sequence[Path]) -> Path:
    """The folder of an evaluation, tried by a write: none that holds another one, which no evaluation replaces.

    Args:
        named: What the user asked for; it may hold an earlier evaluation of the same kind.
        default: Taken without that, with a number behind where it holds another.
        about: What tells this evaluation from others.
        inputs: Files that are read.

    Raises ConfigError where it holds another or somebody else's files, or cannot be written.
    """
    folder = default if named is None else named
    if named is not None:
        check_out_folder(named, inputs=inputs)
    number = 1
    while folder.is_dir() and (other := _other_than(about, folder)) is not None:
        if named is not None:
            raise ConfigError(f"--out {named} holds {other}; name another folder, or remove it")
        number += 1
        folder = default.with_name(f"{default.name}.{number}")
    check_out_folder(folder)
    for name in FILES:
        refuse_inputs(folder / name, "--out", inputs)
    return folder


def _other_than(about: dict[str, Any], folder: Path) -> str | None:
    """What is in the folder besides files of an earlier evaluation of the same kind; None where it can be written into."""
    there = [name for name in FILES if (folder / name).exists()]
    if RESULT in there:
        return other_result(about, folder / RESULT)
    if there:
        return f"a {there[0]} that is none of this evaluation's"
    return None if may_hold_evaluation(folder) else "files of something else"


def may_hold_evaluation(folder: Path) -> bool:
    """Whether an evaluation may be written there: one was before, or there is nothing but what a killed one left half."""
    return (folder / RESULT).is_file() or all(_HALF.fullmatch(path.name) for path in folder.iterdir())


def other_result(about: dict[str, Any], path: Path) -> str | None:
    """What a JSON file of results is, in words, where it does not hold all of `about`; None where it does."""
    try:
        before = json.loads(path.read_text())
        different = [key for key, value in json.loads(json.dumps(about)).items() if before[key] != value]
    except (OSError, ValueError, KeyError, TypeError):
        return f"a {path.name} of something else"
    return f"other results (of other {', '.join(different)})" if different else None


def write_scores(
    scores: Scores, names: list[str], paths: list[str], folder: Path, about: dict[str, Any]
) -> dict[str, Any]:
    """Write FILES, all of them or none; returns the result.

    Args:
        names: of the classes.
        paths: of the rows scored.
    """
    from vmae2_ds.draw.charts import draw_confusion

    matrix, result = confusion(scores), {**about, **summary(scores)}
    part = folder / f".part{os.getpid()}"
    part.mkdir(parents=True, exist_ok=True)
    try:
        with whole_file(part / "scores.npz") as half, half.open("wb") as file:
            np.savez_compressed(
                file, path=np.array(paths), row=scores.row_N, label=scores.label_N, score=scores.score_NC
            )
        write_whole(part / "per_class.csv", _per_class(matrix, names))
        write_whole(part / "unreadable.txt", "".join(f"{failure}\n" for failure in scores.failures))
        draw_confusion(matrix, names, part / "confusion.png")
        write_whole(part / RESULT, json.dumps(result, indent=1) + "\n")
        for name in FILES:
            (part / name).replace(folder / name)
        flush_to_disk(folder)
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return result


def _per_class(matrix: np.ndarray, names: list[str]) -> str:
    """The table, a line a class."""
    text = io.StringIO(newline="")
    writer = csv.writer(text)
    writer.writerow(("class", "name", "videos", "correct", "accuracy", "most often taken for"))
    for label, name in enumerate(names):
        videos, correct = int(matrix[label].sum()), int(matrix[label, label])
        others = np.where(np.arange(len(names)) == label, -1, matrix[label])
        wrong = names[int(others.argmax())] if others.max() > 0 else ""
        writer.writerow((label, name, videos, correct, f"{correct / videos:.4f}" if videos else "", wrong))
    return text.getvalue()
