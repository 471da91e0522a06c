"""The settings a run could use on a cluster: every stage, offload, ZeRO++, checkpointing, micro batch and bucket size.

The global batch and everything that decides what is learned stay as they are; only how the work is laid out varies.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import product

from vmae2_ds.config.model import CheckpointingName
from vmae2_ds.config.pretrain import PretrainConfig
from vmae2_ds.config.run import RunConfig
from vmae2_ds.cost.cluster import Cluster
from vmae2_ds.cost.flops import count_parameters
from vmae2_ds.cost.zero import ZeroPolicy
from vmae2_ds.errors import ConfigError
from vmae2_ds.tune.setting_cost import Setting

CHECKPOINTING: tuple[tuple[CheckpointingName, int], ...] = (
    ("none", 1),
    ("decoder", 1),
    ("every_k", 4),
    ("every_k", 3),
    ("every_k", 2),
    ("all", 1),
)
"""From no recomputation to all of it; the second number is model.checkpoint_every."""

BUCKETS = (5_000_000, 20_000_000, 50_000_000, 200_000_000)
"""Elements. DeepSpeed's default of 5e8 takes 2 GB whatever the model's size; below 5e6 start-up times add up."""

ZERO_INIT_PARAMETERS = 4_000_000_000
"""From here on a whole model in every rank's host memory is too much: build it partitioned (16 GB in float32,
times the ranks of a host)."""


def all_settings(config: PretrainConfig, cluster: Cluster, *, quantized: bool, offload: bool) -> Iterator[Setting]:
    """Every setting with exactly the recipe's global batch.

    Args:
        quantized: also ZeRO++ with quantised weights and gradients, which changes what is learned a little.
        offload: also optimizer states, and weights, in host memory.

    Raises:
        ConfigError: a global batch that these GPUs cannot make.
    """
    policies = list(_policies(config, cluster, quantized=quantized, offload=offload))
    zero_init = count_parameters(config.model).total > ZERO_INIT_PARAMETERS
    for micro_batch, (mode, every) in product(micro_batches(config, cluster.num_gpus), CHECKPOINTING):
        model = {"checkpointing": mode, "checkpoint_every": every}
        for policy in policies:
            train = {"micro_batch": micro_batch, "ds_zero_init": zero_init and policy.stage == 3}
            yield Setting(config.changed(model=model, train=train), policy)


def micro_batches(config: RunConfig, num_gpus: int) -> list[int]:
    """Videos per GPU and micro step: the divisors of what one GPU sees in a step."""
    views, global_batch = config.data.views, config.train.global_batch
    if global_batch % (views * num_gpus):
        unit = views * num_gpus
        lower = global_batch // unit * unit
        several = f"{lower} or {lower + unit}" if lower else f"{unit}"
        fewer = max((n for n in range(1, num_gpus) if global_batch % (views * n) == 0), default=None)
        raise ConfigError(
            f"--train.global-batch {global_batch} cannot be shared by {num_gpus} GPUs with views={views} each: it is no "
            f"multiple of {unit}; try --train.global-batch {several}" + (f", or --gpus {fewer}" if fewer else "")
        )
    per_gpu = global_batch // (views * num_gpus)
    return [n for n in range(1, per_gpu + 1) if per_gpu % n == 0]


def _policies(config: PretrainConfig, cluster: Cluster, *, quantized: bool, offload: bool) -> Iterator[ZeroPolicy]:
    parameters = count_parameters(config.model).total
    # A bucket larger than the model holds nothing more.
    buckets = sorted({min(size, max(BUCKETS[0], parameters)) for size in BUCKETS})
    stages = [0, 1, 2, 3] if config.train.precision == "fp32" else [1, 2, 3]
    if config.optim.optimizer == "muon":  # config/ds_config.py refuses the others
        stages, offload = stages[:-1], False
    for stage in stages:
        if stage == 0:
            yield ZeroPolicy(stage=0)
            continue
        for bucket in buckets:
            base = ZeroPolicy(stage=stage, reduce_bucket=bucket, overlap_comm=True)
            if stage == 3:
                base = _stage3(base, config, bucket)
            elif cluster.num_gpus > 1:
                yield replace(base, multi_rank_allreduce=False)
            yield base
            if offload:
                yield replace(base, offload_optimizer=True)
                if stage == 3:
                    yield replace(base, offload_optimizer=True, offload_param=True)
            if stage == 3 and cluster.num_nodes > 1 and cluster.gpus_per_node > 1:
                within_node = replace(base, hpz=cluster.gpus_per_node)
                yield within_node
                if quantized:
                    yield replace(within_node, quantized_weights=True, quantized_gradients=True)


def _stage3(base: ZeroPolicy, config: PretrainConfig, bucket: int) -> ZeroPolicy:
    """Read ahead one bucket, at least one block; keep three blocks gathered at most."""
    encoder = config.model.encoder
    block = 4 * encoder.width**2 + 2 * encoder.width * encoder.mlp
    return replace(
        base,
        prefetch_bucket=max(bucket, block),
        max_live=3 * max(bucket, block),
        max_reuse=3 * max(bucket, block),
        persistence_threshold=max(encoder.mlp, 3 * encoder.width, 10_000),
    )
