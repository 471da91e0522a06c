"""Multi-scale crop: a box drawn from a numpy Generator, cut and resized on uint8."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
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
    """A box in pixels."""

    top: int
    left: int
    height: int
    width: int


def draw_crop(height: int, width: int, size: int, scales: tuple[float, ...], rng: np.random.Generator) -> CropBox:
    """Draw a box of a (height, width) video: edges are `scales` of the short side, at one of the 13 fixed offsets.

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
    return CropBox(top, left, crop_height, crop_width)


def crop_resize(frames_THWC: np.ndarray, box: CropBox, size: int) -> Tensor:
    """Cut `box` and resize it: uint8 (T, H, W, 3) -> uint8 (T, S, S, 3), contiguous; bilinear with antialias."""
    cut_THWC = frames_THWC[:, box.top : box.top + box.height, box.left : box.left + box.width]
    cut_TCHW = torch.from_numpy(cut_THWC).permute(0, 3, 1, 2)  # channels last in memory: the fast uint8 path
    resized_TCHW = functional.resize(cut_TCHW, [size, size], antialias=True)
    return resized_TCHW.permute(0, 2, 3, 1).contiguous()
