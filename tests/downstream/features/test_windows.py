"""Which frames make a window: published extractors' golden numbers, and what follows from the rule."""

from __future__ import annotations

import numpy as np
import pytest

from tests.golden_data import golden_json
from vmae2_ds.downstream.features.windows import WindowGrid

GRIDS = {
    "opengvlab": WindowGrid("opengvlab", 16, 4),
    "opengvlab_fineaction": WindowGrid("opengvlab", 16, 16),
    "opentad": WindowGrid("opentad", 16, 4),
}


@pytest.mark.parametrize("name", sorted(GRIDS))
def test_windows_are_the_published_ones(name: str) -> None:
    grid = GRIDS[name]
    for frames, expected in golden_json("tad/windows.json")["frames"].items():
        want, length = expected[name], int(frames)
        assert grid.rows(length) == want["rows"]
        assert grid.indices(length).shape == (want["rows"], 16)
        places = {"first": 0, "second": 1, "last": want["rows"] - 1}
        for place, row in places.items():
            if want[place] is not None:
                assert grid.indices(length)[row].tolist() == want[place], (name, frames, place)


def test_features_stand_for_the_published_times() -> None:
    assert [grid.offset_frames for grid in GRIDS.values()] == [8, 8, 2]


@pytest.mark.parametrize("name", ["opengvlab", "opentad"])
def test_any_window_stride_and_interval_is_counted_as_spelt_out(name: str) -> None:
    for window, stride, interval, frames in [
        (8, 3, 2, 40),
        (16, 20, 1, 100),
        (4, 1, 5, 16),
        (2, 7, 3, 4),
        (16, 4, 1, 9),
    ]:
        grid = WindowGrid(name, window, stride, interval)  # type: ignore[arg-type]
        rows = []
        for start in range(0, frames, stride):
            steps = [interval * step for step in range(window)]
            if name == "opentad":
                wanted = [start - interval * (window // 2) + step for step in steps]
                rows.append([min(max(frame, 0), frames - 1) for frame in wanted])
            elif start + steps[-1] < frames:
                rows.append([start + step for step in steps])
        assert grid.indices(frames).tolist() == rows
        assert grid.rows(frames) == len(rows)
        assert grid.needed(frames).tolist() == sorted({frame for row in rows for frame in row})
        assert (np.diff(grid.indices(frames), axis=1) >= 0).all()
