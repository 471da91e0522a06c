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

from vmae2_ds.data.readers.table import read_clip
from vmae2_ds.data.tools.synthetic import CLASS_NAMES as MOTIONS
from vmae2_ds.data.tools.synthetic import SynthArguments, write_synthetic_set, write_video
from vmae2_ds.disk import whole_file
from vmae2_ds.errors import DataError

SETS = {"ut": "ut_interaction", "bg": "body_gesture"}
"""Short name -> name of the set's manifest: 6 two-person interactions of 14 sequences, 15 gestures of 7 subjects."""
CLASSES = {"bg": 15, "ut": 6, "synthetic": len(MOTIONS)}
"""Classes of each; in the union of the first two the interactions come behind the gestures."""
UNION = CLASSES["bg"] + CLASSES["ut"]
SIZE, FRAMES, GOP, FPS = 64, 32, 8, 8
"""Of the copies that are trained on: at most FRAMES frames evenly over the clip, whole, resized to SIZE x SIZE. A crop of the
short side would cut off one of two people, and the shape of the original tells the class: width and height alone name 42 %
of the interactions right, the number of frames 39 %."""
SYNTHETIC, SYNTHETIC_LABELLED, SYNTHETIC_VAL = 6000, 480, 240
"""Synthetic videos: all for pre-training, the first ones for what needs labels, and others for testing."""
REAL_SHARE = 0.1
"""Of the samples of the mixture; the others are synthetic."""


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
    """By real set, labels from 0: all clips, for leaving one source out."""
    train_of: dict[str, Path]
    """By set, the synthetic one too: what is learned from with labels."""
    val_of: dict[str, Path]
    mixture: Path
    """Both sets' training clips and the synthetic videos."""
    synthetic: Path


def write_lists(data: Path, out: Path, workers: int, shrink: int = 1) -> Lists:
    """Copy the clips of `data`/actions at SIZE x SIZE into `out`, make the synthetic videos, and list them all.

    What is there already is left. `shrink` divides the numbers of synthetic videos.

    Raises DataError where the sets are not there.
    """
    rows = list(_read(data / "actions"))
    (out / "clips").mkdir(parents=True, exist_ok=True)
    copies = [out.resolve() / "clips" / f"{number:04d}.mp4" for number in range(len(rows))]
    jobs = [(row.path, str(copy)) for row, copy in zip(rows, copies, strict=True) if not copy.is_file()]
    with get_context("spawn").Pool(workers) as pool:
        pool.starmap(_make_square, jobs)
    synthetic = out.resolve() / "synthetic"
    if not (synthetic / "labels.txt").is_file():  # written last
        train, val = (max(12, videos // shrink) for videos in (SYNTHETIC, SYNTHETIC_VAL))
        write_synthetic_set(SynthArguments(folder=synthetic, train_videos=train, val_videos=val, size=SIZE, frames=16))
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
        {of: some(f"{of}_train", "train", of) for of in SETS}
        | {"synthetic": _write_head(synthetic / "train.csv", SYNTHETIC_LABELLED)},
        {of: some(f"{of}_val", "val", of) for of in SETS} | {"synthetic": synthetic / "val.csv"},
        _write_mixture(out / "mixture.toml"),
        synthetic / "train.csv",
    )


def _write_mixture(path: Path) -> Path:
    sources = {"real": ("train.csv", REAL_SHARE), "synthetic": ("synthetic/train.csv", 1 - REAL_SHARE)}
    tables = [
        f'[[source]]\nname = "{name}"\nmanifest = "{of}"\nshare = {share}\n' for name, (of, share) in sources.items()
    ]
    path.write_text("\n".join(['name = "desk"\n', *tables]), encoding="utf-8")
    return path


def _write_head(listed: Path, videos: int) -> Path:
    lines = listed.read_text(encoding="utf-8").splitlines()
    head = listed.with_name("labelled.csv")
    head.write_text("\n".join([*lines[: videos + 1], ""]), encoding="utf-8")
    return head


def _evenly(length: int, fps: float) -> np.ndarray:
    return np.linspace(0, length - 1, min(length, FRAMES)).round().astype(np.int64)


def _make_square(source: str, target: str) -> None:
    torch.set_num_threads(1)
    frames_THWC = torch.from_numpy(read_clip(source, _evenly, "pyav"))
    resized_TCHW = pictures.resize(frames_THWC.permute(0, 3, 1, 2), [SIZE, SIZE], antialias=True)
    with whole_file(Path(target)) as part:
        write_video(part, resized_TCHW.permute(0, 2, 3, 1).numpy(), FPS, GOP, kind="mp4")


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
