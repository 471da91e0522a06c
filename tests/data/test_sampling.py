"""Frame sampling against the published sampler's recorded answers."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from vmae2_ds.data.sampling import (
    SAMPLERS,
    VIEWS,
    count_starts,
    dense_indices,
    dense_views,
    middle_clip,
    sample_spread,
    sample_stride,
    segment_indices,
    segment_views,
    stride_indices,
)


def test_published_sampling_is_exact(shared: Path) -> None:
    cases = json.loads((shared / "golden" / "sampling.json").read_text())["pretrain"]
    assert cases
    for case in cases:
        length, stride = case["duration"], case["step"]
        if "frame_ids" in case:
            found = stride_indices(length, 16, stride, start=case["offset_1based"] - 1)
            assert found.tolist() == case["frame_ids"], case
        else:
            lowest, highest = case["offset_range"]
            assert (lowest, highest) == (1, count_starts(length, 16, stride)), case


def test_published_classification_sampling_is_exact(shared: Path) -> None:
    golden = json.loads((shared / "golden" / "sampling.json").read_text())
    for case in golden["cls_dense"]:
        length, frames, rate = case["length"], case["clip_len"], case["rate"]
        assert dense_indices(length, frames, rate).tolist() == case["validation"], case
        every = np.asarray(case["test"])
        starts = np.asarray(case["test_clip_starts_5seg"])
        expected = every[starts[:, None] + np.arange(frames)]
        assert dense_views(length, frames, rate, clips=5).tolist() == expected.tolist(), case
        drawn = dense_indices(length, frames, rate, np.random.default_rng(0))
        window = case["train_seed0"]
        if length <= frames * rate:
            assert drawn.tolist() == window, case
        else:  # another generator than the published code's: the same window, moved
            assert set(np.diff(drawn)) == set(np.diff(window)), case
            ends = {int(dense_indices(length, frames, rate, np.random.default_rng(i))[-1]) for i in range(300)}
            assert length - 2 - length // 50 <= max(ends) <= length - 2, case
            assert min(ends) <= frames * rate + 2, case
    for case in golden["rawframe"]:
        length, segments, clips = case["total_frames"], case["num_segment"], case["test_num_segment"]
        offset = case["start_idx"]
        assert (segment_indices(length, segments) + offset).tolist() == case["validation"], case
        views = segment_views(length, segments, 1, clips)
        assert (views.T.flatten() + offset).tolist() == case["test"], case


def test_segments_give_one_frame_of_each_part() -> None:
    rng = np.random.default_rng(0)
    drawn = np.stack([segment_indices(58, 16, rng) for _ in range(100)])
    assert ((drawn // 3) == np.arange(16)).all()
    assert set((drawn % 3).flatten()) == {0, 1, 2}


@pytest.mark.parametrize("views", sorted(VIEWS))
@pytest.mark.parametrize("length", [1, 5, 16, 64, 65, 300])
@pytest.mark.parametrize("clips", [1, 2, 5])
def test_test_views_lie_in_the_video(views: str, length: int, clips: int) -> None:
    indices = VIEWS[views](length, 16, 4, clips)
    assert indices.shape == (clips, 16)
    assert indices.min() >= 0
    assert indices.max() < length
    assert (np.diff(indices, axis=1) >= 0).all()


@pytest.mark.parametrize("sampling", sorted(SAMPLERS))
@pytest.mark.parametrize("length", [1, 5, 16, 64, 300])
def test_the_middle_clip_is_in_the_middle(sampling: str, length: int) -> None:
    indices = middle_clip(sampling, length, 16, 4)
    assert indices.shape == (16,)
    assert 0 <= indices.min() <= indices.max() < length
    if length >= 64:
        assert abs(float(indices.mean()) - length / 2) <= 6


def test_a_short_video_repeats_its_last_sampled_frame_not_its_last_frame() -> None:
    assert stride_indices(10, 6, 4, start=0).tolist() == [0, 4, 8, 8, 8, 8]
    assert stride_indices(1, 3, 4, start=0).tolist() == [0, 0, 0]


def _published(length: int, num_frames: int, stride: int, start: int) -> list[int]:
    """The published rule as a walk: 1-based, it steps on only while the next place lies before the last frame."""
    frames, offset = [], start + 1
    for _ in range(num_frames):
        frames.append(offset - 1)
        if offset + stride < length:
            offset += stride
    return frames


@pytest.mark.parametrize("stride", [1, 2, 3, 4])
def test_every_length_and_start_is_sampled_by_the_published_rule(stride: int) -> None:
    for length in range(1, 201):
        starts = count_starts(length, 16, stride)
        for start in {0, 1, 2, 3, starts // 2, starts - 1, length - 2, length - 1} & set(range(length)):
            found = stride_indices(length, 16, stride, start).tolist()
            assert found == _published(length, 16, stride, start), (length, start)


def test_the_last_frame_of_a_video_is_never_sampled_after_the_first() -> None:
    rng = np.random.default_rng(0)
    assert SAMPLERS["stride"](17, 16, 4, rng).tolist() == [0, 4, 8, 12] + 12 * [12]
    assert SAMPLERS["stride"](3, 4, 2, rng).tolist() == [0, 0, 0, 0]
    assert SAMPLERS["stride"](16, 16, 1, rng).tolist() == [*range(15), 14]
    assert SAMPLERS["stride"](2, 3, 1, rng).tolist() == SAMPLERS["stride"](1, 3, 1, rng).tolist() == [0, 0, 0]


def test_every_start_is_drawn() -> None:
    rng = np.random.default_rng(0)
    starts = {int(sample_stride(20, 4, 4, rng)[0]) for _ in range(200)}
    assert starts == set(range(count_starts(20, 4, 4))) == set(range(5))


@pytest.mark.parametrize("sampling", sorted(SAMPLERS))
@pytest.mark.parametrize("length", [1, 2, 7, 16, 17, 64, 65, 1000])
def test_frames_lie_in_the_video_and_ascend(sampling: str, length: int) -> None:
    for seed in range(20):
        indices = SAMPLERS[sampling](length, 16, 4, np.random.default_rng(seed))
        assert indices.shape == (16,)
        assert indices.dtype == np.int64
        assert indices[0] >= 0
        assert indices[-1] < length
        assert (np.diff(indices) >= 0).all()


def test_spread_covers_60_to_100_percent_from_varied_starts() -> None:
    clips = np.stack([sample_spread(1000, 16, 4, np.random.default_rng(seed)) for seed in range(200)])
    # first to last frame is 15/16 of the span, up to rounding of two frames
    spans = (clips[:, -1] - clips[:, 0]) / 1000 * 16 / 15
    assert spans.min() > 0.6 - 0.003
    assert spans.max() < 1 + 0.003
    assert spans.max() - spans.min() > 0.3
    assert np.abs(np.diff(np.diff(clips))).max() <= 1  # evenly, up to rounding
    assert len(set(clips[:, 0].tolist())) > 50
