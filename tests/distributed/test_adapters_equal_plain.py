"""Adapters and pyramid end to end by one and by two ranks at every ZeRO stage equal plain PyTorch on the same global batch."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.distributed.zygote import Zygote, run_forked
from tests.downstream.tad.end_to_end_steps import first_objective, plain_steps, steps_config
from vmae2_ds.config.ds_config import read_policy

TOLERANCE = 1e-6
KEEPS_NOTHING = {
    "stage3_param_persistence_threshold": 0,
    "stage3_max_live_parameters": 0,
    "stage3_max_reuse_distance": 0,
}
"""At ZeRO-3, so that every weight of this small model is partitioned, and gathered each time that it is used."""


def policies(folder: Path) -> list[str]:
    """ZeRO 1, 2 and 3, the last one from a file."""
    file = folder / "zero3_keeps_nothing.json"
    policy = read_policy("zero3")
    file.write_text(json.dumps({**policy, "zero_optimization": {**policy["zero_optimization"], **KEEPS_NOTHING}}))
    return ["zero1", "zero2", str(file)]


@pytest.fixture(scope="module")
def plain() -> Any:
    return plain_steps(steps_config())


@pytest.mark.slow
@pytest.mark.parametrize("ranks", [1, 2])
def test_losses_and_weights_are_equal(ranks: int, plain: Any, zygote: Zygote, tmp_path: Path) -> None:
    expected, weights = plain
    asked = {"policies": policies(tmp_path), "folder": str(tmp_path)}
    losses = run_forked(zygote, "tests.downstream.tad.end_to_end_steps", asked, tmp_path / "out.json", ranks)
    for policy in asked["policies"]:
        assert losses[policy] == pytest.approx(expected, abs=TOLERANCE, rel=0), policy
        found = torch.load(tmp_path / f"{Path(policy).stem}.pt", weights_only=True)
        assert found.keys() <= weights.keys()
        assert {name for name in weights if not name.startswith("model.encoder.")} <= found.keys()
        for name, tensor in found.items():
            torch.testing.assert_close(tensor, weights[name], rtol=0, atol=TOLERANCE, msg=f"{policy}: {name}")


def test_the_reference_moves(plain: Any) -> None:
    """Otherwise equality would prove nothing: losses and weights move by far more than the tolerance."""
    losses, last = plain
    first = {name: parameter.detach() for name, parameter in first_objective(steps_config()).named_parameters()}
    moved = {name for name in first if float((last[name] - first[name]).abs().max()) > 1e-4}
    assert {name for name in first if ".adapters." in name} <= moved
    assert not any(name.startswith("model.encoder.") for name in moved)
    assert max(losses) - min(losses) > 1e-3
