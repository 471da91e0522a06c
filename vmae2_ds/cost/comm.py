"""Bytes that the ranks exchange in one optimizer step: DeepSpeed's collectives, and what of them each link carries.

Read in deepspeed 0.19.8 (paths in deepspeed/runtime) under the same conditions as states.py, and for steps after the
first two, in which stage 3 has not learned the order of the modules and gathers more. Flags and norms are left out.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from math import prod
from typing import Literal

from vmae2_ds.cost.gathers import Gathers, persistent, replay_gathers
from vmae2_ds.cost.muon import exchanged_elements
from vmae2_ds.cost.parameters import (
    Model,
    all_shapes,
    group_of,
    group_sizes,
    muon_matrices,
    parameter_shapes,
    parameter_sizes,
)
from vmae2_ds.cost.states import MASTER_BYTES, PLAIN_BUCKET, WEIGHT_BYTES, StatePrecision, bucket_fills
from vmae2_ds.cost.zero import ZeroPolicy

CollectiveKind = Literal["all_reduce", "reduce", "reduce_scatter", "all_gather", "all_to_all", "exchange", "broadcast"]
"""Kinds of collectives; an exchange is an all_to_all whose ranks send each other what they need, and nothing to themselves."""

WEIGHT_SCALE_GROUP = 8000
"""Weights to one float32 scale in qwZ (zero/partition_parameters.py:CUDAQuantizer.target_group_size), about."""


@dataclass(frozen=True)
class Collective:
    """All calls of one kind for one purpose in an optimizer step."""

    kind: CollectiveKind
    payload: int
    """Bytes as DeepSpeed's comms logger adds them up on one rank: an all_gather's *shard*, else the whole input."""
    span: Literal["world", "node", "nodes"]
    """Who takes part: all ranks, the ranks of a node, or one rank of every node."""
    what: str
    calls: int = 1
    """How many collectives these bytes come in: each has to be started."""


@dataclass(frozen=True)
class CommBytes:
    """Traffic of one optimizer step."""

    collectives: tuple[Collective, ...]
    intra_node: int
    """Bytes one GPU sends over the links inside its node."""
    inter_node: int
    """One GPU's share of the bytes that its node sends over the network."""


def comm_bytes(
    model: Model,
    policy: ZeroPolicy,
    *,
    world_size: int,
    num_nodes: int,
    accumulation: int,
    precision: StatePrecision,
) -> CommBytes:
    """Traffic of an optimizer step of `accumulation` micro steps, on `num_nodes` nodes of equally many ranks.

    Bytes sent follow the ring algorithm: of n bytes, an all_gather or reduce_scatter over G ranks sends (G-1)/G n from
    each rank, as does a reduce on average, an all_reduce twice as much, an all_to_all (G-1)/G of each rank's own bytes.
    A ring over all ranks goes through the nodes one after another, so of the L ranks of a node one sends over the
    network: each counts as sending 1/L of its bytes there. NCCL's trees, which it prefers for small messages, and its
    in-network reductions are not modelled. ZeRO++ (hpZ, qwZ, qgZ) is from the source alone: its kernels need a GPU.
    """
    assert world_size % num_nodes == 0, f"{world_size} ranks on {num_nodes} nodes: not equally many on each"
    if world_size == 1:
        return CommBytes((), 0, 0)
    if policy.stage == 3:
        collectives = _stage3(model, policy, world_size, num_nodes, accumulation, precision)
    else:
        collectives = _stage0_to_2(model, policy, world_size, accumulation, precision)
    return _on_links(collectives, world_size, num_nodes)


def _stage0_to_2(
    model: Model, policy: ZeroPolicy, world_size: int, accumulation: int, precision: StatePrecision
) -> list[Collective]:
    """engine.py:allreduce_gradients and zero/stage_1_and_2.py:average_tensor, average-reduce of whole buckets.

    `reduce_scatter: true` is no reduce-scatter there: by default (use_multi_rank_bucket_allreduce) every bucket is
    all-reduced, off it is reduced to each owner. Stage 2 does so in every micro step. utils.py:all_gather_dp_groups
    gathers each flat group in one call: torch has all_gather_into_tensor, so `allgather_bucket_size` is not read.
    """
    size = WEIGHT_BYTES[precision]
    groups = group_sizes(model)
    reductions = accumulation if policy.stage == 2 else 1
    gradients = reductions * size * sum(map(sum, groups))
    bucket = policy.reduce_bucket if policy.stage else PLAIN_BUCKET
    fills = bucket_fills(reversed(parameter_sizes(model)), bucket)
    if policy.stage == 0:
        return [Collective("all_reduce", gradients, "world", "gradients", len(fills))]
    kind: CollectiveKind = "all_reduce" if policy.multi_rank_allreduce else "reduce"
    shards = [-(-sum(group) // (2 * world_size)) * 2 for group in groups]
    calls = len(fills) if policy.multi_rank_allreduce else _owners_of_buckets(model, policy.reduce_bucket, world_size)
    matrices = muon_matrices(model)
    exchanged = sum(exchanged_elements(found, shards[group], world_size) for group, found in matrices.items())
    return [
        Collective(kind, gradients, "world", "gradients", reductions * calls),
        Collective("all_gather", size * sum(shards), "world", "weights", len(groups)),
        Collective("exchange", MASTER_BYTES * exchanged // world_size, "world", "Muon's matrices", len(matrices)),
    ]


def _owners_of_buckets(model: Model, bucket: int, world_size: int) -> int:
    """Ranks that own a part of each bucket, over all buckets: each gets a reduce of its own (average_tensor)."""
    groups, numbers = group_sizes(model), group_of(model)
    parts = [-(-sum(group) // (2 * world_size)) * 2 for group in groups]
    filled, owners, total = 0, set[int](), 0
    ends = [sum(group) for group in groups]
    for name, shape in reversed(list(parameter_shapes(model).items())):
        numel, group = prod(shape), numbers[name]
        if filled and filled + numel > bucket:
            total, filled, owners = total + len(owners), 0, set()
        filled += numel
        start, end = ends[group] - numel, ends[group]
        ends[group] = start
        owners.update(range(start // parts[group], (end - 1) // parts[group] + 1))
    return total + len(owners)


def _stage3(
    model: Model,
    policy: ZeroPolicy,
    world_size: int,
    num_nodes: int,
    accumulation: int,
    precision: StatePrecision,
) -> list[Collective]:
    """Gathers of the replay in every micro step, persistent weights once a step (zero/stage3.py:_post_step), and
    one reduce-scatter of every gradient in every micro step (reduce_scatter_coalesced), each padded to the ranks.

    hpZ keeps a second copy from a weight's first release to the end of the step, so only the first gather of the first
    micro step leaves the node (partition_parameters.py:all_gather_coalesced, use_secondary_tensor).
    """
    size = WEIGHT_BYTES[precision]
    shapes = parameter_shapes(model)
    shards = {name: -(-prod(shape) // world_size) for name, shape in all_shapes(model).items()}
    replay = replay_gathers(model, policy, world_size, accumulates=accumulation > 1)
    few = persistent(model, policy)
    collectives = [
        *_weight_gathers(replay, shards, policy, size, world_size, accumulation),
        Collective("all_gather", size * sum(shards[name] for name in few), "world", "persistent weights", len(few)),
    ]
    if policy.quantized_gradients and num_nodes > 1:
        collectives += _quantized_reduction(shapes.values(), size, world_size, num_nodes, accumulation)
    else:
        gradients = accumulation * size * world_size * sum(shards[name] for name in shapes)
        fills = bucket_fills(reversed(parameter_sizes(model)), policy.reduce_bucket)
        collectives.append(Collective("reduce_scatter", gradients, "world", "gradients", accumulation * len(fills)))
    return collectives


def _weight_gathers(
    replay: Gathers, shards: dict[str, int], policy: ZeroPolicy, size: int, world_size: int, accumulation: int
) -> list[Collective]:
    def payload(names: Iterable[str], shard_ranks: int) -> int:
        elements = sum(-(-shards[name] * world_size // shard_ranks) for name in names)
        if policy.quantized_weights:
            return elements + 4 * -(-elements // WEIGHT_SCALE_GROUP)
        return size * elements

    def gather(elements: int, span: Literal["world", "node"], what: str) -> Collective:
        # calls of a micro step, shared out by what they carry
        share = len(replay.again if what == "weights again" else replay.first) / max(
            1, len(replay.first + replay.again)
        )
        return Collective("all_gather", elements, span, what, round(accumulation * replay.calls * share))

    first, again = payload(replay.first, world_size), payload(replay.again, world_size)
    if policy.hpz == 1:
        return [
            gather(accumulation * first, "world", "weights"),
            gather(accumulation * again, "world", "weights again"),
        ]
    near = payload(replay.first, policy.hpz), payload(replay.again, policy.hpz)
    return [
        gather(first, "world", "weights"),
        gather((accumulation - 1) * near[0] + accumulation * near[1], "node", "weights again"),
    ]


def _quantized_reduction(
    shapes: Iterable[tuple[int, ...]], size: int, world_size: int, num_nodes: int, accumulation: int
) -> list[Collective]:
    """qgZ (comm/coalesced_collectives.py:all_to_all_quant_reduce): 4-bit matrices and float32 scales, exchanged inside
    the node, added up, and exchanged between nodes. Vectors, and what 2 x ranks does not divide, stay as they were."""
    within, between, plain = 0, 0, 0
    node_size = world_size // num_nodes
    for shape in shapes:
        numel = prod(shape)
        if len(shape) == 1 or numel % (2 * world_size):
            plain += size * -(-numel // world_size) * world_size
            continue
        groups = max(shape[0], shape[1], world_size)
        within += numel // 2 + 4 * groups
        between += (numel // 2 + 4 * groups) // node_size
    return [
        Collective("all_to_all", accumulation * within, "node", "gradients"),
        Collective("all_to_all", accumulation * between, "nodes", "gradients"),
        Collective("reduce_scatter", accumulation * plain, "world", "gradients"),
    ]


def _on_links(collectives: list[Collective], world_size: int, num_nodes: int) -> CommBytes:
    node_size = world_size // num_nodes
    ranks = {"world": world_size, "node": node_size, "nodes": num_nodes}
    sent: Counter[str] = Counter()
    for each in collectives:
        sent[each.span] += _sent(each, ranks[each.span])
    crossing = sent["world"] // node_size if num_nodes > 1 else 0
    return CommBytes(
        tuple(each for each in collectives if each.payload),
        intra_node=sent["world"] - crossing + sent["node"],
        inter_node=crossing + sent["nodes"],
    )


def _sent(collective: Collective, ranks: int) -> int:
    """Bytes each of `ranks` ranks sends, on average."""
    if collective.kind == "all_gather":
        return (ranks - 1) * collective.payload
    if collective.kind == "exchange":
        return collective.payload
    rounds = 2 if collective.kind == "all_reduce" else 1
    return rounds * (ranks - 1) * collective.payload // ranks
