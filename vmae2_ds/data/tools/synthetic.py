"""A labelled video set made from a seed: the class is how a patch moves, and no single frame tells it.

For tests and a first run without data. Place, texture, shape and contrast of the moving patch, of the distractors behind
it and of the background are random and say nothing about the class; the frame wraps around at its edges, so that where
the patch is says nothing either. A linear classifier on pixels is therefore at chance, on one frame or on all of them.
What does not move as the class says stays where it is: masked pre-training learns what can be foretold.
The plain look has one large shape of two colours in front of a single colour: a small model fills it in within minutes. One
frame of it tells the class no more; all frames together do a little, to a linear classifier too (13 % of 12 classes).
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Literal, NamedTuple

import numpy as np
import tyro
from pydantic import Field

from vmae2_ds.config.strict import ClipLength, Seed, StrictModel
from vmae2_ds.console.progress import Ticker, counted, heard
from vmae2_ds.data.sources.list_formats import csv_line
from vmae2_ds.data.tools.encode import write_video
from vmae2_ds.data.tools.work_folder import check_work_folder, work_folder
from vmae2_ds.disk import whole_file, write_whole
from vmae2_ds.errors import ConfigError

log = logging.getLogger(__name__)

# T frames, H = W = `size` pixels, 3 colours; positions and speeds are in shares of the size.

DIRECTIONS = ("right", "down right", "down", "down left", "left", "up left", "up", "up right")
CLASS_NAMES = (*DIRECTIONS, "spin clockwise", "spin anticlockwise", "orbit clockwise", "orbit anticlockwise")
"""Class names; a label is a position in this tuple."""
SOURCE = "synthetic"
NUM_DISTRACTORS = 2
SMALLEST, LARGEST, MOST_VIDEOS, MOST_FPS = 16, 4096, 1_000_000, 1000
PATCH_RADII, DISTRACTOR_RADII = (0.2, 0.28), (0.13, 0.19)
"""From and to, in shares of the size: a patch of two or three cubes of a desk's model, whose path goes through some more."""
PLAIN_RADII = (0.26, 0.34)
COLOUR_STEP = 0.5
"""Plain look: by how much two colours differ at least, in the channel in which they differ most; 1 is black against white."""

Look = Literal["textured", "plain"]


class SyntheticSet(NamedTuple):
    """The files of one set."""

    train: Path
    val: Path
    labels: Path


class SynthArguments(StrictModel):
    """Write a small labelled set of H.264 videos of moving shapes, whose class is the motion and not a frame.

    Labels take turns, so that classes are balanced. The pixels are a function of the arguments alone (given libx264).
    """

    folder: tyro.conf.Positional[Path]
    """Folder to write: train/, val/, the lists train.csv and val.csv (path, label, source), and labels.txt."""
    train_videos: Annotated[int, Field(ge=1, le=MOST_VIDEOS)] = 64
    """Number of training videos."""
    val_videos: Annotated[int, Field(ge=0, le=MOST_VIDEOS)] = 32
    """Number of validation videos."""
    seed: Seed = 0
    """Seed of the videos; the same seed writes the same pixels."""
    size: Annotated[int, Field(ge=SMALLEST, le=LARGEST)] = 128
    """Height and width in pixels, an even number."""
    frames: ClipLength = 32
    """Number of frames in a video."""
    fps: Annotated[int, Field(ge=1, le=MOST_FPS)] = 16
    """Frames per second."""
    look: Look = "textured"
    """What is drawn. textured: a patch, and behind it a background and two patches at rest that look like it; plain: one
    large shape of two colours in front of a single colour, which a small model learns to fill in within minutes."""


def write_synthetic_set(asked: SynthArguments) -> SyntheticSet:
    """Write the videos, their lists and the names of their classes."""
    folder, size = asked.folder, asked.size
    if size % 2:
        raise ConfigError(
            f"--size {size}: an even number of pixels, as H.264 keeps its colours; try {size - 1} or {size + 1}"
        )
    settings = asked.model_dump(exclude={"folder"})
    check_work_folder(folder, "synth", option="FOLDER")
    log.info("%s: %s to write", folder, counted(asked.train_videos + asked.val_videos, "video"))
    with (
        work_folder(folder, "synth", settings, option="FOLDER"),
        heard(Ticker(log, "videos written", asked.train_videos + asked.val_videos)) as ticker,
    ):
        for split, (name, count) in enumerate((("train", asked.train_videos), ("val", asked.val_videos))):
            lines = [csv_line(("path", "label", "source"))]
            (folder / name).mkdir(exist_ok=True)
            for number in range(count):
                label = number % len(CLASS_NAMES)
                path = f"{name}/{number:05d}.mp4"
                if not (folder / path).is_file():
                    rng = np.random.default_rng((asked.seed, split, number))
                    with whole_file(folder / path, alone=True) as part:
                        write_video(part, draw_clip(label, rng, size, asked.frames, asked.look), asked.fps, kind="mp4")
                lines.append(csv_line((path, label, SOURCE)))
                ticker.tell(split * asked.train_videos + number + 1)
            write_whole(folder / f"{name}.csv", "".join(lines))
        write_whole(folder / "labels.txt", "".join(f"{name}\n" for name in CLASS_NAMES))
    return SyntheticSet(folder / "train.csv", folder / "val.csv", folder / "labels.txt")


def draw_clip(label: int, rng: np.random.Generator, size: int, frames: int, look: Look = "textured") -> np.ndarray:
    """uint8 (T, H, W, 3): a background that rests, and on top the patch that moves as CLASS_NAMES[label] says."""
    background_HWC, patch = _LOOKS[look](rng, size)
    path = _path(label, rng, frames)
    clip_THWC = np.empty((frames, size, size, 3), dtype=np.uint8)
    for t in range(frames):
        frame_HWC = background_HWC.copy()
        patch.paint(frame_HWC, path.offsets[t], path.angles[t])
        clip_THWC[t] = np.clip(frame_HWC * 255, 0, 255).astype(np.uint8)
    return clip_THWC


class _Path(NamedTuple):
    """How a patch moves: (T, 2) offsets (down, right) in shares of the size, and (T,) angles in radians."""

    offsets: np.ndarray
    angles: np.ndarray


def _path(label: int, rng: np.random.Generator, frames: int) -> _Path:
    """Speeds are drawn so that a clip of any length covers about half the frame, or most of a turn."""
    time = np.arange(frames) / frames
    still, no_turn = np.zeros((frames, 2)), np.zeros(frames)
    if label < len(DIRECTIONS):
        heading = label * np.pi / 4 + rng.uniform(-np.pi / 16, np.pi / 16)
        distance = rng.uniform(0.4, 0.7) * time
        return _Path(np.stack([distance * np.sin(heading), distance * np.cos(heading)], axis=1), no_turn)
    clockwise = 1 if CLASS_NAMES[label].endswith(" clockwise") else -1  # image rows grow downwards
    turn = clockwise * rng.uniform(0.5, 0.9) * 2 * np.pi * time
    if CLASS_NAMES[label].startswith("spin"):
        return _Path(still, turn)
    phase = rng.uniform(0, 2 * np.pi)
    radius = rng.uniform(0.15, 0.22)
    return _Path(radius * np.stack([np.sin(phase + turn), np.cos(phase + turn)], axis=1), no_turn)


class _Patch:
    """A disc, a square or another shape at a random place and angle."""

    def __init__(
        self,
        rng: np.random.Generator,
        size: int,
        radii: tuple[float, float],
        surface: Callable[[np.random.Generator], np.ndarray],
        shapes: tuple[Shape, ...],
    ) -> None:
        self.size = size
        self.centre = rng.uniform(0, 1, 2)
        self.angle = rng.uniform(0, 2 * np.pi)
        self.radius = rng.uniform(*radii) * size
        self.texture_HWC = surface(rng)
        self.inside = shapes[int(rng.integers(len(shapes)))]

    def paint(self, frame_HWC: np.ndarray, offset: np.ndarray, turn: float) -> None:
        """Paint onto float pixels in [0, 1], `offset` (down, right) and `turn` away from the first place and angle."""
        angle = self.angle + turn
        down, right = (self.centre + offset) % 1.0 * self.size
        reach = int(self.radius) + 1
        rows = np.arange(int(down) - reach, int(down) + reach + 2)
        columns = np.arange(int(right) - reach, int(right) + reach + 2)
        y, x = (rows - down)[:, None] / self.radius, (columns - right)[None, :] / self.radius
        u, v = np.cos(angle) * x + np.sin(angle) * y, np.cos(angle) * y - np.sin(angle) * x
        colours = _look_up(self.texture_HWC, v, u)
        opacity = np.clip(self.inside(v, u) * self.radius + 0.5, 0, 1)[..., None]  # one pixel of soft edge
        where = np.ix_(rows % self.size, columns % self.size)
        frame_HWC[where] = (1 - opacity) * frame_HWC[where] + opacity * colours


Shape = Callable[[np.ndarray, np.ndarray], np.ndarray]
"""Signed distance to the edge, positive inside, for (v, u) in [-1, 1]."""
_SHAPES: tuple[Shape, ...] = (
    lambda v, u: 1 - np.hypot(v, u),
    lambda v, u: 0.75 - np.maximum(abs(v), abs(u)),
    lambda v, u: np.minimum(0.55 - abs(v), 0.85 - abs(u)),
)
_PLAIN_SHAPES: tuple[Shape, ...] = (
    *_SHAPES,
    lambda v, u: np.minimum(0.5 - v, (v + 1) / 2 - np.sqrt(0.75) * abs(u)),  # triangle
    lambda v, u: np.minimum(1 - np.hypot(v, u), np.hypot(v, u) - 0.45),  # ring
)


def _textured(rng: np.random.Generator, size: int) -> tuple[np.ndarray, _Patch]:
    """Background (H, W, 3) with distractors at rest, and the patch that moves."""

    def surface(rng: np.random.Generator) -> np.ndarray:
        return np.clip(0.5 + 0.5 * _texture(rng, 64, cells=5), 0, 1)

    # one colour a video, shading slowly: the first thing that masked pre-training learns to continue
    background_HWC = rng.uniform(0.25, 0.75, 3) + 0.1 * _texture(rng, size, cells=3)
    for _ in range(NUM_DISTRACTORS):
        _Patch(rng, size, DISTRACTOR_RADII, surface, _SHAPES).paint(background_HWC, np.zeros(2), 0.0)
    return background_HWC, _Patch(rng, size, PATCH_RADII, surface, _SHAPES)


def _plain(rng: np.random.Generator, size: int) -> tuple[np.ndarray, _Patch]:
    """Background (H, W, 3) of one colour, and a shape whose halves have two others: one alone would hide that a disc spins."""
    colours = [rng.uniform(0, 1, 3)]
    while len(colours) < 3:
        drawn = rng.uniform(0, 1, 3)
        if all(abs(drawn - other).max() > COLOUR_STEP for other in colours):
            colours.append(drawn)
    background, left, right = colours
    halves_HWC = np.where(np.arange(64)[None, :, None] < 32, left, right).repeat(64, axis=0)
    patch = _Patch(rng, size, PLAIN_RADII, lambda rng: halves_HWC, _PLAIN_SHAPES)
    return np.broadcast_to(background, (size, size, 3)), patch


_LOOKS: dict[Look, Callable[[np.random.Generator, int], tuple[np.ndarray, _Patch]]] = {
    "textured": _textured,
    "plain": _plain,
}


def _texture(rng: np.random.Generator, size: int, cells: int) -> np.ndarray:
    """(size, size, 3) smooth colour noise of either sign, about unit variance at its cells."""
    coarse = rng.normal(0, 1, (cells, cells, 3))
    at = np.linspace(-1, 1, size)
    return _look_up(coarse, at[:, None], at[None, :])


def _look_up(image_HWC: np.ndarray, v: np.ndarray, u: np.ndarray) -> np.ndarray:
    """Bilinear values of a square image at (v, u) in [-1, 1], down and right, clamped at the border."""
    last = len(image_HWC) - 1
    v, u = np.broadcast_arrays(np.clip((v + 1) / 2 * last, 0, last), np.clip((u + 1) / 2 * last, 0, last))
    top, left = np.minimum(v.astype(int), last - 1), np.minimum(u.astype(int), last - 1)
    down, right = (v - top)[..., None], (u - left)[..., None]
    upper = (1 - right) * image_HWC[top, left] + right * image_HWC[top, left + 1]
    lower = (1 - right) * image_HWC[top + 1, left] + right * image_HWC[top + 1, left + 1]
    return (1 - down) * upper + down * lower
