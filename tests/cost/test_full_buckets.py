"""Buckets of gradients that are exactly full, on paper: the last one still goes in, the next one does not."""

from __future__ import annotations

import pytest

from vmae2_ds.config.model import ModelConfig, TowerConfig
from vmae2_ds.cost.comm import Collective, comm_bytes
from vmae2_ds.cost.gathers import persistent, replay_gathers
from vmae2_ds.cost.parameters import parameter_sizes
from vmae2_ds.cost.states import bucket_fills
from vmae2_ds.cost.zero import ZeroPolicy

TINY = ModelConfig(
    encoder=TowerConfig(width=4, depth=1, heads=1, mlp=8),
    decoder=TowerConfig(width=2, depth=1, heads=1, mlp=4),
    patch=2,
)
"""Its last weights, of which gradients are ready first: the decoder's head of 2 x 24 values with a bias of 24."""
KEEP_NOTHING = {"prefetch_bucket": 0, "max_live": 0, "max_reuse": 0, "persistence_threshold": 0}


@pytest.mark.parametrize(
    ("sizes", "bucket", "fills"),
    [
        (
            [3, 7, 5],
            10,
            [10, 5],
        ),  # DeepSpeed reduces before an element that would be too many, not before the last that fits
        ([10, 10], 10, [10, 10]),
        ([11, 1], 10, [11, 1]),
        ([4, 6, 1], 10, [10, 1]),
        ([1, 11, 1], 10, [1, 11, 1]),
    ],
)
def test_a_gradient_that_fills_the_bucket_exactly_still_goes_in(
    sizes: list[int], bucket: int, fills: list[int]
) -> None:
    assert bucket_fills(sizes, bucket) == fills


def test_the_last_weights_of_the_model_are_those_on_paper() -> None:
    assert list(reversed(parameter_sizes(TINY)))[:4] == [24, 48, 2, 2]  # head's bias and weight, the norm's


def calls_of(kind: str, collectives: tuple[Collective, ...]) -> int:
    return sum(each.calls for each in collectives if each.kind == kind)


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_a_bucket_one_smaller_than_what_fills_it_takes_one_reduction_more(stage: int) -> None:
    """All gradients in one bucket to the last element; with one less the last gradient goes alone."""
    total = sum(parameter_sizes(TINY))

    def calls(bucket: int) -> int:
        policy = ZeroPolicy(stage=stage, reduce_bucket=bucket, **KEEP_NOTHING)
        comm = comm_bytes(TINY, policy, world_size=2, num_nodes=1, accumulation=1, precision="bf16")
        return calls_of("reduce_scatter" if stage == 3 else "all_reduce", comm.collectives)

    assert (calls(total), calls(total - 1), calls(72), calls(71)) == (1, 2, *map(in_turn, (72, 71)))


def in_turn(bucket: int) -> int:
    """Reductions, counted by hand one gradient after another."""
    buckets, room = 1, bucket
    for numel in reversed(parameter_sizes(TINY)):
        if numel > room and room < bucket:
            buckets, room = buckets + 1, bucket
        room -= numel
    return buckets


def test_reduced_to_its_owners_a_full_bucket_is_one_message_for_each_rank_that_owns_a_part() -> None:
    """On two ranks a group's flat vector is cut in the middle: a bucket with all of both groups goes to both, once each."""
    policy = ZeroPolicy(stage=2, multi_rank_allreduce=False, reduce_bucket=sum(parameter_sizes(TINY)))
    comm = comm_bytes(TINY, policy, world_size=2, num_nodes=1, accumulation=3, precision="bf16")
    assert calls_of("reduce", comm.collectives) == 3 * 2
    (payload,) = [each.payload for each in comm.collectives if each.kind == "reduce"]
    assert payload == 3 * 2 * sum(parameter_sizes(TINY))


@pytest.mark.parametrize("gradients", [27, 29])
def test_at_stage_3_the_gradient_that_did_not_fit_waits_beside_the_full_bucket(gradients: int) -> None:
    """Nothing is kept gathered, so that is the fullest moment, once it is more than a layer takes with its gradients."""
    sizes = list(reversed(parameter_sizes(TINY)))
    full, waiting = sum(sizes[:gradients]), sizes[gradients]
    assert full + waiting > 2 * 100, "the embedding: 96 weights, 4 of its bias, and as many gradients"
    policy = ZeroPolicy(stage=3, reduce_bucket=full, **KEEP_NOTHING)
    assert replay_gathers(TINY, policy, 2).peak == full + waiting


def test_a_weight_of_exactly_the_threshold_stays_gathered() -> None:
    """DeepSpeed's parameter_offload.py: `param.ds_numel <= param_threshold`. Two weights have 48 values."""
    of_48 = {"encoder.blocks.0.attn.qkv.weight", "decoder.head.weight"}
    larger = persistent(TINY, ZeroPolicy(stage=3, persistence_threshold=48)) - persistent(
        TINY, ZeroPolicy(stage=3, persistence_threshold=47)
    )
    assert larger == of_48


def test_reading_ahead_stops_at_the_limit_of_what_is_alive() -> None:
    """With a room of 60 elements the whole model of 414 never stands gathered at once; without that limit it does."""

    def peak(max_live: int) -> int:
        policy = ZeroPolicy(
            stage=3, reduce_bucket=1, prefetch_bucket=10**6, max_live=max_live, max_reuse=0, persistence_threshold=0
        )
        return replay_gathers(TINY, policy, 2).peak

    assert sum(parameter_sizes(TINY)) == 414
    assert peak(60) < 414 < peak(10**6)
