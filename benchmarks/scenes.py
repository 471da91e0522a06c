"""Videos to time readers on: textured, moving, grainy, so that a codec has motion and residuals to store."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from vmae2_ds.data.tools.synthetic import write_video

# H, W pixels of a frame, 3 colours.

FPS = 30
GRAIN = 2.0
"""Deviation of the noise that changes from frame to frame, of 255 levels: what a camera adds."""
CONTRAST = 45.0
"""Deviation of the picture itself."""


def write_scene(path: Path, height: int, frames: int, gop: int) -> None:
    """A 16:9 H.264 video of `height` pixels at 30 frames a second; the same arguments draw the same pixels."""
    write_video(path, draw_scene(height, width_of(height), frames), FPS, gop)


def width_of(height: int) -> int:
    """Width of a 16:9 frame, even as H.264 wants it."""
    return 2 * round(height * 8 / 9)


def draw_scene(height: int, width: int, frames: int, seed: int = 0) -> Iterator[np.ndarray]:
    """uint8 (H, W, 3) frames: a camera pans over a background, a square moves against it, grain on top."""
    rng = np.random.default_rng(seed)
    room = height // 4
    background_HWC = _picture(rng, height + room, width + room)
    side = height // 3
    thing_HWC = _picture(rng, side, side)
    grain_HWC = rng.normal(0, GRAIN, (height + room, width + room, 3)).astype(np.float32)
    for number in range(frames):
        turn = 2 * np.pi * number / (6 * FPS)
        down, right = _orbit(turn, room), _orbit(turn + np.pi / 2, room)
        frame_HWC = background_HWC[down : down + height, right : right + width].copy()
        top, left = _orbit(-2 * turn, height - side), _orbit(-3 * turn, width - side)
        frame_HWC[top : top + side, left : left + side] = thing_HWC
        down, right = rng.integers(0, room, 2)
        frame_HWC += grain_HWC[down : down + height, right : right + width]
        yield frame_HWC.clip(0, 255).astype(np.uint8)


def _orbit(turn: float, room: int) -> int:
    """A place between 0 and `room` that swings."""
    return int((np.sin(turn) + 1) / 2 * room)


def _picture(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """float32 (H, W, 3) noise whose amplitude falls with frequency, as it does in photographs."""
    noise_HWC = rng.normal(size=(height, width, 3))
    frequency_HW = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.fftfreq(width)[None, :])
    shape_HW = 1 / np.maximum(frequency_HW, 1 / max(height, width)) ** 1.2
    picture_HWC = np.fft.ifft2(np.fft.fft2(noise_HWC, axes=(0, 1)) * shape_HW[..., None], axes=(0, 1)).real
    picture_HWC *= CONTRAST / picture_HWC.std()
    return (128 + picture_HWC).astype(np.float32)
