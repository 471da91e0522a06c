"""What drawings have in common: sizes, kinds of bars and boxes by colour and mark, title and legend.

A kind has a colour of Okabe and Ito's, told apart by people who are colour-blind, and a mark of its own shape.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

from vmae2_ds.draw.charts import BLACK, BLUE, GREEN, ORANGE
from vmae2_ds.draw.sheet import Box, Mark, Shape, Sheet, Text, text_width, wrapped

Polygons = tuple[tuple[tuple[float, float], ...], ...]

EDGE, GAP = 12.0, 4.0
"""Points around the drawing, and between what must not touch."""
FONT_SIZE, SMALL, TITLE_SIZE = 9.0, 8.0, 12.0
LANE, BAR, MARK = 14.0, 9.0, 8.0
"""Heights of a lane and of the bar in it, and the width of a mark."""
SOFT, FAINT, WHITE = "#5b6470", "#e3e7ec", "#ffffff"


def _around(count: int, radius: float = 0.5, turn: float = 0.0) -> tuple[tuple[float, float], ...]:
    angles = [2 * math.pi * (corner / count + turn) for corner in range(count)]
    return tuple((radius * math.cos(angle), radius * math.sin(angle)) for angle in angles)


_CROSS = tuple((x / 6, y / 6) for x, y in ((-3, -2), (-2, -3), (0, -1), (2, -3), (3, -2), (1, 0), (3, 2), (2, 3),
                                           (0, 1), (-2, 3), (-3, 2), (-1, 0)))  # fmt: skip
MARKS: dict[str, Polygons] = {
    "": (),
    "disc": (_around(16),),
    "diamond": (_around(4, 0.6),),
    "triangle": (_around(3, 0.6, turn=-0.25),),
    "cross": (_CROSS,),
    "two bars": tuple(((x, -0.5), (x + 0.3, -0.5), (x + 0.3, 0.5), (x, 0.5)) for x in (-0.45, 0.15)),
    "ring": (_around(16), tuple(reversed(_around(16, 0.28)))),
}
"""Shapes of width 1 around the middle."""


class Kind(NamedTuple):
    """How bars of one kind look."""

    colour: str
    mark: str
    """A key of MARKS."""
    hollow: bool = False


KINDS: dict[str, Kind] = {
    "truth": Kind("#555555", ""),
    "truth found": Kind(BLACK, ""),
    "truth missed": Kind(BLACK, "ring", hollow=True),
    "correct": Kind(GREEN, "disc"),
    "double": Kind(BLUE, "two bars"),
    "localisation": Kind("#E69F00", "triangle"),
    "wrong label": Kind("#CC79A7", "diamond"),
    "background": Kind(ORANGE, "cross"),
    "prediction": Kind("#8a929c", ""),
}
"""Kinds of bars by name; plain "truth" and "prediction" have nothing to be compared with."""


def head(title: str, notes: Sequence[str], room: float, shapes: list[Shape]) -> float:
    """Draw a title and lines under it, `room` points wide; returns where they end."""
    y = EDGE + TITLE_SIZE / 2
    for line in wrapped(title, room, TITLE_SIZE, most=3, bold=True):
        shapes.append(Text(EDGE, y, line, TITLE_SIZE, BLACK, bold=True))
        y += 1.35 * TITLE_SIZE
    for note in notes:
        for line in wrapped(note, room, FONT_SIZE, most=8):
            shapes.append(Text(EDGE, y, line, FONT_SIZE, SOFT))
            y += 1.4 * FONT_SIZE
    return y + GAP


def draw_mark(kind: Kind, x: float, y: float, shapes: list[Shape], about: str = "") -> None:
    """Draw the mark of a kind around a point; nothing for a kind without one."""
    polygons = tuple(
        tuple((x + MARK * right, y + MARK * down) for right, down in corners) for corners in MARKS[kind.mark]
    )
    if polygons:
        shapes.append(Mark(polygons, kind.colour, kind.colour, about))


def legend(kinds: Sequence[str], top: float, right: float, shapes: list[Shape]) -> float:
    """How often each kind is drawn, with its colour and mark; returns where it ends."""
    x, y = EDGE, top + LANE / 2
    for name, kind in KINDS.items():
        if name not in kinds:
            continue
        said = f"{name} {kinds.count(name)}"
        needed = 16 + 4 + (MARK + 4 if kind.mark else 0) + text_width(said, FONT_SIZE) + 14
        if x + needed > right and x > EDGE:
            x, y = EDGE, y + LANE
        _sample(kind, x, y, shapes)
        shapes.append(Text(x + 20 + (MARK + 4 if kind.mark else 0), y, said, FONT_SIZE, BLACK))
        x += needed
    return y + LANE / 2


def icon_of(kind: str) -> Sheet:
    """A small drawing of how a kind of KINDS looks, for tables."""
    shapes: list[Shape] = []
    _sample(KINDS[kind], 1, LANE / 2, shapes)
    return Sheet(20 + MARK + 4, LANE, kind, tuple(shapes))


def _sample(kind: Kind, x: float, y: float, shapes: list[Shape]) -> None:
    """Draw a piece of a bar, and its mark behind it."""
    edge, fill = (kind.colour, WHITE) if kind.hollow else (None, kind.colour)
    shapes.append(Box(x, y - BAR / 2, 16, BAR, fill, edge, dashed=kind.hollow))
    draw_mark(kind, x + 20 + MARK / 2, y, shapes)
