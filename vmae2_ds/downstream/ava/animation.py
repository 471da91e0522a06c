"""Animations of `vmae2 ava show`: a video at its pace, with the boxes of its key frames moving from one to the next.

Between two key frames the box of a person who is in both is interpolated; labels, and people who are in one of both, are those
of the nearest key frame.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from fractions import Fraction
from pathlib import Path
from typing import NamedTuple

import numpy as np

from vmae2_ds.console.progress import Ticker, heard
from vmae2_ds.data.tools.encode import write_video
from vmae2_ds.disk import whole_file
from vmae2_ds.downstream.ava.compared import Compared
from vmae2_ds.downstream.ava.people import LONGEST_STEP, Person, ShownFrame, usual_step
from vmae2_ds.downstream.ava.pictures import Pictures
from vmae2_ds.downstream.ava.sheets import Look, key_of, mistakes_in, panels_of
from vmae2_ds.draw.frames import (
    GAP,
    NARROWEST,
    USUAL_AREA,
    FramePicture,
    Grid,
    Panel,
    draw_frame,
    size_of,
)
from vmae2_ds.draw.looks import EDGE, WHITE, head, legend
from vmae2_ds.draw.pictures import save_animation
from vmae2_ds.draw.sheet import Box, Shape, Sheet, families_of, pixels_of

log = logging.getLogger(__name__)

DOTS_PER_POINT = 1.5
WIDEST = 530.0
"""Points of a panel."""
LEAST_WIDTH = 360.0
"""Points of a sheet, whose notes have to be read."""
MOST_FRAMES = 1200
"""An animation that would have more has fewer a second."""
INTERPOLATED = (
    "Boxes between key frames are interpolated for people in both; labels are those of the nearest key frame."
)


class DrawnMoment(NamedTuple):
    """What is drawn at a time between key frames."""

    time_s: float
    nearest: int | None
    """Place of the key frame whose labels are drawn; None: none is near."""
    truth: dict[str, Extent]
    """Name of a person -> the box."""
    found: dict[str, Extent]


Extent = tuple[float, float, float, float]


def stretch_of(compared: Compared, frames: Sequence[ShownFrame], most: int, *, worst: bool) -> list[ShownFrame]:
    """Up to `most` key frames that follow one another: those with most mistakes together, or the first ones."""
    mistakes = np.array([mistakes_in(compared, frame) for frame in frames])
    starts = range(max(1, len(frames) - most + 1))
    first = max(starts, key=lambda start: mistakes[start : start + most].sum()) if worst else 0
    return list(frames[first : first + most])


def times_of(frames: Sequence[ShownFrame], fps: float) -> np.ndarray:
    """Seconds of the frames of an animation: from half a step before the first key frame to half a step behind the last."""
    half_s = usual_step([frame.key[1] for frame in frames]) / 2000
    length_s = frames[-1].time_s - frames[0].time_s + 2 * half_s
    count = max(1, min(round(length_s * fps), MOST_FRAMES))
    return frames[0].time_s - half_s + np.arange(count) * max(1 / fps, length_s / MOST_FRAMES)


def moment_at(frames: Sequence[ShownFrame], time_s: float) -> DrawnMoment:
    """Where everybody is at a time, in seconds, between key frames in the order of time."""
    times_s = np.array([frame.time_s for frame in frames])
    step_s = usual_step([frame.key[1] for frame in frames]) / 1000
    nearest = int(np.abs(times_s - time_s).argmin())
    if abs(times_s[nearest] - time_s) > LONGEST_STEP * step_s / 2:
        return DrawnMoment(time_s, None, {}, {})
    other = nearest + (1 if time_s > times_s[nearest] else -1)
    share = 0.0
    if 0 <= other < len(frames) and abs(times_s[other] - times_s[nearest]) <= LONGEST_STEP * step_s:
        share = float(abs(time_s - times_s[nearest]) / abs(times_s[other] - times_s[nearest]))
    here, there = frames[nearest], frames[other] if share else frames[nearest]
    return DrawnMoment(
        time_s, nearest, _between(here.truth, there.truth, share), _between(here.found, there.found, share)
    )


def _between(here: Sequence[Person], there: Sequence[Person], share: float) -> dict[str, Extent]:
    """Boxes on the way from one key frame to another; of those who are only here, where they are here."""
    goals = {one.name: one.box for one in there}
    boxes = {}
    for one in here:
        x1, y1, x2, y2 = (a + share * (b - a) for a, b in zip(one.box, goals.get(one.name, one.box), strict=True))
        boxes[one.name] = (x1, y1, x2, y2)
    return boxes


class Board:
    """The sheets of an animation: all of one size, whatever there is to say."""

    def __init__(self, title: str, compared: Compared, frames: Sequence[ShownFrame], look: Look, aspect: float) -> None:
        self._frames = frames
        self._panels = [panels_of(compared, frame, None, look) for frame in frames]
        beside = len(self._panels[0])
        panel = min(max((USUAL_AREA * aspect) ** 0.5, NARROWEST), WIDEST)
        cell = beside * panel + (beside - 1) * GAP
        self._grid = Grid(1, cell, panel)
        self._height = size_of(aspect, panel)[1]
        self._width = max(cell + 2 * EDGE, LEAST_WIDTH)
        kinds = [kind for panels in self._panels for kind in FramePicture("", panels).kinds()]
        self._shapes: list[Shape] = []
        notes = [INTERPOLATED, *key_of(compared, kinds)] if len(frames) > 1 else key_of(compared, kinds)
        top = head(title, notes, self._width - 2 * EDGE, self._shapes)
        self._top = legend(kinds, top, self._width - EDGE, self._shapes) + 2 * GAP
        ends = [self._draw(FramePicture("?", panels), []) for panels in self._panels]
        self._bottom = max(ends) + GAP
        self.families = families_of(*(self.sheet(DrawnMoment(0, place, {}, {}), None) for place in range(len(frames))))

    def sheet(self, moment: DrawnMoment, pixels_HWC: np.ndarray | None) -> Sheet:
        """What is drawn at a moment."""
        if moment.nearest is None:
            said = "no key frame near"
            panels = tuple(Panel(panel.title.partition(":")[0], None, ()) for panel in self._panels[0])
        else:
            said = f"key frame {self._frames[moment.nearest].time_s:g} s"
            panels = self._panels[moment.nearest]
        shown = tuple(self._moved(panel, moment, pixels_HWC) for panel in panels)
        shapes: list[Shape] = [Box(0, 0, self._width, self._bottom, WHITE), *self._shapes]
        self._draw(FramePicture(f"{moment.time_s:.2f} s, {said}", shown), shapes)
        return Sheet(self._width, self._bottom, "", tuple(shapes))

    def _moved(self, panel: Panel, moment: DrawnMoment, pixels_HWC: np.ndarray | None) -> Panel:
        places = {**moment.truth, **moment.found}  # numbers and letters
        boxes = tuple(box._replace(box=places.get(box.name, box.box), named_at=box.box) for box in panel.boxes)
        return panel._replace(pixels_HWC=pixels_HWC, boxes=boxes)

    def _draw(self, picture: FramePicture, shapes: list[Shape]) -> float:
        return draw_frame(picture, EDGE, self._top, self._grid, self._height, shapes)


def animate(
    title: str,
    compared: Compared,
    frames: Sequence[ShownFrame],
    look: Look,
    pictures: Pictures,
    fps: float,
    path: Path,
    software: str,
) -> None:
    """Write the animation of key frames that follow one another; the suffix of the path chooses MP4, GIF or WebP."""
    time_T = times_of(frames, fps)
    if len(time_T) > 1:
        fps = float(1 / (time_T[1] - time_T[0]))
    middle = pictures.at(frames[len(frames) // 2].key)
    aspect = 4 / 3 if middle is None else middle.shape[1] / middle.shape[0]
    board = Board(title, compared, frames, look, aspect)

    def drawn() -> Iterator[np.ndarray]:
        shown = pictures.from_to(frames[0].key[0], float(time_T[0]), len(time_T), fps)
        with heard(Ticker(log, "frames drawn", len(time_T))) as ticker:
            for number, (time_s, pixels_HWC) in enumerate(zip(time_T.tolist(), shown, strict=True)):
                ticker.tell(number)
                yield _even(
                    pixels_of(board.sheet(moment_at(frames, time_s), pixels_HWC), DOTS_PER_POINT, board.families)
                )

    path.parent.mkdir(parents=True, exist_ok=True)
    kind = path.suffix[1:].lower()
    with whole_file(path) as part:
        if kind == "mp4":
            write_video(part, drawn(), Fraction(fps).limit_denominator(1000), kind="mp4", comment=software)
        else:
            save_animation(drawn(), part, kind, fps, software)


def _even(pixels_HWC: np.ndarray) -> np.ndarray:
    """Without a last odd row or column, which H.264 does not take."""
    height, width = pixels_HWC.shape[:2]
    return pixels_HWC[: height - height % 2, : width - width % 2]
