"""A video's timeline: rows of truth and of predictions by class over the seconds, and frames under the axis."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from vmae2_ds.draw.charts import BLACK, BLUE
from vmae2_ds.draw.looks import (
    BAR,
    EDGE,
    FAINT,
    FONT_SIZE,
    GAP,
    KINDS,
    LANE,
    MARK,
    SMALL,
    SOFT,
    WHITE,
    draw_mark,
    head,
    legend,
)  # fmt: skip
from vmae2_ds.draw.sheet import Box, Line, Picture, Shape, Sheet, Text, text_width, wrapped

WIDTH = 1100.0
"""Points of a picture; on a page, which stretches it, fewer make letters larger."""
NAMES_AT_MOST = 0.19
"""Share of the width that names of classes take at most."""
THINNEST = 1.5
"""Points that even the shortest bar is wide."""
MOST_TICKS = 12
STEPS_S = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600)
TALLEST_FRAME = 110.0
SCALE = 20.0
"""Room of the axis with its times."""
ROWS_WITH_TWO_SCALES = 6
"""From more rows on the times stand above them too."""


class Bar(NamedTuple):
    """A stretch of time on a row."""

    start_s: float
    end_s: float
    kind: str
    """A key of KINDS."""
    text: str = ""
    """What is written beside it."""
    about: str = ""
    """What a page says where the pointer rests on it."""


class ClassRow(NamedTuple):
    """What is known of one class: its truth above, its predictions below, the first bars uppermost."""

    name: str
    truth: tuple[Bar, ...]
    predictions: tuple[Bar, ...]


class FrameStrip(NamedTuple):
    """Frames of the video and where on the axis they belong."""

    time_s: tuple[float, ...]
    """The time of each frame."""
    pixels_NHWC: np.ndarray
    """uint8 (N, H, W, 3)."""


class ChangeStrip(NamedTuple):
    """How much something changes along time."""

    time_S: np.ndarray
    """Seconds, ascending."""
    change_S: np.ndarray
    """0 to 1."""


class Timeline(NamedTuple):
    """All that a timeline shows."""

    title: str
    notes: tuple[str, ...]
    """Lines under the title."""
    duration_s: float
    rows: tuple[ClassRow, ...]
    frames: FrameStrip | None = None
    change: ChangeStrip | None = None

    def bars(self) -> Iterator[Bar]:
        """Every bar, row by row."""
        for row in self.rows:
            yield from (*row.truth, *row.predictions)


def sheet_of(timeline: Timeline, width: float = WIDTH, *, titled: bool = True) -> Sheet:
    """Lay a timeline out: what is where is decided here, for the picture and for a page alike.

    `width`: in points; `titled`: with title and notes, which a page has as text of its own.
    """
    shapes: list[Shape] = []
    top = head(timeline.title, timeline.notes, width - 2 * EDGE, shapes) if titled else EDGE
    left = EDGE + _names_width(timeline.rows, NAMES_AT_MOST * width) + 2 * GAP
    axis = _Axis(left, width - EDGE, max(timeline.duration_s, 1e-3))
    ticks = list(_ticks(axis))
    shapes_of_rows: list[Shape] = []
    bottom = top = top + (SCALE if len(timeline.rows) > ROWS_WITH_TWO_SCALES else 0)
    for row in timeline.rows:
        bottom = _row(row, axis, bottom, shapes_of_rows)
    if timeline.change is not None:
        bottom = _change(timeline.change, axis, bottom, shapes_of_rows)
    for time_s, _ in ticks:  # under the bars
        shapes.append(Line(axis.x(time_s), top, axis.x(time_s), bottom, FAINT))
    shapes += shapes_of_rows
    if len(timeline.rows) > ROWS_WITH_TWO_SCALES:
        _scale(axis, ticks, top, -1, shapes)
    _scale(axis, ticks, bottom, 1, shapes)
    bottom += SCALE
    if timeline.frames is not None:
        bottom = _strip(timeline.frames, axis, bottom, shapes)
    bottom = legend([bar.kind for bar in timeline.bars()], bottom + GAP, axis.right, shapes) + EDGE / 2
    return Sheet(width, bottom, timeline.title, (Box(0, 0, width, bottom, WHITE), *shapes))


def _scale(axis: _Axis, ticks: Sequence[tuple[float, str]], y: float, side: int, shapes: list[Shape]) -> None:
    """Draw the axis at `y`, its times above it (side -1) or below (1)."""
    shapes.append(Line(axis.left, y, axis.right, y, SOFT, 1.0))
    for time_s, label in ticks:
        shapes.append(Line(axis.x(time_s), y, axis.x(time_s), y + 4 * side, SOFT, 1.0))
        middle = min(axis.x(time_s), axis.right + EDGE - GAP - text_width(label, SMALL) / 2)
        shapes.append(Text(middle, y + 12 * side, label, SMALL, SOFT, "middle"))


class _Axis(NamedTuple):
    left: float
    right: float
    duration_s: float

    def x(self, time_s: float) -> float:
        """Where a time is, times beyond the axis at its ends."""
        share = min(1.0, max(0.0, time_s / self.duration_s))
        return self.left + share * (self.right - self.left)


def _names_width(rows: Sequence[ClassRow], most: float) -> float:
    longest = max((text_width(row.name, FONT_SIZE) for row in rows), default=0.0)
    return max(min(math.ceil(longest), most), text_width("predictions", SMALL))


def _row(row: ClassRow, axis: _Axis, top: float, shapes: list[Shape]) -> float:
    """Draw a class; returns where it ends."""
    name = wrapped(row.name, axis.left - EDGE - 2 * GAP, FONT_SIZE, most=2)
    y = top + GAP
    shapes.append(Line(EDGE, top, axis.right, top, FAINT, 1.0))
    for number, line in enumerate(name):
        shapes.append(Text(EDGE, y + LANE / 2 + 1.25 * FONT_SIZE * number, line, FONT_SIZE, BLACK))
    ends = y + LANE / 2 + 1.25 * FONT_SIZE * (len(name) - 0.4)
    for bars in (row.truth, row.predictions):
        placed = [_placed(bar, axis) for bar in bars]
        lanes = lanes_of([(one.low, one.high) for one in placed])
        for one, lane in zip(placed, lanes, strict=True):
            _draw_bar(one, y + LANE * lane + LANE / 2, shapes)
        y += LANE * (max(lanes, default=-1) + 1)
    return max(y, ends) + GAP


class _Placed(NamedTuple):
    """A bar with what stands beside it, in points from the left."""

    bar: Bar
    start: float
    end: float
    mark: float
    """The middle of its mark."""
    text: float
    """Where its text begins."""
    low: float
    high: float
    """The room that all of it takes."""


def _placed(bar: Bar, axis: _Axis) -> _Placed:
    """Mark and text stand behind the bar; before it where the axis ends too soon; else on its end."""
    start, end = axis.x(bar.start_s), axis.x(bar.end_s)
    if end - start < THINNEST:
        start = min(start, axis.right - THINNEST)
        end = start + THINNEST
    mark = MARK + 3.5 if KINDS[bar.kind].mark else 0.0
    text = text_width(bar.text, SMALL) + 2 if bar.text else 0.0
    beside = mark + text + (2 if mark or text else 0)
    if end + beside <= axis.right + EDGE - GAP:
        at, low, high = end + 2, start, end + beside
    elif start - beside >= axis.left:
        at, low, high = start - beside, start - beside, end
    else:
        at, low, high = max(start, end - beside - 2), start, max(end, start + beside)
    return _Placed(bar, start, end, at + MARK / 2, at + mark, low - 1.5, high + 1.5)


def lanes_of(extents: Sequence[tuple[float, float]]) -> list[int]:
    """The lane of each stretch (low, high), in their order the uppermost in which it touches none before it."""
    lanes: list[list[tuple[float, float]]] = []
    found = []
    for low, high in extents:
        is_free = (all(high <= other[0] or low >= other[1] for other in taken) for taken in lanes)
        lane = next((number for number, free in enumerate(is_free) if free), len(lanes))
        if lane == len(lanes):
            lanes.append([])
        lanes[lane].append((low, high))
        found.append(lane)
    return found


def _draw_bar(placed: _Placed, y: float, shapes: list[Shape]) -> None:
    bar, kind = placed.bar, KINDS[placed.bar.kind]
    width = placed.end - placed.start
    if kind.hollow:
        shapes.append(Box(placed.start, y - BAR / 2, width, BAR, WHITE, kind.colour, dashed=True, about=bar.about))
    else:
        shapes.append(Box(placed.start, y - BAR / 2, width, BAR, kind.colour, about=bar.about))
    inside = placed.start <= placed.mark <= placed.end and bool(bar.text or kind.mark)
    if inside:
        beside = placed.text + text_width(bar.text, SMALL) - placed.mark + MARK / 2 + 2
        shapes.append(Box(placed.mark - MARK / 2 - 1, y - BAR / 2 + 0.5, beside, BAR - 1, WHITE, about=bar.about))
    draw_mark(kind, placed.mark, y, shapes, bar.about)
    if bar.text:
        shapes.append(Text(placed.text, y, bar.text, SMALL, BLACK))


def _ticks(axis: _Axis) -> Iterator[tuple[float, str]]:
    """Round times and what they are called; seconds below two minutes, then minutes:seconds and hours:minutes:seconds."""
    step = next((step for step in STEPS_S if axis.duration_s / step <= MOST_TICKS), None)
    if step is None:
        step = 3600 * math.ceil(axis.duration_s / 3600 / MOST_TICKS)
    for number in range(int(axis.duration_s / step + 1e-9) + 1):
        yield number * step, time_text(number * step, axis.duration_s)


def time_text(time_s: float, duration_s: float) -> str:
    """A time as a video of that length has it: 12.5 s, 3:20, 1:02:30."""
    if duration_s < 120:
        return f"{round(time_s, 2):g} s"
    minutes, seconds = divmod(round(time_s), 60)
    if duration_s < 3600:
        return f"{minutes}:{seconds:02}"
    return f"{minutes // 60}:{minutes % 60:02}:{seconds:02}"


def _strip(frames: FrameStrip, axis: _Axis, top: float, shapes: list[Shape]) -> float:
    """Draw the frames, each around its time but where a neighbour or the edge is in the way; returns where they end."""
    number, height, width = frames.pixels_NHWC.shape[:3]
    cell = (axis.right - axis.left) / number
    shown_width = min(cell - GAP, TALLEST_FRAME * width / height)
    shown_height = shown_width * height / width
    for time_s, pixels_HWC in zip(frames.time_s, frames.pixels_NHWC, strict=True):
        middle = axis.x(time_s)
        left = min(max(middle - shown_width / 2, axis.left), axis.right - shown_width)
        shapes.append(Line(middle, top - 4, middle, top, SOFT, 1.0))
        about = f"frame at {time_text(time_s, axis.duration_s)}"
        shapes.append(Picture(left, top, shown_width, shown_height, pixels_HWC, about))
    return top + shown_height + GAP


def _change(change: ChangeStrip, axis: _Axis, top: float, shapes: list[Shape]) -> float:
    """Draw a strip that is the darker the more changes, white where nothing is known; returns where it ends."""
    columns = math.ceil(axis.right - axis.left)
    middle_S = (change.time_S[1:] + change.time_S[:-1]) / 2
    half = np.diff(change.time_S).min() / 2 if len(middle_S) else axis.duration_s / columns
    edges = [change.time_S[0] - half, *middle_S, change.time_S[-1] + half]
    at = np.clip(np.array(edges) / axis.duration_s, 0, 1) * columns
    largest_X = np.zeros(columns)
    for low, high, value in zip(
        np.floor(at[:-1]).astype(int), np.ceil(at[1:]).astype(int), change.change_S, strict=True
    ):
        largest_X[low:high] = np.maximum(largest_X[low:high], value)
    blue = np.array([int(BLUE[place : place + 2], 16) for place in (1, 3, 5)])
    pixels_1XC = (255 + largest_X[None, :, None] * (blue - 255)).round().astype(np.uint8)
    shapes.append(Line(EDGE, top, axis.right, top, FAINT, 1.0))
    shapes.append(Text(EDGE, top + GAP + LANE / 2, "change", FONT_SIZE, SOFT))
    about = "how much features change from window to window: one less their cosine, as a share of the largest here"
    shapes.append(Picture(axis.left, top + GAP, axis.right - axis.left, LANE, pixels_1XC, about))
    return top + LANE + 2 * GAP
