"""Multi-scale crop: a box drawn from a numpy Generator, cut, resized and shaded on uint8."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from torch import Tensor
from torchvision.transforms.v2 import functional

# T frames, H x W pixels, S the clip's edge, 3 colours.

# (down, right) in quarters of the room that the crop leaves: corners, centre, edge middles, inner diagonal; 13 in all.
# The fixed offsets of TSN (arXiv 1608.00859), which the published MultiScaleCrop takes over with "more_fix_crop".
FIXED_OFFSETS = (
    *((0, 0), (0, 4), (4, 0), (4, 4), (2, 2)),
    *((2, 0), (2, 4), (4, 2), (0, 2)),
    *((1, 1), (1, 3), (3, 1), (3, 3)),
)
MAX_DISTORT = 1
"""Height and width may take crop scales at most this many places apart."""
SNAP_PIXELS = 3
"""A crop edge closer than this to the clip's edge becomes the clip's edge, so that it is not resampled (published)."""


class CropBox(NamedTuple):
    """A box in pixels, and what is done to what is in it: mirrored left to right, made brighter, given more contrast."""

    top: int
    left: int
    height: int
    width: int
    is_flipped: bool = False
    brightness: float = 1.0
    """Factor of every pixel."""
    contrast: float = 1.0
    """Factor of the distance from a frame's mean grey."""


def draw_crop(
    height: int,
    width: int,
    size: int,
    scales: tuple[float, ...],
    rng: np.random.Generator,
    flip: float = 0.0,
    jitter: float = 0.0,
) -> CropBox:
    """Draw a box of a (height, width) video: edges are `scales` of the short side, at one of the 13 fixed offsets.

    `flip` is the share of boxes that are mirrored; brightness and contrast are within 1 - `jitter` and 1 + `jitter`. They
    are drawn last, so that boxes do not depend on them.

    An edge never leaves the video: where the published code snaps to a clip edge larger than the video, we do not.
    """
    short = min(height, width)
    edges = [max(1, int(short * scale)) for scale in scales]
    edges = [size if abs(edge - size) < SNAP_PIXELS and size <= short else edge for edge in edges]
    pairs = [(h, w) for i, h in enumerate(edges) for j, w in enumerate(edges) if abs(i - j) <= MAX_DISTORT]
    crop_height, crop_width = pairs[rng.integers(len(pairs))]
    down, right = FIXED_OFFSETS[rng.integers(len(FIXED_OFFSETS))]
    top = down * ((height - crop_height) // 4)
    left = right * ((width - crop_width) // 4)
    is_flipped = bool(flip and rng.random() < flip)
    shade = rng.uniform(1 - jitter, 1 + jitter, 2).tolist() if jitter else (1.0, 1.0)
    return CropBox(top, left, crop_height, crop_width, is_flipped, *shade)


def crop_resize(frames_THWC: Tensor, box: CropBox, size: int) -> Tensor:
    """Cut `box`, resize, mirror and shade: uint8 (T, H, W, 3) -> uint8 (T, S, S, 3), contiguous; bilinear with antialias.

    Computed on the device that holds the frames: on a GPU torchvision resizes in float32 and rounds, within one grey level
    of what it does on a CPU. May share memory with `frames_THWC` where there is nothing to do.
    """
    cut_THWC = frames_THWC[:, box.top : box.top + box.height, box.left : box.left + box.width]
    cut_TCHW = cut_THWC.permute(0, 3, 1, 2)  # channels last in memory: the fast uint8 path
    resized_TCHW = functional.resize(cut_TCHW, [size, size], antialias=True)
    if box.is_flipped:
        resized_TCHW = functional.horizontal_flip(resized_TCHW)
    if box.brightness != 1:
        resized_TCHW = functional.adjust_brightness(resized_TCHW, box.brightness)
    if box.contrast != 1:
        resized_TCHW = functional.adjust_contrast(resized_TCHW, box.contrast)
    return resized_TCHW.permute(0, 2, 3, 1).contiguous()


CROP_ATTEMPTS = 10
"""Boxes that a random resized crop tries before it takes the middle, as torchvision does."""


def draw_resized_crop(
    height: int,
    width: int,
    area: tuple[float, float],
    aspect: tuple[float, float],
    flip: float,
    rng: np.random.Generator,
) -> CropBox:
    """Random resized crop (arXiv 1409.4842; torchvision's RandomResizedCrop): a share of the area, a log-uniform aspect."""
    for _ in range(CROP_ATTEMPTS):
        pixels = height * width * rng.uniform(*area)
        ratio = np.exp(rng.uniform(*np.log(aspect)))
        crop_width, crop_height = round(np.sqrt(pixels * ratio)), round(np.sqrt(pixels / ratio))
        if 0 < crop_width <= width and 0 < crop_height <= height:
            top, left = int(rng.integers(height - crop_height + 1)), int(rng.integers(width - crop_width + 1))
            return CropBox(top, left, crop_height, crop_width, bool(flip and rng.random() < flip))
    crop_width = min(width, round(height * aspect[1]))
    crop_height = min(height, round(width / aspect[0]))
    top, left = (height - crop_height) // 2, (width - crop_width) // 2
    return CropBox(top, left, crop_height, crop_width, bool(flip and rng.random() < flip))


def view_crops(height: int, width: int, crops: int) -> list[CropBox]:
    """Squares of the short side at even distances along the longer one; a single one in the middle (published testing)."""
    short, room = min(height, width), abs(height - width)
    shifts = [int(k * room / (crops - 1)) for k in range(crops)] if crops > 1 else [room // 2]
    return [CropBox(shift, 0, short, short) if height > width else CropBox(0, shift, short, short) for shift in shifts]
