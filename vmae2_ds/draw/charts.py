"""Pictures from plain arrays: curves of a run, histograms, confusion matrices. Pictures of clips are in pictures.py.

Colours are Okabe and Ito's, told apart by people who are colour-blind; grey means "nothing here" in every picture.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from vmae2_ds.console.progress import counted
from vmae2_ds.disk import whole_file

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

logging.getLogger("matplotlib.font_manager").setLevel(logging.WARNING)  # it tells that it made its cache of fonts

BLUE, ORANGE, GREEN, BLACK = "#0072B2", "#D55E00", "#009E73", "#222222"


@dataclass(frozen=True)
class Curve:
    """One quantity of metrics.jsonl or validation.jsonl over the steps of a run."""

    key: str
    title: str
    factor: float = 1.0
    """Unit of the file to unit of the picture."""
    log_scale: bool = False
    from_zero: bool = True
    smooth: bool = True
    """Over a long run, draw the running median in front of the rows."""
    beside: str | None = None
    """Key of a level to compare with, drawn dashed where the rows have it."""
    beside_label: str = ""
    second: str | None = None
    """Key of a second line, where the rows have it; then both are named."""
    labels: tuple[str, str] = ("", "")


CURVES: dict[str, Curve] = {
    curve.key: curve
    for curve in (
        Curve("loss", "Loss (mean squared error)", from_zero=False, beside="flat_loss", beside_label="flat cubes"),
        Curve(
            "val_loss",
            "Loss on the validation videos",
            from_zero=False,
            smooth=False,
            second="seen_loss",
            labels=("validation videos", "as many trained ones"),
        ),
        Curve("val_map", "Average mAP on the validation videos (%)", factor=100, smooth=False),
        Curve("val_frame_map", "Frame mAP on the validation key frames (%)", factor=100, smooth=False),
        Curve("val_top1", "Top-1 accuracy on the validation videos (%)", factor=100, smooth=False),
        Curve("lr", "Learning rate", smooth=False),
        Curve("grad_norm", "Gradient norm before clipping", log_scale=True),
        Curve("clips_per_s", "Clips per second, all ranks"),
        Curve("data_wait_share", "Share of time spent waiting for data (%)", factor=100),
        Curve("mfu", "Model FLOP/s as a share of the peak (%)", factor=100),
    )
}
"""Curves by their key in metrics.jsonl or validation.jsonl."""


def draw_curves(rows: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Write one picture with a panel per curve that the rows have values for."""
    from matplotlib.figure import Figure

    curves = [curve for curve in CURVES.values() if has_values(rows, curve)]
    if not curves:
        return
    num_rows = math.ceil(len(curves) / 2)
    figure = Figure(figsize=(9, 2.6 * num_rows), dpi=140, layout="constrained")
    for number, curve in enumerate(curves):
        _plot(figure.add_subplot(num_rows, 2, number + 1), rows, curve, titled=True)
    path.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(path) as part:
        figure.savefig(part, format="png")


def curve_svg(rows: Sequence[Mapping[str, Any]], curve: Curve, marks: Sequence[int] = ()) -> str:
    """One curve as an inline SVG element that scales with the page; its text stays text. The steps `marks` are marked."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    # a salt makes the ids inside reproducible, and distinct between the pictures of one page
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": curve.key, "font.family": "sans-serif"}):
        figure = Figure(
            figsize=(5.2, 2.5)
        )  # no layout of matplotlib's: it draws twice and more, and every run has a page
        axes = figure.add_subplot()
        _plot(axes, rows, curve, titled=False)
        _make_room(figure, axes)
        axes.plot(marks, [0.02] * len(marks), "^", color=ORANGE, ms=5, transform=axes.get_xaxis_transform(), zorder=3)
        return svg_of(figure, curve.title)


def histogram_svg(values: Sequence[float], title: str, unit: str) -> str:
    """How often values fall where, as an inline SVG element; few distinct ones get a bar each."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    with rc_context({"svg.fonttype": "none", "svg.hashsalt": title, "font.family": "sans-serif"}):
        figure = Figure(figsize=(5.2, 2.2), layout="constrained")
        axes = figure.add_subplot()
        levels, counts = np.unique(np.asarray(values, dtype=float), return_counts=True)
        if len(levels) <= 12:
            axes.bar(range(len(levels)), counts, color=BLUE, width=0.7)
            axes.set_xticks(range(len(levels)), [f"{level:.4g}" for level in levels])
        else:
            axes.hist(values, bins=30, color=BLUE)
        axes.set_xlabel(unit, fontsize=8)
        axes.set_ylabel("files", fontsize=8)
        axes.tick_params(labelsize=8)
        axes.grid(axis="y", alpha=0.25, lw=0.6)
        axes.spines[["top", "right"]].set_visible(False)
        return svg_of(figure, title)


def errors_svg(levels: Mapping[str, float], spread: Mapping[str, Sequence[float]], title: str) -> str:
    """A bar for each level, by name and the first the model's, with its part of the others', and a dot for each of `spread`, as
    an inline SVG element."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    with rc_context({"svg.fonttype": "none", "svg.hashsalt": title, "font.family": "sans-serif"}):
        figure = Figure(figsize=(6.4, 0.4 + 0.5 * len(levels)), layout="constrained")
        axes = figure.add_subplot()
        own = next(iter(levels.values()))
        most = max([1e-12, *levels.values(), *(value for values in spread.values() for value in values)])
        for row, (name, level) in enumerate(levels.items()):
            axes.barh(row, level, height=0.62, color=BLUE if row == 0 else "#b8bfc7")
            values = np.sort(np.asarray(spread.get(name, ()), dtype=float))
            apart = row + 0.22 * np.resize([0.0, 1.0, -1.0, 0.5, -0.5], len(values))  # dots of equal clips stay apart
            axes.plot(values, apart, ".", color=BLACK, ms=3, alpha=0.6)
            part = f": the model has {100 * own / level:.0f} % of it" if row and level else ""
            axes.text(1.02 * most, row, f"{level:.4f}{part}", va="center", fontsize=8, color=BLACK)
        axes.set_yticks(range(len(levels)), list(levels), fontsize=9)
        axes.set_xlim(0, most)
        axes.invert_yaxis()
        axes.tick_params(axis="x", labelsize=8)
        axes.grid(axis="x", alpha=0.25, lw=0.6)
        axes.spines[["top", "right"]].set_visible(False)
        return svg_of(figure, title)


def has_values(rows: Sequence[Mapping[str, Any]], curve: Curve) -> bool:
    """True where at least one row holds a number for the curve."""
    return any(row.get(curve.key) is not None for row in rows)


MOST_NAMED = 40
"""Classes that a confusion matrix names at its sides."""


def draw_confusion(matrix_CC: np.ndarray, names: Sequence[str], path: Path) -> None:
    """Counts by label (row) and prediction (column), shaded by each row's share; numbers and names where they fit."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    num_classes = len(names)
    share_CC = matrix_CC / np.maximum(1, matrix_CC.sum(axis=1, keepdims=True))
    is_named = num_classes <= MOST_NAMED
    edge = max(4.5, 0.32 * num_classes) if is_named else 12.0
    figure = Figure(figsize=(edge + 2.5, edge + 1.5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    image = axes.imshow(share_CC, cmap="Blues", vmin=0, vmax=1)
    axes.set_xlabel("prediction")
    axes.set_ylabel("label")
    accuracy = matrix_CC.trace() / max(1, matrix_CC.sum())
    axes.set_title(f"{counted(int(matrix_CC.sum()), 'video')}, {100 * accuracy:.1f} % right")
    if is_named:
        axes.set_xticks(range(num_classes), names, rotation=90, parse_math=False)
        axes.set_yticks(range(num_classes), names, parse_math=False)
    for label, predicted in np.argwhere(matrix_CC) if is_named else []:
        colour = "white" if share_CC[label, predicted] > 0.5 else BLACK
        axes.text(
            predicted, label, str(matrix_CC[label, predicted]), ha="center", va="center", color=colour, fontsize=8
        )
    figure.colorbar(image, ax=axes, label="share of the label's videos", shrink=0.8)
    with whole_file(path) as part:
        figure.savefig(part, format="png", dpi=120)


def _plot(axes: Axes, rows: Sequence[Mapping[str, Any]], curve: Curve, titled: bool) -> None:
    from matplotlib.ticker import LogLocator, NullLocator

    steps, levels = _points(rows, curve.key, curve.factor)
    many = curve.smooth and len(steps) > 60
    axes.plot(
        steps,
        levels,
        color=BLUE,
        lw=0.7 if many else 1.5,
        alpha=0.45 if many else 1,
        marker="." if len(steps) < 3 else "",
    )
    if many:
        axes.plot(steps, _running_median(levels, len(levels) // 30), color=BLUE, lw=1.8)
    if curve.log_scale and (levels > 0).all():
        axes.set_yscale("log")
        decades = np.log10(levels.max() / levels.min())
        few = (1, 2, 5) if decades < 3 else (1,)
        subs = (1, 1.5, 2, 3, 5, 7) if decades < 1 else few
        axes.yaxis.set_major_locator(LogLocator(subs=subs))
        axes.yaxis.set_minor_locator(NullLocator())
        axes.yaxis.set_major_formatter("{x:g}")
    elif curve.from_zero:
        axes.set_ylim(0, max(1e-12, 1.08 * levels.max()))
    if curve.second is not None and any(row.get(curve.second) is not None for row in rows):
        (line,) = axes.plot(*_points(rows, curve.second, curve.factor), color=ORANGE, lw=1.5, ls="--")
        axes.legend([axes.lines[0], line], curve.labels, fontsize=8, frameon=False)
    beside = [curve.factor * row[curve.beside] for row in rows if curve.beside and row.get(curve.beside) is not None]
    if beside:
        level = float(np.median(beside))
        axes.axhline(level, color=ORANGE, lw=1.2, ls="--")
        axes.annotate(curve.beside_label, (1, level), xycoords=("axes fraction", "data"), xytext=(-3, 3),
                      textcoords="offset points", ha="right", fontsize=8, color=ORANGE)  # fmt: skip
    axes.set_xlabel("optimizer step", fontsize=8)
    axes.tick_params(which="both", labelsize=8)
    axes.grid(alpha=0.25, lw=0.6)
    axes.spines[["top", "right"]].set_visible(False)
    if titled:
        axes.set_title(curve.title, fontsize=9, loc="left")


def _make_room(figure: Figure, axes: Axes) -> None:
    """Margins for the numbers and names of `_plot` around one axes; a digit of theirs is about 0.65 of the font's size wide."""
    width, height = 72 * figure.get_size_inches()
    below, beside = 33 / height, 14 / width  # two lines of text; half of a number that is at the end
    above = 14 / height  # a common power of ten
    figure.subplots_adjust(left=0.1, right=1 - beside, bottom=below, top=1 - above)
    numbers = axes.yaxis.get_major_formatter().format_ticks(axes.yaxis.get_majorticklocs().tolist())
    longest = max((len(number.replace("\\mathdefault", "")) for number in numbers), default=0)
    figure.subplots_adjust(left=(14 + 5.2 * longest) / width)


def _points(rows: Sequence[Mapping[str, Any]], key: str, factor: float) -> np.ndarray:
    """Steps and levels of a key, (2, N)."""
    values = [(row["step"], factor * row[key]) for row in rows if row.get(key) is not None]
    return np.array(values, dtype=float).reshape(-1, 2).T


def _running_median(levels: np.ndarray, reach: int) -> np.ndarray:
    """Median of each value and up to `reach` neighbours on both sides."""
    return np.array([np.median(levels[max(0, i - reach) : i + reach + 1]) for i in range(len(levels))])


def svg_of(figure: Figure, title: str) -> str:
    """The figure as an inline SVG element, its text as text where `svg.fonttype` is none."""
    text = StringIO()
    figure.savefig(text, format="svg", metadata={"Date": None, "Title": title}, transparent=True)
    return text.getvalue()[text.getvalue().index("<svg") :]
