"""Settings of the detection head that do not fit together."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from vmae2_ds.config.tad_head import SHORTEST_CHUNK, HeadConfig, attention_chunk


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"width": 30}, "width=30 must be a multiple of heads=4"),
        ({"width": 33, "heads": 3, "absolute_positions": True}, "width=33 must be even"),
        ({"ranges": (4, 16, 8)}, "ranges=4 16 8 must rise"),
        ({"ranges": (4, 4)}, "ranges=4 4 must rise"),
        ({"windows": (19, 7)}, "windows=19 7: give one number, or one for each of the 6 levels"),
        ({"windows": (18,)}, "windows=18 has no middle: give an odd number, or -1"),
        ({"windows": (0,)}, "windows=0 has no middle"),
    ],
)
def test_what_does_not_fit_is_refused_with_its_numbers(settings: dict[str, object], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        HeadConfig.model_validate(settings)


def test_levels_follow_from_the_ranges() -> None:
    head = HeadConfig(ranges=(4, 8), windows=(7, 7, -1))
    assert (head.levels, head.strides, head.level_windows) == (3, (1, 2, 4), (7, 7, -1))
    assert HeadConfig().level_windows == (19,) * 6


@pytest.mark.parametrize(
    ("window", "length", "chunk"), [(19, 2304, SHORTEST_CHUNK), (19, 20, 20), (63, 2304, 63), (-1, 2304, 2304)]
)
def test_a_chunk_is_a_window_at_least_and_a_sequence_at_most(window: int, length: int, chunk: int) -> None:
    assert attention_chunk(window, length) == chunk
