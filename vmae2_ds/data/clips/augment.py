"""Augmentation of labelled clips: RandAugment and random erasing on uint8 frames, and the mixing of a micro batch."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Iterator
from functools import cache
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from vmae2_ds.errors import ConfigError
from vmae2_ds.hidden_packages import hidden
from vmae2_ds.model.embed import IMAGENET_MEAN, IMAGENET_STD

# T frames, H x W pixels, S the clip's edge, B clips.

ERASE_AREA, ERASE_ASPECT, ERASE_ATTEMPTS = (0.02, 1 / 3), (0.3, 1 / 0.3), 10
"""Random erasing as published: share of the area, log-uniform aspect, boxes tried (timm's defaults)."""
TRANSLATE_SHARE = 0.45
"""Largest shift of RandAugment's translations, of the clip's edge (published create_random_augment)."""


@cache
def _policy(name: str, size: int) -> Any:
    with hidden("wandb"):  # timm imports it where it is installed
        from timm.data.auto_augment import rand_augment_transform

    colour = tuple(round(255 * mean) for mean in IMAGENET_MEAN)
    return rand_augment_transform(name, {"translate_const": int(size * TRANSLATE_SHARE), "img_mean": colour})


def check_policy(name: str, size: int) -> None:
    """Raises ConfigError for a name that timm does not read as a RandAugment policy."""
    try:
        _policy(name, size)
    except (AssertionError, ValueError, KeyError, IndexError) as error:
        raise ConfigError(
            f"--augment.rand-augment {name!r} is no policy of timm ({error or type(error).__name__})"
        ) from None


def rand_augment(frames_THWC: np.ndarray, name: str, size: int, rng: np.random.Generator) -> np.ndarray:
    """timm's RandAugment with one draw for all frames: uint8 (T, H, W, 3) -> the same.

    timm draws from the global generators of `random` and numpy, which are seeded again for each frame and put back.
    """
    from PIL import Image

    policy, seed = _policy(name, size), int(rng.integers(2**32))
    augmented = []
    for frame_HWC in frames_THWC:
        with _seeded(seed):
            augmented.append(np.asarray(policy(Image.fromarray(frame_HWC))))
    return np.stack(augmented)


@contextlib.contextmanager
def _seeded(seed: int) -> Iterator[None]:
    before, numpy_before = random.getstate(), np.random.get_state()
    random.seed(seed)
    np.random.seed(seed)
    try:
        yield
    finally:
        random.setstate(before)
        np.random.set_state(numpy_before)


def erase(clip_TSSC: Tensor, share: float, rng: np.random.Generator) -> None:
    """With probability `share`, fill one random box of all frames with noise, in place: uint8 (T, S, S, 3).

    The noise is normal around ImageNet's mean with its deviation, which is what the published code writes after it has
    normalised the clip; here it is cut off at black and white, 2 deviations away.
    """
    if rng.random() >= share:
        return
    frames, height, width, _ = clip_TSSC.shape
    for _ in range(ERASE_ATTEMPTS):
        pixels = rng.uniform(*ERASE_AREA) * height * width
        aspect = np.exp(rng.uniform(*np.log(ERASE_ASPECT)))
        box_height, box_width = round(np.sqrt(pixels * aspect)), round(np.sqrt(pixels / aspect))
        if box_height < height and box_width < width:
            top, left = rng.integers(height - box_height + 1), rng.integers(width - box_width + 1)
            noise = rng.standard_normal((frames, box_height, box_width, 3), dtype=np.float32)
            noise = 255 * (noise * np.asarray(IMAGENET_STD) + np.asarray(IMAGENET_MEAN))
            clip_TSSC[:, top : top + box_height, left : left + box_width] = torch.from_numpy(
                np.clip(noise, 0, 255).astype(np.uint8)
            )
            return


class Mixing(NamedTuple):
    """How each clip of a micro batch is mixed with its counterpart, the batch read backwards."""

    keep_pixels: float
    """Part of a clip's own pixels (mixup); 1 where there is a box instead, or no mixing."""
    keep_label: float
    """Part of a clip's own label."""
    box: tuple[int, int, int, int] | None = None
    """Top, bottom, left and right of what comes from the counterpart (cutmix)."""


def draw_mixing(
    size: int, mixup: float, cutmix: float, share: float, cutmix_share: float, rng: np.random.Generator
) -> Mixing:
    """One draw for a micro batch: mixup (arXiv 1710.09412) or cutmix (arXiv 1905.04899), as timm's mode `batch` has it."""
    if not (mixup or cutmix) or rng.random() >= share:
        return Mixing(1.0, 1.0)
    if not cutmix or (mixup and rng.random() >= cutmix_share):
        keep = float(rng.beta(mixup, mixup))
        return Mixing(keep, keep)
    edge = int(size * np.sqrt(1 - rng.beta(cutmix, cutmix)))
    (top, bottom), (left, right) = (_side(int(rng.integers(size)), edge, size) for _ in range(2))
    return Mixing(1.0, 1 - (bottom - top) * (right - left) / size**2, (top, bottom, left, right))


def _side(middle: int, edge: int, size: int) -> tuple[int, int]:
    return max(0, middle - edge // 2), min(size, middle + edge // 2)


def paste_boxes(clip_BTSSC: Tensor, box: tuple[int, int, int, int]) -> Tensor:
    """Cutmix: a copy in which each clip has the box of its counterpart."""
    top, bottom, left, right = box
    mixed_BTSSC = clip_BTSSC.clone()
    mixed_BTSSC[:, :, top:bottom, left:right] = clip_BTSSC.flip(0)[:, :, top:bottom, left:right]
    return mixed_BTSSC
