"""Which frames of a video make a clip, drawn from a numpy Generator."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

SPREAD_SHARE = (0.6, 1.0)
"""Share of the video that a `spread` clip covers: drawn uniformly between these."""


def count_starts(length: int, num_frames: int, stride: int) -> int:
    """First frames to choose from, 0 .. count-1: the clip's num_frames * stride frames must fit, else only 0.

    As published: pretrain_datasets.py counts the trailing stride - 1 frames as part of the clip (docs/PAPER.md#sampling).
    """
    return max(1, length - num_frames * stride + 1)


def stride_indices(length: int, num_frames: int, stride: int, start: int) -> np.ndarray:
    """(T,) int64: every `stride`-th frame from `start`; a video that ends early repeats its last *sampled* frame.

    As published (pretrain_datasets.py `get_frame_id_list`): it goes on only while its 1-based `offset + step < duration`,
    so beyond the first it never takes a video's last frame, not even at stride 1 (docs/PAPER.md#sampling).
    """
    last_sampled = start + max(0, (length - 2 - start) // stride) * stride
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


def dense_indices(length: int, num_frames: int, stride: int, rng: np.random.Generator | None = None) -> np.ndarray:
    """Published fine-tuning sampling: (T,) indices evenly over num_frames * stride frames, at a random place or the middle.

    Like the published one it never places the window at the very end, spaces frames by T * stride / (T - 1), and fills a
    short video up with its last frame (cls_dense of tests/golden/sampling.json).
    """
    window = num_frames * stride
    if length <= window:
        indices = np.linspace(0, length, num=length // stride)
        indices = np.concatenate([indices, np.full(num_frames - len(indices), length)])
        return np.clip(indices, 0, length - 1).astype(np.int64)
    end = window + (length - window) // 2 if rng is None else int(rng.integers(window, length))
    return np.clip(np.linspace(end - window, end, num=num_frames), end - window, end - 1).astype(np.int64)


def segment_indices(length: int, num_frames: int, rng: np.random.Generator | None = None) -> np.ndarray:
    """One frame of each of `num_frames` equal parts, drawn or its middle (published for SSv2: docs/PAPER.md#sampling)."""
    part = length // num_frames
    if part:
        offsets = np.full(num_frames, part // 2) if rng is None else rng.integers(part, size=num_frames)
        return np.arange(num_frames, dtype=np.int64) * part + offsets
    if rng is not None:
        return np.sort(rng.integers(length, size=num_frames))
    return np.maximum(np.arange(num_frames, dtype=np.int64) - (num_frames - length), 0)


def dense_views(length: int, num_frames: int, stride: int, clips: int) -> np.ndarray:
    """Published testing: (K, T) indices, clips at even distances in every `stride`-th frame of the whole video."""
    frames = np.arange(0, length, stride, dtype=np.int64)
    frames = np.concatenate([frames, np.full(max(0, num_frames - len(frames)), frames[-1])])
    step = (len(frames) - num_frames) / max(1, clips - 1)
    first = (len(frames) - num_frames) // 2  # of a single clip: the middle
    starts = [int(k * step) for k in range(clips)] if clips > 1 else [first]
    return np.stack([frames[start : start + num_frames] for start in starts])


def segment_views(length: int, num_frames: int, stride: int, clips: int) -> np.ndarray:
    """Published testing on SSv2: (K, T) indices, clip k every K-th of K * T frames spread over the video."""
    del stride
    spread = (np.arange(num_frames * clips) * (length / (num_frames * clips))).astype(np.int64)
    return np.stack([spread[k::clips] for k in range(clips)])


def middle_clip(sampling: str, length: int, num_frames: int, stride: int) -> np.ndarray:
    """(T,) indices of the one clip that stands for a video while training: the sampler's own, in the middle."""
    if sampling == "segments":
        return segment_indices(length, num_frames)
    if sampling == "spread":
        return np.minimum(((np.arange(num_frames) + 0.5) * (length / num_frames)).astype(np.int64), length - 1)
    return dense_indices(length, num_frames, stride)


TEST_SAMPLERS: dict[str, Callable[[int, int, int, int], np.ndarray]] = {"dense": dense_views, "segments": segment_views}
"""(length, num_frames, stride, clips) -> (K, T) int64 frame indices, by ViewsConfig.sampling."""

SAMPLERS: dict[str, Callable[[int, int, int, np.random.Generator], np.ndarray]] = {
    "stride": sample_stride,
    "dense": dense_indices,
    "segments": lambda length, num_frames, stride, rng: segment_indices(length, num_frames, rng),
    "spread": sample_spread,
}
"""(length, num_frames, stride, rng) -> (T,) int64 frame indices, ascending, by DataConfig.sampling."""
