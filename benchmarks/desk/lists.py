"""Lists of the desk experiment: two labelled sets of real clips, split by subject and by sequence, made small and square."""

from __future__ import annotations

import csv
from collections.abc import Iterable
from multiprocessing import get_context
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torchvision.transforms.v2 import functional as pictures

from vmae2_ds.data.decode import read_clip
from vmae2_ds.data.synthetic import write_video
from vmae2_ds.errors import DataError

SETS = {"ut": "ut_interaction", "bg": "body_gesture"}
"""Short name -> name of the set's manifest: 6 two-person interactions of 14 sequences, 15 gestures of 7 subjects."""
CLASSES = {"bg": 15, "ut": 6}
"""Classes of each; in the union the interactions come behind the gestures."""
UNION = sum(CLASSES.values())
SIZE, GOP, FPS = 72, 8, 15
"""Of the copies that are trained on: every whole frame resized to SIZE x SIZE. A crop of the short side would cut off one of
two people, and the shape of the original tells the class: width and height alone name 42 % of the interactions right."""


class Row(NamedTuple):
    """A labelled clip; `source` is its subject or sequence, which no other split shares."""

    path: str
    label: int
    source: str
    split: str
    of: str


class Lists(NamedTuple):
    """Files made by `write_lists`: path, label, source."""

    train: Path
    """Both sets' training clips; labels of the union."""
    val: Path
    all_of: dict[str, Path]
    """By set, labels from 0: all clips, for leaving one source out."""
    train_of: dict[str, Path]
    val_of: dict[str, Path]


def write_lists(data: Path, out: Path, workers: int) -> Lists:
    """Copy the clips of `data`/actions at SIZE x SIZE into `out`, where they are not there yet, and list them.

    Raises DataError where the sets are not there.
    """
    rows = list(_read(data / "actions"))
    (out / "clips").mkdir(parents=True, exist_ok=True)
    copies = [out.resolve() / "clips" / f"{number:04d}.mp4" for number in range(len(rows))]
    jobs = [(row.path, str(copy)) for row, copy in zip(rows, copies, strict=True) if not copy.is_file()]
    with get_context("spawn").Pool(workers) as pool:
        pool.starmap(_make_square, jobs)
    rows = [row._replace(path=str(copy)) for row, copy in zip(rows, copies, strict=True)]

    def some(name: str, split: str | None = None, of: str | None = None) -> Path:
        kept = (row for row in rows if split in (None, row.split) and of in (None, row.of))
        first = CLASSES["bg"] if of is None else 0  # the union's interactions
        return _write(
            out / f"{name}.csv", ((row.path, row.label + (first if row.of == "ut" else 0), row.source) for row in kept)
        )

    return Lists(
        some("train", "train"),
        some("val", "val"),
        {of: some(of, None, of) for of in SETS},
        {of: some(f"{of}_train", "train", of) for of in SETS},
        {of: some(f"{of}_val", "val", of) for of in SETS},
    )


def _make_square(source: str, target: str) -> None:
    torch.set_num_threads(1)
    frames_THWC = torch.from_numpy(read_clip(source, lambda length, fps: np.arange(length), "pyav"))
    resized_TCHW = pictures.resize(frames_THWC.permute(0, 3, 1, 2), [SIZE, SIZE], antialias=True)
    torn = Path(target).with_suffix(".part.mp4")
    write_video(torn, resized_TCHW.permute(0, 2, 3, 1).numpy(), FPS, GOP)
    torn.rename(target)


def _read(actions: Path) -> Iterable[Row]:
    for of, name in SETS.items():
        manifest = actions / f"{name}_manifest.csv"
        if not manifest.is_file():
            raise DataError(f"{manifest} is not there; give the folder that holds actions/ with --data")
        with manifest.open(newline="", encoding="utf-8") as file:
            for row in csv.DictReader(file):
                path = str((actions / row["path"]).resolve())
                yield Row(path, int(row["label_id"]), f"{of}_{row['subject']}", row["split"], of)


def _write(path: Path, rows: Iterable[tuple[str, int, str]]) -> Path:
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("path", "label", "source"), *rows])
    return path
