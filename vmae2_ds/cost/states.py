"""Bytes of weights, gradients, optimizer states and DeepSpeed's buffers on each rank: closed forms, no torch.

Read in deepspeed 0.19.8 (paths below are in deepspeed/runtime) for torch's AdamW with this project's two parameter
groups, or with Muon's beside them, `data_types` left alone (gradients then add up in the weights' own format:
engine.py:get_data_types) and the defaults of what ZeroPolicy does not name. Where ranks differ, the fullest one counts.
Left out: one step counter for each optimizer tensor, flags and norms, all of them bytes to a few KiB.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import accumulate, chain
from math import prod
from typing import Literal

from vmae2_ds.cost.gathers import persistent, replay_gathers
from vmae2_ds.cost.muon import MatrixShape, matrices_of, update_bytes
from vmae2_ds.cost.parameters import (
    Model,
    all_shapes,
    frozen_size,
    group_sizes,
    muon_matrices,
    muon_names,
    parameter_shapes,
    parameter_sizes,
)
from vmae2_ds.cost.zero import ZeroPolicy

StatePrecision = Literal["bf16", "fp32"]
WEIGHT_BYTES: dict[StatePrecision, int] = {"bf16": 2, "fp32": 4}
MASTER_BYTES = 4
PLAIN_BUCKET = 500_000_000
"""Elements that stage 0 reduces at once (engine.py:MEMORY_OPT_ALLREDUCE_SIZE); no setting reaches it."""


@dataclass(frozen=True)
class StateBytes:
    """Bytes of one GPU, and of host memory for one rank.

    The first seven are those of the worst moment of the backward pass, so add the activations to them. They are not
    all alive at other times: see `resident` and `step`.
    """

    weights: int
    """What the model computes with: whole, or at stage 3 this rank's shard."""
    gradients: int
    master: int
    """float32 weights that the optimizer updates; 0 at stage 0, where it updates the weights themselves."""
    moments: int
    buckets: int
    """Buffers of the gradient reduction, and below stage 3 the flat copy it makes of a full one."""
    live: int
    """Stage 3: gathered weights, the persistent ones included, and the flat copy of the bucket being reduced."""
    secondary: int
    """ZeRO++ hpZ: the second copy, from a weight's first release to the end of the step."""
    kept: int
    """The part of gradients, buckets and live weights that stays allocated between optimizer steps."""
    update: int
    """What the optimizer step needs on top of `resident`: the gradient as it was reduced, flat, and in float32."""
    host: int
    """Offloaded states and what stages them."""

    @property
    def resident(self) -> int:
        """Between optimizer steps."""
        return self.weights + self.master + self.moments + self.kept

    @property
    def backward(self) -> int:
        """At the worst moment of the backward pass, without activations."""
        states = self.weights + self.gradients + self.master + self.moments
        return states + self.buckets + self.live + self.secondary

    @property
    def step(self) -> int:
        """At the worst moment of the optimizer step, when no activations are left."""
        return self.resident + self.update + self.secondary

    @property
    def gpu(self) -> int:
        """The larger of `backward` and `step`."""
        return max(self.backward, self.step)


def state_bytes(
    model: Model, policy: ZeroPolicy, world_size: int, *, precision: StatePrecision, accumulation: int = 1
) -> StateBytes:
    """Memory of the states under `policy` on `world_size` ranks, `accumulation` micro steps to an optimizer step."""
    assert policy.stage > 0 or precision == "fp32", "bf16 at stage 0 is refused (train.ds_config.resolve_ds_config)"
    size = WEIGHT_BYTES[precision]
    if policy.stage == 0:
        return _stage0(model, size)
    if policy.stage == 3:
        return _stage3(model, policy, world_size, size, accumulation)
    return _stage1_and_2(model, policy, world_size, size, accumulation)


def bucket_fills(sizes: Iterable[int], bucket: int) -> list[int]:
    """Elements of each reduction: gradients, in the order they are ready, while they fit into `bucket` elements.

    stage_1_and_2.py and stage3.py:reduce_independent_p_g_buckets_and_remove_grads. A larger one goes alone.
    """
    fills = [0]
    for numel in sizes:
        if fills[-1] and fills[-1] + numel > bucket:
            fills.append(0)
        fills[-1] += numel
    return fills


def _stage0(model: Model, size: int) -> StateBytes:
    """engine.py:allreduce_no_retain and allreduce_bucket: one flat copy of all gradients, on a single rank too."""
    sizes = parameter_sizes(model)
    total = size * sum(sizes)
    of_muon = {name: parameter_shapes(model)[name] for name in muon_names(model)}
    moved = max((update_bytes(tuple(matrices_of(*each)), prod(each[1]), 1) for each in of_muon.items()), default=0)
    flat, filled = 0, 0
    for numel in sizes:
        filled += numel
        flat = max(flat, filled)
        if filled > PLAIN_BUCKET:
            filled = 0
    return StateBytes(
        weights=total + size * frozen_size(model),
        gradients=total,
        master=0,
        moments=2 * total - size * sum(map(prod, of_muon.values())),
        buckets=size * flat,
        live=0,
        secondary=0,
        kept=0,
        update=total + moved,
        host=0,
    )


def _stage1_and_2(model: Model, policy: ZeroPolicy, world_size: int, size: int, accumulation: int) -> StateBytes:
    """zero/stage_1_and_2.py, DeepSpeedZeroOptimizer.

    __init__: each group flat, padded to 2 x ranks; a float32 copy of this rank's part, in float32 training too.
    setup_buckets: `reduce_bucket` elements, whatever the model's size, twice with overlap_comm, held from the first
    gradient of a step to the end of its last reduction. copy_grads_in_partition: this rank's gradients, with the whole
    of a weight that two ranks share. allreduce_bucket: a flat copy of a bucket that holds gradients of several ranks.
    step: those gradients, a flat copy of the first group's, and its float32 copy.
    """
    groups = group_sizes(model)
    padded = [-(-sum(group) // (2 * world_size)) * 2 * world_size for group in groups]
    part = sum(padded) // world_size
    owned = _owned(groups, padded, world_size)
    total, largest = sum(map(sum, groups)), max(map(max, groups))

    fills = bucket_fills(reversed(parameter_sizes(model)), policy.reduce_bucket)
    flat = fills if world_size > 1 else [0] * len(fills)
    waits = policy.stage == 1 and (accumulation > 1 or not policy.overlap_comm)
    collected = 0 if policy.offload_optimizer else owned
    if waits:  # stage 1 reduces at the step's end, so whole gradients add up until then
        order = reversed(parameter_sizes(model)) if policy.overlap_comm else chain(*groups)
        gradients, copies = max(total, total - bucket_fills(order, policy.reduce_bucket)[0] + collected), 0
        copies += 0 if policy.contiguous_gradients else max(flat)
    else:
        earlier = collected if policy.stage == 2 and accumulation > 1 else 0  # all_grad_tensors
        # what the bucket had no room for stands by itself
        waiting = largest if policy.contiguous_gradients else max(fills)
        gradients, copies = earlier + collected + waiting, max(max(0, flat[0] - collected), *flat[1:], 0)
    buckets = 2 if policy.overlap_comm else 1
    buffers = policy.reduce_bucket * buckets if policy.contiguous_gradients else 0

    of_muon = muon_matrices(model)
    one_moment = sum(padded[number] for number in of_muon) // world_size
    moments, master = MASTER_BYTES * (2 * part - one_moment), MASTER_BYTES * part
    staging = size * largest if policy.offload_optimizer else 0  # temp_grad_buffer_for_gpu_offload, and one on the host
    if policy.offload_optimizer:
        # float32 gradients, param_buffer_of_bit16_for_cpu_offload_groups, and accumulated_grads_in_cpu
        added = size * owned if policy.stage == 2 and accumulation > 1 else 0
        host = moments + 2 * master + size * part + staging + added
        moments = master = update = 0
    else:
        first = padded[0] // world_size
        update = size * owned + size * first + (MASTER_BYTES * first if size != MASTER_BYTES else 0)
        update = max(update, *(_muon_step(groups, padded, world_size, size, *each) for each in of_muon.items()), 0)
        host = 0
    return StateBytes(
        weights=size * (sum(padded) + frozen_size(model)),
        gradients=size * gradients,
        master=master,
        moments=moments,
        buckets=size * (buffers + copies) + staging,
        live=0,
        secondary=0,
        kept=staging,
        update=update,
        host=host,
    )


def _muon_step(
    groups: Sequence[Sequence[int]],
    padded: list[int],
    world_size: int,
    size: int,
    number: int,
    shapes: tuple[MatrixShape, ...],
) -> int:
    """While Muon updates its group: gradients of the groups behind it as they were reduced, its own in float32, its work."""
    part = padded[number] // world_size
    waiting = _owned(groups[number + 1 :], padded[number + 1 :], world_size)
    return size * waiting + MASTER_BYTES * part + update_bytes(shapes, part, world_size)


def _owned(groups: Sequence[Sequence[int]], padded: list[int], world_size: int) -> int:
    """Elements of all weights that the fullest rank updates in part or whole (params_in_partition)."""
    owned = [0] * world_size
    for group, flat in zip(groups, padded, strict=True):
        part = flat // world_size
        for numel, end in zip(group, accumulate(group), strict=True):
            for rank in range((end - numel) // part, (end - 1) // part + 1):
                owned[rank] += numel
    return max(owned)


def _stage3(model: Model, policy: ZeroPolicy, world_size: int, size: int, accumulation: int) -> StateBytes:
    """zero/stage3.py, DeepSpeedZeroOptimizer_Stage3. Every weight is divided by itself, rounded up.

    _create_fp16_partitions_with_defragmentation: the shards. _create_fp32_partitions: float32 copies. (In float32 the
    shards are meant to serve, but the test compares a torch.device with a string, so a copy is made.)
    _setup_for_real_optimizer: one bucket of `reduce_bucket` elements and one flat gradient shard, both for ever;
    overlap_comm does not double it. _prepare_fp32_grad_for_sub_group: a sub-group's gradient flat, then in float32.
    partition_parameters.py:_partition_param_sec: hpZ. Gathered weights and the bucket's flat copy: gathers.py.
    """
    shards = {name: -(-prod(shape) // world_size) for name, shape in all_shapes(model).items()}
    learning = [shards[name] for name in parameter_shapes(model)]
    shard, learnt = sum(shards.values()), sum(learning)
    few = persistent(model, policy)
    whole = size * world_size * sum(shards[name] for name in few) if world_size > 1 else 0
    bucket = size * policy.reduce_bucket if policy.contiguous_gradients else 0
    waiting = (
        0 if policy.contiguous_gradients else max(bucket_fills(reversed(parameter_sizes(model)), policy.reduce_bucket))
    )
    divided = world_size * (shard - sum(shards[name] for name in few))
    secondary = size * divided // policy.hpz if policy.hpz > 1 else 0

    weights, gradients = size * shard, size * learnt
    replay = replay_gathers(model, policy, world_size, accumulates=accumulation > 1)
    norm = 8 * max(learning) if policy.offload_optimizer else 0  # _constant_buffered_norm2, in float64
    master, moments = MASTER_BYTES * learnt, 2 * MASTER_BYTES * learnt
    group = _largest_sub_group(model, world_size, policy.sub_group)
    update = size * group + (MASTER_BYTES * group if size != MASTER_BYTES else 0)
    host = 0
    if policy.offload_optimizer:  # with float32 gradients, beside those of the flat shard
        host += master + moments + MASTER_BYTES * learnt + gradients
        master = moments = gradients = update = 0
    if policy.offload_param:
        host += weights + secondary
        weights = secondary = 0
    return StateBytes(
        weights=weights,
        gradients=gradients,
        master=master,
        moments=moments,
        buckets=bucket + size * waiting + norm,
        live=whole + size * replay.peak,
        secondary=secondary,
        kept=gradients + bucket + whole,
        update=update,
        host=host,
    )


def _largest_sub_group(model: Model, world_size: int, limit: int) -> int:
    """Shard elements of the largest sub-group (stage3.py:_create_fp16_sub_groups)."""
    largest = 0
    for group in group_sizes(model):
        filled = 0
        for numel in group:
            filled += -(-numel // world_size)
            largest = max(largest, filled)
            if filled >= limit:
                filled = 0
    return largest
