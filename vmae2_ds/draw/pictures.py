"""Pictures of clips: what a masked autoencoder sees of one and makes of the rest, and what a classifier takes one for."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np

from vmae2_ds.contracts import TARGET_EPS, ClipGeometry, Masks
from vmae2_ds.disk import whole_file
from vmae2_ds.draw.charts import BLACK, BLUE

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# T frames, H x W pixels, C = 3 colours, N cubes, V visible, M decoded, P = 3 * tubelet * patch * patch values in a cube,
# in the order t, h, w, c; cubes are numbered t-major, then h, then w.

GREY = 0.82
SEEN_TWICE = np.array([0.0, 0.447, 0.698])  # BLUE as numbers
FRAMES_SHOWN = 8
"""Frames of a clip in a still picture."""
DPI, TILE, LABELS, BETWEEN = 100, 192, 170, 6
"""Pixels of a picture to an inch of its letters, of a frame's shorter side about, of labels beside rows, between frames."""
CLIP_S, SLOWEST, FASTEST = 2.0, 4.0, 15.0
"""Seconds that a clip takes in an animation, where that is between these numbers of frames a second."""

CAPTIONS = {
    "normalised": (
        "The target is each cube normalised by its own mean and deviation. To draw the prediction, the mean and deviation"
        " of the true cube are put back: brightness and contrast of a cube are given, its structure is predicted."
    ),
    "pixels": "The target is plain pixels: everything in a reconstructed cube is predicted.",
}


class DecodedPass(NamedTuple):
    """One forward pass over a clip."""

    masks: Masks
    predicted_MP: np.ndarray
    """The decoder's output at `masks.decode_M`, as the objective sees it."""


class Reconstruction(NamedTuple):
    """One clip and what the model made of it."""

    clip_THWC: np.ndarray
    """uint8 pixels, or floats in [0, 1]."""
    passes: Sequence[DecodedPass]
    """The clip's own masks first; further passes see the same cubes and decode others. A cube is shown as the first pass
    that decodes it has it."""
    geometry: ClipGeometry
    target: Literal["normalised", "pixels"]
    title: str = ""
    context_weight: float = 0.0
    """In the loss, of decoded cubes that the encoder saw."""

    @property
    def masks(self) -> Masks:
        """The clip's own, as in training."""
        return self.passes[0].masks


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
    """The pictures of a clip by their label, each (T, H, W, 3) floats in [0, 1].

    Only supervised cubes are drawn as predicted: where the encoder saw, the decoder's output was not trained as a prediction.
    """
    pixels_THWC = clip.clip_THWC / 255 if clip.clip_THWC.dtype == np.uint8 else clip.clip_THWC
    true_NP = cubes_of(pixels_THWC.astype(np.float32), clip.geometry)
    visible_V, decode_M, is_supervised_M = clip.masks
    supervised = decode_M[is_supervised_M]

    nothing_NP = np.full_like(true_NP, GREY)
    seen_NP, decoded_NP = nothing_NP.copy(), nothing_NP.copy()
    seen_NP[visible_V] = true_NP[visible_V]
    decoded_NP[decode_M] = 0.4 * true_NP[decode_M] + 0.6 * np.tile(SEEN_TWICE, clip.geometry.cube_values // 3)
    decoded_NP[supervised] = true_NP[supervised]
    rows = {
        "the clip": true_NP,
        "what the\nencoder sees": seen_NP,
        "what the decoder\nmust fill in": decoded_NP,
        "reconstruction": filled_in(nothing_NP, clip.passes[:1], true_NP, clip.target),
        "reconstruction\n+ visible cubes": filled_in(seen_NP, clip.passes[:1], true_NP, clip.target),
    }
    if len(clip.passes) > 1:  # one pass that decodes all is drawn already
        rows[f"every hidden cube,\nin {len(clip.passes)} passes,\n+ visible cubes"] = filled_in(
            seen_NP, clip.passes, true_NP, clip.target
        )
    return {label: clip_of(cubes_NP, clip.geometry).clip(0, 1) for label, cubes_NP in rows.items()}


def filled_in(cubes_NP: np.ndarray, passes: Sequence[DecodedPass], true_NP: np.ndarray, target: str) -> np.ndarray:
    """A copy with what the passes predict of cubes that the encoder did not see, the first pass's word before the others'."""
    filled_NP = cubes_NP.copy()
    for masks, predicted_MP in reversed(passes):
        pixels_MP = predicted_MP.astype(np.float32)
        if target == "normalised":
            pixels_MP = put_statistics_back(pixels_MP, true_NP[masks.decode_M])
        filled_NP[masks.decode_M[masks.is_supervised_M]] = pixels_MP[masks.is_supervised_M]
    return filled_NP


def caption_of(clip: Reconstruction) -> str:
    """What the grey, the blue and the predicted cubes are, with their counts."""
    visible, decoded, supervised = len(clip.masks.visible_V), len(clip.masks.decode_M), clip.masks.is_supervised_M.sum()
    text = f"The encoder sees {visible} of {clip.geometry.num_cubes} cubes; the loss is on {supervised}; grey: no cube."
    if decoded > supervised:
        part = f"with weight {clip.context_weight:g} in it" if clip.context_weight else "not in the loss"
        text += f" Blue: {decoded - supervised} cubes that both have, {part}."
    if len(clip.passes) > 1:
        hidden = np.unique(np.concatenate([one.masks.decode_M[one.masks.is_supervised_M] for one in clip.passes]))
        text += (
            f" Last row: the {len(hidden)} cubes that the encoder does not see, decoded in {len(clip.passes)} passes, each"
            " with as many mask tokens as in training."
        )
    return f"{text} {CAPTIONS[clip.target]}"


def draw_reconstruction(clip: Reconstruction, path: Path) -> None:
    """Write a still picture, PNG: one row per view of the clip, frames spread over the clip as columns.

    Each pixel of a small clip is a square of whole pixels of the picture: `enlarged`.
    """
    from matplotlib.figure import Figure

    shown = spread(clip.geometry.num_frames)
    rows = {label: enlarged(frames_THWC[shown]) for label, frames_THWC in picture_rows(clip).items()}
    _, tile_height, tile_width, _ = next(iter(rows.values())).shape
    left, width = LABELS, max(700, LABELS + len(shown) * (tile_width + BETWEEN))
    caption, title = _wrap(caption_of(clip), width / DPI, 10), _wrap(clip.title, width / DPI, 12)
    top = 16 + (10 + 24 * (1 + title.count("\n"))) * bool(clip.title) + 22
    below = 20 + 19 * (1 + caption.count("\n"))
    figure = Figure(figsize=(width / DPI, (top + len(rows) * (tile_height + BETWEEN) + below) / DPI), dpi=DPI)
    draw = _Pixels(figure)
    draw.text(width / 2, 12, title, 12, "center", "top")
    for column, frame in enumerate(shown):
        middle = left + column * (tile_width + BETWEEN) + tile_width / 2
        draw.text(middle, top - 5, f"frame {frame}", 10, "center", "bottom")
    for row, (label, frames_THWC) in enumerate(rows.items()):
        y = top + row * (tile_height + BETWEEN)
        draw.text(left - 10, y + tile_height / 2, label, 11, "right", "center")
        for column, frame_HWC in enumerate(frames_THWC):
            draw.picture(frame_HWC, left + column * (tile_width + BETWEEN), y)
    draw.text(8, draw.height - 8, caption, 10, "left", "bottom")
    _save(figure, path)


def animate_reconstruction(clip: Reconstruction, path: Path, frames_per_s: float | None = None) -> None:
    """Write the same views side by side, three in a row, as an endless animation; the suffix chooses GIF or WebP.

    `frames_per_s`: by default a clip takes about CLIP_S, as the published 16 frames, every fourth of 30 a second, do.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    num_frames = clip.geometry.num_frames
    rate = frames_per_s or min(max(num_frames / CLIP_S, SLOWEST), FASTEST)
    rows = {label: enlarged(frames_THWC) for label, frames_THWC in picture_rows(clip).items()}
    _, tile_height, tile_width, _ = next(iter(rows.values())).shape
    width = BETWEEN + 3 * (tile_width + BETWEEN)
    title = _wrap(clip.title, width / DPI, 9)
    top = (12 + 17 * (1 + title.count("\n"))) * bool(clip.title)
    above = 8 + 17 * max(1 + label.count("\n") for label in rows)
    height = top + math.ceil(len(rows) / 3) * (above + tile_height + BETWEEN)
    figure = Figure(figsize=(width / DPI, height / DPI), dpi=DPI)
    canvas, draw = FigureCanvasAgg(figure), _Pixels(figure)
    draw.text(width / 2, 6, title, 9, "center", "top")
    corners = []
    for number, label in enumerate(rows):
        x = BETWEEN + number % 3 * (tile_width + BETWEEN)
        y = top + number // 3 * (above + tile_height + BETWEEN) + above
        draw.text(x + tile_width / 2, y - 5, label, 10, "center", "bottom")
        corners.append((x, y))
    canvas.draw()
    empty = np.asarray(canvas.buffer_rgba())[..., :3]
    pictures = []
    for frame in range(num_frames):
        picture = empty.copy()
        for (x, y), frames_THWC in zip(corners, rows.values(), strict=True):
            picture[y : y + tile_height, x : x + tile_width] = frames_THWC[frame]
        pictures.append(picture)
    path.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(path) as part:
        save_animation(pictures, part, path.suffix[1:], rate)


def enlarged(frames_THWC: np.ndarray) -> np.ndarray:
    """Frames in [0, 1] as uint8, larger by a whole factor, each pixel a square; large ones smaller by one, each a mean."""
    pixels_THWC = (255 * frames_THWC).round().astype(np.uint8)
    shorter = min(pixels_THWC.shape[1:3])
    if (less := round(shorter / TILE)) > 1:
        from PIL import Image

        return np.stack([np.asarray(Image.fromarray(frame).reduce(less)) for frame in pixels_THWC])
    more = math.ceil(TILE / shorter)
    return pixels_THWC.repeat(more, axis=1).repeat(more, axis=2)


class _Pixels:
    """A figure on which places are pixels, from its left upper corner."""

    def __init__(self, figure: Figure) -> None:
        self.figure = figure
        self.width, self.height = (round(inches * DPI) for inches in figure.get_size_inches())

    def text(self, x: float, y: float, text: str, size: float, ha: str, va: str) -> None:
        self.figure.text(x / self.width, 1 - y / self.height, text, fontsize=size, ha=ha, va=va, color=BLACK,
                         multialignment=ha, parse_math=False)  # fmt: skip

    def picture(self, pixels_HWC: np.ndarray, x: int, y: int) -> None:
        self.figure.figimage(pixels_HWC, x, self.height - y - len(pixels_HWC), origin="upper")


def save_animation(
    pictures: Iterable[np.ndarray], path: Path, kind: str, frames_per_s: float, software: str | None = None
) -> None:
    """Save uint8 (H, W, 3) pictures of one size as an endless animation, a GIF or a WebP that says which `software` made it."""
    from PIL import Image

    first, *others = map(Image.fromarray, pictures)
    said: dict[str, Any] = {}
    if software:
        said = {"comment": software.encode()} if kind.lower() == "gif" else {"xmp": software.encode()}
    first.save(path, kind, save_all=True, append_images=others, duration=round(1000 / frames_per_s), loop=0, **said)


def draw_prediction(
    frames_THWC: np.ndarray, names: Sequence[str], scores: Sequence[float], title: str, path: Path
) -> None:
    """Write a picture, PNG: frames spread over a clip, and below them a bar for each of these classes.

    Args:
        frames_THWC: uint8.
        names: Of the classes, the most likely first.
        scores: Theirs, 0 to 1.
        title: What is above.
        path: The file.
    """
    from matplotlib.figure import Figure

    shown = spread(len(frames_THWC), 6)
    panel = 1.3
    width = len(shown) * panel if len(shown) > 4 else 5.2
    panel_height = panel * frames_THWC.shape[1] / frames_THWC.shape[2]
    title = _wrap(title, width, 9)
    labels = [_wrap(name, 0.42 * width, 9) for name in names]
    above = 0.3 + 0.15 * (1 + title.count("\n"))
    bars = [0.12 + 0.16 * (1 + label.count("\n")) for label in labels]
    height = above + panel_height + 0.12 + sum(bars) + 0.1
    figure = Figure(figsize=(width, height), dpi=160)
    strip_width = len(shown) * panel
    strip = figure.add_axes(((width - strip_width) / 2 / width, 1 - (above + panel_height) / height,
                             strip_width / width, panel_height / height))  # fmt: skip
    _show_strip(strip, frames_THWC, shown, named=True)
    axes = figure.add_axes((0.44, 0.1 / height, 0.45, sum(bars) / height))
    middles = np.cumsum(bars) - np.array(bars) / 2
    axes.barh(middles, [1] * len(bars), height=0.16, color=str(0.93))
    axes.barh(middles, scores, height=0.16, color=BLUE)
    axes.set_xlim(0, 1)
    axes.set_ylim(sum(bars), 0)
    _without_ticks(axes)
    for middle, label, score in zip(middles, labels, scores, strict=True):
        axes.text(-0.02, middle, label, ha="right", va="center", fontsize=9, color=BLACK, parse_math=False)
        axes.text(1.02, middle, f"{100 * score:.1f} %", ha="left", va="center", fontsize=9, color=BLACK)
    figure.text(0.5, 1 - 0.07 / height, title, ha="center", va="top", fontsize=9, parse_math=False)
    _save(figure, path)


def spread(num_frames: int, most: int = FRAMES_SHOWN) -> list[int]:
    """Up to `most` frames at even distances, the first and the last among them."""
    count = min(most, num_frames)
    return [int(frame) for frame in np.linspace(0, num_frames - 1, count).round()]


def _show_strip(axes: Axes, frames_THWC: np.ndarray, shown: Sequence[int], named: bool) -> None:
    """Frames side by side as one picture: an axes for each would take ten times as long to draw."""
    width = frames_THWC.shape[2]
    gap = max(1, round(0.03 * width))
    white = 255 if frames_THWC.dtype == np.uint8 else 1
    padded = np.pad(frames_THWC[shown], ((0, 0), (0, 0), (0, gap), (0, 0)), constant_values=white)
    axes.imshow(np.concatenate(list(padded), axis=1), interpolation="nearest", aspect="auto")
    _without_ticks(axes)
    for column, frame in enumerate(shown if named else ()):
        middle = column * (width + gap) + width / 2
        axes.annotate(f"frame {frame}", (middle, -0.5), xytext=(0, 2), textcoords="offset points",
                      ha="center", va="bottom", fontsize=7, annotation_clip=False)  # fmt: skip


def _save(figure: Figure, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(path) as part:
        figure.savefig(part, format="png")


def _without_ticks(axes: Axes) -> None:
    axes.set_xticks([])
    axes.set_yticks([])
    axes.spines[:].set_visible(False)


def _wrap(text: str, width_inches: float, font_size: float) -> str:
    """Lines that fit: a letter is about 0.6 of the font's size wide, which is in 1/72 of an inch.

    Bytes of a file's name that are no text are shown as "?", which a font has.
    """
    text = text.encode("utf-8", "replace").decode()
    return "\n".join(textwrap.wrap(text, max(12, int(width_inches * 72 / (0.6 * font_size)))))
