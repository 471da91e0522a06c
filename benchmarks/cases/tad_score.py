"""Scoring detections in long videos: ours, a plain one in Python loops, and PyPI's ActionFormer where it is installed.

A made-up set of THUMOS14's size, files and all: each variant reads both JSON files, matches at five thresholds and takes the
mean AP, and has to find the same one. CPU seconds of one process with one thread.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import numpy as np

from benchmarks.case import Bench, Case, Group, timed
from benchmarks.devices import Step
from benchmarks.harness import Variant, paired_ratio
from benchmarks.record import Row
from benchmarks.steps import SEED
from vmae2_ds.downstream.tad.annotations import read_annotations
from vmae2_ds.downstream.tad.detections import read_detections
from vmae2_ds.downstream.tad.score import score_detections

ROWS = (42_400, 422_000)
"""Detections: 200 a video, as ActionFormer keeps of THUMOS14, and what OpenTAD#41 has."""
VIDEOS, TRUTHS, CLASSES = 212, 3358, 20
TIOUS = (0.3, 0.4, 0.5, 0.6, 0.7)
SUBSET = "test"
OPENTAD_US = 372.0
"""CPU microseconds a row that docs/PAPER.md gives for OpenTAD's scorer; no run of this case measures it."""
SAME_MAP = 1e-9
BASE, ACTIONFORMER = "plain Python", "actionformer 1.5.0"


class Files(NamedTuple):
    """A set on disk."""

    truth: Path
    found: Path


def groups(bench: Bench) -> Iterator[Group]:
    """By number of detections; the others than ours at the smaller one only, where they take seconds and not minutes."""
    for rows in ROWS[: 1 if bench.options.quick else None]:
        yield Group(f"{rows} detections", partial(measure, bench, rows))


def measure(bench: Bench, rows: int) -> list[Row]:
    """`values`: microseconds a row, how many times OpenTAD's published figure that is, and the mean AP found."""
    scorers = {"ours": our_map, BASE: plain_map, ACTIONFORMER: actionformer_map}
    if rows > ROWS[0]:
        del scorers[ACTIONFORMER]
    with TemporaryDirectory() as folder:
        files = make_files(Path(folder), rows)
        found: dict[str, float] = {}
        config = {"detections": rows, "videos": VIDEOS, "truths": TRUTHS, "classes": CLASSES, "tiou": list(TIOUS)}
        variants = [
            Variant(name, partial(scoring_step, name, scorer, files, found), config) for name, scorer in scorers.items()
        ]
        measured = timed(variants, bench, BASE, memory=False)
    for row in measured:
        if not row["error"]:
            us = row["time_s"]["median"] / rows * 1e6
            row["values"] = {"us_a_row": us, "average_map": found[row["variant"]]}
            row["kind"] = "measured"
    by_name = {row["variant"]: row for row in measured if not row["error"]}
    if ours := by_name.get("ours"):
        ours["values"]["opentad_published_ratio"] = OPENTAD_US / ours["values"]["us_a_row"]
        if peer := by_name.get(ACTIONFORMER):
            ours["values"]["over_actionformer_ratio"] = paired_ratio(peer["samples_s"], ours["samples_s"]).median
    return measured


def scoring_step(name: str, scorer: Any, files: Files, found: dict[str, float]) -> Step:
    """Both files read and scored. Raises ValueError where the mean AP is not the one that the plain scorer finds."""
    found.setdefault(BASE, plain_map(files))

    def step() -> None:
        found[name] = scorer(files)
        if not math.isclose(found[name], found[BASE], abs_tol=SAME_MAP):
            raise ValueError(f"average mAP {found[name]!r}, not {found[BASE]!r} as by plain loops")

    return step


def our_map(files: Files) -> float:
    """By this package."""
    scores = score_detections(read_annotations(files.truth), read_detections(files.found), subset=SUBSET, tious=TIOUS)
    return scores.average_map


def actionformer_map(files: Files) -> float:
    """By `pip install actionformer`: its pandas loops, in this process; it takes recalls as well, as ours does."""
    from actionformer.utils.metrics import ANETdetection  # type: ignore[import-not-found]

    scorer = ANETdetection(str(files.truth), split=SUBSET, tiou_thresholds=np.array(TIOUS), num_workers=1)
    return float(scorer.evaluate(columns_of(files), verbose=False)[1])


def columns_of(files: Files) -> dict[str, np.ndarray]:
    """Detections as the five columns that ActionFormer's scorer takes, labels as the truth numbers them."""
    number = {
        row["label"]: row["label_id"]
        for video in json.loads(files.truth.read_text())["database"].values()
        for row in video["annotations"]
    }
    rows = [
        (video, *row["segment"], number[row["label"]], row["score"])
        for video, rows in json.loads(files.found.read_text())["results"].items()
        for row in rows
    ]
    names = ("video-id", "t-start", "t-end", "label", "score")
    return {name: np.array(column) for name, column in zip(names, zip(*rows, strict=True), strict=True)}


Span = tuple[float, float]


def plain_map(files: Files) -> float:
    """ActivityNet's rule in Python's own loops: by score, each detection takes the best free truth of its video and class."""
    truth: dict[str, dict[str, list[Span]]] = {}
    for name, video in json.loads(files.truth.read_text())["database"].items():
        for row in video["annotations"] if video["subset"] == SUBSET else ():
            truth.setdefault(row["label"], {}).setdefault(name, []).append(tuple(row["segment"]))
    found: dict[str, list[tuple[float, str, Span]]] = {}
    for name, rows in json.loads(files.found.read_text())["results"].items():
        for row in rows:
            found.setdefault(row["label"], []).append((row["score"], name, tuple(row["segment"])))
    every = [_plain_precision(truth[label], found.get(label, []), tiou) for label in truth for tiou in TIOUS]
    return sum(every) / len(every)


def _plain_precision(
    truth: Mapping[str, Sequence[Span]], found: Sequence[tuple[float, str, Span]], tiou: float
) -> float:
    """Average precision of a class, VOC 2011."""
    taken: set[tuple[str, int]] = set()
    hits = []
    for _, name, span in sorted(found, key=lambda row: -row[0]):
        overlaps = sorted(((_overlap(span, other), i) for i, other in enumerate(truth.get(name, ()))), reverse=True)
        free = next((i for overlap, i in overlaps if overlap >= tiou and (name, i) not in taken), None)
        hits.append(free is not None)
        if free is not None:
            taken.add((name, free))
    return average_precision(hits, sum(map(len, truth.values())))


def average_precision(hits: Sequence[bool], num_truths: int) -> float:
    """VOC 2011's area for detections, the best first, and whether each is a hit."""
    best, area, right = 0.0, 0.0, sum(hits)
    for rank in range(len(hits), 0, -1):
        best = max(best, right / rank)
        area += best * hits[rank - 1]
        right -= hits[rank - 1]
    return area / num_truths


def _overlap(one: Span, other: Span) -> float:
    shared = max(0.0, min(one[1], other[1]) - max(one[0], other[0]))
    return shared / (one[1] - one[0] + other[1] - other[0] - shared)


def make_files(folder: Path, detections: int) -> Files:
    """Truth and detections drawn from the seed: half of the detections are a truth that was moved, half lie anywhere."""
    rng = np.random.default_rng(SEED)
    of_video = np.sort(rng.integers(VIDEOS, size=TRUTHS - VIDEOS)).tolist()
    database: dict[str, Any] = {}
    results: dict[str, Any] = {}
    for number in range(VIDEOS):
        name, duration = f"video_{number:04d}", float(rng.uniform(60, 500))
        labels = rng.choice(CLASSES, 2, replace=False)
        spans = _spans(rng, 1 + of_video.count(number), duration)
        label_of = labels[(rng.random(len(spans)) < 0.2).astype(int)]
        count = detections // VIDEOS + (number < detections % VIDEOS)
        near = rng.integers(len(spans), size=count // 2)
        moved = spans[near] + rng.normal(0, 1, (len(near), 2)) * (spans[near, 1:] - spans[near, :1]) * 0.2
        guesses = np.concatenate([np.sort(moved), _spans(rng, count - len(near), duration)])
        guessed = np.concatenate([label_of[near], rng.integers(CLASSES, size=count - len(near))])
        score = rng.random(count) * np.where(np.arange(count) < len(near), 1.0, 0.7)
        database[name] = {"subset": SUBSET, "duration": duration, "fps": 30.0, "annotations": _rows(spans, label_of)}
        results[name] = [
            {"segment": row["segment"], "label": row["label"], "score": each}
            for row, each in zip(_rows(guesses, guessed), score.tolist(), strict=True)
        ]
    files = Files(folder / "truth.json", folder / "found.json")
    files.truth.write_text(json.dumps({"version": "", "database": database}))
    files.found.write_text(json.dumps({"version": "", "results": results, "external_data": {}}))
    return files


def _spans(rng: np.random.Generator, count: int, duration: float) -> np.ndarray:
    """(count, 2) starts and ends, a few seconds long."""
    start = rng.uniform(0, duration - 10, count)
    return np.stack([start, start + rng.uniform(0.5, 10, count)], axis=1)


def _rows(spans: np.ndarray, labels: np.ndarray) -> list[dict[str, Any]]:
    return [
        {"segment": span, "label": f"class {label:02d}", "label_id": label}
        for span, label in zip(spans.tolist(), labels.tolist(), strict=True)
    ]


CASE = Case(groups, "reading and scoring detections over a set of THUMOS14's size, against plain loops and a peer")
