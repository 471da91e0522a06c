"""Truths and detections of a subset as columns, after what a protocol leaves out of them, with counts of that.

G truths, N detections, R regions that are ignored; V videos: those of the subset first, then others that were detected in.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from vmae2_ds.console.progress import counted
from vmae2_ds.downstream.tad.annotations import (
    AMBIGUOUS,
    SAME_S,
    AnnotatedVideo,
    Annotations,
    check_same_set,
    copies_among,
)
from vmae2_ds.downstream.tad.detections import Detections, Floats, Ints
from vmae2_ds.downstream.tad.protocols import Protocol
from vmae2_ds.errors import DataError


class Spans(NamedTuple):
    """Segments of any kind, a column each."""

    row: Ints
    """Where it stood: of truths the number in the subset, of detections the row of the file."""
    video: Ints
    klass: Ints
    start_s: Floats
    end_s: Floats

    def of(self, chosen: Ints) -> Spans:
        """Some of them, in that order."""
        return Spans(self.row[chosen], self.video[chosen], self.klass[chosen], self.start_s[chosen], self.end_s[chosen])


@dataclass(frozen=True)
class Tables:
    """What is scored."""

    videos: tuple[str, ...]
    num_videos: int
    """Videos of the subset."""
    classes: tuple[str, ...]
    """Labels that have truth."""
    truths: Spans
    """In the order of the file."""
    regions: Spans
    """Ambiguous segments, for protocols that ignore what touches them; their class means nothing."""
    detections: Spans
    """They stand by class, in a class the best score first, equal scores in the order of the file."""
    score_N: Floats
    copies: int
    """True segments left out because they repeat another."""
    too_short: int
    unknown: dict[str, int]
    """Label without truth -> detections of it that were left out."""
    renumbered: int
    """Detections counted under the class that has their label's number (Protocol.counts_by_number)."""
    outside: int
    """Detections in videos that the subset does not have: they count as false positives."""
    without_length: int
    """True segments without length that count."""
    beyond: int
    """True segments that count, and end behind their video's end by more than SAME_S."""
    reversed: int
    """Detections that end before they start."""


def make_tables(
    annotations: Annotations,
    detections: Detections,
    subset: str | Sequence[str] | None,
    protocol: Protocol,
    without: Sequence[str] = (),
    drop_unknown: bool | None = None,
) -> Tables:
    """What a protocol scores of a subset.

    Args:
        annotations: The truth.
        detections: What was detected.
        subset: Name or names; None: the only one that there is.
        protocol: How it is counted.
        without: Labels that are taken out of truth and detections first.
        drop_unknown: Whether detections of labels without truth are left out; None: as the protocol does.

    Raises:
        DataError: There is no such subset, or nothing true in it; no video or no label in common; labels without truth, where
            the protocol refuses them.
    """
    videos = annotations.of_subset(subset)
    asked = (
        f"subset {', '.join(repr(name) for name in sorted({video.subset for video in videos}))} of {annotations.file}"
    )
    _check_in_common(annotations, videos, detections, asked)
    for label in without:
        if label not in (*annotations.labels, *detections.labels, AMBIGUOUS):
            raise DataError(f"--without {label}: neither {annotations.file} nor the detections have that label")
    kept = _truths_that_count(annotations, videos, protocol, without)
    if not len(kept.truths.row):
        raise DataError(f"{asked} has no true segment to score; {counted(len(videos), 'video')} in it")
    said = _classes(annotations, detections.labels, kept.truths.klass, protocol, without)
    counts = Counter(detections.label_N.tolist())
    unknown = {label: counts[i] for i, label in enumerate(detections.labels) if said.is_unknown[i] and counts[i]}
    if unknown and not (drop_unknown if drop_unknown is not None else not protocol.refuses_unknown):
        some = ", ".join(map(repr, list(unknown)[:3])) + (", ..." if len(unknown) > 3 else "")
        raise DataError(
            f"{counted(sum(unknown.values()), 'detection')} of {counted(len(unknown), 'label')} without truth in {asked} "
            f"({some}): ActivityNet's scorer stops there: --drop-unknown leaves them out, as the other scorers do"
        )
    klass_N = said.class_of[detections.label_N]
    row = np.flatnonzero(klass_N >= 0)
    row = row[np.lexsort((-detections.score_N[row], klass_N[row]))]  # a stable sort: equal scores stay in order
    names = tuple(video.name for video in videos)
    index = {name: i for i, name in enumerate(dict.fromkeys((*names, *detections.videos)))}
    video_N = np.array([index[name] for name in detections.videos], np.int64)[detections.video_N[row]]
    start_N, end_N = detections.start_N[row], detections.end_N[row]
    is_reversed_N = end_N < start_N
    if protocol.turns_reversed:
        start_N, end_N = np.minimum(start_N, end_N), np.maximum(start_N, end_N)
    length_V = np.array([np.inf if video.duration_s is None else video.duration_s for video in videos])
    labels = np.unique(kept.truths.klass)  # those with truth, in the order of the annotations
    return Tables(
        videos=tuple(index),
        num_videos=len(names),
        classes=tuple(annotations.labels[label] for label in labels),
        truths=kept.truths._replace(klass=np.searchsorted(labels, kept.truths.klass)),
        regions=kept.regions,
        detections=Spans(row, video_N, klass_N[row], start_N, end_N),
        score_N=detections.score_N[row],
        copies=kept.copies,
        too_short=kept.too_short,
        unknown=unknown,
        renumbered=sum(counts[i] for i in said.renumbered),
        outside=int((video_N >= len(names)).sum()),
        without_length=int((kept.truths.end_s <= kept.truths.start_s).sum()),
        beyond=int((kept.truths.end_s > length_V[kept.truths.video] + SAME_S).sum()),
        reversed=int(is_reversed_N.sum()),
    )


class _CountedTruths(NamedTuple):
    truths: Spans
    regions: Spans
    copies: int
    too_short: int


def _truths_that_count(
    annotations: Annotations, videos: list[AnnotatedVideo], protocol: Protocol, without: Sequence[str]
) -> _CountedTruths:
    """The truths of videos but for what a protocol leaves out; their class is still an index into the annotations' labels."""
    every = _truths(videos)
    is_ambiguous = np.array([label == AMBIGUOUS for label in annotations.labels], np.bool_)
    is_region = is_ambiguous[every.klass] & protocol.ambiguous_ignored
    is_meant = np.array([label not in without for label in annotations.labels], np.bool_)[every.klass] & ~is_region
    is_copy, is_short = np.zeros((2, len(every.row)), np.bool_)
    if protocol.drops_copies:
        is_copy[:] = [copy for video in videos for copy in copies_among(video.segments)]
    if protocol.shortest_s is not None:
        length_s = every.end_s - every.start_s
        is_short = ~is_copy & ((length_s < protocol.shortest_s) | (length_s <= 0))
    chosen = np.flatnonzero(is_meant & ~is_copy & ~is_short)
    copies, too_short = int((is_meant & is_copy).sum()), int((is_meant & is_short).sum())
    return _CountedTruths(every.of(chosen), every.of(np.flatnonzero(is_region)), copies, too_short)


def _check_in_common(
    annotations: Annotations, videos: list[AnnotatedVideo], detections: Detections, asked: str
) -> None:
    check_same_set(annotations, detections.videos, "the detections")
    names = {video.name for video in videos}
    if detections.videos and not names & set(detections.videos):
        others = sorted({annotations.videos[name].subset for name in detections.videos if name in annotations.videos})
        raise DataError(
            f"{asked} and the detections have no video in common; the detections are of {', '.join(map(repr, others))}"
        )
    labels = detections.labels
    if labels and not any(label in annotations.label_of for label in labels):
        raise DataError(
            f"{annotations.file} and the detections have no label in common ({_some(annotations.labels)} and {_some(labels)}); "
            "a list of classes (--classes) says what numbers stand for"
        )


def _some(labels: tuple[str, ...]) -> str:
    return ", ".join(map(repr, labels[:3])) + ", ..."


def _truths(videos: list[AnnotatedVideo]) -> Spans:
    rows = [
        (i, segment.label, segment.start_s, segment.end_s)
        for i, video in enumerate(videos)
        for segment in video.segments
    ]
    table = np.array(rows, np.float64).reshape(-1, 4)
    video, label = table[:, 0].astype(np.int64), table[:, 1].astype(np.int64)
    return Spans(np.arange(len(rows)), video, label, table[:, 2], table[:, 3])


class _LabelClasses(NamedTuple):
    """What detections mean by each of their labels."""

    class_of: Ints
    """The class, or -1."""
    is_unknown: list[bool]
    renumbered: list[int]
    """Labels that count under another class's name (Protocol.counts_by_number)."""


def _classes(
    annotations: Annotations, names: tuple[str, ...], label_G: Ints, protocol: Protocol, without: Sequence[str]
) -> _LabelClasses:
    labels = np.unique(label_G).tolist()
    rank = {label: place for place, label in enumerate(labels)}
    numbers = annotations.label_ids
    by_number = sorted(rank, key=lambda label: (numbers[label] is None, numbers[label] or 0))
    left_out = {*without, *([AMBIGUOUS] if protocol.ambiguous_ignored else [])}
    class_of, unknown, renumbered = [], [], []
    for i, name in enumerate(names):
        label = annotations.label_of.get(name)
        is_left_out = (name if label is None else annotations.labels[label]) in left_out
        place = -1 if label is None or is_left_out else rank.get(label, -1)
        number = numbers[label] if label is not None else int(name) if name.isdecimal() else None
        if (
            place < 0
            and not is_left_out
            and protocol.counts_by_number
            and number is not None
            and number < len(by_number)
        ):
            # its scorer gives the classes with truth the numbers 0, 1, ... and leaves those of other labels as they are
            place = rank[by_number[number]]
            renumbered.append(i)
        class_of.append(place)
        unknown.append(place < 0 and not is_left_out)
    return _LabelClasses(np.array(class_of, np.int64), unknown, renumbered)
