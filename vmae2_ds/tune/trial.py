"""A few real steps of one setting on made-up clips, as one rank of the deepspeed launcher: peak memory and step time.

    deepspeed --num_accelerators N --module vmae2_ds.tune.trial RUN_CONFIG.json STEPS OUT.json

Rank 0 writes the largest memory of any rank, in bytes, and its own times of every step, in seconds.
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from vmae2_ds.config.ds_config import resolve_ds_config
from vmae2_ds.config.pretrain import MaskConfig, PretrainConfig
from vmae2_ds.config.run_plan import RunPlan, plan_run
from vmae2_ds.contracts import ClipGeometry, PretrainBatch
from vmae2_ds.disk import write_whole
from vmae2_ds.dist import Ranks, default_device
from vmae2_ds.engine.device_peak import DTYPES
from vmae2_ds.engine.ranks import start_ranks, stop_ranks
from vmae2_ds.engine.same_bits import same_bits
from vmae2_ds.engine.step import Engine
from vmae2_ds.masking import count_masks, make_masks
from vmae2_ds.train.build import attention_shapes, build_engine, resolve_attention
from vmae2_ds.train.optim import set_learning_rate

LEARNING_RATE = 1e-5


def run_trial(config: PretrainConfig, num_steps: int, out: Path) -> None:
    """Take `num_steps` optimizer steps of `config` on noise; rank 0 writes `out`, whole or not at all.

    Raises what the engine raises, torch's out-of-memory error among them.
    """
    with same_bits(config.train.deterministic):
        _run_trial(config, num_steps, out)


def _run_trial(config: PretrainConfig, num_steps: int, out: Path) -> None:
    others = used_by_others()
    ranks = start_ranks()
    plan = plan_run(config, config.train.global_batch, ranks.size)
    engine = build_engine(config, resolve_ds_config(config, plan, on_cpu=default_device().type == "cpu"))
    counts = count_masks(config.mask, config.geometry)
    shapes = attention_shapes(config.model, counts, plan.clips_per_micro_step)
    attention = resolve_attention(config.model.attention, shapes, DTYPES[config.train.precision], engine.device)
    engine.objective.model.use_attention(*attention)  # type: ignore[operator, union-attr]
    set_learning_rate(engine.parameter_groups, LEARNING_RATE)
    rng = np.random.default_rng((config.train.seed, ranks.rank))
    batch = noise_batch(config.mask, config.geometry, plan.clips_per_micro_step, rng)
    times_s = _time_steps(engine, plan, batch, num_steps)
    result: dict[str, Any] = {
        "device": torch.cuda.get_device_name() if engine.device.type == "cuda" else "cpu",
        "ranks": ranks.size,
        "attention": attention,
        "step_times_s": times_s,
        **{name: _largest(value, ranks) for name, value in peak_memory(engine.device, others).items()},
    }
    if ranks.rank == 0:
        write_whole(out, json.dumps(result))
    stop_ranks(ranks)


def _time_steps(engine: Engine, plan: RunPlan, batch: PretrainBatch, num_steps: int) -> list[float]:
    """Wall time of each optimizer step; the first ones also allocate, so a reader drops them."""
    times_s = []
    for _ in range(num_steps):
        start = time.perf_counter()
        for _ in range(plan.accumulation):
            engine.micro_step(batch)
        engine.update()
        if engine.device.type == "cuda":
            torch.cuda.synchronize(engine.device)
        times_s.append(time.perf_counter() - start)
    return times_s


def noise_batch(mask: MaskConfig, geometry: ClipGeometry, num_clips: int, rng: np.random.Generator) -> PretrainBatch:
    """Random uint8 clips with drawn masks: for what takes as long, and as much memory, whatever the pixels."""
    shape = (num_clips, geometry.num_frames, geometry.height, geometry.width, 3)
    masks = [make_masks(mask, geometry, rng) for _ in range(num_clips)]
    return PretrainBatch.of_clips(torch.from_numpy(rng.integers(0, 256, shape, dtype=np.uint8)), masks)


def used_by_others() -> dict[str, int]:
    """Bytes in use on each GPU of this host, by its UUID, before this process is on any; {} where nvidia-smi does not tell."""
    if default_device().type != "cuda" or torch.cuda.is_initialized():
        return {}
    asked = ["nvidia-smi", "--query-gpu=uuid,memory.used", "--format=csv,noheader,nounits"]
    try:
        told = subprocess.run(asked, capture_output=True, text=True, timeout=30, check=True).stdout
        rows = [line.split(",") for line in told.splitlines()]
        return {uuid.strip(): int(mib) * 2**20 for uuid, mib in rows}
    except (OSError, subprocess.SubprocessError, ValueError):
        return {}


def peak_memory(device: torch.device, others: dict[str, int]) -> dict[str, int]:
    """The most memory taken so far: in all, by torch's allocator, and by tensors (0 on a CPU, where nobody counts them).

    Beyond the allocator a process has its context; what `others` held before it came is none of its own.
    """
    if device.type == "cuda":
        free, total = torch.cuda.mem_get_info(device)
        uuid = getattr(
            torch.cuda.get_device_properties(device), "uuid", None
        )  # torch 2.6 has it, under ROCm some have not
        outside = max(0, total - free - torch.cuda.memory_reserved(device) - others.get(f"GPU-{uuid}", 0))
        reserved = torch.cuda.max_memory_reserved(device)
        allocated = torch.cuda.max_memory_allocated(device)
    else:
        outside, allocated = 0, 0
        reserved = _peak_resident()
    return {"peak_bytes": outside + reserved, "reserved_bytes": reserved, "allocated_bytes": allocated}


def _peak_resident() -> int:
    """Most resident bytes of this process; getrusage would begin with those of the process that started it."""
    status = Path("/proc/self/status")
    if status.exists():
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM:"))
        return int(line.split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def _largest(value: int, ranks: Ranks) -> int:
    if ranks.size == 1:
        return value
    values: list[int] = [0] * ranks.size
    torch.distributed.all_gather_object(values, value)
    return max(values)


def main(args: list[str]) -> None:
    """Run one rank."""
    run_trial(PretrainConfig.model_validate_json(Path(args[0]).read_text()), int(args[1]), Path(args[2]))


if __name__ == "__main__":
    main([arg for arg in sys.argv[1:] if not arg.startswith("--local_rank")])
