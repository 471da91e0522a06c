"""Closed forms of the states against the real module, DeepSpeed's estimators and what must hold of any memory model.

Against DeepSpeed's real allocations: tests/distributed/test_state_bytes.py.
"""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from types import SimpleNamespace

import pytest
import torch

from vmae2_ds.config.model import SIZES, ModelConfig
from vmae2_ds.contracts import ClipGeometry
from vmae2_ds.cost.flops import count_parameters
from vmae2_ds.cost.parameters import group_sizes, parameter_shapes
from vmae2_ds.cost.states import StatePrecision, bucket_fills, state_bytes
from vmae2_ds.cost.zero import ZeroPolicy
from vmae2_ds.model.mae import MaskedAutoencoder
from vmae2_ds.train.optim import parameter_groups

BASE, GIANT = ModelConfig.of_size("base"), ModelConfig.of_size("giant")
LITTLE = {"reduce_bucket": 1, "prefetch_bucket": 0, "max_live": 0, "max_reuse": 0}


def real_model(size: str) -> MaskedAutoencoder:
    model = ModelConfig.of_size(size)
    with torch.device("meta"):
        return MaskedAutoencoder(model, ClipGeometry(16, 224, 224, model.tubelet, model.patch), seed=None)


@pytest.mark.parametrize("size", sorted(SIZES))
def test_names_shapes_and_groups_of_the_real_model(size: str) -> None:
    real = real_model(size)
    shapes = parameter_shapes(ModelConfig.of_size(size))
    assert list(shapes.items()) == [(name, tuple(p.shape)) for name, p in real.named_parameters()]
    groups = [[p.numel() for p in group["params"]] for group in parameter_groups(real, 0.05)]
    assert [list(group) for group in group_sizes(ModelConfig.of_size(size))] == groups
    assert sum(map(sum, groups)) == count_parameters(ModelConfig.of_size(size)).total


def test_buckets_do_not_shrink_to_the_model() -> None:
    """DeepSpeed's defaults with overlap: two buffers of 5e8 elements for 94 M parameters."""
    states = state_bytes(BASE, ZeroPolicy(stage=2, overlap_comm=True), 8, precision="bf16")
    assert states.buckets >= 2_000_000_000
    assert states.kept == 0
    alone = state_bytes(BASE, ZeroPolicy(stage=3, overlap_comm=True), 8, precision="bf16")
    assert alone.buckets == 1_000_000_000 == alone.kept - alone.gradients - _persistent_bytes(BASE, 8)


def _persistent_bytes(model: ModelConfig, world_size: int) -> int:
    def kept(threshold: int) -> int:
        policy = ZeroPolicy(stage=3, persistence_threshold=threshold)
        return state_bytes(model, policy, world_size, precision="bf16").kept

    return kept(100_000) - kept(0)


def test_default_stage_3_gathers_a_whole_vit_b() -> None:
    """`max_reuse` and `max_live` of 1e9 keep every weight from the forward to the backward pass."""
    whole = 2 * count_parameters(BASE).total
    assert state_bytes(BASE, ZeroPolicy(stage=3), 8, precision="bf16").live > whole
    held_little = ZeroPolicy(stage=3, prefetch_bucket=0, max_live=0, max_reuse=0, reduce_bucket=1_000_000)
    assert state_bytes(BASE, held_little, 8, precision="bf16").live < whole / 10


@pytest.mark.parametrize("precision", ["bf16", "fp32"])
@pytest.mark.parametrize("stage", [1, 2, 3])
def test_more_ranks_hold_less_each(stage: int, precision: StatePrecision) -> None:
    policy = ZeroPolicy(stage=stage, reduce_bucket=10_000_000)
    many = [state_bytes(GIANT, policy, ranks, precision=precision) for ranks in (2, 4, 8, 64, 512)]
    for fewer, more in pairwise(many):
        assert more.resident < fewer.resident
        assert more.step < fewer.step
        assert more.backward < fewer.backward


@pytest.mark.parametrize("accumulation", [1, 4])
def test_a_higher_stage_holds_less(accumulation: int) -> None:
    policy = ZeroPolicy(stage=1, **LITTLE)
    backward = [
        state_bytes(GIANT, replace(policy, stage=stage), 8, precision="bf16", accumulation=accumulation).backward
        for stage in (1, 2, 3)
    ]
    assert backward == sorted(backward, reverse=True)


def test_estimators_of_deepspeed() -> None:
    """They count 16-bit gradients and their float32 copy, as we do, but not the flat 16-bit copy between the two.

    At stage 3 they also leave out the flat gradient buffer; their largest layer is in our live weights.
    """
    from deepspeed.runtime.zero.stage3 import estimate_zero3_model_states_mem_needs
    from deepspeed.runtime.zero.stage_1_and_2 import estimate_zero2_model_states_mem_needs

    total, ranks = count_parameters(GIANT).total, 8
    share = 2 * total / ranks
    _, gpu = estimate_zero2_model_states_mem_needs(total, ranks, cpu_offload=False)
    states = state_bytes(GIANT, ZeroPolicy(stage=2, **LITTLE), ranks, precision="bf16")
    assert states.step - share == pytest.approx(gpu, rel=0.01)
    _, gpu, _ = estimate_zero3_model_states_mem_needs(total, 0, ranks, cpu_offload=False)
    states = state_bytes(GIANT, ZeroPolicy(stage=3, **LITTLE, persistence_threshold=0), ranks, precision="bf16")
    assert states.step - 2 * share == pytest.approx(gpu, rel=0.01)


def test_offload_moves_states_to_the_host() -> None:
    policy = ZeroPolicy(stage=3, **LITTLE)
    here = state_bytes(GIANT, policy, 8, precision="bf16")
    there = state_bytes(GIANT, replace(policy, offload_optimizer=True, offload_param=True), 8, precision="bf16")
    assert (there.master, there.moments, there.gradients, there.weights) == (0, 0, 0, 0)
    # with float32 gradients, which the GPU makes at the step only
    assert there.host == here.weights + here.gradients + here.master + here.moments + here.master


@pytest.mark.parametrize("ranks", [2, 3])
def test_sub_groups_are_those_that_deepspeed_makes(ranks: int) -> None:
    """Its own code on stand-ins for the parameters, where a sub-group is exactly full and where one element is lacking."""
    from deepspeed.runtime.zero.stage3 import DeepSpeedZeroOptimizer_Stage3

    groups = [[-(-numel // ranks) for numel in group] for group in group_sizes(BASE)]
    exactly = sum(groups[0][:3])
    for limit in (1, exactly - 1, exactly, exactly + 1, sum(groups[0]), sum(groups[0]) - 1, 10**12):
        largest = 0
        for group in groups:
            parameters = [SimpleNamespace(partition_numel=lambda numel=numel: numel) for numel in group]
            made = DeepSpeedZeroOptimizer_Stage3._create_fp16_sub_groups(
                SimpleNamespace(sub_group_size=limit), parameters
            )
            largest = max(largest, *(sum(each.partition_numel() for each in members) for members in made))
        policy = ZeroPolicy(stage=3, sub_group=limit)
        assert state_bytes(BASE, policy, ranks, precision="fp32").update == 4 * largest


@pytest.mark.parametrize(
    # On 8 ranks: float32 weights and moments (12), the gradient in float32 (4) and, below stage 3, what is copied up (2);
    # at stage 3 the flat gradient shard (2), and weights that live there (2).
    ("policy", "bytes_of_share"),
    [
        (ZeroPolicy(stage=1, offload_optimizer=True), 12 + 4 + 2),
        (ZeroPolicy(stage=2, offload_optimizer=True), 12 + 4 + 2),
        (ZeroPolicy(stage=3, offload_optimizer=True), 12 + 4 + 2),
        (ZeroPolicy(stage=3, offload_optimizer=True, offload_param=True), 12 + 4 + 2 + 2),
        (ZeroPolicy(stage=3, offload_param=True), 2),
        (ZeroPolicy(stage=3), 0),
    ],
)
def test_host_memory_of_offload_by_hand(policy: ZeroPolicy, bytes_of_share: int) -> None:
    share = 1_026_306_560 / 8  # ViT-g
    staged = 2 * 6144 * 1408 if policy.stage < 3 else 0  # the largest weight, fc1 or fc2, passes through one buffer
    found = state_bytes(GIANT, policy, 8, precision="bf16").host
    assert found == pytest.approx(bytes_of_share * share + staged, rel=1e-4)


def test_gradients_that_add_up_on_the_host_take_room_there() -> None:
    """Stage 2 with several micro steps: 2 bytes more for each element, with the whole of a weight that two ranks share."""
    policy = ZeroPolicy(stage=2, offload_optimizer=True)
    one, several = (state_bytes(GIANT, policy, 8, precision="bf16", accumulation=steps).host for steps in (1, 4))
    assert several - one == pytest.approx(2 * 1_026_306_560 / 8, rel=0.15)
    assert several - one >= 2 * 1_026_306_560 // 8


def test_buckets_are_filled_in_order() -> None:
    assert bucket_fills([3, 4, 5, 20, 1], 10) == [7, 5, 20, 1]


def test_policy_survives_its_section() -> None:
    policy = ZeroPolicy(stage=3, max_live=7, max_reuse=5, prefetch_bucket=3, overlap_comm=True, hpz=8)
    assert ZeroPolicy.of_ds_config({"zero_optimization": policy.zero_optimization()}) == policy
    policy = ZeroPolicy(stage=1, reduce_bucket=9, multi_rank_allreduce=False)
    assert ZeroPolicy.of_ds_config({"zero_optimization": policy.zero_optimization()}) == policy
