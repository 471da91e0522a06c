"""Detected segments of long videos as columns, and their files: ActivityNet's form, and ActionFormer's columns."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import chain
from operator import itemgetter
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vmae2_ds.disk import write_whole
from vmae2_ds.downstream.json_files import read_json
from vmae2_ds.downstream.tad.annotations import Annotations, numbers_of
from vmae2_ds.errors import DataError

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
COLUMNS = ("video-id", "t-start", "t-end", "label", "score")
"""ActionFormer's columns, which its scorer takes as lists of one length."""


@dataclass(frozen=True)
class Detections:
    """N detections, in the order of their file."""

    videos: tuple[str, ...]
    """Names of the videos, also of those without a detection."""
    labels: tuple[str, ...]
    """Names of the labels, as the file says them: a number is its digits."""
    video_N: Ints
    """Index into `videos`."""
    label_N: Ints
    """Index into `labels`."""
    start_N: Floats
    """Seconds. The end may lie before it: scorers differ in what they make of that."""
    end_N: Floats
    score_N: Floats

    def __len__(self) -> int:
        return len(self.score_N)


def make_detections(
    videos: Iterable[str], labels: Iterable[str], rows: Iterable[tuple[int, int, float, float, float]]
) -> Detections:
    """Detections from rows (video, label, start_s, end_s, score), both indices into the names that are given."""
    table = np.array(list(rows), np.float64).reshape(-1, 5)
    video, label = table[:, 0].astype(np.int64), table[:, 1].astype(np.int64)
    return Detections(tuple(videos), tuple(labels), video, label, table[:, 2], table[:, 3], table[:, 4])


def read_detections(file: Path) -> Detections:
    """Detections of a JSON file: {"results": {video: [{"segment", "label", "score"}]}}, or what ActionFormer's scorer takes.

    That are its five columns, or {"database": {video: [{"segment", "label_id", "scores"}]}}.

    Raises:
        DataError: One line with the file, the video and the detection: no such form, a field that is missing, a time or a
            score that is no number. An end before its start is none of these.
    """
    found = read_json(file)
    if isinstance(found, dict) and isinstance(found.get("results"), dict):
        return _from_results(file, found["results"])
    if isinstance(found, dict) and all(isinstance(found.get(column), list) for column in COLUMNS):
        return _from_columns(file, found)
    database = found.get("database") if isinstance(found, dict) else None
    if isinstance(database, dict) and database and all(isinstance(rows, list) for rows in database.values()):
        return _from_results(file, database, "label_id", "scores")
    raise DataError(f'{file} has no "results" by video, and no columns {", ".join(COLUMNS)}: these are no detections')


@dataclass(frozen=True)
class VideoScores:
    """What a classifier of whole videos says of each: class-agnostic segments are named by its best classes."""

    classes: tuple[str, ...] | None
    """Names of the C classes; None where the file has none, and only its makers' order says them."""
    score_of: dict[str, Floats]
    """Name of a video -> scores (C,)."""


def read_video_scores(file: Path) -> VideoScores:
    """Scores of whole videos (external scores): {"results": {video: [C scores]}, "class": [C names]}, or the inner map alone.

    A list in a list is taken as the inner one (ActionFormer's postprocessing). ActivityNet's {"results": {video: [{"label",
    "score"}]}} is read too: a class that a video does not list has score 0 there.

    Raises:
        DataError: No such form, or a video with another number of scores than the others, or one that is no number.
    """
    found = read_json(file)
    results = found.get("results", found) if isinstance(found, dict) else None
    names = found.get("class") if isinstance(found, dict) and "results" in found else None
    if not isinstance(results, dict) or not results:
        raise DataError(f"{file} has no scores by video: these are no scores of a classifier")
    rows = [row for rows in results.values() for row in _as_list(rows)]
    if rows and all(isinstance(row, dict) for row in rows):
        results, names = _in_columns(results)
    score_of: dict[str, Floats] = {}
    width = None if names is None else len(names)
    for video, scores in results.items():
        try:
            score_C = np.array(scores, np.float64)
        except (TypeError, ValueError, OverflowError):
            score_C = np.full((1, 1), np.nan)
        score_C = score_C[0] if score_C.shape[:1] == (1,) and score_C.ndim == 2 else score_C
        if score_C.ndim != 1 or not np.isfinite(score_C).all():
            raise DataError(f"{file}: video {video!r} has no list of scores, one for each class")
        width = len(score_C) if width is None else width
        if len(score_C) != width:
            raise DataError(f"{file}: video {video!r} has {len(score_C)} scores, where {width} classes have one each")
        score_of[str(video)] = score_C
    return VideoScores(None if names is None else tuple(map(str, names)), score_of)


def _as_list(rows: Any) -> list[Any]:
    return rows if isinstance(rows, list) else [rows]


def _in_columns(results: dict[str, Any]) -> tuple[dict[str, list[Any]], list[str]]:
    """Scores by class from rows with a label and a score, and the classes, in the order of the alphabet."""
    by_video = {
        video: {str(row.get("label")): row.get("score") for row in _as_list(rows)} for video, rows in results.items()
    }
    names = sorted({label for scores in by_video.values() for label in scores})
    return {video: [scores.get(name, 0.0) for name in names] for video, scores in by_video.items()}, names


def write_detections(detections: Detections, file: Path, **about: Any) -> None:
    """Write {"results": {video: [{"segment", "label", "score"}]}}, which ActivityNet's and OpenTAD's scorers read.

    `about`: more keys beside "results", which scorers pass over.
    """
    results = _by_video(detections, detections.labels, "label", "score")
    write_whole(file, json.dumps({"version": "VERSION 1.3", "results": results, "external_data": {}, **about}) + "\n")


def write_for_actionformer(detections: Detections, annotations: Annotations, file: Path) -> None:
    """Write {"database": {video: [{"segment", "label_id", "scores"}]}}, which ActionFormer's scorer reads from a file.

    Labels have the numbers that `write_annotations` gives them; those that are not annotated have numbers behind all others.
    """
    numbers = numbers_of(annotations)
    unknown = iter(range(max(numbers, default=-1) + 1, 2**31))
    known = annotations.label_of
    ids = [numbers[known[label]] if label in known else next(unknown) for label in detections.labels]
    write_whole(file, json.dumps({"database": _by_video(detections, ids, "label_id", "scores")}) + "\n")


def _by_video(
    detections: Detections, labels: Sequence[str | int], label_key: str, score_key: str
) -> dict[str, list[dict[str, Any]]]:
    found: dict[str, list[dict[str, Any]]] = {video: [] for video in detections.videos}
    by_video = list(found.values())
    columns = (detections.video_N, detections.label_N, detections.start_N, detections.end_N, detections.score_N)
    for video, label, start, end, score in zip(*(column.tolist() for column in columns), strict=True):
        by_video[video].append({"segment": [start, end], label_key: labels[label], score_key: score})
    return found


def _from_results(
    file: Path, results: dict[str, Any], label_key: str = "label", score_key: str = "score"
) -> Detections:
    for video, rows in results.items():
        if not isinstance(rows, list):
            raise DataError(f"{file}: the detections of video {video!r} are no list")
    counts = [len(rows) for rows in results.values()]
    rows = list(chain.from_iterable(results.values()))
    try:
        label = list(map(itemgetter(label_key), rows))
        score = np.fromiter(map(itemgetter(score_key), rows), np.float64, len(rows))
        ends = np.fromiter(chain.from_iterable(map(itemgetter("segment"), rows)), np.float64)
        if any(type(row["segment"]) is not list or len(row["segment"]) != 2 for row in rows):
            raise ValueError
    except (KeyError, TypeError, ValueError, OverflowError):
        score, ends, label = _row_by_row(file, results, label_key, score_key)
    video_N = np.repeat(np.arange(len(results)), counts)
    return _checked(file, tuple(results), video_N, label, ends[0::2], ends[1::2], score)


def _row_by_row(
    file: Path, results: dict[str, Any], label_key: str, score_key: str
) -> tuple[Floats, Floats, list[Any]]:
    """Scores, ends and labels of rows that are not all alike: numbers as text are taken, the first that is none is named."""
    scores: list[float] = []
    ends: list[float] = []
    labels = []
    for video, rows in results.items():
        for number, row in enumerate(rows, 1):
            try:
                if not isinstance(row["segment"], list):
                    raise TypeError
                start, end = row["segment"]
                values = float(start), float(end), float(row[score_key])
                labels.append(row[label_key])
            except KeyError as error:
                raise DataError(f"{file}: video {video!r}, detection {number} has no {error}") from None
            except (TypeError, ValueError, OverflowError):
                raise DataError(
                    f"{file}: video {video!r}, detection {number} is not a segment of two numbers, a label and a score: "
                    f"{str(row)[:200]}"
                ) from None
            ends.extend(values[:2])
            scores.append(values[2])
    return np.array(scores, np.float64), np.array(ends, np.float64), labels


def _from_columns(file: Path, columns: dict[str, Any]) -> Detections:
    lengths = {column: len(columns[column]) for column in COLUMNS}
    if len(set(lengths.values())) != 1:
        raise DataError(f"{file}: its columns are not of one length: {lengths}")
    videos = tuple(dict.fromkeys(map(str, columns["video-id"])))
    index = {video: i for i, video in enumerate(videos)}
    video_N = np.fromiter((index[str(video)] for video in columns["video-id"]), np.int64)
    numbers = []
    for column in ("t-start", "t-end", "score"):
        try:
            numbers.append(np.array([float(value) for value in columns[column]], np.float64))
        except (TypeError, ValueError, OverflowError) as error:
            raise DataError(f"{file}: its column {column} has something that is no number: {error}") from None
    return _checked(file, videos, video_N, columns["label"], *numbers)


def _checked(
    file: Path,
    videos: tuple[str, ...],
    video_N: Ints,
    label: list[Any],
    start_N: Floats,
    end_N: Floats,
    score_N: Floats,
) -> Detections:
    for row in np.flatnonzero(~(np.isfinite(start_N) & np.isfinite(end_N) & np.isfinite(score_N)))[:1]:
        raise DataError(
            f"{file}: video {videos[video_N[row]]!r} has a detection from {start_N[row]} to {end_N[row]} s with score "
            f"{score_N[row]}; these must be finite numbers"
        )
    try:
        values = list(dict.fromkeys(label))
    except TypeError:  # a list or a dict
        values = [[]]
    for value in values:
        if isinstance(value, bool) or not isinstance(value, str | int):
            raise DataError(f"{file}: {value!r} is no label; write a name, or a whole number")
    index = {value: i for i, value in enumerate(values)}
    label_N = np.fromiter(map(index.__getitem__, label), np.int64, len(label))
    return Detections(videos, tuple(map(str, values)), video_N, label_N, start_N, end_N, score_N)
