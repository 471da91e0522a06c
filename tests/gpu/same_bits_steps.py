"""Steps of pre-training twice from the same start, in a process of its own, as cuBLAS reads its variable once.

`python -m tests.gpu.same_bits_steps SIZE FRAMES PIXELS CLIPS OUT.json`: for each kernel that can run, digests of both times.
"""

from __future__ import annotations

import gc
import hashlib
import json
import sys
from pathlib import Path

import numpy as np
import torch

from vmae2_ds.config.ds_config import resolve_ds_config
from vmae2_ds.config.model import ModelConfig
from vmae2_ds.config.pretrain import PretrainConfig
from vmae2_ds.config.run_plan import plan_run
from vmae2_ds.dist import default_device
from vmae2_ds.engine.ranks import start_ranks, stop_ranks
from vmae2_ds.engine.same_bits import same_bits
from vmae2_ds.model.attention import runnable
from vmae2_ds.recipes import get_recipe
from vmae2_ds.train.build import build_engine
from vmae2_ds.tune.trial import noise_batch

STEPS = 4


def digest_of_steps(config: PretrainConfig) -> str:
    """Of losses, gradient norms and weights after STEPS steps on noise."""
    clips = config.train.micro_batch * config.data.views
    plan = plan_run(config, config.train.global_batch, 1)
    engine = build_engine(config, resolve_ds_config(config, plan, on_cpu=default_device().type == "cpu"))
    batch = noise_batch(config.mask, config.geometry, clips, np.random.default_rng(0))
    digest = hashlib.sha256()
    for _ in range(STEPS):
        loss = float(engine.micro_step(batch).loss)
        digest.update(repr((loss, engine.update().grad_norm)).encode())
    for parameter in engine.objective.parameters():
        digest.update(parameter.detach().float().cpu().numpy().tobytes())
    engine.deepspeed.destroy()
    del engine
    gc.collect()
    return digest.hexdigest()


def digests_by_kernel(size: str, frames: int, pixels: int, clips: int) -> dict[str, list[str]]:
    """Digests of two times by the kernel that both towers use, in bf16 at ZeRO stage 1."""
    found = {}
    with same_bits(True):
        ranks = start_ranks()
        for kernel in runnable(torch.bfloat16, 64, default_device()):
            config = get_recipe("pretrain", "vit_b_pretrain_hybrid").changed(
                data={"views": 1, "num_frames": frames, "size": pixels},
                train={"global_batch": clips, "micro_batch": clips, "ds_config": "zero1", "precision": "bf16"},
            )
            config = config.model_copy(update={"model": ModelConfig.of_size(size, attention=kernel)})
            found[kernel] = [digest_of_steps(config) for _ in range(2)]
        stop_ranks(ranks)
    return found


if __name__ == "__main__":
    Path(sys.argv[-1]).write_text(json.dumps(digests_by_kernel(sys.argv[1], *map(int, sys.argv[2:5]))))
