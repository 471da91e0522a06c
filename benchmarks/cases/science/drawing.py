"""The grid's own synthetic clips: one shape of two colours moves in front of one colour, and the class is how it moves.

Plainer than `vmae2 data synth`, so that a small model learns something of it in minutes. Place, size, shape, colours, speed
and first angle are drawn and say nothing of the class; the frame wraps around, so that where the shape is says nothing either.
"""

from __future__ import annotations

import numpy as np

from vmae2_ds.data.tools.synthetic import CLASS_NAMES, DIRECTIONS

# T frames, H = W = `size` pixels, 3 colours; places and radii are in shares of the size, angles in radians.

RADII = (0.24, 0.32)
COLOUR_STEP = 0.4
"""By how much the three colours differ at least, each pair in the channel in which it differs most."""


def draw(label: int, rng: np.random.Generator, size: int, frames: int) -> np.ndarray:
    """A clip of class CLASS_NAMES[label]: uint8 (T, H, W, 3), a function of the arguments alone."""
    colour_33 = _colours(rng)
    centre_T2, angle_T = _path(label, rng, frames)
    radius, kind = rng.uniform(*RADII), rng.integers(3)
    pixel_S = (np.arange(size) + 0.5) / size
    down_THW = _wrapped(pixel_S[None, :, None] - centre_T2[:, 0, None, None]) / radius
    right_THW = _wrapped(pixel_S[None, None, :] - centre_T2[:, 1, None, None]) / radius
    cosine_T, sine_T = np.cos(angle_T)[:, None, None], np.sin(angle_T)[:, None, None]
    u_THW, v_THW = cosine_T * right_THW + sine_T * down_THW, cosine_T * down_THW - sine_T * right_THW
    inside_THW = (
        1 - np.hypot(v_THW, u_THW),
        0.8 - np.maximum(abs(v_THW), abs(u_THW)),
        np.minimum(0.55 - abs(v_THW), 0.9 - abs(u_THW)),
    )[kind]
    edge = radius * size  # one pixel of soft edge
    shown_THW1 = np.clip(inside_THW * edge + 0.5, 0, 1)[..., None]
    half_THW1 = np.clip(u_THW * edge + 0.5, 0, 1)[..., None]
    shape_THWC = half_THW1 * colour_33[1] + (1 - half_THW1) * colour_33[2]
    return ((shown_THW1 * shape_THWC + (1 - shown_THW1) * colour_33[0]) * 255).astype(np.uint8)


def _wrapped(x: np.ndarray) -> np.ndarray:
    """Distance along one side, by the nearer way around: within half of the size."""
    return (x + 0.5) % 1 - 0.5


def _colours(rng: np.random.Generator) -> np.ndarray:
    """(3, 3): background and the shape's halves."""
    while True:
        colour_33 = rng.uniform(0, 1, (3, 3))
        apart = [abs(colour_33[one] - colour_33[other]).max() for one, other in ((0, 1), (0, 2), (1, 2))]
        if min(apart) >= COLOUR_STEP:
            return colour_33


def _path(label: int, rng: np.random.Generator, frames: int) -> tuple[np.ndarray, np.ndarray]:
    """Centres (T, 2), down and right, and angles (T,). A clip of any length covers about half the frame, or most of a turn."""
    part_T = np.arange(frames) / frames
    start_2, angle_T = rng.uniform(0, 1, 2), np.full(frames, rng.uniform(0, 2 * np.pi))
    if label < len(DIRECTIONS):
        heading = label * np.pi / 4 + rng.uniform(-np.pi / 16, np.pi / 16)
        way_T = rng.uniform(0.4, 0.7) * part_T
        return start_2 + np.stack([way_T * np.sin(heading), way_T * np.cos(heading)], axis=1), angle_T
    clockwise = 1 if CLASS_NAMES[label].endswith(" clockwise") else -1  # rows grow downwards
    turn_T = clockwise * rng.uniform(0.5, 0.9) * 2 * np.pi * part_T
    if CLASS_NAMES[label].startswith("spin"):
        return np.broadcast_to(start_2, (frames, 2)), angle_T + turn_T
    at_T = rng.uniform(0, 2 * np.pi) + turn_T
    return start_2 + rng.uniform(0.15, 0.22) * np.stack([np.sin(at_T), np.cos(at_T)], axis=1), angle_T
