"""The drawings of the report: small enough for a phone, told apart without colour. The only file here with matplotlib."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import contextmanager
from functools import wraps
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, NamedTuple, ParamSpec

from vmae2_ds.draw.charts import BLACK, BLUE, GREEN, ORANGE, svg_of

if TYPE_CHECKING:
    from collections.abc import Iterator

    from matplotlib.axes import Axes

P = ParamSpec("P")
INCHES = (4.2, 3.2)
COLOURS = (BLUE, ORANGE, GREEN, "#CC79A7", "#E69F00", "#56B4E9", BLACK)
"""Okabe and Ito's."""
MARKERS, DASHES, HATCHES = "osD^vP*X", ("-", "--", ":", "-."), ("", "///", "...", "xx", "\\\\\\", "oo", "--")


class Point(NamedTuple):
    """A number over another, with quartiles where it has some."""

    x: float
    y: float
    low: float | None = None
    high: float | None = None


class Series(NamedTuple):
    """Points of one kind."""

    name: str
    points: tuple[Point, ...]


class Bar(NamedTuple):
    """One bar and what it is stacked from, in the same order in every bar of a drawing."""

    name: str
    parts: tuple[tuple[str, float], ...]


class Dots(NamedTuple):
    """A line of ratios: a point for each kind, `x` the ratio, `low` and `high` its quartiles; None where there is none."""

    name: str
    points: tuple[Point | None, ...]


class OverSeeds(NamedTuple):
    """Figures of one thing, one a seed."""

    name: str
    values: tuple[float, ...]


def _where_it_can(draw: Callable[P, str]) -> Callable[P, str]:
    """A drawing, or nothing where matplotlib is not installed: the numbers stand in a table below it."""

    @wraps(draw)
    def drawn(*args: P.args, **kwargs: P.kwargs) -> str:
        return draw(*args, **kwargs) if find_spec("matplotlib") else ""

    return drawn


@_where_it_can
def ratios(title: str, series: Sequence[Series]) -> str:
    """Speed-up over FLOP ratio; on the dashed diagonal a step saves as much time as arithmetic."""
    with _axes(title) as (axes, svg):
        for number, each in enumerate(series):
            _points(axes, each, number, line="")
        every = [value for each in series for point in each.points for value in point if value is not None]
        low, high = min([1, *every]) * 0.97, max(every) * 1.05
        axes.plot([low, high], [low, high], color=BLACK, lw=1, ls="--")
        _annotate(axes, "speed-up = FLOP ratio", (1, low), ("axes fraction", "data"), (-92, 6))
        axes.set(xlabel="FLOP ratio (encoder-only over this)", ylabel="speed-up over encoder-only", ylim=(low, high))
        _finish(axes, len(series))
    return svg[0]


@_where_it_can
def curves(
    title: str,
    series: Sequence[Series],
    xlabel: str,
    ylabel: str,
    *,
    level: tuple[float, str] | None = None,
    log_x: bool = False,
    joined: bool = True,
) -> str:
    """Points, joined by lines or not; `level`: a dashed line to compare with, and what it is."""
    with _axes(title) as (axes, svg):
        for number, each in enumerate(series):
            _points(axes, each, number, line=DASHES[number % len(DASHES)] if joined else "")
        if level is not None:
            axes.axhline(level[0], color=BLACK, lw=1, ls="--")
            _annotate(axes, level[1], (0, level[0]), ("axes fraction", "data"), (3, -9))
        axes.set(xlabel=xlabel, ylabel=ylabel)
        xs = sorted({point.x for each in series for point in each.points})
        if not log_x:
            axes.set_xticks(xs)
        elif xs[-1] > 3 * xs[0]:
            _log_axis(axes, xs)
        axes.set_ylim(
            0,
            1.08
            * max([level[0] if level else 0, *(point.high or point.y for each in series for point in each.points)]),
        )
        _finish(axes, len(series))
    return svg[0]


@_where_it_can
def stacked(title: str, bars: Sequence[Bar], xlabel: str) -> str:
    """Bars from left to right; their parts have hatches of their own."""
    with _axes(title, height=1.5 + 0.3 * len(bars)) as (axes, svg):
        parts = [name for name, _ in bars[0].parts]
        left = [0.0] * len(bars)
        for number, part in enumerate(parts):
            widths = [dict(bar.parts)[part] for bar in bars]
            colour, hatch = COLOURS[number % len(COLOURS)], HATCHES[number % len(HATCHES)]
            axes.barh(
                range(len(bars)), widths, left=left, label=part, color="white", edgecolor=colour, hatch=hatch, lw=0.8
            )
            left = [start + width for start, width in zip(left, widths, strict=True)]
        axes.set_yticks(range(len(bars)), [bar.name for bar in bars])
        axes.invert_yaxis()
        axes.set_xlabel(xlabel)
        _finish(axes, len(parts))
        axes.grid(axis="y", visible=False)
    return svg[0]


@_where_it_can
def dots(title: str, kinds: Sequence[str], rows: Sequence[Dots], xlabel: str) -> str:
    """A line for each row and a mark for each kind on it, with its number; 1 is dashed."""
    with _axes(title, height=0.7 + 0.5 * len(rows), width=6.6) as (axes, svg):
        for number, kind in enumerate(kinds):
            heights = [place + 0.24 * (number - (len(kinds) - 1) / 2) for place in range(len(rows))]
            marked = [(row.points[number], height) for row, height in zip(rows, heights, strict=True)]
            _mark(axes, kind, number, [(point, height) for point, height in marked if point is not None])
        axes.axvline(1, color=BLACK, lw=1, ls="--")
        axes.set_yticks(range(len(rows)), [row.name for row in rows])
        axes.invert_yaxis()
        axes.set_xlim(0.97, 1.06 * max(point.high or point.x for row in rows for point in row.points if point))
        axes.set_xlabel(xlabel)
        _finish(axes, len(kinds), columns=len(kinds))
        axes.grid(axis="y", visible=False)
    return svg[0]


def _mark(axes: Axes, kind: str, number: int, points: Sequence[tuple[Point, float]]) -> None:
    colour, marker = COLOURS[number % len(COLOURS)], MARKERS[number % len(MARKERS)]
    for point, height in points:
        axes.plot([1, point.x], [height, height], color=colour, lw=1.2, alpha=0.5)
        if point.low is not None and point.high is not None:
            axes.plot([point.low, point.high], [height, height], color=colour, lw=3.2, alpha=0.35)
        _annotate(axes, f"{point.x:.2f}", (point.high or point.x, height), "data", (5, -2.6))
    axes.plot(
        [point.x for point, _ in points], [height for _, height in points], label=kind, color=colour, marker=marker,
        ms=5, ls="none", markerfacecolor=colour if number % 2 == 0 else "white",
    )  # fmt: skip


@_where_it_can
def over_seeds(title: str, lines: Sequence[OverSeeds], xlabel: str) -> str:
    """A line for each thing from top to bottom: its figures as rings, their mean as an upright bar."""
    with _axes(title, height=0.9 + 0.2 * len(lines)) as (axes, svg):
        for number, each in enumerate(lines):
            axes.plot(each.values, [number] * len(each.values), "o", color=BLUE, ms=4, mfc="none", mew=1)
            mean = sum(each.values) / len(each.values)
            axes.plot([mean, mean], [number - 0.35, number + 0.35], color=ORANGE, lw=2)
        axes.set_yticks(range(len(lines)), [each.name for each in lines])
        axes.set_ylim(len(lines) - 0.5, -0.5)
        axes.set_xlabel(xlabel)
        axes.grid(alpha=0.25, lw=0.6)
        axes.spines[["top", "right"]].set_visible(False)
    return svg[0]


@contextmanager
def _axes(title: str, height: float = INCHES[1], width: float = INCHES[0]) -> Iterator[tuple[Axes, list[str]]]:
    """Axes to draw on, and a list that holds the SVG element afterwards."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    # a salt makes the ids inside reproducible, and distinct between the drawings of one page
    style: dict[Any, Any] = {
        "svg.fonttype": "none",
        "svg.hashsalt": title,
        "font.family": "sans-serif",
        "font.size": 8.5,
        "hatch.linewidth": 0.6,
    }
    svg: list[str] = []
    with rc_context(style):
        figure = Figure(figsize=(width, height), layout="constrained")
        yield figure.add_subplot(), svg
        svg.append(svg_of(figure, title))


def _points(axes: Axes, series: Series, number: int, line: str) -> None:
    colour, marker = COLOURS[number % len(COLOURS)], MARKERS[number % len(MARKERS)]
    xs, ys = [point.x for point in series.points], [point.y for point in series.points]
    reach = [[point.y - point.low if point.low is not None else 0.0 for point in series.points],
             [point.high - point.y if point.high is not None else 0.0 for point in series.points]]  # fmt: skip
    axes.errorbar(
        xs, ys, yerr=reach if any(map(any, reach)) else None, label=series.name, color=colour, marker=marker, ms=5,
        markerfacecolor=colour if number % 2 == 0 else "white", ls=line or "none", lw=1.2, elinewidth=0.8, capsize=2,
    )  # fmt: skip


def _log_axis(axes: Axes, xs: Sequence[float]) -> None:
    from matplotlib.ticker import LogLocator, NullLocator

    axes.set_xscale("log")
    subs = (1, 2, 5) if xs[-1] / xs[0] > 10 else (1, 1.5, 2, 3, 5, 7)
    axes.xaxis.set_major_locator(LogLocator(subs=subs))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter("{x:g}")


def _annotate(
    axes: Axes, text: str, at: tuple[float, float], coordinates: tuple[str, str] | str, shift: tuple[float, float]
) -> None:
    axes.annotate(text, at, xycoords=coordinates, xytext=shift, textcoords="offset points", fontsize=7.5)


def _finish(axes: Axes, num_names: int, columns: int = 2) -> None:
    axes.grid(alpha=0.25, lw=0.6)
    axes.spines[["top", "right"]].set_visible(False)
    axes.figure.legend(
        loc="outside lower center", ncols=columns if num_names > 1 else 1, fontsize=7.5, frameon=False, handlelength=2.4
    )
