"""A NaN met by one rank: all ranks skip that step, the weights stay as they were, and training goes on."""

from __future__ import annotations

import math
from typing import Any

import pytest

from tests.distributed.ranks import run_ranks

VARIANTS = {
    f"{precision} zero{stage}": {"train": {"precision": precision, "ds_config": f"zero{stage}"}}
    for precision in ("fp32", "bf16")
    for stage in range(4)
    if (precision, stage) != ("bf16", 0)  # refused: see test_zero_equals_plain.py
}
VARIANTS |= {f"{name} unclipped": {**changes, "clip_grad": 0.0} for name, changes in VARIANTS.items()}


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    return run_ranks("tests.distributed.nonfinite", VARIANTS, tmp_path_factory.mktemp("nan") / "out.json", 2)


@pytest.mark.slow
@pytest.mark.parametrize("variant", VARIANTS)
def test_all_ranks_skip_the_step(variant: str, ranks: list[dict[str, Any]]) -> None:
    for results in ranks:
        assert results[variant]["applied"] == [True, False, True]


@pytest.mark.slow
@pytest.mark.parametrize("variant", VARIANTS)
def test_the_skipped_step_leaves_the_weights_alone(variant: str, ranks: list[dict[str, Any]]) -> None:
    before, after_skip, after_good = ranks[0][variant]["losses"]
    assert before == after_skip
    assert math.isfinite(after_good)
    assert after_good != after_skip
