"""`vmae2 data merge-kinetics`: K710 from the lists of Kinetics-400, 600 and 700, with every count beside the published one."""

from __future__ import annotations

import csv
import difflib
import json
import logging
import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from tyro.conf import Positional

from vmae2_ds.config.strict import StrictModel
from vmae2_ds.console.progress import Ticker
from vmae2_ds.data.sources.class_names import ClassNames, read_class_names
from vmae2_ds.data.sources.list_formats import ListedVideo, ListForm, csv_line, read_list, writing_list
from vmae2_ds.data.tools.work_folder import check_work_folder, work_folder
from vmae2_ds.disk import write_whole
from vmae2_ds.errors import ConfigError, DataError

log = logging.getLogger(__name__)

PUBLISHED_COUNTS = {
    "k400 train": 240_436,
    "k400 val": 19_796,
    "k600 train": 366_006,
    "k600 val": 27_935,
    "classes": 710,
    "classes renamed": 15,
    "train": 658_340,
    "val": 66_803,
}
"""Sizes of the published lists and of K710 (docs/PAPER.md#data)."""

TEMPLATE = "{split}/{id}_{start:06}_{end:06}.mp4"
"""File name that the usual download scripts give a video of an official CSV."""

JOB = "merge-kinetics"

_NAMED_BY_ID = re.compile(r"([A-Za-z0-9_-]{11})(?:_\d+_\d+)?")  # abc-_345678 or abc-_345678_000010_000020
_OFFICIAL = {"train": ("train",), "val": ("val", "validate", "validation")}  # what official CSVs call a split
_REPEATED, _IN_VAL = "listed before", "in a validation list"


class KineticsVideo(NamedTuple):
    """One line of a list."""

    path: str
    youtube_id: str | None
    class_name: str


class MergedKinetics(NamedTuple):
    """What was written, and how it came about."""

    folder: Path
    counts: dict[str, int]
    """Counts by name: those of PUBLISHED_COUNTS and more, in the order of the work."""

    def __str__(self) -> str:
        lines = [f"{'':<44}{'here':>10}{'published':>12}"]
        for name, count in self.counts.items():
            published = f"{PUBLISHED_COUNTS[name]:,}" if name in PUBLISHED_COUNTS else "-"
            lines.append(f"{name:<44}{count:>10,}{published:>12}")
        return "\n".join([*lines, f"wrote train.csv, val.csv, labels.txt, head maps and report.json to {self.folder}"])


class MergeKineticsArguments(StrictModel):
    """Merge Kinetics sets into one without repeated videos, and none of its training videos in any validation list.

    A list is a CSV of ours, a published list (path label), or an official CSV (label,youtube_id,time_start,...). A
    video is known by its YouTube id. Where two sets list it, the newer set's file and class are taken.
    """

    out: Positional[Path]
    """Folder to write: train.csv, val.csv, labels.txt, report.json, and head_710to400.json and its like, whose entry
    number k is the merged class of the set's class k."""
    k400: tuple[Path, Path, Path] | None = None
    """Three files of Kinetics-400: training list, validation list, and class names (one per line, in the order of the
    labels)."""
    k600: tuple[Path, Path, Path] | None = None
    """The same three files of Kinetics-600."""
    k700: tuple[Path, Path, Path] | None = None
    """The same three files of Kinetics-700."""
    classes: Path | None = None
    """Text file with the names of the merged classes, one per line, in the order of the labels; default: all names that
    occur, sorted."""
    class_merges: Path | None = None
    """JSON object that maps a class name in a set to its name after merging. A name that stands in --classes is kept."""
    root: Path | None = None
    """Folder that all paths in the lists start from, to be named as --data.root later: paths stay as they are. Default:
    paths start from each list's own folder and are made absolute."""
    template: str = TEMPLATE
    """Path of a video in an official CSV, made of {split}, {label}, {id}, {start} and {end} (seconds)."""


def merge_kinetics(asked: MergeKineticsArguments) -> MergedKinetics:
    """Write the merged lists, class names, head maps and counts.

    Raises:
        ConfigError: no set given, a class that the merged classes lack, an unreadable file of names, a bad template.
        DataError: a list that cannot be taken literally; names file and line.
    """
    newest_first = {
        name: files for name, files in (("k700", asked.k700), ("k600", asked.k600), ("k400", asked.k400)) if files
    }
    if not newest_first:
        raise ConfigError("no set named: give --k400, --k600, --k700, each with TRAIN_LIST VAL_LIST CLASS_NAMES")
    inputs = [path for files in newest_first.values() for path in files] + [
        path for path in (asked.classes, asked.class_merges) if path
    ]
    check_work_folder(asked.out, JOB, inputs, option="FOLDER")
    names_of = {name: list(read_class_names(files[2], "").names) for name, files in newest_first.items()}
    renames = {} if asked.class_merges is None else _read_merges(asked.class_merges)
    if asked.classes is None:
        merged_names = sorted({renames.get(name, name) for names in names_of.values() for name in names})
    else:
        merged_names = list(read_class_names(asked.classes, "--classes").names)
        # the published files rename "throwing ball" and keep it too; their head maps go by the class list
        renames = {old: new for old, new in renames.items() if old not in merged_names}
    class_of = {
        name: _classes_of(files[2], names_of[name], merged_names, renames) for name, files in newest_first.items()
    }

    kept, counts = _merge(newest_first, names_of, class_of, asked.root, asked.template)
    counts |= {
        "classes renamed": len({name for names in names_of.values() for name in names} & renames.keys()),
        "classes": len(merged_names),
        "train": len(kept["train"]),
        "val": len(kept["val"]),
    }
    settings = {name: [str(path.absolute()) for path in files] for name, files in newest_first.items()}
    with work_folder(asked.out, JOB, settings, option="FOLDER"):
        for split, videos in kept.items():
            _write_list(asked.out / f"{split}.csv", videos.values())
        write_whole(asked.out / "labels.txt", "".join(f"{name}\n" for name in merged_names))
        for name, names in names_of.items():
            head = [class_of[name][class_name] for class_name in names]
            write_whole(asked.out / f"head_{len(merged_names)}to{name[1:]}.json", json.dumps(head, indent=1) + "\n")
        report = {name: {"here": count, "published": PUBLISHED_COUNTS.get(name)} for name, count in counts.items()}
        write_whole(asked.out / "report.json", json.dumps(report, indent=1) + "\n")
    return MergedKinetics(asked.out, counts)


def _merge(
    newest_first: Mapping[str, tuple[Path, Path, Path]],
    names_of: Mapping[str, list[str]],
    class_of: Mapping[str, Mapping[str, int]],
    root: Path | None,
    template: str,
) -> tuple[dict[str, dict[str, tuple[str, int]]], dict[str, int]]:
    """(split -> id -> (path, merged class)), and counts of what was read and dropped."""
    counts = Counter({f"{name} {split}": 0 for name in newest_first for split in ("train", "val")})
    without_id = lines = 0
    kept: dict[str, dict[str, tuple[str, int]]] = {"val": {}, "train": {}}
    of_two_classes: set[str] = set()
    ticker = Ticker(log, "lines of all lists merged", None, draws=False)
    for split, place in (("val", 1), ("train", 0)):
        for name, files in newest_first.items():
            for video in _read_split(files[place], names_of[name], split, template):
                label = class_of[name][video.class_name]
                counts[f"{name} {split}"] += 1
                lines += 1
                ticker.tell(lines)
                without_id += video.youtube_id is None
                key = video.youtube_id or Path(video.path).stem
                known = [videos[key] for videos in kept.values() if key in videos]
                if any(label != other for _, other in known):
                    of_two_classes.add(key)
                if known:
                    reason = _IN_VAL if split == "train" and key in kept["val"] else _REPEATED
                    counts[f"{name} {split} dropped: {reason}"] += 1
                    continue
                path = video.path
                if root is None and "://" not in path:
                    path = os.path.abspath(files[place].parent / path)
                kept[split][key] = path, label
    counts["names without a YouTube id"] = without_id
    counts["videos of two classes (the newer set's taken)"] = len(of_two_classes)
    return kept, dict(counts)


def youtube_id_of(path: str) -> str | None:
    """The id in a file's name: 11 letters, digits, - and _, alone or before `_START_END`; None where there is none."""
    match = _NAMED_BY_ID.fullmatch(Path(path).stem)
    return match[1] if match else None


# --- class names -----------------------------------------------------------------------------------------------------


def _read_merges(path: Path) -> dict[str, str]:
    try:
        merges = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"{path}: cannot read --class-merges ({error}); give a JSON object, old name: new name"
        ) from None
    if not isinstance(merges, dict) or not all(isinstance(new, str) for new in merges.values()):
        raise ConfigError(f"{path}: not a JSON object of names; give old name: new name")
    return merges


def _classes_of(path: Path, names: list[str], merged: list[str], renames: Mapping[str, str]) -> dict[str, int]:
    """Class name in a set -> number of the merged class."""
    numbers = {name: number for number, name in enumerate(merged)}
    for name in names:
        if (new := renames.get(name, name)) not in numbers:
            near = difflib.get_close_matches(new, merged, n=1)
            hint = f"did it become {near[0]!r}? " if near else ""
            raise ConfigError(
                f"{path}: class {new!r} is not among the {len(merged)} merged ones; {hint}say in --class-merges what it "
                "became, or add it to --classes"
            )
    return {name: numbers[renames.get(name, name)] for name in names}


# --- lists -----------------------------------------------------------------------------------------------------------


def _read_split(path: Path, names: list[str], split: str, template: str) -> Iterator[KineticsVideo]:
    videos = _read_official(path, split, template) if _is_official(path) else _read_labelled(path, names)
    known, have_id, read = set(names), False, 0
    for video in videos:
        if video.class_name not in known:
            near = difflib.get_close_matches(video.class_name, names, n=1)
            hint = f"; did the list mean {near[0]!r}?" if near else ""
            raise DataError(
                f"{path}: {video.path} is of class {video.class_name!r}, which the set's class names lack{hint}"
            )
        have_id, read = have_id or video.youtube_id is not None, read + 1
        yield video
    if not read:
        raise DataError(f"{path}: lists no videos of the split {split!r}; is it the right file?")
    if not have_id:
        raise DataError(
            f"{path}: no file is named by a YouTube id (11 characters, then perhaps _START_END), so that repeated videos "
            "cannot be told; keep the names that the videos were downloaded with"
        )


def _is_official(path: Path) -> bool:
    try:
        with path.open(encoding="utf-8-sig", errors="surrogateescape") as file:
            return "youtube_id" in file.readline().split(",")
    except OSError as error:
        raise DataError(f"{path}: cannot read the list: {error.strerror}") from None


def _read_official(path: Path, split: str, template: str) -> Iterator[KineticsVideo]:
    with path.open(newline="", encoding="utf-8-sig") as file:
        rows = csv.DictReader(file)
        if missing := {"label", "time_start", "time_end"} - set(rows.fieldnames or ()):
            raise DataError(
                f"{path}:1: an official Kinetics CSV without {', '.join(sorted(missing))}; test lists have no label"
            )
        for row in rows:
            if row.get("split", split) not in _OFFICIAL[split]:
                continue
            try:
                start, end = (round(float(row[name])) for name in ("time_start", "time_end"))
            except (TypeError, ValueError):
                raise DataError(f"{path}:{rows.line_num}: time_start and time_end are not numbers in {row}") from None
            fields = {"split": split, "label": row["label"], "id": row["youtube_id"], "start": start, "end": end}
            try:
                name = template.format(**fields)
            except (KeyError, IndexError, ValueError) as error:
                raise ConfigError(f"--template {template!r}: {error!r}; the usual one is {TEMPLATE!r}") from None
            yield KineticsVideo(name, row["youtube_id"], row["label"].strip())


def _read_labelled(path: Path, names: list[str]) -> Iterator[KineticsVideo]:
    form = ListForm(names=ClassNames(Path("the set's class names"), tuple(names)))
    for number, video in enumerate(read_list(path, form), 1):
        if video != ListedVideo(video.path, video.label, video.source):
            raise DataError(f"{path}: video {number}, {video.path}, is a part of a file; merge before you pack or cut")
        if video.label is None or video.label >= len(names):
            raise DataError(
                f"{path}: video {number}, {video.path}, has label {video.label}; the set has classes 0 to {len(names) - 1}"
            )
        yield KineticsVideo(video.path, youtube_id_of(video.path), names[video.label])


def _write_list(path: Path, videos: Iterable[tuple[str, int]]) -> None:
    with writing_list(path) as file:
        file.writelines(csv_line(row) for row in (("path", "label"), *videos))
