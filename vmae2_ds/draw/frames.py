"""Frames of a video with boxes, names and labels in them, and below each of them a list that says every label in full.

A name stands at every box, with its labels where there is room: no two of them overlap, and none leaves its frame. Points, from
the upper left corner of the sheet.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from vmae2_ds.draw.charts import BLACK
from vmae2_ds.draw.looks import EDGE, FAINT, FONT_SIZE, GAP, KINDS, MARK, SMALL, SOFT, WHITE, draw_mark, head, legend
from vmae2_ds.draw.sheet import Box, Picture, Shape, Sheet, Text, shortened, text_width, wrapped

WIDTH = 1100.0
"""Points of a sheet."""
BETWEEN = 18.0
"""Points between frames."""
LINE = 1.35 * SMALL
"""Height of a line of text."""
USUAL_AREA = 52_000.0
"""Square points of a frame that as many stand side by side as come nearest to."""
NARROWEST, LOWEST, HIGHEST = 165.0, 110.0, 420.0
"""Width of a frame, and its height, in points, that are kept to."""
MOST_LINES = 3
"""Labels beside a name in a frame; the list has all."""
COVERED = 0.22
"""Share of a frame that names with labels cover at most."""
NO_FRAME = "no frame"
OUTLINE, HALO = 1.6, 3.4
"""Thickness of a box's edge, and of the white under it, by which it is seen on dark and on light."""

Extent = tuple[float, float, float, float]
"""Left, top, right, bottom."""


class BoxLabel(NamedTuple):
    """One thing that somebody in a box does."""

    text: str
    kind: str
    """A key of KINDS."""
    value: str = ""
    """A score, in few letters."""


class FrameBox(NamedTuple):
    """A box in a frame."""

    box: Extent
    """Shares of the frame's width and height, from its upper left corner."""
    kind: str
    """A key of KINDS."""
    name: str
    """A few letters that are this frame's own."""
    labels: tuple[BoxLabel, ...] = ()
    note: str = ""
    """What the list says behind the name."""
    named_at: Extent | None = None
    """Where the box was as its name was given a place beside it, which goes with it; None: the place is chosen anew."""


class Panel(NamedTuple):
    """A frame and boxes in it."""

    title: str
    pixels_HWC: np.ndarray | None
    """uint8; None: there is no such frame, and boxes are drawn on grey."""
    boxes: tuple[FrameBox, ...]

    @property
    def aspect(self) -> float:
        """Width over height; 4:3 where there is no frame."""
        return 4 / 3 if self.pixels_HWC is None else self.pixels_HWC.shape[1] / self.pixels_HWC.shape[0]


class FramePicture(NamedTuple):
    """One frame, as often beside itself as there are panels: with the truth, with predictions."""

    title: str
    panels: tuple[Panel, ...]

    def kinds(self) -> Iterator[str]:
        """The kind of every label, and of every box that has none."""
        for box in (box for panel in self.panels for box in panel.boxes):
            yield from (label.kind for label in box.labels) if box.labels else (box.kind,)


class Grid(NamedTuple):
    """How many pictures stand side by side, and how wide each of their panels may be."""

    columns: int
    cell: float
    panel: float


def sheet_of_frames(
    title: str, notes: Sequence[str], frames: Sequence[FramePicture], width: float = WIDTH, *, titled: bool = True
) -> Sheet:
    """A contact sheet: frames with their boxes in rows, in the order given, a legend above them and lists below each.

    `width`: in points; `titled`: with title and notes, which a page has as text of its own.
    """
    shapes: list[Shape] = []
    top = head(title, notes, width - 2 * EDGE, shapes) if titled else EDGE
    top = legend([kind for frame in frames for kind in frame.kinds()], top, width - EDGE, shapes) + 2 * GAP
    grid = grid_of(frames, width - 2 * EDGE)
    for first in range(0, len(frames), grid.columns):
        row = frames[first : first + grid.columns]
        lefts = [EDGE + place * (grid.cell + BETWEEN) for place in range(len(row))]
        height = max((size_of(panel.aspect, grid.panel)[1] for frame in row for panel in frame.panels), default=0.0)
        top = max(
            (draw_frame(frame, left, top, grid, height, shapes) for frame, left in zip(row, lefts, strict=True)),
            default=top,
        )
        top += 3 * GAP
    return Sheet(width, top, title, (Box(0, 0, width, top, WHITE), *shapes))


def grid_of(frames: Sequence[FramePicture], room: float) -> Grid:
    """The columns of a sheet that is `room` wide: frames of about USUAL_AREA, not narrower than NARROWEST, as LOWEST high."""
    beside = max((len(frame.panels) for frame in frames), default=1)
    aspect = float(np.median([panel.aspect for frame in frames for panel in frame.panels] or [1.0]))

    def with_columns(columns: int) -> Grid:
        cell = (room - (columns - 1) * BETWEEN) / columns
        return Grid(columns, cell, (cell - (beside - 1) * GAP) / beside)

    def misfit(grid: Grid) -> float:
        height = min(grid.panel / aspect, HIGHEST)
        return abs(math.log(height * height * aspect / USUAL_AREA))

    grids = [with_columns(columns) for columns in range(1, max(1, len(frames)) + 1)]
    fitting = [grid for grid in grids if grid.panel >= NARROWEST and grid.panel / aspect >= LOWEST]
    return min(fitting or grids[:1], key=lambda grid: (round(misfit(grid), 6), -grid.columns))


def size_of(aspect: float, width: float) -> tuple[float, float]:
    """Width and height of a frame that `width` points are there for."""
    height = min(width / aspect, HIGHEST)
    return height * aspect, height


def draw_frame(frame: FramePicture, left: float, top: float, grid: Grid, height: float, shapes: list[Shape]) -> float:
    """Draw the panels of a frame side by side, with room for frames of `height`, and return where their lists end."""
    if frame.title:
        shapes.append(Text(left, top + LINE / 2, shortened(frame.title, grid.cell, FONT_SIZE, bold=True), FONT_SIZE, BLACK,
                           bold=True))  # fmt: skip
        top += 1.6 * FONT_SIZE
    ends = []
    for place, panel in enumerate(frame.panels):
        x = left + place * (grid.panel + GAP)
        room = grid.panel
        if panel.pixels_HWC is None:
            shapes.append(Text(x + room - GAP, top + LINE / 2, NO_FRAME, SMALL, SOFT, "end"))
            room -= text_width(NO_FRAME, SMALL) + 2 * GAP
        shapes.append(Text(x, top + LINE / 2, shortened(panel.title, room, SMALL), SMALL, SOFT))
        width, own_height = size_of(panel.aspect, grid.panel)
        draw_panel(panel, (x, top + LINE + 2, x + width, top + LINE + 2 + own_height), shapes)
        ends.append(draw_list(panel.boxes, x, top + LINE + 2 + height + GAP, grid.panel, shapes))
    return max(ends, default=top)


def draw_panel(panel: Panel, room: Extent, shapes: list[Shape]) -> None:
    """Draw a frame into a rectangle, its boxes, and their names with as many labels as there is room for."""
    left, top, right, bottom = room
    if panel.pixels_HWC is None:
        shapes.append(Box(left, top, right - left, bottom - top, FAINT))
    else:
        shapes.append(Picture(left, top, right - left, bottom - top, panel.pixels_HWC))
    places = [place_of(box.box, room) for box in panel.boxes]
    for box, place in zip(panel.boxes, places, strict=True):
        kind, x, y = KINDS[box.kind], place[0], place[1]
        size = (place[2] - x, place[3] - y)
        about = f"{box.name}: {box.kind}"
        shapes.append(Box(x, y, *size, "none", WHITE, thickness=HALO))
        shapes.append(Box(x, y, *size, "none", kind.colour, dashed=kind.hollow, about=about, thickness=OUTLINE))
    for chip in _moved_chips(panel.boxes, places, room) or place_chips(panel.boxes, places, room):
        _draw_chip(chip, shapes)


def _moved_chips(boxes: Sequence[FrameBox], places: Sequence[Extent], room: Extent) -> list[Chip]:
    """Names that have gone with their boxes, of all that have places for them; none where they now touch."""
    before = [place_of(box.named_at, room) for box in boxes if box.named_at is not None]
    if len(before) < len(boxes):
        return []
    now = {box.name: (old, new) for box, old, new in zip(boxes, before, places, strict=True)}
    chips = []
    for chip in place_chips(boxes, before, room):
        old, new = now[chip.box.name]
        left, top, right, bottom = chip.extent
        corner = (left + (new[0] + new[2] - old[0] - old[2]) / 2, top + new[1] - old[1])
        chips.append(chip._replace(extent=_clamped(corner, right - left, bottom - top, room)))
    pairs = itertools.combinations((chip.extent for chip in chips), 2)
    return [] if any(touch(one, other) for one, other in pairs) else chips


def place_of(box: Extent, room: Extent) -> Extent:
    """Where a box, in shares of a frame, lies in the frame's rectangle; what is outside of the frame is cut off."""
    left, top, right, bottom = room
    x = sorted(min(max(left + share * (right - left), left + 1), right - 1) for share in (box[0], box[2]))
    y = sorted(min(max(top + share * (bottom - top), top + 1), bottom - 1) for share in (box[1], box[3]))
    return x[0], y[0], x[1], y[1]


# --- names in the frame ----------------------------------------------------------------------------------------------


class Chip(NamedTuple):
    """The name of a box, with labels or without, on white."""

    extent: Extent
    box: FrameBox
    labels: tuple[BoxLabel, ...]
    """Cut to what fits."""


def place_chips(boxes: Sequence[FrameBox], places: Sequence[Extent], room: Extent) -> list[Chip]:
    """Names of boxes, placed so that no two overlap and all lie in `room`: first all names, then labels where they fit.

    `places`: where the boxes are. Names that fit nowhere, in a crowd in a tiny frame, are left to the list.
    """
    chips: dict[int, Chip] = {}
    for number, box in enumerate(boxes):
        _put(number, box, (), places, room, chips, anywhere=True)
    left, top, right, bottom = room
    most = COVERED * (right - left) * (bottom - top)
    for lines in (1, MOST_LINES):  # one label for each before three for anybody
        for number, box in enumerate(boxes):
            labels = _cut(box.labels[:lines], 0.6 * (right - left))
            if number in chips and len(labels) > len(chips[number].labels):
                before = chips.pop(number)
                _put(number, box, labels, places, room, chips, anywhere=False)
                if number not in chips or sum(map(_area, (chip.extent for chip in chips.values()))) > most:
                    chips[number] = before
    return [chips[number] for number in sorted(chips)]


def _cut(labels: Sequence[BoxLabel], width: float) -> tuple[BoxLabel, ...]:
    """Labels that take no more than that width, with their marks and values."""
    return tuple(
        label._replace(text=shortened(label.text, max(width - MARK - 3 - _value_width(label), 3 * SMALL), SMALL))
        for label in labels
    )


def _value_width(label: BoxLabel) -> float:
    return text_width(f" {label.value}", SMALL) if label.value else 0.0


def _label_width(label: BoxLabel) -> float:
    return text_width(label.text, SMALL) + _value_width(label) + (MARK + 3 if KINDS[label.kind].mark else 0)


def _put(
    number: int,
    box: FrameBox,
    labels: tuple[BoxLabel, ...],
    places: Sequence[Extent],
    room: Extent,
    chips: dict[int, Chip],
    anywhere: bool,
) -> None:
    """Give a name the place at its box where it hides least; where all are taken none, or with `anywhere` the nearest."""
    width = text_width(box.name, SMALL, bold=True) + 4 + max((_label_width(label) + 4 for label in labels), default=0)
    height = LINE * max(1, len(labels)) + 1
    left, top, right, bottom = room
    if width > right - left or height > bottom - top:
        return
    taken = [chip.extent for chip in chips.values()]
    own = places[number]
    corners = list(dict.fromkeys(_clamped(corner, width, height, room) for corner in _corners(own, width, height)))
    free = [one for one in corners if not any(touch(one, other) for other in taken)]
    if not free and anywhere:
        spots = [(x, y) for y in np.arange(top, bottom - height, height / 2) for x in np.arange(left, right - width, 4)]
        spots.sort(key=lambda spot: math.dist(spot, own[:2]))
        all_free = (_clamped(spot, width, height, room) for spot in spots)
        free = [one for one in all_free if not any(touch(one, other) for other in taken)][:1]
    if free:
        chips[number] = Chip(min(free, key=lambda one: _hides(one, number, places)), box, labels)


def _corners(own: Extent, width: float, height: float) -> Iterator[tuple[float, float]]:
    """Upper left corners at a box, the ones that look best first: above it, inside, below, beside."""
    left, top, right, bottom = own
    for y in (top - height - 1, top + 1, bottom + 1, bottom - height - 1):
        for x in (left, right - width, (left + right - width) / 2):
            yield x, y
    for y in (top, bottom - height, (top + bottom - height) / 2):
        for x in (right + 1, left - width - 1):
            yield x, y


def _clamped(corner: tuple[float, float], width: float, height: float, room: Extent) -> Extent:
    x = min(max(corner[0], room[0]), room[2] - width)
    y = min(max(corner[1], room[1]), room[3] - height)
    return x, y, x + width, y + height


def _hides(one: Extent, number: int, places: Sequence[Extent]) -> float:
    """How much of the boxes lies under it, the others' and upper thirds, where faces are, counted four times.

    Far from its own box is as bad as hiding.
    """
    own = places[number]
    face = (own[0], own[1], own[2], own[1] + (own[3] - own[1]) / 3)
    hidden = sum((1 if place == number else 4) * _shared(one, other) for place, other in enumerate(places))
    hidden += 3 * _shared(one, face)
    apart = max(own[0] - one[2], one[0] - own[2], own[1] - one[3], one[1] - own[3], 0.0)
    return hidden + _area(one) * (apart > 2)


def touch(one: Extent, other: Extent) -> bool:
    """Whether two rectangles share an area."""
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]


def _shared(one: Extent, other: Extent) -> float:
    return max(0.0, min(one[2], other[2]) - max(one[0], other[0])) * max(
        0.0, min(one[3], other[3]) - max(one[1], other[1])
    )


def _area(one: Extent) -> float:
    return (one[2] - one[0]) * (one[3] - one[1])


def _draw_chip(chip: Chip, shapes: list[Shape]) -> None:
    left, top, right, bottom = chip.extent
    inset = OUTLINE / 4  # the edge stays inside of the extent
    shapes.append(Box(left + inset, top + inset, right - left - 2 * inset, bottom - top - 2 * inset, WHITE,
                      KINDS[chip.box.kind].colour, thickness=OUTLINE / 2))  # fmt: skip
    shapes.append(Text(left + 2, top + 0.5 + LINE / 2, chip.box.name, SMALL, BLACK, bold=True))
    x = left + 4 + text_width(chip.box.name, SMALL, bold=True)
    for line, label in enumerate(chip.labels):
        _draw_label(label, x, top + 0.5 + LINE * (line + 0.5), shapes)


def _draw_label(label: BoxLabel, x: float, y: float, shapes: list[Shape]) -> None:
    if KINDS[label.kind].mark:
        draw_mark(KINDS[label.kind], x + MARK / 2, y, shapes, label.kind)
        x += MARK + 3
    said = f"{label.text} {label.value}" if label.value else label.text
    shapes.append(Text(x, y, said, SMALL, BLACK))


# --- the list below it -----------------------------------------------------------------------------------------------


def draw_list(boxes: Sequence[FrameBox], left: float, top: float, width: float, shapes: list[Shape]) -> float:
    """Draw what each box is, labels in full, in lines of `width`; returns where the list ends."""
    indent = max((text_width(box.name, SMALL, bold=True) for box in boxes), default=0.0) + 5
    for box in boxes:
        shapes.append(Text(left, top + LINE / 2, box.name, SMALL, BLACK, bold=True))
        x = left + indent
        if box.note:
            note = shortened(box.note, width - indent, SMALL)
            shapes.append(Text(x, top + LINE / 2, note, SMALL, SOFT))
            x += text_width(note, SMALL) + 6
        for label in box.labels:
            if x > left + indent and x + _label_width(label) > left + width:
                x, top = left + indent, top + LINE
            x, top = _draw_in_full(label, x, top, left + indent, left + width, shapes)
        top += LINE + 1
    return top


def _draw_in_full(
    label: BoxLabel, x: float, top: float, left: float, right: float, shapes: list[Shape]
) -> tuple[float, float]:
    """Draw a label, in several lines where it does not fit into one; returns where the next begins, and on which line."""
    mark = MARK + 3 if KINDS[label.kind].mark else 0.0
    lines = wrapped(label.text, right - x - mark - _value_width(label), SMALL, most=40)
    for number, line in enumerate(lines):
        last = number == len(lines) - 1
        shown = label._replace(text=line, value=label.value if last else "")
        if number == 0:
            _draw_label(shown, x, top + LINE / 2, shapes)
        else:
            top += LINE
            shapes.append(Text(left + mark, top + LINE / 2, f"{line} {shown.value}".rstrip(), SMALL, BLACK))
            x = left
    return x + mark + text_width(lines[-1], SMALL) + _value_width(label) + 7, top
