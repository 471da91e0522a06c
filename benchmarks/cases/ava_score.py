"""Scoring people's actions in boxes: ours at up to 26 million rows, and the published way, frame by frame and class by class.

A made-up set in AVA's files, 60 scores for every box, as many boxes on a key frame as detectors find. Each variant reads label
map, truth and detections, and takes the frame mAP at an IoU of 0.5 by the rule of today's official script, the best 50 rows of
a key frame. The published way, written anew here in numpy and Python's loops, has to find the same one. CPU seconds of one
process with one thread; the peak of memory is that of one more call.
"""

from __future__ import annotations

import csv
import heapq
import math
from collections import defaultdict
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import numpy as np

from benchmarks.case import Bench, Case, Group, timed
from benchmarks.cases.tad_score import average_precision
from benchmarks.devices import Step
from benchmarks.harness import Variant
from benchmarks.record import Row
from benchmarks.steps import SEED
from vmae2_ds.downstream.ava.label_map import read_label_map
from vmae2_ds.downstream.ava.rows import read_detections, read_truth
from vmae2_ds.downstream.ava.score import score_frames

KEY_FRAMES = {397_080: 3970, 1_000_020: 2222, 4_000_020: 8889, 16_000_020: 35_556, 26_000_040: 57_778}
"""Rows -> key frames. First what the official script was timed on (docs/PAPER.md#scorers-of-spatial-detection), then 7.5 boxes
a key frame, up to about the key frames of AVA's validation set."""
PUBLISHED_ROWS = 397_080
CLASSES = 60
TRUE_BOXES, ACTIONS = 2, 3
"""People of a key frame at most, and actions of a person."""
CAP = 50
IOU = 0.5
OFFICIAL_S = 12.8
"""CPU seconds that docs/PAPER.md gives for the official script on its 397,080 rows; no run of this case measures them."""
SAME_MAP = 1e-9
BASE = "frame by frame, as published"


class Files(NamedTuple):
    """A set on disk."""

    label_map: Path
    truth: Path
    found: Path


def groups(bench: Bench) -> Iterator[Group]:
    """By number of rows; the published way at the smallest only, where it takes seconds and not a quarter of an hour."""
    for rows in list(KEY_FRAMES)[: 1 if bench.options.quick else None]:
        yield Group(f"{rows} rows", partial(measure, bench, rows))


def measure(bench: Bench, rows: int) -> list[Row]:
    """`values`: rows a second, microseconds a row, how many times the official script's published ones that is, the mAP."""
    scorers = {"ours": our_map, BASE: plain_map}
    if rows != PUBLISHED_ROWS:
        del scorers[BASE]
    with TemporaryDirectory() as folder:
        files = make_files(Path(folder), rows)
        found: dict[str, float] = {}
        config = {"rows": rows, "key_frames": KEY_FRAMES[rows], "classes": CLASSES, "iou": IOU, "cap": CAP}
        variants = [
            Variant(name, partial(scoring_step, name, scorer, files, found), config) for name, scorer in scorers.items()
        ]
        measured = timed(variants, bench, BASE if BASE in scorers else None)
    for row in measured:
        if not row["error"]:
            us = row["time_s"]["median"] / rows * 1e6
            row["values"] = {"us_a_row": us, "rows_per_s": 1e6 / us, "frame_map": found[row["variant"]]}
            row["kind"] = "measured"
            if row["variant"] == "ours":
                row["values"]["official_published_ratio"] = OFFICIAL_S / PUBLISHED_ROWS * 1e6 / us
    return measured


def scoring_step(name: str, scorer: Any, files: Files, found: dict[str, float]) -> Step:
    """All three files read and scored. Raises ValueError where the mAP is not the one that the published way has found."""

    def step() -> None:
        found[name] = scorer(files)
        if not math.isclose(found[name], found.get(BASE, found[name]), abs_tol=SAME_MAP):
            raise ValueError(f"frame mAP {found[name]!r}, not {found[BASE]!r} as by the published way")

    if name == BASE:
        step()
    return step


def our_map(files: Files) -> float:
    """By this package."""
    found = score_frames(read_truth(files.truth), read_detections(files.found), read_label_map(files.label_map))
    return found.frame_map


Rows = list[tuple[float, int, tuple[float, ...]]]
"""(score, action, box) of a key frame."""


def plain_map(files: Files) -> float:
    """As the official script goes about it: a heap of the best rows of each key frame, then every class of every key frame by
    itself, from arrays that are made for it; last each class over all key frames."""
    names = {line.split()[1] for line in files.label_map.read_text().splitlines() if line.strip().startswith("id:")}
    truth, found = _read(files.truth, names, None), _read(files.found, names, CAP)
    scores: dict[int, list[np.ndarray]] = defaultdict(list)
    hits: dict[int, list[np.ndarray]] = defaultdict(list)
    num_true: dict[int, int] = defaultdict(int)
    for key, true_rows in truth.items():
        true_action, true_box = np.array([row[1] for row in true_rows]), np.array([row[2] for row in true_rows])
        rows = sorted(found.get(key, []), reverse=True)
        action, score = np.array([row[1] for row in rows]), np.array([row[0] for row in rows])
        box = np.array([row[2] for row in rows]).reshape(-1, 4)
        for label in range(1, CLASSES + 1):
            of_truth, of_found = true_box[true_action == label], action == label
            num_true[label] += len(of_truth)
            if of_found.any():
                scores[label].append(score[of_found])
                hits[label].append(_hits(box[of_found], of_truth))
    every = []
    for label in (label for label, number in num_true.items() if number):
        order = np.argsort(-np.concatenate(scores[label] or [np.zeros(0)]), kind="stable")
        every.append(
            average_precision(np.concatenate(hits[label] or [np.zeros(0, bool)])[order].tolist(), num_true[label])
        )
    return sum(every) / len(every)


def _read(file: Path, actions: set[str], cap: int | None) -> dict[str, Rows]:
    """Rows of each key frame whose action is known, all or the best `cap`."""
    found: dict[str, Rows] = defaultdict(list)
    with file.open(newline="") as lines:
        for video, second, x1, y1, x2, y2, action, *last in csv.reader(lines):
            if action not in actions:
                continue
            rows = found[f"{video},{int(second):04d}"]
            row = (float(last[0]) if cap else 1.0, int(action), (float(x1), float(y1), float(x2), float(y2)))
            if cap is None or len(rows) < cap:
                heapq.heappush(rows, row)
            elif row > rows[0]:
                heapq.heapreplace(rows, row)
    return found


def _hits(found_N4: np.ndarray, true_M4: np.ndarray) -> np.ndarray:
    """Which detections, the best first, are the first of a true box that they overlap most and enough: (N,) bool."""
    hits = np.zeros(len(found_N4), bool)
    if not len(true_M4):
        return hits
    low = np.maximum(found_N4[:, None, :2], true_M4[None, :, :2])
    high = np.minimum(found_N4[:, None, 2:], true_M4[None, :, 2:])
    both_NM = np.prod(np.clip(high - low, 0, None), axis=2)
    size_N, size_M = (np.prod(boxes[:, 2:] - boxes[:, :2], axis=1) for boxes in (found_N4, true_M4))
    overlap_NM = both_NM / (size_N[:, None] + size_M[None] - both_NM)
    taken = np.zeros(len(true_M4), bool)
    for number, overlap_M in enumerate(overlap_NM):
        best = int(np.argmax(overlap_M))
        if overlap_M[best] >= IOU and not taken[best]:
            hits[number] = taken[best] = True
    return hits


def make_files(folder: Path, rows: int) -> Files:
    """Label map, truth and detections drawn from the seed.

    Each key frame has a person or two, which are found, and other boxes. Of the scores, which are an even grid in 0 to 1, true
    actions of found people have the higher ones; on the grid of the smallest set no two are equal with 6 digits.
    """
    rng = np.random.default_rng(SEED)
    frames, boxes = KEY_FRAMES[rows], rows // CLASSES
    files = Files(folder / "map.pbtxt", folder / "truth.csv", folder / "found.csv")
    files.label_map.write_text(
        "".join(f'item {{\n  name: "action {number}"\n  id: {number}\n}}\n' for number in range(1, CLASSES + 1))
    )
    names = [f"video_{number // 897:03d},{902 + number % 897:04d}" for number in range(frames)]
    true_F = rng.integers(1, TRUE_BOXES + 1, frames)
    first_F = np.cumsum(true_F) - true_F
    true_N4 = _boxes(rng, int(true_F.sum()))
    actions_NA = rng.integers(1, CLASSES + 1, (len(true_N4), ACTIONS))
    of_frame_K = np.sort(np.concatenate([np.arange(frames), rng.integers(frames, size=boxes - frames)]))
    near_K = first_F[of_frame_K] + rng.integers(0, 2**30, boxes) % true_F[of_frame_K]
    is_found_K = rng.random(boxes) < 0.7
    moved_K4 = np.clip(true_N4[near_K] + rng.normal(0, 0.02, (boxes, 4)), 0, 1)
    box_K4 = np.where(is_found_K[:, None], moved_K4, _boxes(rng, boxes))
    order_KC = rng.random((boxes, CLASSES), dtype=np.float32)
    for number in range(ACTIONS):
        order_KC[np.arange(boxes), actions_NA[near_K, number] - 1] += 0.5 * is_found_K
    score_KC = np.empty(order_KC.size)
    score_KC[np.argsort(order_KC, axis=None, kind="stable")] = (np.arange(order_KC.size) + 0.5) / order_KC.size
    del order_KC
    with files.truth.open("w") as out:
        for frame, first, number in zip(names, first_F.tolist(), true_F.tolist(), strict=True):
            for person in range(first, first + number):
                corners = ",".join(f"{value:.6f}" for value in true_N4[person].tolist())
                out.writelines(f"{frame},{corners},{action},{person}\n" for action in sorted(set(actions_NA[person])))
    with files.found.open("w") as out:
        for frame, box, scores in zip(of_frame_K.tolist(), box_K4, score_KC.reshape(boxes, CLASSES), strict=True):
            row = f"{names[frame]}," + ",".join(f"{value:.6f}" for value in box.tolist())
            out.write("".join(f"{row},{label},%.6f\n" for label in range(1, CLASSES + 1)) % tuple(scores.tolist()))
    return files


def _boxes(rng: np.random.Generator, count: int) -> np.ndarray:
    """(count, 4) corners of boxes of people's size, in parts of the picture."""
    low = rng.uniform(0, 0.6, (count, 2))
    return np.concatenate([low, low + rng.uniform(0.1, 0.4, (count, 2))], axis=1)


CASE = Case(
    groups, "reading and scoring boxes and actions of up to 26 million rows, against the published way by frames"
)
