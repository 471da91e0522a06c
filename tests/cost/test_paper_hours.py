"""The paper's hours: its runs as its scripts give them, and residuals that are told, not fitted."""

from __future__ import annotations

import pytest

from vmae2_ds.config.pretrain import MaskConfig
from vmae2_ds.cost.assumptions import Assumptions
from vmae2_ds.cost.paper_hours import PAPER_RUNS, Comparison, compare_with_paper
from vmae2_ds.errors import ConfigError
from vmae2_ds.masking import count_masks


@pytest.fixture(scope="module")
def rows() -> dict[str, Comparison]:
    return {row.name: row for row in compare_with_paper(Assumptions())}


@pytest.mark.parametrize("size", sorted(PAPER_RUNS))
def test_runs_have_the_published_tokens(size: str) -> None:
    for run, mask in zip(PAPER_RUNS[size], (MaskConfig(decoder="none"), MaskConfig()), strict=True):
        assert (run.visible, run.decode) == count_masks(mask, run.geometry)[:2]


def test_runs_have_the_published_steps() -> None:
    # 8192 clips a step for ViT-g (docs/PAPER.md#pre-training-recipes), 2048 for ViT-B
    assert [run.clips_per_gpu * run.num_gpus for run in (PAPER_RUNS["g"][1], PAPER_RUNS["B"][1])] == [8192, 2048]


def test_published_speed_ups(rows: dict[str, Comparison]) -> None:
    for size, published in (("B", 1.79), ("g", 1.48)):  # docs/PAPER.md#dual-masking
        row = rows[f"{size} dual over encoder-only"]
        assert row.published == pytest.approx(published, abs=0.005)
        assert abs(row.residual) < 0.15
        hours = rows[f"{size} encoder-only, from dual's hours"]
        assert hours.residual == pytest.approx(row.residual)


def test_hours_are_a_floor_and_residuals_say_how_far(rows: dict[str, Comparison]) -> None:
    for size in PAPER_RUNS:
        for run in PAPER_RUNS[size]:
            row = rows[run.name]
            assert row.predicted.low < row.predicted.value < row.predicted.high < row.published
            assert row.residual == pytest.approx(row.predicted.value / run.hours - 1)


def test_a_slower_gpu_takes_longer_and_an_unknown_one_is_refused(rows: dict[str, Comparison]) -> None:
    slower = compare_with_paper(Assumptions(), gpu="V100-SXM2-32GB")
    assert all(
        row.predicted.value > rows[row.name].predicted.value for row in slower if row.name in {"B dual", "g dual"}
    )
    with pytest.raises(ConfigError, match="no datasheet for 'abacus'"):
        compare_with_paper(Assumptions(), gpu="abacus")
