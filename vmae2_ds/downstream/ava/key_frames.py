"""Key frames: the moments of videos at which people are boxed, and what each of them does.

Truth, label map, exclusions and detected people are joined here, once, into columns that loader processes share.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from vmae2_ds.console.progress import counted
from vmae2_ds.downstream.ava.label_map import LabelMap
from vmae2_ds.downstream.ava.matching import iou_of
from vmae2_ds.downstream.ava.person_boxes import PersonBoxes, read_person_boxes
from vmae2_ds.downstream.ava.rows import BoxRows, Key, read_excluded, read_truth
from vmae2_ds.errors import DataError

# F key frames, G boxes of one, N boxes of all, M actions of all boxes, C classes.

Use = Literal["truth", "truth_and_proposals", "boxes"]
"""Which boxes a key frame has: those of the truth (VideoMAE-AD); these and the detected ones that take their actions from them
(mmaction2, PySlowFast); the detected ones alone, as in a test."""
WHOLE = np.array([[0.0, 0.0, 1.0, 1.0, 1.0]])
"""The box and score of a key frame for which a file of detected people has nothing (mmaction2, docs/PAPER.md#person-boxes)."""


class KeyFrame(NamedTuple):
    """One moment of a video and the people in it."""

    video: str
    time_ms: int
    """Milliseconds of the time in seconds that the files write."""
    box_G4: NDArray[np.float64]
    """float64 x1 y1 x2 y2, in parts of the picture's width and height."""
    action_ids: tuple[tuple[int, ...], ...]
    """Ids of the actions of each box, in the order of the label map; none of a person whom no truth names."""
    score_G: NDArray[np.float64]
    """float64, the detector's; 1 for a box of the truth."""

    @property
    def key(self) -> Key:
        """(video, milliseconds): what truth, boxes and exclusions are joined by."""
        return self.video, self.time_ms


@dataclass
class LeftOut:
    """What was read and is in no key frame."""

    unknown: Counter[int] = field(default_factory=Counter)
    """Rows of each action id that the label map lacks."""
    without_area: int = 0
    """Rows whose box is inside out, or has no area inside of the picture."""
    excluded: int = 0
    """Key frames that the files of exclusions name."""
    between: int = 0
    """Key frames between those that the stride keeps."""
    empty: int = 0
    """Key frames without a box: no person was named or found there, or none with score enough."""

    def lines(self) -> list[str]:
        """A line for each kind that there is."""
        unknown = counted(self.unknown.total(), "row")
        some = ", ".join(map(str, sorted(self.unknown)[:3])) + (", ..." if len(self.unknown) > 3 else "")
        said = (
            (len(self.unknown), f"{unknown} with action ids that the label map lacks: {some}"),
            (self.without_area, f"{counted(self.without_area, 'row')} whose box has no area in the picture"),
            (self.excluded, f"{counted(self.excluded, 'key frame')} excluded"),
            (self.between, f"{counted(self.between, 'key frame')} between those that the stride keeps"),
            (self.empty, f"{counted(self.empty, 'key frame')} without a box"),
        )
        return [line for number, line in said if number]


@dataclass(frozen=True)
class KeyFrames(Sequence[KeyFrame]):
    """F key frames by number, in the order of (video, time): `key_frames[i]` is a `KeyFrame`. Held as columns."""

    files: tuple[str, ...]
    """The files that name them, for messages."""
    label_map: LabelMap
    videos: tuple[str, ...]
    video_F: NDArray[np.int32]
    """Index into `videos`."""
    time_ms_F: NDArray[np.int64]
    first_F1: NDArray[np.int64]
    """Where the boxes of each key frame begin, and the number of all."""
    box_N4: NDArray[np.float64]
    score_N: NDArray[np.float64]
    first_N1: NDArray[np.int64]
    """Where the actions of each box begin, and the number of all."""
    class_M: NDArray[np.int32]
    """Class column of each action."""
    left_out: LeftOut = field(default_factory=LeftOut, compare=False)

    def __len__(self) -> int:
        return len(self.time_ms_F)

    def __getitem__(self, number: int) -> KeyFrame:  # type: ignore[override]  # no slices
        if not 0 <= number < len(self):
            raise IndexError(f"key frame {number} of {len(self)}")
        boxes = self._boxes(number)
        ids = [tuple(self.label_map.ids[column] for column in self._classes(box)) for box in boxes]
        video, time_ms = self.key(number)
        return KeyFrame(
            video, time_ms, self.box_N4[boxes.start : boxes.stop], tuple(ids), self.score_N[boxes.start : boxes.stop]
        )

    def __iter__(self) -> Iterator[KeyFrame]:
        return (self[number] for number in range(len(self)))

    def key(self, number: int) -> Key:
        """(video, milliseconds) of a key frame."""
        return self.videos[self.video_F[number]], int(self.time_ms_F[number])

    def targets(self, number: int) -> NDArray[np.float32]:
        """(G, C): 1 for each action of each box of a key frame."""
        boxes = self._boxes(number)
        target_GC = np.zeros((len(boxes), len(self.label_map)), np.float32)
        for place, box in enumerate(boxes):
            target_GC[place, self._classes(box)] = 1
        return target_GC

    @cached_property
    def digest(self) -> str:
        """SHA-256, in hex, of all that a run learns from or is asked about: moments, boxes, scores and actions by name."""
        names = json.dumps([self.videos, self.label_map.ids, self.label_map.names])
        found = hashlib.sha256(names.encode("utf-8", "surrogatepass"))
        for name in ("video_F", "time_ms_F", "first_F1", "box_N4", "score_N", "first_N1", "class_M"):
            found.update(np.ascontiguousarray(getattr(self, name)).tobytes())
        return found.hexdigest()

    def _boxes(self, number: int) -> range:
        return range(self.first_F1[number], self.first_F1[number + 1])

    def _classes(self, box: int) -> NDArray[np.int32]:
        return self.class_M[self.first_N1[box] : self.first_N1[box + 1]]


def read_key_frames(
    truth: Sequence[Path],
    label_map: LabelMap,
    *,
    excluded: Sequence[Path] = (),
    boxes: Sequence[Path] = (),
    **how: Any,
) -> KeyFrames:
    """Read the files that name key frames, and join them as `make_key_frames` does, which `how` goes to.

    Raises DataError for a file that cannot be read, and as `make_key_frames`.
    """
    found = [read_person_boxes(file) for file in boxes]
    return make_key_frames(
        [read_truth(file) for file in truth],
        label_map,
        excluded=frozenset[Key]().union(*map(read_excluded, excluded)),
        boxes=found[0] if len(found) == 1 else _together(found) if found else None,
        **how,
    )


def _together(files: Sequence[PersonBoxes]) -> dict[Key, NDArray[np.float64]]:
    keys = dict.fromkeys(key for boxes in files for key in boxes)
    return {key: np.concatenate([boxes[key] for boxes in files if key in boxes]) for key in keys}


def make_key_frames(
    truth: Sequence[BoxRows],
    label_map: LabelMap,
    *,
    excluded: frozenset[Key] = frozenset(),
    boxes: Mapping[Key, NDArray[np.float64]] | None = None,
    box_threshold: float = 0.0,
    use: Use = "truth",
    overlap: float = 0.9,
    keeps_unmatched: bool = False,
    keeps_best: bool = False,
    every_s: float = 0.0,
    every: int = 1,
) -> KeyFrames:
    """Join truth and detected people into key frames.

    Rows of one key frame with the same four corners are one person with several actions, as published: of two people in one
    place, a head could not tell which does what. Corners outside of the picture are moved to its edge.

    Args:
        truth: Rows of one file or of several, AVA's and AVA-Kinetics'.
        label_map: The actions that are learnt; rows of others are left out, and counted.
        excluded: Key frames to leave out.
        boxes: Detected people: rows x1 y1 x2 y2 score of each key frame.
        box_threshold: Least score of a detected person.
        use: Which boxes a key frame has. With `boxes`, the key frames are those that the truth names, with people or
            without; or where there is no truth, those of `boxes`.
        overlap: With `truth_and_proposals`, IoU with a true box from which on a detected one has its actions.
        keeps_unmatched: With `truth_and_proposals`, keep detected people who overlap no true box enough, as doing nothing that
            the label map names (PySlowFast); else they are left out (mmaction2).
        keeps_best: Where no detected person of a key frame has score enough, keep the best one; where there is none, take the
            whole picture with score 1 (mmaction2).
        every_s: Keep only key frames at whole multiples of so many seconds; 0: all.
        every: Keep each so many-th of a video, the first among them.

    Raises DataError where nothing is left, with what was left out.
    """
    assert (boxes is None) == (use == "truth"), "detected people are for the uses that take them"
    left_out = LeftOut()
    people = _people(truth, label_map, left_out)
    if use == "truth":
        keys: Iterable[Key] = people
    else:
        assert boxes is not None, "checked above"
        named = dict.fromkeys(key for rows in truth for key in rows.keys)
        keys = people if use == "truth_and_proposals" else named if truth else boxes
    ordered = sorted(keys)
    included = [key for key in ordered if key not in excluded]
    kept = strided(included, every_s, every)
    left_out.excluded, left_out.between = len(ordered) - len(included), len(included) - len(kept)
    nothing = _People(np.zeros((0, 4)), np.zeros(0), [])
    found = {}
    for key in kept:
        those = nothing if use == "boxes" else people[key]
        if boxes is not None:
            detected = _detected(boxes.get(key), box_threshold, keeps_best)
            those = _joined(those, detected, overlap, keeps_unmatched or use == "boxes")
        if len(those.box_G4):
            found[key] = those
        else:
            left_out.empty += 1
    files = tuple(rows.source for rows in truth) or (str(getattr(boxes, "file", "these boxes")),)
    if not found:
        raise DataError(_nothing(files, left_out, every_s))
    return _columns(files, label_map, found, left_out)


class _People(NamedTuple):
    """The boxes of one key frame, and the class columns of each."""

    box_G4: NDArray[np.float64]
    score_G: NDArray[np.float64]
    classes_G: list[NDArray[np.int32]]


def _people(truth: Sequence[BoxRows], label_map: LabelMap, left_out: LeftOut) -> dict[Key, _People]:
    """The true people of each key frame that has any, in the order of their first rows."""
    found: dict[Key, _People] = {}
    for rows in truth:
        ids, place_N, times = np.unique(rows.label_N, return_inverse=True, return_counts=True)
        columns = np.array([label_map.class_of.get(action, -1) for action in ids.tolist()], np.int32)
        class_N = columns[place_N.reshape(-1)]
        pairs = zip(ids[columns < 0].tolist(), times[columns < 0].tolist(), strict=True)
        left_out.unknown.update(dict(pairs))
        box_N4 = np.clip(rows.box_N4, 0, 1)
        has_area_N = (box_N4[:, 2] > box_N4[:, 0]) & (box_N4[:, 3] > box_N4[:, 1])
        left_out.without_area += int((~has_area_N & (class_N >= 0)).sum())
        place_N = np.flatnonzero(has_area_N & (class_N >= 0))
        # a sort that keeps the file's order inside of a key frame
        place_N = place_N[np.argsort(rows.frame_N[place_N], kind="stable")]
        frame_N = rows.frame_N[place_N]
        starts = np.flatnonzero(np.diff(frame_N, prepend=-1))
        keys = rows.keys
        for start, end in pairwise([*starts, len(frame_N)]):
            some = place_N[start:end]
            key = keys[rows.frame_N[some[0]]]
            box_G4, classes = box_N4[some], class_N[some]
            if key in found:  # another file has it too
                before = found[key]
                box_G4 = np.concatenate([before.box_G4.repeat([len(of) for of in before.classes_G], axis=0), box_G4])
                classes = np.concatenate([*before.classes_G, classes])
            found[key] = _merged(box_G4, classes)
    return found


def _merged(box_N4: NDArray[np.float64], class_N: NDArray[np.int32]) -> _People:
    """Rows of one key frame: those with the same corners are one person."""
    of: dict[tuple[float, ...], set[int]] = {}
    for corners, column in zip(box_N4.tolist(), class_N.tolist(), strict=True):
        of.setdefault(tuple(corners), set()).add(column)
    classes = [np.array(sorted(columns), np.int32) for columns in of.values()]
    return _People(np.array(list(of)), np.ones(len(of)), classes)


def strided(keys: Sequence[Key], every_s: float, every: int) -> list[Key]:
    """Those at whole multiples of so many seconds (0: all), and of these each so many-th of a video, the first among them.

    `keys` are in the order of (video, time).
    """
    step_ms = round(1000 * every_s)
    seen: Counter[str] = Counter()
    chosen = []
    for key in keys:
        if step_ms and key[1] % step_ms:
            continue
        if seen[key[0]] % every == 0:
            chosen.append(key)
        seen[key[0]] += 1
    return chosen


def _detected(box_G5: NDArray[np.float64] | None, threshold: float, keeps_best: bool) -> NDArray[np.float64]:
    """Rows x1 y1 x2 y2 score that count, with an area, inside of the picture."""
    if box_G5 is None:
        return WHOLE if keeps_best else WHOLE[:0]
    box_G5 = np.concatenate([np.clip(box_G5[:, :4], 0, 1), box_G5[:, 4:]], axis=1)
    box_G5 = box_G5[(box_G5[:, 2] > box_G5[:, 0]) & (box_G5[:, 3] > box_G5[:, 1])]
    if keeps_best and len(box_G5):
        threshold = min(threshold, box_G5[:, 4].max())
    return box_G5[box_G5[:, 4] >= threshold]


def _joined(truth: _People, box_G5: NDArray[np.float64], overlap: float, keeps_unmatched: bool) -> _People:
    """True people and detected ones; of these each has the actions of the true box that it overlaps most, if enough."""
    box_G4, score_G = box_G5[:, :4], box_G5[:, 4]
    classes = [np.zeros(0, np.int32)] * len(box_G5)
    if len(truth.box_G4) and len(box_G5):
        pairs = np.repeat(box_G4, len(truth.box_G4), axis=0), np.tile(truth.box_G4, (len(box_G4), 1))
        iou_GG = iou_of(*pairs).reshape(len(box_G4), -1)
        best_G = iou_GG.argmax(axis=1)
        is_matched_G = iou_GG[np.arange(len(best_G)), best_G] >= overlap
        classes = [
            truth.classes_G[best] if is_matched else none
            for best, is_matched, none in zip(best_G, is_matched_G, classes, strict=True)
        ]
    kept = [place for place, of in enumerate(classes) if keeps_unmatched or len(of)]
    return _People(
        np.concatenate([truth.box_G4, box_G4[kept]]),
        np.concatenate([truth.score_G, score_G[kept]]),
        [*truth.classes_G, *(classes[place] for place in kept)],
    )


def _columns(files: tuple[str, ...], label_map: LabelMap, found: dict[Key, _People], left_out: LeftOut) -> KeyFrames:
    videos = tuple(dict.fromkeys(video for video, _ in found))
    number = {video: place for place, video in enumerate(videos)}
    classes = [of for people in found.values() for of in people.classes_G]
    return KeyFrames(
        files,
        label_map,
        videos,
        np.array([number[video] for video, _ in found], np.int32),
        np.array([time_ms for _, time_ms in found], np.int64),
        np.cumsum([0, *(len(people.box_G4) for people in found.values())], dtype=np.int64),
        np.concatenate([people.box_G4 for people in found.values()]),
        np.concatenate([people.score_G for people in found.values()]),
        np.cumsum([0, *map(len, classes)], dtype=np.int64),
        np.concatenate([np.zeros(0, np.int32), *classes]),
        left_out,
    )


def _nothing(files: Sequence[str], left_out: LeftOut, every_s: float) -> str:
    lines = left_out.lines() or ["it names none"]
    remedy = "check --data.label-map, the exclusions and --data.box-threshold"
    if left_out.between and every_s:
        remedy = (
            f"no time is a multiple of {every_s:g} s: for times between seconds, take each so many-th key frame instead"
        )
    return f"{', '.join(files)}: no key frame is left: {'; '.join(lines)}; {remedy}"
