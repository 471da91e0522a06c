"""Five optimizer steps on made-up clips: under an engine, and in plain PyTorch as the reference.

As a module it is one rank that runs a list of engine variants, one after another, in one process.
"""

from __future__ import annotations

import gc
import time
from typing import Any

import numpy as np
import torch

from tests.distributed.ranks import answer
from vmae2_ds.config.ds_config import resolve_ds_config
from vmae2_ds.config.model import ModelConfig, TowerConfig
from vmae2_ds.config.pretrain import PretrainConfig, PretrainDataConfig, PretrainOptimConfig
from vmae2_ds.config.run import TrainConfig
from vmae2_ds.config.run_plan import RunPlan, plan_run
from vmae2_ds.contracts import PretrainBatch
from vmae2_ds.dist import Ranks
from vmae2_ds.masking import make_masks
from vmae2_ds.model.mae import MaskedAutoencoder
from vmae2_ds.objectives import Reconstruct
from vmae2_ds.train.optim import learning_rate, parameter_groups

NUM_STEPS, GLOBAL_BATCH, NUM_VIDEOS = 5, 8, 16
PEAK_LR = 3e-3


def make_config(world_size: int, **changes: Any) -> PretrainConfig:
    """A small model with the real recipe's groups, accumulation 2, clipping, warm-up and cosine."""
    train = {"precision": "fp32", "ds_config": "zero1", **changes.pop("train", {})}
    accumulation, clip_grad = changes.pop("accumulation", 2), changes.pop("clip_grad", 0.1)
    return PretrainConfig(
        model=ModelConfig(
            encoder=TowerConfig(width=64, depth=3, heads=2, mlp=128),
            decoder=TowerConfig(width=32, depth=2, heads=2, mlp=64),
            patch=8,
            attention="math",
            **changes.pop("model", {}),
        ),
        data=PretrainDataConfig(num_frames=8, size=32, views=1),
        optim=PretrainOptimConfig(
            base_lr=PEAK_LR, lr_batch=GLOBAL_BATCH, min_lr=1e-4, warmup_epochs=1, clip_grad=clip_grad
        ),
        train=TrainConfig(
            global_batch=GLOBAL_BATCH,
            micro_batch=GLOBAL_BATCH // world_size // accumulation,
            max_steps=NUM_STEPS,
            **train,
        ),
    )


def make_clips(config: PretrainConfig, step: int, first: int, count: int) -> PretrainBatch:
    """Clips `first` .. of the global batch of `step`: noise and real masks, a function of (step, clip) alone."""
    size, frames = config.data.size, config.data.num_frames
    clips, masks = [], []
    for clip in range(first, first + count):
        rng = np.random.default_rng((step, clip))
        clips.append(torch.from_numpy(rng.integers(0, 256, (frames, size, size, 3), dtype=np.uint8)))
        masks.append(make_masks(config.mask, config.geometry, rng))
    return PretrainBatch.of_clips(torch.stack(clips), masks)


def plain_losses(config: PretrainConfig) -> list[float]:
    """The reference: the whole batch at once, torch's default AdamW; float32 master weights by hand where bf16."""
    plan = plan_run(config, NUM_VIDEOS, 1)
    model = MaskedAutoencoder(config.model, config.geometry, seed=config.train.seed)
    objective = Reconstruct(model, config.objective, config.geometry)
    low = config.train.precision == "bf16"
    if low:
        for parameter in objective.parameters():
            parameter.data = parameter.data.bfloat16()
    parameters = dict(objective.named_parameters())
    masters = {name: torch.nn.Parameter(p.detach().float().clone()) for name, p in parameters.items()}
    groups = parameter_groups(objective, config.optim.weight_decay)
    for group in groups:
        group["params"] = [masters[name] for name in group.pop("param_names")]
    optimizer = torch.optim.AdamW(groups, betas=config.optim.betas, eps=config.optim.eps)
    losses = []
    for step in range(NUM_STEPS):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, plan)
        objective.zero_grad()
        loss = objective(make_clips(config, step, 0, GLOBAL_BATCH)).loss
        loss.backward()
        for name, parameter in parameters.items():
            masters[name].grad = parameter.grad.float()  # type: ignore[union-attr]
        torch.nn.utils.clip_grad_norm_(masters.values(), config.optim.clip_grad)
        optimizer.step()
        with torch.no_grad():
            for name, parameter in parameters.items():
                parameter.copy_(masters[name])
        losses.append(loss.item())
    return losses


def engine_losses(config: PretrainConfig, world_size: int, rank: int) -> list[float]:
    """The same steps under the engine, each rank with its part of each micro batch."""
    from vmae2_ds.train.build import build_engine
    from vmae2_ds.train.optim import set_learning_rate

    plan: RunPlan = plan_run(config, NUM_VIDEOS, world_size)
    engine = build_engine(config, resolve_ds_config(config, plan, on_cpu=True))
    losses = []
    for step in range(NUM_STEPS):
        set_learning_rate(engine.parameter_groups, learning_rate(step, plan))
        total = torch.zeros(())
        for micro_step in range(plan.accumulation):
            first = (micro_step * world_size + rank) * plan.micro_batch
            total += engine.micro_step(make_clips(config, step, first, plan.micro_batch)).loss.detach()
        assert engine.update().applied
        torch.distributed.all_reduce(total)
        losses.append(total.item() / plan.accumulation / world_size)
    engine.deepspeed.destroy()
    del engine
    gc.collect()
    return losses


def run_variants(variants: dict[str, dict[str, Any]], ranks: Ranks) -> dict[str, list[float]]:
    """Losses by the name of the variant: changes of make_config."""
    results = {}
    for name, changes in variants.items():
        start = time.process_time()
        results[name] = engine_losses(make_config(ranks.size, **changes), ranks.size, ranks.rank)
        print(f"{name}: {time.process_time() - start:.1f} s", flush=True)
    return results


if __name__ == "__main__":
    answer(run_variants)
