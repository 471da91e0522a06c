"""What is wrong in the rows of a set in AVA's form: a line each, with the numbers and the way out.

N rows, F key frames.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from vmae2_ds.console.progress import counted
from vmae2_ds.downstream.ava.label_map import LabelMap
from vmae2_ds.downstream.ava.person_boxes import FAR_OUT, PersonBoxes
from vmae2_ds.downstream.ava.rows import BoxRows, Key, seconds_of

Weight = Literal["fails", "warns", "tells"]
"""fails: training or its validation stops, or learns nothing of it; warns: rows are left out, or are not what they seem; tells:
how things are."""
FEW_ROWS = 10
"""Rows of a class below which nothing much can be learnt of it."""
OFTEN = 0.05
"""Share of rows from which on a fault is one of the whole file, not of single rows."""
SHIFTS_S = (900, -900, 902, -902, 1, -1)
"""Seconds by which times of two files of a set are known to differ: AVA's films are cut at 900, and key times begin at 902."""


class SetFinding(NamedTuple):
    """One thing about a set."""

    weight: Weight
    what: str
    remedy: str = ""

    def __str__(self) -> str:
        return f"{self.weight}: {self.what}{f'; {self.remedy}' if self.remedy else ''}"


def check_labels(rows: BoxRows, label_map: LabelMap) -> Iterator[SetFinding]:
    """Action ids that the map lacks, and actions of the map without a row."""
    count_of = Counter(rows.label_N.tolist())
    unknown = {action: number for action, number in sorted(count_of.items()) if action not in label_map.class_of}
    if unknown:
        number = sum(unknown.values())
        some = ", ".join(f"{action} ({counted(rows, 'row')})" for action, rows in list(unknown.items())[:5])
        ids = f"ids of {label_map.file} go from {min(label_map.ids)} to {max(label_map.ids)}"
        remedy = (
            f"training leaves these rows out: put the actions into the label map, or take them out of the file; {ids}"
        )
        from_0 = 0 in unknown and min(label_map.ids) == 1 and max(count_of) < max(label_map.ids)
        if from_0:
            remedy = f"the file counts actions from 0, it seems, and the map from 1: add 1 to each id; {ids}"
        yield SetFinding(
            "fails" if from_0 or number == len(rows) else "warns",  # from 0: each row has another action's name
            f"{rows.source}: {number} of {counted(len(rows), 'row')} have action ids outside of the label map: {some}"
            + (", ..." if len(unknown) > 5 else ""),
            remedy,
        )
    never = [name for action, name in zip(label_map.ids, label_map.names, strict=True) if action not in count_of]
    if never and len(rows):
        yield SetFinding(
            "tells",
            f"{rows.source}: {len(never)} of {counted(len(label_map), 'class', 'classes')} have no row, such as {never[0]!r}",
        )


def check_classes(rows: BoxRows, label_map: LabelMap) -> Iterator[SetFinding]:
    """How rows are spread over the classes: the long tail."""
    counts = {
        name: int((rows.label_N == action).sum()) for action, name in zip(label_map.ids, label_map.names, strict=True)
    }
    there = sorted(((number, name) for name, number in counts.items() if number), reverse=True)
    if not there:
        return
    (most, first), (least, last) = there[0], there[-1]
    few = [name for number, name in there if number < FEW_ROWS]
    yield SetFinding(
        "tells",
        f"{rows.source}: {counted(sum(counts.values()), 'row')} of {counted(len(there), 'class', 'classes')}, from {most} of "
        f"{first!r} to {least} of {last!r}; {len(few)} have fewer than {FEW_ROWS}",
    )


def check_boxes(rows: BoxRows) -> Iterator[SetFinding]:
    """Boxes in pixels, outside of the picture, inside out, or without an area."""
    box_N4 = rows.box_N4
    is_far_N: Any = (np.abs(box_N4 - 0.5) > 0.5 + FAR_OUT).any(1)
    is_out_N: Any = ((box_N4 < 0) | (box_N4 > 1)).any(1) & ~is_far_N
    is_back_N: Any = (box_N4[:, 2:] < box_N4[:, :2]).any(1) & ~is_far_N
    is_flat_N: Any = (box_N4[:, 2:] == box_N4[:, :2]).any(1) & ~is_back_N
    if is_far_N.any():
        most = box_N4[is_far_N].max()
        yield SetFinding(
            "fails" if is_far_N.mean() > OFTEN else "warns",
            f"{_some(rows, is_far_N)} have boxes far outside of 0..1, up to {most:g}, {_first(rows, is_far_N)}: "
            "they are in pixels, it seems",
            "boxes are x1, y1, x2, y2 in parts of the picture: divide x by its width and y by its height",
        )
    if is_out_N.any():
        over = max(box_N4[is_out_N].max() - 1, -box_N4[is_out_N].min())
        yield SetFinding(
            "warns",
            f"{_some(rows, is_out_N)} have boxes that reach over the edge of the picture, by up to {over:.3g} of it, "
            f"{_first(rows, is_out_N)}",
            "training cuts them, and scorers do not: cut them to 0..1",
        )
    if is_back_N.any():
        ends_inside = bool((box_N4[is_back_N, :2] + box_N4[is_back_N, 2:] <= 1 + 1e-3).all())
        is_size = is_back_N.mean() > OFTEN and ends_inside
        yield SetFinding(
            "fails" if is_back_N.mean() > OFTEN else "warns",
            f"{_some(rows, is_back_N)} have boxes inside out, whose x2 or y2 lies before x1 or y1, {_first(rows, is_back_N)}",
            "they are x, y, width, height, it seems: write x1, y1, x2, y2"
            if is_size
            else "training leaves them out: put the corners in order",
        )
    if is_flat_N.any():
        yield SetFinding(
            "warns",
            f"{_some(rows, is_flat_N)} have boxes without an area, {_first(rows, is_flat_N)}",
            "training leaves them out: take the rows out, or draw the boxes anew",
        )


def check_doubles(rows: BoxRows) -> Iterator[SetFinding]:
    """Rows that say the same, and one person in two places."""
    if not len(rows):
        return
    table = np.column_stack([rows.frame_N, rows.box_N4, rows.label_N])
    _, first, count = np.unique(table, axis=0, return_index=True, return_counts=True)
    if (doubles := int((count - 1).sum())) > 0:
        row = int(first[count > 1].min())
        at = f"the first is video {rows.videos[rows.video_N[row]]!r} at {seconds_of(int(rows.time_ms_N[row]))} s"
        yield SetFinding(
            "warns",
            f"{rows.source}: {doubles} of {counted(len(rows), 'row')} repeat another: the same key frame, box and action; {at}",
            "scorers count each as a person to be found: take the copies out",
        )
    has = rows.person_N >= 0
    boxes = np.unique(np.column_stack([rows.frame_N, rows.person_N, rows.box_N4])[has], axis=0)
    _, places = np.unique(boxes[:, :2], axis=0, return_counts=True)
    if (several := int((places > 1).sum())) > 0:
        yield SetFinding(
            "tells", f"{rows.source}: {counted(several, 'person id')} of one key frame have several boxes in it"
        )


def check_excluded(keys: Sequence[Key], excluded: frozenset[Key], source: str, files: str) -> Iterator[SetFinding]:
    """What the exclusions leave."""
    named = [key for key in keys if key in excluded]
    if keys and len(named) == len(keys):
        yield SetFinding(
            "fails",
            f"{source}: all {counted(len(keys), 'key frame')} are excluded by {files}: nothing is left",
            "give the exclusions of this part of the set, or none",
        )
    elif excluded and not named:
        yield SetFinding(
            "warns",
            f"{files}: none of {counted(len(excluded), 'exclusion')} names a key frame of {source}",
            "they are those of another set, or count times from another moment",
        )


def check_person_boxes(boxes: PersonBoxes, keys: Sequence[Key], threshold: float, source: str) -> Iterator[SetFinding]:
    """Whether detected persons are there where they are asked for."""
    good = boxes.of(boxes.box_N5[:, 4] >= threshold)
    if not good and boxes:
        best = boxes.box_N5[:, 4].max()
        yield SetFinding(
            "fails",
            f"{boxes.file}: none of {counted(len(boxes.box_N5), 'box', 'boxes')} has a score of {threshold:g}, the best has "
            f"{best:g}",
            "lower --box-threshold, and --data.box-threshold in training",
        )
        return
    have, asked = set(good), set(keys)
    without = [key for key in keys if key not in have]
    if without and len(without) == len(keys):
        times_of: dict[str, set[int]] = {}
        for video, time in boxes:
            times_of.setdefault(video, set()).add(time)
        yield SetFinding(
            "fails",
            f"{boxes.file} and {source} have no key frame in common ({_named(next(iter(boxes), None))}, ... and "
            f"{_named(keys[0])}, ...)",
            _shift(times_of, keys) or "the boxes are of another set, or name its videos in another way",
        )
    elif without:
        yield SetFinding(
            "warns",
            f"{boxes.file}: {len(without)} of {counted(len(keys), 'key frame')} of {source} have no box with a score of "
            f"{threshold:g}, the first {_named(without[0])}",
            "nobody can be found there: lower --box-threshold, or take a better detector (vmae2 ava boxes tells its recall)",
        )
    if (others := sum(key not in asked for key in have)) and len(without) < len(keys):
        yield SetFinding("tells", f"{boxes.file}: {counted(others, 'key frame')} with boxes are none of {source}")


def check_both_parts(train: Sequence[BoxRows], val: Sequence[BoxRows]) -> Iterator[SetFinding]:
    """What training and validation share, and what validation asks that training never shows."""
    videos, others = ({video for rows in part for video in rows.videos} for part in (train, val))
    if shared := sorted(videos & others):
        yield SetFinding(
            "warns",
            f"training and validation share {len(shared)} of {counted(len(others), 'video')}, such as {shared[0]!r}",
            "what is measured is then not what the model does on videos that it has not seen: part the set by videos",
        )
    learnt, asked = ({int(action) for rows in part for action in np.unique(rows.label_N)} for part in (train, val))
    if unseen := sorted(asked - learnt):
        yield SetFinding(
            "warns",
            f"validation has {counted(len(unseen), 'action')} that training has no row of: ids "
            f"{', '.join(map(str, unseen[:5]))}",
            "their AP stays near 0 and lowers the mean: draw the parts anew, or take them out of the label map",
        )


def _shift(times_of: dict[str, set[int]], keys: Sequence[Key]) -> str:
    """Whether times would agree if they counted from another moment, in words."""
    for shift in SHIFTS_S:
        agree = sum(time + 1000 * shift in times_of.get(video, ()) for video, time in keys)
        if agree > 0.5 * len(keys):
            side = "behind" if shift > 0 else "before"
            return f"times of the boxes are {abs(shift)} s {side} those of the truth: count both alike"
    return ""


def _named(key: Key | None) -> str:
    return "none" if key is None else f"video {key[0]!r} at {seconds_of(key[1])} s"


def _some(rows: BoxRows, is_bad_N: NDArray[np.bool_]) -> str:
    return f"{rows.source}: {int(is_bad_N.sum())} of {counted(len(rows), 'row')}"


def _first(rows: BoxRows, is_bad_N: NDArray[np.bool_]) -> str:
    row = int(is_bad_N.argmax())
    box = ", ".join(f"{value:.6g}" for value in rows.box_N4[row])
    return f"the first {box} of video {rows.videos[rows.video_N[row]]!r} at {seconds_of(int(rows.time_ms_N[row]))} s"
