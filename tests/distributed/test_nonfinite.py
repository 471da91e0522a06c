"""A NaN met by one rank, or a gradient too large: all ranks skip that step, the weights stay, and training goes on."""

from __future__ import annotations

import math
from typing import Any

import pytest

from tests.distributed.zygote import Zygote, run_forked

VARIANTS = {
    f"{precision} zero{stage}": {"train": {"precision": precision, "ds_config": f"zero{stage}"}}
    for precision in ("fp32", "bf16")
    for stage in range(4)
    if (precision, stage) != ("bf16", 0)  # refused: see test_zero_equals_plain.py
}
VARIANTS |= {f"{name} unclipped": {**changes, "clip_grad": 0.0} for name, changes in VARIANTS.items()}


@pytest.fixture(scope="module")
def ranks(zygote: Zygote, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    return run_forked(zygote, "tests.distributed.nonfinite", VARIANTS, tmp_path_factory.mktemp("nan") / "out.json", 2)


@pytest.mark.slow
@pytest.mark.parametrize("variant", VARIANTS)
def test_all_ranks_skip_the_step(variant: str, ranks: list[dict[str, Any]]) -> None:
    for results in ranks:
        assert results[variant]["applied"] == [True, False, True, False, True]


@pytest.mark.slow
@pytest.mark.parametrize("variant", VARIANTS)
def test_the_skipped_step_leaves_the_weights_alone(variant: str, ranks: list[dict[str, Any]]) -> None:
    before, after_skip, after_good, after_refusal, last = ranks[0][variant]["losses"]
    assert before == after_skip
    assert after_good == after_refusal
    assert math.isfinite(last)
    assert len({before, after_good, last}) == 3


@pytest.mark.slow
@pytest.mark.parametrize("variant", VARIANTS)
def test_a_refused_gradient_is_gone(variant: str, ranks: list[dict[str, Any]]) -> None:
    """The same clips on the same weights give the same norm again, so nothing of it was kept; all ranks see one norm."""
    assert len({tuple(results[variant]["norms"]) for results in ranks}) == 1
    *_, refused, again = map(float, ranks[0][variant]["norms"])
    assert refused == again
    assert math.isfinite(refused)
