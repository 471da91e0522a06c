"""What the grid learns from and is tested on: clips as arrays, drawn or cut once, so that a run costs what its steps cost.

Synthetic videos are drawn at the model's size. Listed ones are decoded once, frames evenly over the video, each frame whole
and resized to a square: a crop's shape would tell a class (docs/LOG.md). Groups of a list, its column `source` or what a
rule finds in the path, are never on both sides of a split.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from hashlib import blake2b
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torchvision.transforms.v2 import functional as pictures

from benchmarks.cases.science.drawing import draw
from benchmarks.cases.science.grid import GEOMETRY, Data
from vmae2_ds.data.entry import VideoEntry
from vmae2_ds.data.readers.common import Choose, Video
from vmae2_ds.data.readers.table import read_clip
from vmae2_ds.data.sources.list_formats import csv_line
from vmae2_ds.data.sources.manifest import manifest_digest, read_manifest
from vmae2_ds.data.tools.synthetic import CLASS_NAMES
from vmae2_ds.disk import whole_file, write_whole
from vmae2_ds.downstream.probe.folds import check_sources
from vmae2_ds.errors import ConfigError, VideoError

HELD_SHARE = 0.3
"""Of a list's labelled videos: whole groups are held back until there are so many."""
REAL_SHARE = 0.2
"""Of the samples of mixed videos; the others are synthetic."""
READER = "benchmarks.cases.science.sets:read_array"


class Sizes(NamedTuple):
    """Numbers of synthetic videos."""

    unlabelled: int = 4000
    train: int = 960
    test: int = 960


class Probed(NamedTuple):
    """Labelled clips that frozen features are tested on."""

    clip_VTHWC: np.ndarray
    label_V: np.ndarray
    source_V: np.ndarray
    is_test_V: np.ndarray | None
    """None: each source is left out once."""


class Sets(NamedTuple):
    """Everything that a grid needs."""

    lists: dict[Data, Path]
    """To pre-train on; `mixed` is a mixture file."""
    videos: dict[Data, int]
    main: Data
    classes: int
    """Of the main set, whose labels the lists have."""
    probed: dict[str, Probed]
    """By prefix of a metric: "" the main set, "real_" the listed clips."""
    digest: str
    """Tells these sets from others."""


def read_array(video: Video, choose: Choose) -> np.ndarray:
    """A reader for `--data.reader`: frames of a clip that lies as a numpy array, uint8 (T, H, W, 3)."""
    if isinstance(video, bytes):
        raise VideoError("an array is read from a file of its own")
    clip_THWC = np.load(video)
    return clip_THWC[choose(len(clip_THWC), float("nan"))]  # type: ignore[no-any-return]


def prepare(folder: Path, sizes: Sizes, listed: Path | None, group_by: str | None, *, main_listed: bool) -> Sets:
    """Draw and cut what is not there yet, below `folder`; `main_listed`: the grid is about the listed videos.

    Raises ConfigError for a list without groups or labels, or none where it is needed.
    """
    if main_listed and listed is None:
        raise ConfigError("the grid is to be about listed videos: name their list with --videos")
    drawn = _drawn(folder / "synthetic", sizes)
    lists: dict[Data, Path] = {"synthetic": drawn["unlabelled"]}
    videos: dict[Data, int] = {"synthetic": sizes.unlabelled}
    synthetic = _joined(_stacked(drawn["train"], None), _stacked(drawn["test"], None))
    probed, classes = {"": synthetic}, len(CLASS_NAMES)
    about: list[object] = [list(sizes)]
    if listed is not None:
        lists["real"], videos["real"], real = _cut(folder / "real", listed, group_by)
        lists["mixed"], videos["mixed"] = _mixture(folder), videos["real"] + sizes.unlabelled
        probed["real_"] = real._replace(is_test_V=None)
        about += [manifest_digest(listed), group_by]
        if main_listed:
            probed[""], classes = real, int(real.label_V.max()) + 1
    digest = blake2b(json.dumps([*about, main_listed], default=str).encode(), digest_size=6).hexdigest()
    return Sets(lists, videos, "real" if main_listed else "synthetic", classes, probed, digest)


def _drawn(folder: Path, sizes: Sizes) -> dict[str, Path]:
    """Lists of synthetic clips, whose labels take turns."""
    lists = {}
    for split, (name, count) in enumerate(sizes._asdict().items()):
        (folder / name).mkdir(parents=True, exist_ok=True)
        rows = []
        for number in range(count):
            label, path = number % len(CLASS_NAMES), f"{name}/{number:05d}.npy"
            if not (folder / path).is_file():
                rng = np.random.default_rng((split, number))
                _save(folder / path, draw(label, rng, GEOMETRY.height, GEOMETRY.num_frames))
            rows.append((path, label, "synthetic"))
        lists[name] = _listed(folder / f"{name}.csv", rows)
    return lists


def _cut(folder: Path, listed: Path, group_by: str | None) -> tuple[Path, int, Probed]:
    """The list of training groups' clips, labelled or not; their number; and the labelled clips of all groups."""
    entries = list(read_manifest(listed))
    groups = [_group_of(entry, group_by) for entry in entries]
    check_sources(sorted(set(groups)))
    labelled = [number for number, entry in enumerate(entries) if entry.label is not None]
    if not labelled:
        raise ConfigError(f"{listed} has no labels: nothing could be tested on it")
    held = held_groups([groups[number] for number in labelled])
    (folder / "clips").mkdir(parents=True, exist_ok=True)
    rows = []
    for entry, group in zip(entries, groups, strict=True):
        path = f"clips/{_clip_name(entry)}.npy"
        if not (folder / path).is_file():
            _save(folder / path, _square(entry))
        rows.append((path, "" if entry.label is None else entry.label, group))
    train = [row for row in rows if row[2] not in held]
    probed = _stacked(_listed(folder / "labelled.csv", [rows[number] for number in labelled]), held)
    return _listed(folder / "train.csv", train), len(train), probed


def _clip_name(entry: VideoEntry) -> str:
    """Of the part of the file that it is cut from, not of its row: another list, or a changed one, has other clips there."""
    about = (str(Path(entry.path).absolute()), entry.start, entry.frames)
    return blake2b(repr(about).encode("utf-8", "surrogateescape"), digest_size=8).hexdigest()


def held_groups(group_V: list[str]) -> set[str]:
    """Groups of labelled videos that are held back: in an order that their names alone decide, until they are HELD_SHARE.

    At least one is, and at least one is not.
    """
    order = sorted(set(group_V), key=lambda name: blake2b(name.encode(), digest_size=8).digest())
    held: set[str] = set()
    for name in order[:-1]:
        if sum(group in held for group in group_V) >= HELD_SHARE * len(group_V):
            break
        held.add(name)
    return held


def _group_of(entry: VideoEntry, rule: str | None) -> str:
    """The column `source`, or what the rule finds in the path: its first group, if it has one."""
    if rule is None:
        return entry.source
    found = re.search(rule, entry.path)
    if found is None:
        raise ConfigError(
            f"--group-by {rule!r} finds nothing in the path {entry.path!r}; it has to name every video's group"
        )
    return found[1] if found.re.groups else found[0]


def _square(entry: VideoEntry) -> np.ndarray:
    """A clip of the model's shape, uint8 (T, H, W, 3): frames evenly over the video, resized whole."""
    if entry.shard is not None:
        raise ConfigError(f"{entry.name}: videos in tar shards are not cut here; list plain files")

    def evenly(length: int, fps: float) -> np.ndarray:
        first, frames = entry.start, entry.frames
        last = (length if frames is None else min(length, first + frames)) - 1
        return np.linspace(first, last, GEOMETRY.num_frames).round().astype(np.int64)

    frames_TCHW = torch.from_numpy(read_clip(entry.path, evenly)).permute(0, 3, 1, 2)
    small_TCHW = pictures.resize(frames_TCHW, [GEOMETRY.height, GEOMETRY.width], antialias=True)
    return small_TCHW.permute(0, 2, 3, 1).contiguous().numpy()


def _mixture(folder: Path) -> Path:
    sources = {"real": ("real/train.csv", REAL_SHARE), "synthetic": ("synthetic/unlabelled.csv", 1 - REAL_SHARE)}
    tables = [
        f'[[source]]\nname = "{name}"\nmanifest = "{of}"\nshare = {share}\n' for name, (of, share) in sources.items()
    ]
    write_whole(folder / "mixed.toml", "\n".join(['name = "mixed"\n', *tables]))
    return folder / "mixed.toml"


def _save(path: Path, clip_THWC: np.ndarray) -> None:
    with whole_file(path) as part, part.open("wb") as file:
        np.save(file, clip_THWC)


def _listed(path: Path, rows: Sequence[tuple[str, int | str, str]]) -> Path:
    write_whole(path, "".join(csv_line(row) for row in [("path", "label", "source"), *rows]))
    return path


def _stacked(listed: Path, held: set[str] | None) -> Probed:
    """The clips of a list of arrays; those of `held` groups are for testing."""
    entries = list(read_manifest(listed))
    clip_VTHWC = np.stack([np.load(entry.path) for entry in entries])
    label_V, source_V = (np.array([getattr(entry, name) for entry in entries]) for name in ("label", "source"))
    return Probed(clip_VTHWC, label_V, source_V, None if held is None else np.isin(source_V, sorted(held)))


def _joined(train: Probed, test: Probed) -> Probed:
    clip_VTHWC, label_V, source_V = (np.concatenate(pair) for pair in zip(train[:3], test[:3], strict=True))
    return Probed(clip_VTHWC, label_V, source_V, np.arange(len(label_V)) >= len(train.label_V))
