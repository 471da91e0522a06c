"""Spatial detection by one and two ranks at ZeRO stages 0, 1 and 3 equals plain PyTorch: dropout, stochastic depth, layer
decay, accumulation, clipping, and losses of unlike numbers of boxes on the ranks, over clips or boxes of the whole batch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.distributed.ava_steps import ACCUMULATION, MEANS, NUM_STEPS, RANKS, make_batch, make_config, plain_steps
from tests.distributed.zygote import Zygote, run_forked

POLICIES = ("zero0", "zero1", "zero3")
TOLERANCE = 1e-6


@pytest.fixture(scope="module")
def plain() -> dict[str, Any]:
    return {mean_over: plain_steps(make_config(mean_over)) for mean_over in MEANS}


@pytest.fixture(scope="module")
def found(zygote: Zygote, tmp_path_factory: pytest.TempPathFactory) -> dict[int, tuple[Path, dict[str, list[float]]]]:
    """Losses and the folder of weights by number of ranks."""
    results = {}
    for ranks, policies in ((1, ("zero1", "zero3")), (RANKS, POLICIES)):
        folder = tmp_path_factory.mktemp(f"steps{ranks}")
        results[ranks] = folder, run_forked(zygote, "tests.distributed.ava_steps", policies, folder / "out.json", ranks)
    return results


@pytest.mark.slow
@pytest.mark.parametrize("mean_over", MEANS)
@pytest.mark.parametrize(("ranks", "policy"), [(1, "zero1"), (1, "zero3"), *((RANKS, policy) for policy in POLICIES)])
def test_losses_and_weights_are_equal(ranks: int, policy: str, mean_over: str, plain: Any, found: Any) -> None:
    folder, losses = found[ranks]
    expected, last = plain[mean_over]
    assert losses[f"{policy} {mean_over}"] == pytest.approx(expected, abs=TOLERANCE, rel=0)
    weights = torch.load(folder / f"{policy}.{mean_over}.pt", weights_only=True)
    for name in last:
        torch.testing.assert_close(weights[name], last[name], rtol=0, atol=TOLERANCE, msg=name)


def test_the_reference_moves_and_its_ranks_have_unlike_numbers_of_boxes(plain: Any) -> None:
    """Otherwise equality would prove nothing; and a step in which one rank has no box is among them."""
    for mean_over in MEANS:
        first = plain_first(mean_over)
        assert max(float((plain[mean_over][1][name] - first[name]).abs().max()) for name in first) > 1e-3
    assert plain["clips"][0] != plain["boxes"][0]
    boxes = [
        [
            sum(int(make_batch(step, micro_step, rank).is_box_BG.sum()) for micro_step in range(ACCUMULATION))
            for rank in (0, 1)
        ]
        for step in range(NUM_STEPS)
    ]
    assert any(one and not other for one, other in boxes)
    assert any(one and other and one != other for one, other in boxes)


def plain_first(mean_over: str) -> dict[str, torch.Tensor]:
    """The weights that the reference starts from."""
    from vmae2_ds.downstream.ava.objective import ava_objective

    model = ava_objective(make_config(mean_over)).model
    model.init_weights(0)
    return {name: p.detach() for name, p in model.named_parameters()}
