"""Real ranks for tests: start W processes once with the launcher's variables, run a module in each, collect rank 0's JSON."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vmae2_ds.host import free_port

if TYPE_CHECKING:
    from vmae2_ds.dist import Ranks

REPOSITORY = Path(__file__).parents[2]
UNMEASURED = "--train.peak-flops 1e12"
"""Without it each rank times products of large matrices for what a step's speed is told against: as long as two steps."""


def answer(work: Callable[[Any, Ranks], object]) -> None:
    """This process as one rank: `work` is given the JSON of argv[1]; what it returns on rank 0 goes to argv[2]."""
    import torch

    from vmae2_ds.engine.ranks import start_ranks, stop_ranks

    torch.set_num_threads(1)
    ranks = start_ranks()
    result = work(json.loads(sys.argv[1]), ranks)
    if ranks.rank == 0:
        Path(sys.argv[2]).write_text(json.dumps(result))
    stop_ranks(ranks)  # a rank that just ends may find gloo's threads still running, and abort


def of_all(mine: object, ranks: Ranks) -> list[Any]:
    """What each rank has, by rank."""
    import torch

    everyone: list[Any] = [None] * ranks.size
    torch.distributed.all_gather_object(everyone, mine)
    return everyone


def rank_environment(rank: int, world_size: int, port: int) -> dict[str, str]:
    """What torchrun would set for this rank."""
    return {
        **os.environ,
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(world_size),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "DS_ACCELERATOR": "cpu",
        "CUDA_VISIBLE_DEVICES": "",
        "OMP_NUM_THREADS": "1",
    }


def tiny_pretraining(manifest: Path, run: Path, steps: int) -> list[str]:
    """Arguments of a pre-training that takes seconds, with every part of a real one: views, drop path, accumulation."""
    words = f"pretrain vit_ti_pretrain_desk --data.manifest {manifest} --train.run {run} --train.ds-config zero3"
    words += " --data.size 32 --data.num-frames 8 --data.views 2 --model.attention math --model.drop-path 0.2"
    words += " --model.encoder.depth 2 --model.decoder.depth 1 --train.global-batch 8 --train.micro-batch 1"
    return f"{words} --train.max-steps {steps} --train.log-every 1 --train.no-tensorboard {UNMEASURED}".split()


def tiny_finetuning(manifest: Path, run: Path, steps: int) -> list[str]:
    """Arguments of a fine-tuning from scratch that learns a handful of clips by heart in seconds."""
    words = f"finetune vit_ti_finetune_desk --data.manifest {manifest} --train.run {run} --train.max-steps {steps}"
    words += " --data.size 32 --data.num-frames 8 --data.views 1 --data.crop-area 0.9 1 --data.workers 0"
    words += " --model.attention math --model.drop-path 0 --model.encoder.depth 3 --model.encoder.width 96"
    words += " --model.encoder.mlp 192 --optim.base-lr 0.03 --optim.layer-decay 1 --optim.warmup-epochs 5"
    words += " --augment.mixup 0 --augment.cutmix 0 --augment.erase 0 --augment.label-smoothing 0"
    return f"{words} --train.global-batch 12 --train.micro-batch 12 --train.no-tensorboard {UNMEASURED}".split()


def run_ranks(module: str, argument: Any, out: Path, world_size: int, timeout_s: float = 600) -> Any:
    """Run `python -m module ARGUMENT OUT` as `world_size` ranks; returns what rank 0 wrote to OUT as JSON."""
    port = free_port()
    command = [sys.executable, "-m", module, json.dumps(argument), str(out)]
    logs = [out.with_suffix(f".rank{rank}.log") for rank in range(world_size)]
    processes = []
    for rank, path in enumerate(logs):
        with path.open("w") as log:
            processes.append(
                subprocess.Popen(
                    command, env=rank_environment(rank, world_size, port), stdout=log, stderr=log, cwd=REPOSITORY
                )
            )
    try:
        codes = [process.wait(timeout_s) for process in processes]
    finally:
        for process in processes:
            process.kill()
    if any(codes):
        tails = "\n".join(f"--- {path.name}\n{path.read_text()[-3000:]}" for path in logs)
        raise AssertionError(f"ranks ended with {codes}\n{tails}")
    return json.loads(out.read_text())
