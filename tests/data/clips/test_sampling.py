"""Frame sampling against the published sampler's recorded answers."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tests.golden_data import golden_json
from vmae2_ds.data.clips.sampling import (
    SAMPLERS,
    TEST_SAMPLERS,
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


def test_published_sampling_is_exact() -> None:
    cases = golden_json("sampling.json")["pretrain"]
    assert len(cases) == 24
    for case in cases:
        length, stride = case["duration"], case["step"]
        if "frame_ids" in case:
            found = stride_indices(length, 16, stride, start=case["offset_1based"] - 1)
            assert found.tolist() == case["frame_ids"], case
        else:
            lowest, highest = case["offset_range"]
            assert (lowest, highest) == (1, count_starts(length, 16, stride)), case


def test_published_classification_sampling_is_exact() -> None:
    golden = golden_json("sampling.json")
    assert (len(golden["cls_dense"]), len(golden["rawframe"])) == (11, 5)
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


@pytest.mark.parametrize("views", sorted(TEST_SAMPLERS))
@pytest.mark.parametrize("length", [1, 5, 16, 64, 65, 300])
@pytest.mark.parametrize("clips", [1, 2, 5])
def test_test_views_lie_in_the_video(views: str, length: int, clips: int) -> None:
    indices = TEST_SAMPLERS[views](length, 16, 4, clips)
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


class Drawn:
    """A generator whose draws lie at given parts of what they are asked for."""

    def __init__(self, *parts: float) -> None:
        self.parts = list(parts)

    def uniform(self, low: float, high: float) -> float:
        return low + self.parts.pop(0) * (high - low)

    def integers(self, low: int, high: int) -> int:
        return low + int(self.parts.pop(0) * (high - low))


@pytest.mark.parametrize(
    ("parts", "num_frames", "expected"),
    [
        ((0.5, 0.5), 4, [4, 8, 12, 16]),  # 80 % of 20 frames from frame 2 on, in four parts of 4: their middles
        ((0.5, 0.5), 5, [3, 6, 10, 13, 16]),  # in five of 3.2: 3.6, 6.8, 10, 13.2, 16.4
        ((0.0, 0.0), 3, [2, 6, 10]),  # 60 % from the start: 2, 6, 10
        ((0.0, 1.0), 3, [10, 14, 18]),  # and to the end
        ((1.0, 0.7), 10, [1, 3, 5, 7, 9, 11, 13, 15, 17, 19]),
    ],
)
def test_spread_takes_the_middles_of_equal_parts_of_its_stretch(
    parts: tuple[float, float], num_frames: int, expected: list[int]
) -> None:
    drawn: Any = Drawn(*parts)
    assert sample_spread(20, num_frames, 4, drawn).tolist() == expected


def test_spread_draws_its_length_and_its_place_uniformly() -> None:
    """Kolmogorov's distance of 3000 draws, above which a right sampler lands once in a million (Massart 1990)."""
    length, draws, rng = 10**6, 3000, np.random.default_rng(0)
    ends = np.array([sample_spread(length, 16, 4, rng)[[0, -1]] for _ in range(draws)])
    span = (ends[:, 1] - ends[:, 0]) * 16 / 15  # from middle to middle it is 15 of 16 parts
    places = (ends[:, 0] - span / 32) / (length - span)
    for values in ((span / length - 0.6) / 0.4, places):
        gaps = np.sort(values) - np.arange(draws) / draws
        assert np.abs(gaps).max() < (np.log(2e6) / (2 * draws)) ** 0.5 + 1 / draws


def test_one_frame_is_drawn_in_each_part_apart_from_the_others() -> None:
    """Segments: every place of every part, and no two parts alike; their middle is the one behind the half."""
    rng = np.random.default_rng(0)
    places = np.stack([segment_indices(60, 12, rng) for _ in range(300)]) % 5
    assert all(set(column) == set(range(5)) for column in places.T.tolist())
    assert np.abs(np.corrcoef(places.T) - np.eye(12)).max() < 0.3
    assert SAMPLERS["segments"](60, 12, 4, np.random.default_rng(1)).tolist() != segment_indices(60, 12).tolist()
    assert segment_indices(24, 4).tolist() == [3, 9, 15, 21]
    assert segment_indices(3, 5).tolist() == [0, 0, 0, 1, 2]  # published: too short a video waits on its first frame


@pytest.mark.parametrize(
    ("sampling", "expected"),
    [
        ("segments", [2, 7, 12, 17]),  # of parts of 5
        ("spread", [2, 7, 12, 17]),  # 2.5, 7.5, ...
        (
            "stride",
            [6, 8, 11, 13],
        ),  # as dense: 8 frames from the sixth on, in three steps of 8/3, the last one before their end
        ("dense", [6, 8, 11, 13]),
    ],
)
def test_the_middle_clip_of_twenty_frames(sampling: str, expected: list[int]) -> None:
    assert middle_clip(sampling, 20, 4, 2).tolist() == expected


@pytest.mark.parametrize(
    ("length", "part", "expected"),
    [
        (30, 0.0, [0, 2, 5, 7]),  # a window of 8 frames at the start: 0, 2.7, 5.3, and 8 pulled inside
        (30, 0.999, [21, 23, 26, 28]),  # published: never the one that holds the last frame
        (30, 0.5, [11, 13, 16, 18]),
        (9, 0.999, [0, 2, 5, 7]),  # of 9 frames there is one window
        (8, 0.0, [0, 2, 5, 7]),
        (6, 0.0, [0, 3, 5, 5]),  # half as many steps as frames, then the last frame
    ],
)
def test_dense_windows_of_four_frames_at_stride_two(length: int, part: float, expected: list[int]) -> None:
    drawn: Any = Drawn(part)
    assert dense_indices(length, 4, 2, drawn).tolist() == expected
