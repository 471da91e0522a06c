"""How a picture becomes what the model sees, drawn once for all frames of a clip: pixels and boxes move alike.

Coordinates are continuous: a picture of W pixels reaches from 0 to W, and mirrored, x becomes W - x. (VideoMAE-AD counts pixels
instead and subtracts one, docs/PAPER.md#person-boxes.)
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torchvision.transforms.v2 import functional

from vmae2_ds.config.ava import AvaDataConfig
from vmae2_ds.model.embed import IMAGENET_MEAN

# T frames, H x W pixels of the video, S x S those of a training clip, G boxes.

LEAST_PIXELS = 1.0
"""Width and height below which a box that was cut is no person any more: it is left out. Published code keeps what is left of
any box, also when nothing is (docs/PAPER.md#spatial-detection)."""
ATTEMPTS = 10
"""Places drawn for a square that shows none of the people; then one that has a person, drawn too, in its middle."""


@dataclass(frozen=True)
class Shade:
    """What is done to the colours of a clip, as VideoMAE-AD does it: in hue, saturation and value, each moved by one number."""

    hue: float = 0.0
    """Turns of the colour wheel."""
    saturation: float = 0.0
    """Added to saturations, which lie between 0 and 1."""
    value: float = 0.0
    """Added to values, which lie between 0 and 1."""


@dataclass(frozen=True)
class Framing:
    """A picture is brought to `resized`, a part of it is cut out and perhaps mirrored, and what lacks is filled up."""

    resized: tuple[int, int]
    """Height and width."""
    top: int
    left: int
    cut: tuple[int, int]
    """Height and width of the part."""
    is_flipped: bool = False
    shade: Shade = Shade()
    padded: tuple[int, int] | None = None
    """Height and width of the clip, where it is larger than the part: filled with the mean colour at the right and below."""

    def clip(self, frames_THWC: Tensor) -> Tensor:
        """uint8 (T, H, W, 3) -> uint8 of the clip's height and width, in memory of its own; bilinear with antialias."""
        frames_TCHW = frames_THWC.permute(0, 3, 1, 2)  # channels last in memory: the fast uint8 path
        if frames_TCHW.shape[2:] != self.resized:
            frames_TCHW = functional.resize(frames_TCHW, list(self.resized), antialias=True)
        (height, width), (down, right) = self.cut, (self.top, self.left)
        cut_TCHW = frames_TCHW[:, :, down : down + height, right : right + width]
        if self.shade != Shade():
            cut_TCHW = shaded(cut_TCHW, self.shade)
        if self.is_flipped:
            cut_TCHW = functional.horizontal_flip(cut_TCHW)
        cut_THWC = cut_TCHW.permute(0, 2, 3, 1)
        if self.padded is not None and self.padded != self.cut:
            mean = torch.tensor([round(255 * part) for part in IMAGENET_MEAN], dtype=torch.uint8)
            filled_THWC = mean.expand(len(cut_THWC), *self.padded, 3).clone()
            filled_THWC[:, :height, :width] = cut_THWC
            return filled_THWC
        return cut_THWC.clone(memory_format=torch.contiguous_format)

    def boxes(self, box_G4: NDArray[np.float64]) -> NDArray[np.float64]:
        """Corners in parts of the picture -> in pixels of the clip; those outside of the part lie on its edge (published)."""
        (height, width), (full_height, full_width) = self.cut, self.resized
        x_G2, y_G2 = box_G4[:, 0::2] * full_width - self.left, box_G4[:, 1::2] * full_height - self.top
        if self.is_flipped:
            x_G2 = width - x_G2[:, ::-1]
        moved_G4 = np.empty_like(box_G4)
        moved_G4[:, 0::2], moved_G4[:, 1::2] = np.clip(x_G2, 0, width), np.clip(y_G2, 0, height)
        return moved_G4


def is_left(box_G4: NDArray[np.float64]) -> NDArray[np.bool_]:
    """(G,): which boxes of a clip, in pixels, still show somebody."""
    return np.all(box_G4[:, 2:] - box_G4[:, :2] >= LEAST_PIXELS, axis=1)


def whole(height: int, width: int, short_side: int, patch: int) -> Framing:
    """A test's: the whole picture, its short side brought to `short_side`, filled up to multiples of the patch."""
    resized = _resized(height, width, short_side)
    padded = (-(-resized[0] // patch) * patch, -(-resized[1] // patch) * patch)
    return Framing(resized, 0, 0, resized, padded=padded)


def draw(
    height: int, width: int, data: AvaDataConfig, box_G4: NDArray[np.float64], rng: np.random.Generator
) -> Framing:
    """A training clip's: the short side of a drawn size, and out of that a square that shows at least one of the people."""
    short_side = int(rng.integers(data.short_side[0], data.short_side[1] + 1))
    resized = _resized(height, width, short_side)
    is_flipped = bool(data.flip and rng.random() < data.flip)
    reach = np.array([data.hue_turn / 360, data.saturation, data.brightness])
    shade = Shade(*rng.uniform(-reach, reach).tolist())
    size = (data.size, data.size)
    room = (resized[0] - data.size, resized[1] - data.size)
    for _ in range(ATTEMPTS):
        top, left = (int(rng.integers(pixels + 1)) for pixels in room)
        framing = Framing(resized, top, left, size, is_flipped, shade)
        if is_left(framing.boxes(box_G4)).any():
            return framing
    x1, y1, x2, y2 = box_G4[rng.integers(len(box_G4))]
    middle = ((y1 + y2) / 2 * resized[0], (x1 + x2) / 2 * resized[1])
    top, left = (int(np.clip(at - data.size / 2, 0, pixels)) for at, pixels in zip(middle, room, strict=True))
    return Framing(resized, top, left, size, is_flipped, shade)


def jittered(
    box_G4: NDArray[np.float64],
    jitter: tuple[float, float, float, float],
    size: tuple[int, int],
    rng: np.random.Generator,
) -> NDArray[np.float64]:
    """Boxes in pixels whose edges are each moved by a drawn part of the box's width or height, none out of the clip.

    Args:
        box_G4: The boxes.
        jitter: How far at most: left and right edges outwards and inwards, upper and lower edges outwards and inwards
            (VideoMAE-AD's `random_aug`, docs/PAPER.md#spatial-detection).
        size: Height and width of the clip.
        rng: What draws.
    """
    across, down = jitter[:2], jitter[2:]
    outwards, inwards = (np.array([across[way], down[way]]) for way in (0, 1))
    extent_G2 = box_G4[:, 2:] - box_G4[:, :2]
    most = np.array(size[::-1], np.float64)
    upper_G2 = box_G4[:, :2] + extent_G2 * rng.uniform(-outwards, inwards, extent_G2.shape)
    lower_G2 = box_G4[:, 2:] + extent_G2 * rng.uniform(-inwards, outwards, extent_G2.shape)
    upper_G2 = np.clip(upper_G2, 0, most - LEAST_PIXELS)
    return np.concatenate([upper_G2, np.clip(lower_G2, upper_G2 + LEAST_PIXELS, most)], axis=1)


def shaded(frames_TCHW: Tensor, shade: Shade) -> Tensor:
    """uint8 -> uint8: hue, saturation and value of every pixel moved (HSV as OpenCV and colorsys have it).

    Frame by frame, which stays in a processor's cache: half of the time that a whole clip takes.
    """
    return torch.cat([_shaded(frame_1CHW, shade) for frame_1CHW in frames_TCHW.split(1)])


def _shaded(frames_TCHW: Tensor, shade: Shade) -> Tensor:
    pixels = frames_TCHW.float() / 255
    value, low = pixels.amax(1, keepdim=True), pixels.amin(1, keepdim=True)
    spread = value - low
    red, green, blue = pixels.split(1, dim=1)
    sixth = torch.where(
        value == red,
        (green - blue) / spread,
        torch.where(value == green, 2 + (blue - red) / spread, 4 + (red - green) / spread),
    )
    sixth = torch.where(spread > 0, sixth, 0) + 6 * shade.hue
    saturation = (torch.where(value > 0, spread / value, 0) + shade.saturation).clamp(0, 1)
    value = (value + shade.value).clamp(0, 1)
    place = (torch.tensor([5.0, 3.0, 1.0])[:, None, None] + sixth) % 6
    moved = value - value * saturation * torch.minimum(place, 4 - place).clamp(0, 1)
    return (moved * 255).round().to(torch.uint8)


def _resized(height: int, width: int, short_side: int) -> tuple[int, int]:
    """The longer side is cut to a whole number of pixels, as published and as torchvision does."""
    if height <= width:
        return short_side, short_side * width // height
    return short_side * height // width, short_side
