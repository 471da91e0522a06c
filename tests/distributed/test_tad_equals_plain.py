"""Temporal detection by two ranks at every ZeRO stage equals plain PyTorch: one running number for the whole batch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.distributed.tad_steps import RANKS, make_config, plain_steps
from tests.distributed.zygote import Zygote, run_forked
from vmae2_ds.downstream.tad.objective import tad_objective

POLICIES = ("zero0", "zero1", "zero2", "zero3")
TOLERANCE = 1e-6
WITHOUT_EFFECT = ("key.norm.bias", "key.linear.bias")
"""They move all scores of a query alike: their gradient is what rounding leaves, and Adam makes whole steps of it."""


@pytest.fixture(scope="module")
def plain() -> Any:
    return plain_steps(make_config())


@pytest.fixture(scope="module")
def folder_and_losses(zygote: Zygote, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, list[float]]]:
    folder = tmp_path_factory.mktemp("steps")
    return folder, run_forked(zygote, "tests.distributed.tad_steps", POLICIES, folder / "out.json", RANKS)


@pytest.mark.slow
@pytest.mark.parametrize("policy", POLICIES)
def test_losses_and_weights_are_equal(policy: str, plain: Any, folder_and_losses: Any) -> None:
    folder, losses = folder_and_losses
    expected, last = plain
    assert losses[policy] == pytest.approx(expected, rel=TOLERANCE)
    found = torch.load(folder / f"{policy}.pt", weights_only=True)
    assert found.keys() == last.keys()
    for name in (name for name in last if not name.endswith(WITHOUT_EFFECT)):
        torch.testing.assert_close(found[name], last[name], rtol=0, atol=TOLERANCE, msg=name)


def test_the_running_number_and_the_weights_move(plain: Any) -> None:
    """Otherwise equality would prove nothing."""
    losses, last = plain
    first = tad_objective(make_config()).model
    first.init_weights(0)
    moved = {name: (last[name] - tensor.detach()).abs().max() for name, tensor in first.named_parameters()}
    assert min(far for name, far in moved.items() if not name.endswith(WITHOUT_EFFECT)) > 1e-4
    assert losses[-1] < losses[0] / 2
