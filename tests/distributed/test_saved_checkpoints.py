"""Weights that DeepSpeed saved at every ZeRO stage are read without its reader, and equal what its reader gives."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from tests.distributed.ranks import rank_environment
from tests.distributed.saved_checkpoints import REFERENCE
from tests.distributed.zygote import Zygote
from vmae2_ds.checkpoint.whole import tag_of
from vmae2_ds.checkpoint.zero_weights import read_weights
from vmae2_ds.host import free_port

pytestmark = pytest.mark.slow
POLICIES = ("zero0", "zero1", "zero2", "zero3", "zero3_offload")
POLICIES += ("zero1-bf16", "zero3-bf16", "zero1-head", "zero2-head", "zero3-head")


@pytest.fixture(scope="module")
def folder(zygote: Zygote, tmp_path_factory: pytest.TempPathFactory) -> Path:
    saved, port = tmp_path_factory.mktemp("saved"), free_port()
    ranks = [
        zygote.start(
            [json.dumps(POLICIES), str(saved)],
            rank_environment(rank, 2, port),
            saved / f"log{rank}",
            "tests.distributed.saved_checkpoints",
        )
        for rank in range(2)
    ]
    assert [rank.wait(240) for rank in ranks] == [0, 0], (saved / "log0").read_text()[-3000:]
    return saved


@pytest.mark.parametrize("policy", POLICIES)
def test_weights_are_those_of_zero_to_fp32(folder: Path, policy: str) -> None:
    """Those of the module at stage 0, which zero_to_fp32 does not read, and the frozen ones at stage 1, which it leaves out."""
    target = folder / policy / tag_of(1)
    expected: dict[str, torch.Tensor] = {}
    if policy.startswith(("zero0", "zero1")):
        expected |= torch.load(target / "mp_rank_00_model_states.pt", weights_only=True)["module"]
    if policy != "zero0":
        expected |= torch.load(target / REFERENCE, weights_only=True)
    found = read_weights(target)
    assert {f"model.{name}" for name in found} == set(expected)
    for name, tensor in found.items():
        assert tensor.dtype == torch.float32
        assert torch.equal(tensor, expected[f"model.{name}"].float()), name
