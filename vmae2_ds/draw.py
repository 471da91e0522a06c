"""Pictures from plain arrays: masks and reconstructions of a clip, and curves of a run. The only file with matplotlib.

Colours are Okabe and Ito's, told apart by people who are colour-blind; grey means "nothing here" in every picture.
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np

from vmae2_ds.contracts import TARGET_EPS, ClipGeometry, Masks

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# T frames, H x W pixels, C = 3 colours, N cubes, V visible, M decoded, P = 3 * tubelet * patch * patch values in a cube,
# in the order t, h, w, c; cubes are numbered t-major, then h, then w.

GREY = 0.82
BLUE, ORANGE, GREEN, BLACK = "#0072B2", "#D55E00", "#009E73", "#222222"
SEEN_TWICE = np.array([0.0, 0.447, 0.698])  # BLUE as numbers

CAPTIONS = {
    "normalised": (
        "The target is each cube normalised by its own mean and deviation. To draw the prediction, the mean and deviation"
        " of the true cube are put back: brightness and contrast of a cube are given, its structure is predicted."
    ),
    "pixels": "The target is plain pixels: everything in a reconstructed cube is predicted.",
}


class Reconstruction(NamedTuple):
    """One clip and what the model made of it."""

    clip_THWC: np.ndarray
    """uint8 pixels, or floats in [0, 1]."""
    predicted_MP: np.ndarray
    """The decoder's output at `masks.decode_M`, as the objective sees it."""
    masks: Masks
    geometry: ClipGeometry
    target: Literal["normalised", "pixels"]
    title: str = ""


def cubes_of(clip_THWC: np.ndarray, geometry: ClipGeometry) -> np.ndarray:
    """Cut a clip into its cubes: (T, H, W, 3) -> (N, P)."""
    steps, rows, columns = geometry.grid
    cut = clip_THWC.reshape(steps, geometry.tubelet, rows, geometry.patch, columns, geometry.patch, 3)
    return cut.transpose(0, 2, 4, 1, 3, 5, 6).reshape(geometry.num_cubes, geometry.cube_values)


def clip_of(cubes_NP: np.ndarray, geometry: ClipGeometry) -> np.ndarray:
    """Put cubes back together: (N, P) -> (T, H, W, 3)."""
    cut = cubes_NP.reshape(*geometry.grid, geometry.tubelet, geometry.patch, geometry.patch, 3)
    return cut.transpose(0, 3, 1, 4, 2, 5, 6).reshape(geometry.num_frames, geometry.height, geometry.width, 3)


def put_statistics_back(normalised_MP: np.ndarray, true_MP: np.ndarray) -> np.ndarray:
    """Undo the target's normalisation with the true cubes' mean and unbiased deviation per colour: (M, P) -> (M, P)."""
    values_MQC = true_MP.reshape(len(true_MP), -1, 3)
    mean_M1C = values_MQC.mean(axis=1, keepdims=True)
    std_M1C = values_MQC.std(axis=1, ddof=1, keepdims=True)
    return (normalised_MP.reshape(values_MQC.shape) * (std_M1C + TARGET_EPS) + mean_M1C).reshape(true_MP.shape)


def picture_rows(clip: Reconstruction) -> dict[str, np.ndarray]:
    """The five pictures of a clip by their label, each (T, H, W, 3) floats in [0, 1].

    Only supervised cubes are drawn as predicted: at a cube that the encoder saw the decoder's output was never trained.
    """
    pixels_THWC = clip.clip_THWC / 255 if clip.clip_THWC.dtype == np.uint8 else clip.clip_THWC
    true_NP = cubes_of(pixels_THWC.astype(np.float32), clip.geometry)
    visible_V, decode_M, is_supervised_M = clip.masks
    predicted_MP = clip.predicted_MP.astype(np.float32)
    if clip.target == "normalised":
        predicted_MP = put_statistics_back(predicted_MP, true_NP[decode_M])
    supervised = decode_M[is_supervised_M]

    nothing_NP = np.full_like(true_NP, GREY)
    seen_NP, decoded_NP, predicted_NP = nothing_NP.copy(), nothing_NP.copy(), nothing_NP.copy()
    seen_NP[visible_V] = true_NP[visible_V]
    decoded_NP[decode_M] = 0.4 * true_NP[decode_M] + 0.6 * np.tile(SEEN_TWICE, clip.geometry.cube_values // 3)
    decoded_NP[supervised] = true_NP[supervised]
    predicted_NP[supervised] = predicted_MP[is_supervised_M]
    pasted_NP = predicted_NP.copy()
    pasted_NP[visible_V] = true_NP[visible_V]
    rows = {
        "clip": true_NP,
        "seen by\nthe encoder": seen_NP,
        "asked of\nthe decoder": decoded_NP,
        "predicted": predicted_NP,
        "predicted\n+ seen": pasted_NP,
    }
    return {label: clip_of(cubes_NP, clip.geometry).clip(0, 1) for label, cubes_NP in rows.items()}


def caption_of(clip: Reconstruction) -> str:
    """What the grey, the blue and the predicted cubes are, with their counts."""
    visible, decoded, supervised = len(clip.masks.visible_V), len(clip.masks.decode_M), clip.masks.is_supervised_M.sum()
    text = f"The encoder sees {visible} of {clip.geometry.num_cubes} cubes; the loss is on {supervised}; grey: no cube."
    if decoded > supervised:
        text += f" Blue: {decoded - supervised} cubes that both have, not in the loss."
    return f"{text} {CAPTIONS[clip.target]}"


def draw_reconstruction(clip: Reconstruction, path: Path, max_columns: int = 8) -> None:
    """Write a still picture: one row per view of the clip, frames spread over the clip as columns."""
    from matplotlib.figure import Figure

    rows = picture_rows(clip)
    num_columns = min(max_columns, clip.geometry.num_frames)
    shown = np.linspace(0, clip.geometry.num_frames - 1, num_columns).round().astype(int)
    panel, label_width = 1.15, 1.0  # inches
    panel_height = panel * clip.geometry.height / clip.geometry.width
    width = label_width + num_columns * panel
    caption = _wrap(caption_of(clip), width)
    below, above = 0.12 + 0.16 * (1 + caption.count("\n")), 0.2 + 0.2 * bool(clip.title)
    height = above + len(rows) * panel_height + below
    figure = Figure(figsize=(width, height), dpi=160)
    grid = figure.add_gridspec(
        len(rows), num_columns, left=label_width / width, right=1 - 0.05 / width, top=1 - above / height,
        bottom=below / height, wspace=0.03, hspace=0.03,
    )  # fmt: skip
    for row, (label, frames_THWC) in enumerate(rows.items()):
        for column, frame in enumerate(shown):
            axes = figure.add_subplot(grid[row, column])
            axes.imshow(frames_THWC[frame], interpolation="nearest")
            _without_ticks(axes)
            if row == 0:
                axes.set_title(f"frame {frame}", fontsize=7, pad=2)
            if column == 0:
                axes.set_ylabel(label, fontsize=8, rotation=0, ha="right", va="center", labelpad=4)
    if clip.title:
        figure.text(0.5, 1 - 0.07 / height, clip.title, ha="center", va="top", fontsize=9)
    figure.text(0.05 / width, 0.05 / height, caption, ha="left", va="bottom", fontsize=7, color=BLACK)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)


def animate_reconstruction(clip: Reconstruction, path: Path, frames_per_s: float = 4) -> None:
    """Write the same views side by side as an endless animation; the suffix chooses GIF or WebP."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from PIL import Image

    rows = picture_rows(clip)
    panel = 1.5
    height = panel * clip.geometry.height / clip.geometry.width + 0.25
    figure = Figure(figsize=(len(rows) * panel, height), dpi=120)
    canvas = FigureCanvasAgg(figure)
    figure.subplots_adjust(left=0.005, right=0.995, bottom=0.01, top=1 - 0.24 / height, wspace=0.03)
    images = []
    for column, (label, frames_THWC) in enumerate(rows.items()):
        axes = figure.add_subplot(1, len(rows), column + 1)
        images.append(axes.imshow(frames_THWC[0], interpolation="nearest"))
        _without_ticks(axes)
        axes.set_title(label.replace("\n", " "), fontsize=8, pad=3)
    pictures = []
    for frame in range(clip.geometry.num_frames):
        for image, frames_THWC in zip(images, rows.values(), strict=True):
            image.set_data(frames_THWC[frame])
        canvas.draw()
        pictures.append(Image.fromarray(np.asarray(canvas.buffer_rgba())[..., :3]))
    path.parent.mkdir(parents=True, exist_ok=True)
    pictures[0].save(path, save_all=True, append_images=pictures[1:], duration=1000 / frames_per_s, loop=0)


@dataclass(frozen=True)
class Curve:
    """One quantity of metrics.jsonl over the steps of a run."""

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


CURVES: dict[str, Curve] = {
    curve.key: curve
    for curve in (
        Curve("loss", "Loss (mean squared error)", from_zero=False, beside="flat_loss", beside_label="flat cubes"),
        Curve("lr", "Learning rate", smooth=False),
        Curve("grad_norm", "Gradient norm before clipping", log_scale=True),
        Curve("clips_per_s", "Clips per second, all ranks"),
        Curve("data_wait_share", "Share of time spent waiting for data (%)", factor=100),
        Curve("mfu", "Model FLOP/s as a share of the peak (%)", factor=100),
    )
}
"""Curves by their key in metrics.jsonl."""


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
    figure.savefig(path)


def curve_svg(rows: Sequence[Mapping[str, Any]], curve: Curve, marks: Sequence[int] = ()) -> str:
    """One curve as an inline SVG element that scales with the page; its text stays text. The steps `marks` are marked."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    # a salt makes the ids inside reproducible, and distinct between the pictures of one page
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": curve.key, "font.family": "sans-serif"}):
        figure = Figure(figsize=(5.2, 2.5), layout="constrained")
        axes = figure.add_subplot()
        _plot(axes, rows, curve, titled=False)
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
    axes.set_title(f"{matrix_CC.sum():,} videos, {100 * accuracy:.1f} % right")
    if is_named:
        axes.set_xticks(range(num_classes), names, rotation=90)
        axes.set_yticks(range(num_classes), names)
    for label, predicted in np.argwhere(matrix_CC) if is_named else []:
        colour = "white" if share_CC[label, predicted] > 0.5 else BLACK
        axes.text(
            predicted, label, str(matrix_CC[label, predicted]), ha="center", va="center", color=colour, fontsize=8
        )
    figure.colorbar(image, ax=axes, label="share of the label's videos", shrink=0.8)
    figure.savefig(path, dpi=120)


def _plot(axes: Axes, rows: Sequence[Mapping[str, Any]], curve: Curve, titled: bool) -> None:
    from matplotlib.ticker import LogLocator, NullLocator

    values = [(row["step"], curve.factor * row[curve.key]) for row in rows if row.get(curve.key) is not None]
    steps, levels = np.array(values, dtype=float).reshape(-1, 2).T
    many = curve.smooth and len(steps) > 60
    axes.plot(
        steps, levels, color=BLUE, lw=0.7 if many else 1.5, alpha=0.45 if many else 1, marker="." * (len(steps) < 3)
    )
    if many:
        axes.plot(steps, _running_median(levels, len(levels) // 30), color=BLUE, lw=1.8)
    if curve.log_scale and (levels > 0).all():
        axes.set_yscale("log")
        decades = np.log10(levels.max() / levels.min())
        subs = (1, 1.5, 2, 3, 5, 7) if decades < 1 else (1, 2, 5) if decades < 3 else (1,)
        axes.yaxis.set_major_locator(LogLocator(subs=subs))
        axes.yaxis.set_minor_locator(NullLocator())
        axes.yaxis.set_major_formatter("{x:g}")
    elif curve.from_zero:
        axes.set_ylim(0, max(1e-12, 1.08 * levels.max()))
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


def _running_median(levels: np.ndarray, reach: int) -> np.ndarray:
    """Median of each value and up to `reach` neighbours on both sides."""
    return np.array([np.median(levels[max(0, i - reach) : i + reach + 1]) for i in range(len(levels))])


def svg_of(figure: Figure, title: str) -> str:
    """The figure as an inline SVG element, its text as text where `svg.fonttype` is none."""
    text = StringIO()
    figure.savefig(text, format="svg", metadata={"Date": None, "Title": title}, transparent=True)
    return text.getvalue()[text.getvalue().index("<svg") :]


def _without_ticks(axes: Axes) -> None:
    axes.set_xticks([])
    axes.set_yticks([])
    axes.spines[:].set_visible(False)


def _wrap(text: str, width_inches: float) -> str:
    return "\n".join(textwrap.wrap(text, max(30, int(width_inches * 17))))
