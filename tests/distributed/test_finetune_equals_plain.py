"""Fine-tuning by two ranks at every ZeRO stage equals plain PyTorch: mixing, layer decay, accumulation, dropout, EMA."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.distributed.finetune_steps import RANKS, make_config, plain_steps
from tests.distributed.ranks import run_ranks
from vmae2_ds.errors import ConfigError
from vmae2_ds.train.ema import check_ema

POLICIES = ("zero0", "zero1", "zero2", "zero3", "zero3_offload")
TOLERANCE = 1e-6


@pytest.fixture(scope="module")
def plain() -> Any:
    return plain_steps(make_config())


@pytest.fixture(scope="module")
def folder_and_losses(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, list[float]]]:
    folder = tmp_path_factory.mktemp("steps")
    return folder, run_ranks("tests.distributed.finetune_steps", POLICIES, folder / "out.json", RANKS)


@pytest.mark.slow
@pytest.mark.parametrize("policy", POLICIES)
def test_losses_weights_and_their_mean_are_equal(policy: str, plain: Any, folder_and_losses: Any) -> None:
    folder, losses = folder_and_losses
    expected, last, mean = plain
    assert losses[policy] == pytest.approx(expected, abs=TOLERANCE, rel=0)
    found = torch.load(folder / f"{policy}.pt", weights_only=True)
    for name in last:
        torch.testing.assert_close(found["last"][name], last[name], rtol=0, atol=TOLERANCE, msg=name)
        torch.testing.assert_close(found["mean"][name], mean[name], rtol=0, atol=TOLERANCE, msg=name)


def test_the_reference_moves(plain: Any) -> None:
    """Otherwise equality would prove nothing: weights, and their mean's distance from them, beat the tolerance by far."""
    _, last, mean = plain
    assert max(float((last[name] - mean[name]).abs().max()) for name in last) > 1e-3


def test_a_mean_of_weights_on_disk_is_refused() -> None:
    with pytest.raises(ConfigError, match="nvme"):
        check_ema({"zero_optimization": {"stage": 3, "offload_optimizer": {"device": "nvme"}}})
