"""Frame sampling against the published sampler's recorded answers."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from vmae2_ds.data.sampling import SAMPLERS, count_starts, sample_spread, sample_stride, stride_indices


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


def test_a_short_video_repeats_its_last_sampled_frame_not_its_last_frame() -> None:
    assert stride_indices(10, 6, 4, start=0).tolist() == [0, 4, 8, 8, 8, 8]
    assert stride_indices(1, 3, 4, start=0).tolist() == [0, 0, 0]


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
