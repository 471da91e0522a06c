"""What the ranks of one host need for a recipe, worked out of its settings by closed forms. No torch."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vmae2_ds.config.ds_config import read_policy, zero_stage
from vmae2_ds.config.model import ModelConfig, TowerConfig
from vmae2_ds.config.pretrain import PretrainConfig
from vmae2_ds.config.run import RunConfig
from vmae2_ds.config.trackers import PACKAGES as PACKAGES_OF_TRACKERS
from vmae2_ds.data.feed.shared_memory import loader_bytes, tensor_bytes, validation_bytes
from vmae2_ds.data.readers.table import PACKAGES
from vmae2_ds.doctor.needs import Needs
from vmae2_ds.masking import count_masks

INTERPRETER_BYTES = 1 << 30
"""A rank with torch and DeepSpeed: 0.75 GiB on a CPU (tune/this_cpu.py), more with CUDA's context."""
WORKER_BYTES = 300 << 20
"""A loader worker with its reader child, beside what it shares: one decoder and a video's frames."""
STATE_BYTES = {"bf16": 2 + 3 * 4, "fp32": 3 * 4}
"""A checkpoint's bytes for each parameter: weights, and master weights and both of Adam's moments in float32."""


def needs_of(config: RunConfig, ranks: int) -> Needs:
    """What `ranks` ranks of a run on one host need. Raises ConfigError for shapes and policies that cannot be."""
    policy = read_policy(config.train.ds_config)
    data = config.data
    shm = ranks * (loader_bytes(config) + validation_bytes(config))
    parameters = _product_weights(config)
    return Needs(
        recipe=config.recipe,
        ranks=ranks,
        shapes=_shapes(config),
        precision=config.train.precision,
        attention=config.model.attention,
        compile=config.train.compile,
        deterministic=config.train.deterministic,
        zero_stage=zero_stage(policy),
        checkpointing=config.model.checkpointing,  # type: ignore[attr-defined]  # what every stage's model has
        ops=_ops(policy.get("zero_optimization", {})),
        reader=data.reader,
        readers=PACKAGES,
        workers=data.workers,
        shm_bytes=shm,
        memory_bytes=shm + ranks * (INTERPRETER_BYTES + 4 * parameters + data.workers * WORKER_BYTES),
        trackers=tuple(PACKAGES_OF_TRACKERS[name] for name in config.track.to),
        open_files=256 + (data.prefetch + 2) * len(tensor_bytes(config)) + 2 * data.workers,
        checkpoint_bytes=STATE_BYTES[config.train.precision] * parameters,
        keep=config.train.keep,
        runs=str(Path(config.train.run or config.train.runs).absolute()),
    )


def _shapes(config: RunConfig) -> dict[str, tuple[int, int, int, int]]:
    clips, geometry = config.train.micro_batch * config.data.views, config.geometry

    def shape(tokens: int, tower: TowerConfig) -> tuple[int, int, int, int]:
        return clips, tokens, tower.heads, tower.width // tower.heads

    if not isinstance(config, PretrainConfig):
        return {"encoder": shape(geometry.num_cubes, config.model.encoder)}
    counts = count_masks(config.mask, geometry)
    return {
        "encoder": shape(counts.visible, config.model.encoder),
        "decoder": shape(counts.visible + counts.decode, config.model.decoder),
    }


def _product_weights(config: RunConfig) -> int:
    """Weights of the blocks' matrix products: all but a hundredth of a model's parameters."""
    towers = [config.model.encoder, *([config.model.decoder] if isinstance(config.model, ModelConfig) else [])]
    return sum(tower.depth * tower.width * (4 * tower.width + 2 * tower.mlp) for tower in towers)


def _ops(zero: Mapping[str, Any]) -> tuple[str, ...]:
    """The names of DeepSpeed's ops that this policy makes it build: read in 0.19.8."""
    parts = [zero.get(part) or {} for part in ("offload_optimizer", "offload_param")]
    nvme = any(part.get("device") == "nvme" for part in parts)
    quantized = zero.get("zero_quantized_weights") or zero.get("zero_quantized_gradients")
    return (*(["async_io"] if nvme else []), *(["quantizer"] if quantized else []))
