"""Distillation by two ranks at every ZeRO stage equals plain PyTorch: mixing, features, labels, layer decay, EMA."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.distributed.distil_steps import make_config, plain_steps
from tests.distributed.finetune_steps import ACCUMULATION, NUM_STEPS, RANKS
from tests.distributed.ranks import rank_environment
from tests.distributed.zygote import Zygote
from vmae2_ds.host import free_port

pytestmark = pytest.mark.slow
POLICIES = ("zero1", "zero2", "zero3", "zero3 init sharded")
TOLERANCE = 1e-6


@pytest.fixture(scope="module")
def plain() -> Any:
    return plain_steps(make_config())


@pytest.fixture(scope="module")
def folder(zygote: Zygote, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("steps")
    port, words = free_port(), [json.dumps(POLICIES), str(folder / "out.json")]
    logs = [folder / f"rank{rank}.log" for rank in range(RANKS)]
    ranks = [
        zygote.start(words, rank_environment(rank, RANKS, port), log, "tests.distributed.distil_steps")
        for rank, log in enumerate(logs)
    ]
    assert [rank.wait() for rank in ranks] == [0] * RANKS, logs[0].read_text()[-3000:]
    return folder


@pytest.mark.parametrize("policy", POLICIES)
def test_losses_weights_and_their_mean_are_equal(policy: str, plain: Any, folder: Path) -> None:
    """The weights are those of the student and of the projection: nothing of the teacher is trained or averaged."""
    expected, last, mean = plain
    result = json.loads((folder / "out.json").read_text())[policy]
    assert result["losses"] == pytest.approx(expected, abs=TOLERANCE, rel=0)
    assert result["teacher_unchanged"]
    assert result["held"] == pytest.approx(0.5 if "sharded" in policy else 1, abs=0.01)
    assert result["asked"] == NUM_STEPS * ACCUMULATION
    found = torch.load(folder / f"{policy}.pt", weights_only=True)
    assert set(found["last"]) == set(last)
    assert set(found["mean"]) == set(last) - {"projection.weight", "projection.bias"}
    for name in last:
        torch.testing.assert_close(found["last"][name], last[name], rtol=0, atol=TOLERANCE, msg=name)
    for name in found["mean"]:
        torch.testing.assert_close(found["mean"][name], mean[name], rtol=0, atol=TOLERANCE, msg=name)


def test_the_reference_moves(plain: Any) -> None:
    """Otherwise equality would prove nothing: the weights, the projection's too, go far beyond the tolerance."""
    _, last, mean = plain
    for name in ("encoder.blocks.0.mlp.fc1.weight", "projection.weight"):
        assert float((last[name] - mean[name]).abs().max()) > 1e-4
