"""True segments of long videos, from the files that the field shares: ActivityNet's, THUMOS14's, OpenTAD's, ActionFormer's.

What cannot be meant is refused with the file, the video and the numbers: a segment that ends before it starts, a time that is
no number, a label that is not in the list of classes. What published files do hold (segments without length, copies, ends
behind the video's) is read as it stands: each scorer counts it in its own way, and training leaves it out or
cuts it, and says how much (`videos_to_train_on`).
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

from vmae2_ds.console.progress import counted
from vmae2_ds.disk import write_whole
from vmae2_ds.downstream.json_files import read_json
from vmae2_ds.errors import DataError

AMBIGUOUS = "Ambiguous"
"""THUMOS14's label of segments that even people could not name; never a class to learn, and the last label of a file."""
SAME_S = 1e-3
"""Two segments of one label whose ends lie so close, in seconds, are one (ActionFormer, OpenTAD)."""
MAX_LEFT_OUT = 0.1
"""Share of segments without length or outside of their video past which a file's times cannot be what they should."""


class Segment(NamedTuple):
    """One action."""

    start_s: float
    end_s: float
    label: int
    """Index into `Annotations.labels`."""


@dataclass(frozen=True)
class AnnotatedVideo:
    """A video and what is done in it, in the order of the file."""

    name: str
    subset: str
    """"" where the file says none."""
    duration_s: float | None
    fps: float | None
    """Frames a second as the file says, else frames over duration (OpenTAD)."""
    frames: int | None
    segments: tuple[Segment, ...]


@dataclass(frozen=True)
class Annotations:
    """A file of annotations."""

    file: Path
    labels: tuple[str, ...]
    """Names of the classes: in the order of the list of classes, else of the file's `label_id`, else of the alphabet; Ambiguous
    comes last, whatever its number."""
    label_ids: tuple[int | None, ...]
    """The number that files with numbers for labels mean each label by: `label_id`, else its line in the list of classes."""
    videos: dict[str, AnnotatedVideo]

    @property
    def subsets(self) -> tuple[str, ...]:
        """The subsets that there are."""
        return tuple(sorted({video.subset for video in self.videos.values()}))

    @property
    def class_names(self) -> tuple[str, ...]:
        """The labels that can be learnt: all but Ambiguous."""
        return tuple(label for label in self.labels if label != AMBIGUOUS)

    @cached_property
    def label_of(self) -> dict[str, int]:
        """Index of a label by its name, and by its number as text where no label is named so."""
        numbers = {str(number): i for i, number in enumerate(self.label_ids) if number is not None}
        return numbers | {label: i for i, label in enumerate(self.labels)}

    def of_subset(self, names: str | Sequence[str] | None) -> list[AnnotatedVideo]:
        """The videos of some subsets, in the order of the file; None: of the only one that there is.

        Raises:
            DataError: There is no such subset, or no video in it, or None of several.
        """
        have = ", ".join(repr(subset) for subset in self.subsets) or "none at all"
        if names is None:
            if len(self.subsets) != 1:
                raise DataError(f"{self.file} has the subsets {have}; name the one that is meant")
            names = self.subsets
        wanted = [names] if isinstance(names, str) else list(names)
        for name in wanted or [""]:
            if name not in self.subsets:
                raise DataError(f"{self.file} has no video of subset {name!r}; it has {have}")
        return [video for video in self.videos.values() if video.subset in wanted]


def read_classes(file: Path) -> tuple[str, ...]:
    """Names of classes, a line each (OpenTAD's category_idx.txt); raises DataError where one comes twice or there is none."""
    try:
        names = [line.strip() for line in file.read_text().splitlines()]
    except (OSError, ValueError) as error:
        raise DataError(f"{file}: {getattr(error, 'strerror', None) or 'no text'}") from None
    names = [name for name in names if name]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice or not names:
        raise DataError(f"{file}: " + (f"the class {twice[0]!r} comes twice" if twice else "no class is in it"))
    return tuple(names)


def read_annotations(file: Path, classes: Path | None = None) -> Annotations:
    """True segments of a JSON file {"database": {video: {"subset", "duration", "annotations": [{"segment", "label"}]}}}.

    Numbers may be text; a length may be in `duration` or `duration_second`, frames in `frame`, `frames` or `duration_frame`; a
    segment in seconds, or with `fps` in `segment(frames)` (ActionFormer).

    Args:
        file: The file.
        classes: A list of the classes, in their order; a label that it does not have is refused, but for Ambiguous.

    Raises:
        DataError: One line with the file, the video, the annotation and the numbers.
    """
    found = read_json(file)
    database = found.get("database") if isinstance(found, dict) else None
    if not isinstance(database, dict):
        raise DataError(f'{file} has no "database" of videos: these are no annotations in ActivityNet\'s form')
    if not database:
        raise DataError(f'{file}: its "database" has no video')
    entries = {str(name): _entry(file, str(name), entry) for name, entry in database.items()}
    ids = _label_ids(file, entries)
    known = read_classes(classes) if classes is not None else None
    labels, label_ids = _ordered(ids, known)
    index = {label: i for i, label in enumerate(labels)}
    return Annotations(file, labels, label_ids, {name: _video(file, name, entries[name], index) for name in entries})


def write_annotations(annotations: Annotations, file: Path) -> None:
    """Write the form that ActivityNet's, OpenTAD's and ActionFormer's scorers read: seconds, `label` and `label_id`."""
    ids = numbers_of(annotations)
    database = {
        video.name: {
            "subset": video.subset,
            **{
                key: value
                for key, value in (("duration", video.duration_s), ("fps", video.fps), ("frame", video.frames))
                if value is not None
            },
            "annotations": [
                {"segment": [start, end], "label": annotations.labels[label], "label_id": ids[label]}
                for start, end, label in video.segments
            ],
        }
        for video in annotations.videos.values()
    }
    write_whole(file, json.dumps({"version": "VERSION 1.3", "taxonomy": [], "database": database}) + "\n")


def numbers_of(annotations: Annotations) -> list[int]:
    """A number for each label: its own; where one label or more have none, its place."""
    own = [number for number in annotations.label_ids if number is not None]
    return own if len(own) == len(annotations.labels) else list(range(len(annotations.labels)))


def videos_to_train_on(
    annotations: Annotations, subsets: str | Sequence[str] | None
) -> tuple[list[AnnotatedVideo], list[str]]:
    """The videos of subsets with the segments that can be learnt, and a line for each kind that is left out or cut.

    Ambiguous segments, copies, segments without length and segments outside of their video are left out; a segment that ends
    behind its video, or starts before it, is cut to it. Labels are then indices into `Annotations.class_names`.

    Raises:
        DataError: No such subset; nothing is left; or more than MAX_LEFT_OUT of the segments have no length or lie outside of
            their video, as those of other videos or in another unit do.
    """
    told: dict[str, list[str]] = {}
    videos = [_trainable(video, annotations.labels, told) for video in annotations.of_subset(subsets)]
    num = sum(len(video.segments) for video in videos)
    wrong = [place for kind in (_NO_LENGTH, _OUTSIDE) for place in told.get(kind, [])]
    if len(wrong) > MAX_LEFT_OUT * (num + len(wrong)):
        raise DataError(
            f"{annotations.file}: {len(wrong)} of {num + len(wrong)} segments have no length or lie outside of their video, "
            f"the first of {wrong[0]}; are the times in seconds, and the durations those of these videos?"
        )
    if not num:
        raise DataError(f"{annotations.file}: no segment of the subset can be learnt from")
    return videos, [
        f"{annotations.file}: {counted(len(at), 'segment')} {kind}, the first of {at[0]}" for kind, at in told.items()
    ]


def check_same_set(annotations: Annotations, names: Iterable[str], of: str) -> None:
    """Raises DataError where no video that is named, in what `of` says, is annotated: the annotations are of another set."""
    names = list(names)
    if names and not any(name in annotations.videos for name in names):
        raise DataError(
            f"{annotations.file} and {of} have no video in common ({next(iter(annotations.videos))!r}, ... and {names[0]!r}, "
            "...): the annotations are of another set"
        )


_NO_LENGTH = "without length left out"
_OUTSIDE = "outside of the video left out"
_CUT = "cut to the length of the video"


def _trainable(video: AnnotatedVideo, labels: tuple[str, ...], told: dict[str, list[str]]) -> AnnotatedVideo:
    kept: list[Segment] = []
    length = math.inf if video.duration_s is None else video.duration_s
    for (start, end, label), is_copy in zip(video.segments, copies_among(video.segments), strict=True):
        if labels[label] == AMBIGUOUS:
            what = "of label Ambiguous left out"
        elif end <= start:
            what = _NO_LENGTH
        elif start >= length or end <= 0:
            what = _OUTSIDE
        elif is_copy:
            what = "left out as a copy of another"
        else:
            what = _CUT if end > length or start < 0 else ""
            kept.append(Segment(max(start, 0.0), min(end, length), label))
        if what:
            told.setdefault(what, []).append(f"{video.name} at {start:g} to {end:g} s")
    return replace(video, segments=tuple(kept))


def copies_among(segments: Iterable[Segment]) -> list[bool]:
    """Whether each segment is one of those before it that is none itself: same label, both ends within SAME_S."""
    kept: dict[int, list[Segment]] = {}
    found = []
    for one in segments:
        before = kept.setdefault(one.label, [])
        is_copy = any(abs(one.start_s - s) <= SAME_S and abs(one.end_s - e) <= SAME_S for s, e, _ in before)
        if not is_copy:
            before.append(one)
        found.append(is_copy)
    return found


def _entry(file: Path, name: str, entry: Any) -> dict[str, Any]:
    rows = entry.get("annotations", []) if isinstance(entry, dict) else None
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise DataError(f'{file}: video {name!r} has no list of "annotations"')
    for number, row in enumerate(rows, 1):
        if "label" not in row and "label_id" in row:
            row["label"] = row["label_id"]
        if not isinstance(row.get("label"), str | int):
            raise DataError(f"{file}: video {name!r}, annotation {number} has no label")
    return dict(entry)


def _label_ids(file: Path, entries: dict[str, dict[str, Any]]) -> dict[str, int | None]:
    """The labels of a file with their `label_id`."""
    ids: dict[str, int | None] = {}
    for name, entry in entries.items():
        for row in entry.get("annotations", []):
            label, said = str(row["label"]), row.get("label_id")
            number = None if said is None else int(_number(file, f"video {name!r}, label_id of {label!r}", said))
            if ids.setdefault(label, number) is None:
                ids[label] = number
            elif number is not None and number != ids[label]:
                raise DataError(
                    f"{file}: video {name!r} has label_id {number} for {label!r}, which is {ids[label]} before"
                )
    owner: dict[int, str] = {}
    for label, number in ids.items():
        if number is not None and owner.setdefault(number, label) != label:
            raise DataError(f"{file}: label_id {number} stands for {owner[number]!r} and for {label!r}")
    return ids


def _ordered(
    ids: dict[str, int | None], known: tuple[str, ...] | None
) -> tuple[tuple[str, ...], tuple[int | None, ...]]:
    """Labels in their order, and their numbers."""
    if known is not None:
        labels = [*known, *(label for label in ids if label == AMBIGUOUS)]
    elif all(number is not None for number in ids.values()):
        labels = sorted(ids, key=lambda label: ids[label] or 0)
    else:
        labels = sorted(ids)
    labels = sorted(dict.fromkeys(labels), key=AMBIGUOUS.__eq__)  # a stable sort: Ambiguous goes to the end
    own = [ids.get(label) for label in labels]
    if known is not None and all(number in (None, place) for place, number in enumerate(own)):
        return tuple(labels), tuple(range(len(labels)))
    return tuple(labels), tuple(own)


def _video(file: Path, name: str, entry: dict[str, Any], index: dict[str, int]) -> AnnotatedVideo:
    def told(*keys: str) -> float | None:
        for key in keys:
            if entry.get(key) is not None:
                value = _number(file, f"video {name!r}, {key}", entry[key])
                if value <= 0:
                    raise DataError(f"{file}: video {name!r} has {key} {value:g}; it must be above 0")
                return value
        return None

    duration, fps, frames = told("duration", "duration_second"), told("fps"), told("frame", "frames", "duration_frame")
    if fps is None and frames and duration:
        fps = frames / duration
    if duration is None and frames and fps:
        duration = frames / fps
    segments = []
    for number, row in enumerate(entry.get("annotations", []), 1):
        at = f"{file}: video {name!r}, annotation {number}"
        start, end = _ends(file, f"video {name!r}, annotation {number}", row, fps)
        if end < start:
            raise DataError(f"{at} ends at {end:g} s, before it starts at {start:g} s")
        label = str(row["label"])
        if label not in index:
            raise DataError(f"{at} has the label {label!r}, which the list of classes does not have")
        segments.append(Segment(start, end, index[label]))
    subset = str(entry.get("subset") or "")
    return AnnotatedVideo(name, subset, duration, fps, None if frames is None else round(frames), tuple(segments))


def _ends(file: Path, at: str, row: dict[str, Any], fps: float | None) -> tuple[float, float]:
    """Start and end in seconds."""
    key, per_s = "segment", 1.0
    if key not in row and fps:
        key, per_s = "segment(frames)", fps
    ends = row.get(key)
    if not isinstance(ends, list) or len(ends) != 2:
        raise DataError(f"{file}: {at} has no segment of a start and an end")
    return _number(file, at, ends[0]) / per_s, _number(file, at, ends[1]) / per_s


def _number(file: Path, at: str, value: Any) -> float:
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):  # a whole number may have more digits than a float holds
        number = math.nan
    if not math.isfinite(number):
        raise DataError(f"{file}: {at}: {repr(value)[:100]} is no number")
    return number
