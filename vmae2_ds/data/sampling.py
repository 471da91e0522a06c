"""Which frames of a video make a clip, drawn from a numpy Generator."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

SPREAD_SHARE = (0.6, 1.0)
"""Share of the video that a `spread` clip covers: drawn uniformly between these."""


def count_starts(length: int, num_frames: int, stride: int) -> int:
    """First frames to choose from, 0 .. count-1: the clip's num_frames * stride frames must fit, else only 0.

    As published: pretrain_datasets.py counts the trailing stride - 1 frames as part of the clip (golden/sampling.json).
    """
    return max(1, length - num_frames * stride + 1)


def stride_indices(length: int, num_frames: int, stride: int, start: int) -> np.ndarray:
    """(T,) int64: every `stride`-th frame from `start`; a video that ends early repeats its last *sampled* frame.

    So a short video's own last frame may never be used (published, PAPER C quirk 14).
    """
    last_sampled = start + (length - 1 - start) // stride * stride
    return np.minimum(start + stride * np.arange(num_frames, dtype=np.int64), last_sampled)


def sample_stride(length: int, num_frames: int, stride: int, rng: np.random.Generator) -> np.ndarray:
    """Published pre-training sampling: (T,) indices with a uniform start."""
    return stride_indices(length, num_frames, stride, start=int(rng.integers(count_starts(length, num_frames, stride))))


def sample_spread(length: int, num_frames: int, stride: int, rng: np.random.Generator) -> np.ndarray:
    """(T,) indices evenly over a random 60 to 100 % of the video, for short clips; `stride` has no part in it."""
    del stride
    span = rng.uniform(*SPREAD_SHARE) * length
    start = rng.uniform(0, length - span)
    middles = start + (np.arange(num_frames) + 0.5) * (span / num_frames)
    return np.minimum(middles.astype(np.int64), length - 1)


SAMPLERS: dict[str, Callable[[int, int, int, np.random.Generator], np.ndarray]] = {
    "stride": sample_stride,
    "spread": sample_spread,
}
"""(length, num_frames, stride, rng) -> (T,) int64 frame indices, ascending, by DataConfig.sampling."""
