"""What follows from plain values is made once, and never where it would do harm."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from torch import Tensor
from torch._subclasses import FakeTensorMode

from tests.model.conftest import TINY_GEOMETRY
from vmae2_ds.config.model import ModelConfig
from vmae2_ds.config.pretrain import ObjectiveConfig
from vmae2_ds.contracts import ClipGeometry, PretrainBatch
from vmae2_ds.model.block import QKV
from vmae2_ds.model.embed import gather_cubes
from vmae2_ds.model.kept import Kept, once_per_device
from vmae2_ds.model.mae import MaskedAutoencoder
from vmae2_ds.objectives import Reconstruct


@pytest.fixture
def ramp() -> Kept:
    @once_per_device
    def ramp(number: int, device: torch.device) -> Tensor:
        return torch.arange(float(number), device=device)

    return ramp


def test_made_once_for_each_value_and_device(ramp: Kept) -> None:
    here, there = torch.ones(1), torch.ones(1, device="meta")
    assert ramp(3, like=here) is ramp(3, like=here)
    assert ramp(4, like=here).tolist() == [0, 1, 2, 3]
    assert ramp(3, like=there).is_meta


def test_of_ever_others_the_last_that_were_asked_for_are_kept() -> None:
    made: list[int] = []

    @partial(once_per_device, most=2)
    def ramp(number: int, device: torch.device) -> Tensor:
        made.append(number)
        return torch.arange(float(number), device=device)

    for number in (1, 2, 1, 3, 1, 2):
        assert len(ramp(number, like=torch.ones(1))) == number
    assert made == [1, 2, 3, 2]


def test_what_inference_makes_serves_training(ramp: Kept) -> None:
    with torch.inference_mode():
        ramp(3, like=torch.ones(1))
    weight = torch.ones(3, requires_grad=True)
    (weight * ramp(3, like=torch.ones(1))).sum().backward()  # which saves it
    assert weight.grad is not None
    assert weight.grad.tolist() == [0, 1, 2]


def test_fake_tensors_are_not_kept(ramp: Kept) -> None:
    for _ in range(2):  # a second mode refuses what the first one made
        with FakeTensorMode():
            ramp(3, like=torch.ones(1)) + torch.ones(3)
    assert type(ramp(3, like=torch.ones(1))) is Tensor


def test_a_compiler_makes_its_own(ramp: Kept) -> None:
    compiled = torch.compile(lambda x: x + ramp(3, like=x), backend="aot_eager", fullgraph=True)
    assert compiled(torch.ones(3)).tolist() == [1, 2, 3]
    assert ramp(3, like=torch.ones(1)) is ramp(3, like=torch.ones(1))


def test_clips_of_every_batch_size_are_cut_alike() -> None:
    clip_BTHWC = torch.randint(0, 256, (3, 8, 32, 32, 3), dtype=torch.uint8)
    index_BV = torch.tensor([[0, 5, 63], [1, 2, 3], [7, 8, 60]])
    cubes_BVP = gather_cubes(clip_BTHWC, index_BV, TINY_GEOMETRY)
    for number in (1, 2, 3):
        assert torch.equal(gather_cubes(clip_BTHWC[:number], index_BV[:number], TINY_GEOMETRY), cubes_BVP[:number])


def test_keys_have_no_bias_and_their_zeros_are_nobody_s_to_train() -> None:
    qkv = QKV(8)
    for parameter in qkv.parameters():
        torch.nn.init.normal_(parameter)
    x_BND = torch.randn(2, 5, 8)
    for step in range(2):
        q, k, v = (x_BND @ part.T for part in qkv.weight.chunk(3))
        torch.testing.assert_close(qkv(x_BND), torch.cat([q + qkv.q_bias, k, v + qkv.v_bias], dim=-1))
        qkv(x_BND).square().sum().backward()
        with torch.no_grad():
            for name, parameter in qkv.named_parameters():
                assert parameter.grad is not None, (step, name)
                parameter.data = parameter - 0.1 * parameter.grad  # DeepSpeed moves weights to other memory too
    assert {name: tuple(p.shape) for name, p in qkv.named_parameters()} == {
        "weight": (24, 8), "q_bias": (8,), "v_bias": (8,)
    }  # fmt: skip


def test_a_second_pass_makes_no_constants(tiny: ModelConfig, geometry: ClipGeometry, batch: PretrainBatch) -> None:
    """By torch's profiler: indices, zeros and constants are there since the first one."""
    objective = Reconstruct(MaskedAutoencoder(tiny, geometry), ObjectiveConfig(), geometry)
    makers = {f"aten::{name}" for name in ("arange", "full", "zeros")}
    objective(batch)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        objective(batch)
    assert not makers & {event.name for event in profile.events()}
