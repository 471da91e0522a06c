"""People in key frames: rows of one box are one person, who keeps a name while the boxes of following key frames overlap."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np

from vmae2_ds.downstream.ava.compared import Compared, overlaps_between
from vmae2_ds.downstream.ava.rows import BoxRows, Key

LINKED_IOU = 0.3
"""Overlap of boxes in key frames one after the other from which on they are one person's."""
LONGEST_STEP = 1.5
"""Key frames that are further apart than so many usual steps are not one after the other."""


class Person(NamedTuple):
    """Somebody in a box."""

    box: tuple[float, float, float, float]
    """Shares of the frame."""
    rows: tuple[int, ...]
    """What is said of that box; of detections the best score first."""
    person: int
    """The file's id; -1: none."""
    name: str = ""


class ShownFrame(NamedTuple):
    """A key frame and the people in it."""

    key: Key
    truth: tuple[Person, ...]
    """Named by numbers."""
    found: tuple[Person, ...]
    """Named by letters."""

    @property
    def time_s(self) -> float:
        """Seconds, as the files have them."""
        return self.key[1] / 1000


def frames_of(compared: Compared, video: str) -> list[ShownFrame]:
    """All key frames of a video in the order of time, the people in them named."""
    times = compared.times_of.get(video, [])
    keys = [(video, time_ms) for time_ms in times]
    truth = _named([_people(compared.truth, compared.truth_of(key)) for key in keys], times, str)
    found = _named([_people(compared.detections, compared.detections_of(key)) for key in keys], times, letters)
    return [ShownFrame(*one) for one in zip(keys, truth, found, strict=True)]


def _people(rows: BoxRows, which: Sequence[int]) -> list[Person]:
    """Boxes and what is said of them, from left to right."""
    by_box: dict[tuple[float, ...], list[int]] = {}
    for row in which:
        by_box.setdefault(tuple(rows.box_N4[row].tolist()), []).append(row)
    people = [Person((x1, y1, x2, y2), tuple(said), int(rows.person_N[said[0]]))
              for (x1, y1, x2, y2), said in by_box.items()]  # fmt: skip
    return sorted(people, key=lambda one: one.box)


def _named(
    frames: Sequence[list[Person]], times_ms: Sequence[int], name_of: Callable[[int], str]
) -> list[tuple[Person, ...]]:
    """Give people names: one for a person that the file names, else one as long as boxes overlap."""
    longest = usual_step(times_ms) * LONGEST_STEP
    names: dict[int, str] = {}
    used: dict[str, int] = {}
    """Name -> when it was given first."""
    before: tuple[Person, ...] = ()
    before_ms = -(1 << 60)
    found: list[tuple[Person, ...]] = []
    for people, time_ms in zip(frames, times_ms, strict=True):
        linked = _links(before, people) if time_ms - before_ms <= longest else {}
        here: list[Person] = []
        for place, one in enumerate(people):
            name = names.get(one.person) if one.person >= 0 else linked.get(place)
            if name is None or name in (other.name for other in here):
                name = name_of(len(used) + 1)
                used[name] = len(used)
            if one.person >= 0:
                names.setdefault(one.person, name)
            here.append(one._replace(name=name))
        before, before_ms = tuple(sorted(here, key=lambda one: used[one.name])), time_ms
        found.append(before)
    return found


def usual_step(times_ms: Sequence[int]) -> float:
    """The middle one of the steps from key frame to key frame, in ms; of a single one a second."""
    return float(np.median(np.diff(times_ms))) if len(times_ms) > 1 else 1000.0


def _links(before: Sequence[Person], people: Sequence[Person]) -> dict[int, str]:
    """Place of a person -> the name of the one before whose box it goes on with: the best overlaps first, each once."""
    if not before or not people:
        return {}
    overlap_AB = overlaps_between(np.array([one.box for one in before]), np.array([one.box for one in people]))
    linked: dict[int, str] = {}
    for _, old, new in sorted(_above(overlap_AB), reverse=True):
        if new not in linked and before[old].name not in linked.values() and before[old].person < 0:
            linked[new] = before[old].name
    return linked


def _above(overlap_AB: np.ndarray) -> Iterator[tuple[float, int, int]]:
    for old, new in np.argwhere(overlap_AB >= LINKED_IOU).tolist():
        yield float(overlap_AB[old, new]), old, new


def letters(number: int) -> str:
    """1: a, 26: z, 27: aa."""
    name = ""
    while number:
        number, last = divmod(number - 1, 26)
        name = chr(ord("a") + last) + name
    return name
