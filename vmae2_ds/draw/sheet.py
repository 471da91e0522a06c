"""A drawing as a list of shapes, which one function writes as SVG and another as PNG: what is drawn where is plain data.

Lengths are in points of 1/72 inch from the upper left corner; text is set in DejaVu Sans, or what the browser has.
"""

from __future__ import annotations

import base64
import io
import logging
import math
import unicodedata
import warnings
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple

import numpy as np

from vmae2_ds.disk import whole_file, write_whole
from vmae2_ds.errors import ConfigError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

log = logging.getLogger(__name__)

FONT = "DejaVu Sans"
"""Comes with matplotlib; where it lacks a letter another font of the machine is taken for that."""
DOTS_PER_POINT = 2
SVG_HEAD = '<?xml version="1.0" encoding="UTF-8"?>\n'
MOST_POINTS = 20_000
"""Height or width of a PNG that is still drawn: Agg takes less than 2^16 dots."""


class Box(NamedTuple):
    """A rectangle."""

    x: float
    y: float
    width: float
    height: float
    fill: str
    """A colour, or "none"."""
    edge: str | None = None
    dashed: bool = False
    about: str = ""
    """What a page says where the pointer rests on it."""
    thickness: float = 1.0
    """Points that the edge is wide, half of them to each side."""


class Line(NamedTuple):
    """A straight line."""

    x: float
    y: float
    to_x: float
    to_y: float
    colour: str
    width: float = 0.7


class Mark(NamedTuple):
    """A small filled polygon, or several."""

    polygons: tuple[tuple[tuple[float, float], ...], ...]
    fill: str
    edge: str
    about: str = ""


class Text(NamedTuple):
    """One line of text; `y` is its middle."""

    x: float
    y: float
    text: str
    size: float
    colour: str
    anchor: Literal["start", "middle", "end"] = "start"
    bold: bool = False


class Picture(NamedTuple):
    """Pixels, uint8 (H, W, 3), stretched over a rectangle."""

    x: float
    y: float
    width: float
    height: float
    pixels_HWC: np.ndarray
    about: str = ""


Shape = Box | Line | Mark | Text | Picture


class Sheet(NamedTuple):
    """Shapes, the lowest first, on white."""

    width: float
    height: float
    title: str
    shapes: tuple[Shape, ...]

    @property
    def texts(self) -> list[Text]:
        """All that is written on it."""
        return [shape for shape in self.shapes if isinstance(shape, Text)]


def text_width(text: str, size: float, bold: bool = False) -> float:
    """Points that a line takes at most in FONT, which is wider than what browsers have."""
    return (1.15 if bold else 1.0) * size * sum(map(_letter_width, text))


def _letter_width(letter: str) -> float:
    """In sizes of the font."""
    if letter in "mwMW@%#&+<=>^~—…" or unicodedata.east_asian_width(letter) in "WF":
        return 1.0
    if letter in "iljIftr.,:;·'|!()[]-/ ":
        return 0.42
    if letter.isascii():
        return 0.8 if letter.isupper() else 0.68
    return 1.0 if letter.isupper() else 0.86


def shortened(text: str, width: float, size: float, bold: bool = False) -> str:
    """The text, cut with an ellipsis where it does not fit."""
    if text_width(text, size, bold) <= width:
        return text
    while len(text) > 1 and text_width(f"{text}…", size, bold) > width:
        text = text[:-1]
    return f"{text}…"


def wrapped(text: str, width: float, size: float, most: int, bold: bool = False) -> list[str]:
    """Up to `most` lines that fit, broken at spaces, hyphens and underscores, else anywhere; the last may be shortened."""
    lines: list[str] = []
    while text and len(lines) < most - 1 and text_width(text, size, bold) > width:
        end = len(text)
        while end > 1 and text_width(text[:end], size, bold) > width:
            end -= 1
        at = max(text.rfind(mark, 0, end + (mark == " ")) + (mark != " ") for mark in " -_")
        end = at if at > 0.3 * end else end
        lines.append(text[:end].rstrip())
        text = text[end:].lstrip()
    return [*lines, shortened(text, width, size, bold)]


def readable(text: str) -> str:
    """The text with "?" for bytes of a name that are no text and for control characters, which no font has."""
    text = text.encode("utf-8", "replace").decode()
    return "".join("?" if unicodedata.category(letter) == "Cc" else letter for letter in text)


# --- SVG -------------------------------------------------------------------------------------------------------------


def svg_of_sheet(sheet: Sheet) -> str:
    """The sheet as an inline SVG element that scales with the page; its pictures are JPEGs inside."""
    inside = "".join(map(_element, sheet.shapes))
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_of(sheet.width)} {_of(sheet.height)}" role="img" '
        f'aria-label="{escape(readable(sheet.title))}" font-family="system-ui, &quot;{FONT}&quot;, sans-serif">{inside}</svg>'
    )


def jpeg_url(pixels_HWC: np.ndarray, most: tuple[int, int]) -> str:
    """A data: URL of the picture, made smaller where it is larger than `most` (width, height)."""
    from PIL import Image

    image, file = Image.fromarray(pixels_HWC), io.BytesIO()
    image.thumbnail(most)
    image.save(file, "JPEG", quality=75)
    return "data:image/jpeg;base64," + base64.b64encode(file.getvalue()).decode()


def _element(shape: Shape) -> str:
    if isinstance(shape, Text):
        bold = ' font-weight="600"' if shape.bold else ""
        return (
            f'<text x="{_of(shape.x)}" y="{_of(shape.y)}" dy=".35em" font-size="{_of(shape.size)}" fill="{shape.colour}" '
            f'text-anchor="{shape.anchor}"{bold}>{escape(readable(shape.text))}</text>'
        )
    if isinstance(shape, Line):
        ends = f'x1="{_of(shape.x)}" y1="{_of(shape.y)}" x2="{_of(shape.to_x)}" y2="{_of(shape.to_y)}"'
        return f'<line {ends} stroke="{shape.colour}" stroke-width="{_of(shape.width)}"/>'
    about = f"<title>{escape(readable(shape.about))}</title>" if shape.about else ""
    if isinstance(shape, Mark):
        path = "".join(f"M{' '.join(f'{_of(x)},{_of(y)}' for x, y in polygon)}Z" for polygon in shape.polygons)
        return f'<path d="{path}" fill="{shape.fill}" stroke="{shape.edge}" stroke-width=".7">{about}</path>'
    place = f'x="{_of(shape.x)}" y="{_of(shape.y)}" width="{_of(shape.width)}" height="{_of(shape.height)}"'
    if isinstance(shape, Picture):
        most = (math.ceil(DOTS_PER_POINT * shape.width), math.ceil(DOTS_PER_POINT * shape.height))
        source = jpeg_url(shape.pixels_HWC, most)
        return f'<image {place} preserveAspectRatio="none" href="{source}">{about}</image>'
    edge = f' stroke="{shape.edge}"' if shape.edge else ""
    edge += f' stroke-width="{_of(shape.thickness)}"' if shape.thickness != 1 else ""
    dashes = ' stroke-dasharray="3 2"' if shape.dashed else ""
    return f'<rect {place} fill="{shape.fill}"{edge}{dashes}>{about}</rect>'


def _of(number: float) -> str:
    return f"{number:.2f}".rstrip("0").rstrip(".")


# --- PNG -------------------------------------------------------------------------------------------------------------


def write_sheet(sheet: Sheet, path: Path, software: str) -> None:
    """Write the sheet as a PNG, or as SVG to a path that ends so, that says which `software` made it.

    Letters that no font has are told once. Raises ConfigError where it is larger than a PNG can be drawn.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix.lower() == ".svg":
        return write_whole(path, f"{SVG_HEAD}<!-- {escape(software)} -->\n{svg_of_sheet(sheet)}\n".encode())
    if (longest := max(sheet.width, sheet.height)) > MOST_POINTS:
        raise ConfigError(
            f"{path}: the picture would be {longest:,.0f} points long, and {MOST_POINTS:,} is the most: draw less on it"
        )
    figure = _figure_of(sheet, DOTS_PER_POINT, families_of(sheet))
    with whole_file(path) as part, warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from")  # `families_of` has said so
        figure.savefig(part, format="png", metadata={"Software": software})


def pixels_of(sheet: Sheet, dots_per_point: float, families: list[str]) -> np.ndarray:
    """The sheet as uint8 (H, W, 3), lettered in the fonts that `families_of` names."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    canvas = FigureCanvasAgg(_figure_of(sheet, dots_per_point, families))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from")
        canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()


def made_by(path: Path, software: str) -> bool:
    """Whether a file is a picture or an animation that says so."""
    with open(path, "rb") as file:
        head = file.read(1 << 12)
        file.seek(max(0, path.stat().st_size - (1 << 16)))
        tail = file.read()  # where a WebP and an MP4 say it
    is_picture = head.startswith((b"\x89PNG", b"GIF8", b"RIFF", SVG_HEAD.encode())) or head[4:8] == b"ftyp"
    return is_picture and software.encode() in head + tail


def _figure_of(sheet: Sheet, dots_per_point: float, families: list[str]) -> Figure:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(sheet.width / 72, sheet.height / 72), dpi=72 * dots_per_point)
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set_xlim(0, sheet.width)
    axes.set_ylim(sheet.height, 0)
    axes.axis("off")
    _paint(figure, sheet.shapes, families)
    return figure


def _paint(figure: Figure, shapes: Sequence[Shape], families: list[str]) -> None:
    from matplotlib.patches import PathPatch, Rectangle
    from matplotlib.path import Path as Outline

    axes = figure.axes[0]
    anchors = {"start": "left", "middle": "center", "end": "right"}
    bold = "bold" if len(families) == 1 else "normal"  # other fonts may have no bold letters
    for order, shape in enumerate(shapes):
        if isinstance(shape, Text):
            axes.text(
                shape.x, shape.y, readable(shape.text), fontsize=shape.size, color=shape.colour, family=families,
                ha=anchors[shape.anchor], va="center_baseline", weight=bold if shape.bold else "normal",
                parse_math=False, zorder=order,
            )  # fmt: skip
        elif isinstance(shape, Line):
            ends = ([shape.x, shape.to_x], [shape.y, shape.to_y])
            axes.plot(*ends, color=shape.colour, lw=shape.width, zorder=order, solid_capstyle="butt")
        elif isinstance(shape, Mark):
            closed = [Outline([*polygon, polygon[0]], closed=True) for polygon in shape.polygons]
            outline = Outline.make_compound_path(*closed)
            axes.add_artist(PathPatch(outline, facecolor=shape.fill, edgecolor=shape.edge, lw=0.7, zorder=order))
        elif isinstance(shape, Box):
            axes.add_artist(
                Rectangle(
                    (shape.x, shape.y), shape.width, shape.height, facecolor=shape.fill, zorder=order,
                    edgecolor=shape.edge or "none", lw=shape.thickness, ls=(0, (3, 2)) if shape.dashed else "-",
                )
            )  # fmt: skip
        else:
            extent = (shape.x, shape.x + shape.width, shape.y + shape.height, shape.y)
            axes.imshow(shape.pixels_HWC, extent=extent, aspect="auto", interpolation="antialiased", zorder=order)
    width, height = figure.get_size_inches() * 72
    axes.set_xlim(0, width)  # a picture has set its own
    axes.set_ylim(height, 0)


def families_of(*sheets: Sheet) -> list[str]:
    """Names of fonts that have all letters of the sheets between them, FONT first; letters that none has are told once."""
    from matplotlib import font_manager

    def letters_of(path: str) -> set[int]:
        try:
            return set(font_manager.get_font(path).get_charmap())
        except (RuntimeError, OSError):  # a font without outlines, or one that is gone
            return set()

    missing = {
        ord(letter)
        for sheet in sheets
        for text in sheet.texts
        for letter in readable(text.text)
        if not letter.isspace()
    }
    missing -= letters_of(font_manager.findfont(FONT))
    families = [FONT]
    for font in font_manager.fontManager.ttflist:
        if not missing:
            break
        if font.name.startswith("Last Resort"):  # comes with matplotlib, and has a box for every letter there is
            continue
        if missing & (has := letters_of(font.fname)):
            families.append(font.name)
            missing -= has
    if missing:
        shown = "".join(map(chr, sorted(missing)[:5]))
        log.warning(
            "no font on this machine has %d letters of these names (%s): install one that has", len(missing), shown
        )
    return families
