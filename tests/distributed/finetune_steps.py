"""Six fine-tuning steps on made-up clips, mixed and with every draw, under an engine and in plain PyTorch.

As a module it is one rank that runs a list of ZeRO policies, one after another, in one process.
"""

from __future__ import annotations

import gc
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tests.distributed.ranks import answer
from vmae2_ds.config.ds_config import resolve_ds_config
from vmae2_ds.config.finetune import FinetuneConfig, FinetuneOptimConfig, FinetuneTrainConfig, LabelledDataConfig
from vmae2_ds.config.lora import LoraConfig
from vmae2_ds.config.model import ClassifierConfig, TowerConfig
from vmae2_ds.config.run_plan import plan_run
from vmae2_ds.contracts import LabelledBatch
from vmae2_ds.data.clips.augment import draw_mixing, paste_boxes
from vmae2_ds.dist import Ranks
from vmae2_ds.objectives import Classify
from vmae2_ds.train.finetune import classification
from vmae2_ds.train.loop import seed_of
from vmae2_ds.train.optim import learning_rate, parameter_groups, set_learning_rate
from vmae2_ds.weights.layouts import StateDict

Prepare = Callable[[LabelledBatch], Any]


def as_it_is(batch: LabelledBatch) -> LabelledBatch:
    """Fine-tuning does nothing to a batch before its objective gets it."""
    return batch


NUM_STEPS, MICRO_BATCH, RANKS, ACCUMULATION, NUM_CLASSES = 6, 2, 2, 2, 5
GLOBAL_BATCH = MICRO_BATCH * RANKS * ACCUMULATION


LEARNS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "all": ({}, {}),
    "lora": ({"lora": LoraConfig(rank=3, alpha=6, targets=("q", "v", "proj", "mlp"))}, {}),
    "last": ({}, {"last_blocks": 2}),
}
"""What learns -> settings of the model and of the optimizer."""


def make_config(ds_config: str = "zero1", learns: str = "all", made: str = "whole") -> FinetuneConfig:
    """A small classifier with layer decay, EMA, clipping, stochastic depth, dropout, smoothing and both ways of mixing.

    Args:
        ds_config: the ZeRO policy.
        learns: what of it does, of LEARNS.
        made: `whole`, or `parted` over the ranks from the start (zero.Init).
    """
    model, optim = LEARNS[learns]
    tower = TowerConfig(width=48, depth=3, heads=2, mlp=96)
    return FinetuneConfig(
        model=ClassifierConfig(
            encoder=tower, patch=8, num_classes=NUM_CLASSES, attention="math",
            drop_path=0.2, head_dropout=0.1, head_init_scale=1.0, **model,
        ),
        data=LabelledDataConfig(num_frames=4, size=16, views=1),
        optim=FinetuneOptimConfig(
            base_lr=3e-3, lr_batch=GLOBAL_BATCH, warmup_epochs=1, layer_decay=0.6, ema_decay=0.7, clip_grad=1.0, **optim
        ),
        train=FinetuneTrainConfig(
            global_batch=GLOBAL_BATCH, micro_batch=MICRO_BATCH, max_steps=NUM_STEPS, precision="fp32", ds_config=ds_config,
            ds_zero_init=made == "parted",
        ),
    )  # fmt: skip


def make_batch(config: FinetuneConfig, step: int, micro_step: int, rank: int) -> LabelledBatch:
    """Noise, labels and a mixing that are a function of (step, micro step, rank) alone."""
    rng = np.random.default_rng((step, micro_step, rank))
    data, augment = config.data, config.augment
    clip_BTHWC = torch.from_numpy(
        rng.integers(0, 256, (MICRO_BATCH, data.num_frames, data.size, data.size, 3), dtype=np.uint8)
    )
    mixing = draw_mixing(data.size, augment.mixup, augment.cutmix, 1.0, 0.5, rng)
    if mixing.box is not None:
        clip_BTHWC = paste_boxes(clip_BTHWC, mixing.box)
    label_B = torch.from_numpy(rng.integers(NUM_CLASSES, size=MICRO_BATCH))
    return LabelledBatch(clip_BTHWC, label_B, torch.tensor(mixing.keep_pixels), torch.tensor(mixing.keep_label))


def plain_steps(
    config: FinetuneConfig, objective: Classify | None = None, prepare: Prepare = as_it_is
) -> tuple[list[float], StateDict, StateDict]:
    """The reference, micro batch by micro batch on one process: losses, last weights, and timm-like EMA weights.

    `objective` and `prepare`, which a batch goes through first, are those of another stage than fine-tuning.
    """
    plan = plan_run(config, GLOBAL_BATCH, RANKS)
    if objective is None:
        objective = classification(config)
        objective.model.init_weights(config.train.seed)
    groups = parameter_groups(
        objective, config.optim.weight_decay, config.optim.layer_decay, config.model.encoder.depth
    )
    optimizer = torch.optim.AdamW(groups, betas=config.optim.betas, eps=config.optim.eps)
    named = {name.removeprefix("model."): parameter for name, parameter in objective.named_parameters()}
    mean = {name: p.detach().clone() for name, p in named.items()}
    losses = []
    for step in range(NUM_STEPS):
        set_learning_rate(optimizer.param_groups, learning_rate(step, plan))
        optimizer.zero_grad()
        total = 0.0
        for micro_step in range(ACCUMULATION):
            for rank in range(RANKS):
                torch.manual_seed(seed_of(0, step, micro_step, rank))
                loss = objective(prepare(make_batch(config, step, micro_step, rank))).loss / (ACCUMULATION * RANKS)
                loss.backward()
                total += loss.item()
        torch.nn.utils.clip_grad_norm_(objective.parameters(), config.optim.clip_grad)
        optimizer.step()
        for name, parameter in named.items():
            mean[name] = config.optim.ema_decay * mean[name] + (1 - config.optim.ema_decay) * parameter.detach()
        losses.append(total)
    return losses, {name: p.detach() for name, p in named.items()}, mean


def engine_steps(
    config: FinetuneConfig, rank: int, make: Callable[[Any], Any] | None = None, prepare: Prepare = as_it_is
) -> tuple[list[float], StateDict, StateDict | None]:
    """The same under the engine; the weights are whole on rank 0."""
    from vmae2_ds.train.build import build_engine
    from vmae2_ds.train.ema import WeightAverage

    plan = plan_run(config, GLOBAL_BATCH, RANKS)
    assert plan.accumulation == ACCUMULATION, "the micro steps below make up one update"
    engine = build_engine(config, resolve_ds_config(config, plan, on_cpu=True), make=make)
    mean = WeightAverage(engine, config.optim.ema_decay)
    losses = []
    for step in range(NUM_STEPS):
        set_learning_rate(engine.parameter_groups, learning_rate(step, plan))
        total = torch.zeros(())
        for micro_step in range(ACCUMULATION):
            torch.manual_seed(seed_of(0, step, micro_step, rank))
            total += engine.micro_step(prepare(make_batch(config, step, micro_step, rank))).loss.detach()
        assert engine.deepspeed.gradient_accumulation_steps() == ACCUMULATION
        assert engine.update().applied
        mean.update()
        torch.distributed.all_reduce(total)
        losses.append(total.item() / ACCUMULATION / RANKS)
    averaged = mean.weights()  # before the last weights are read: they must be back in their place
    last = {name.removeprefix("model."): tensor.clone() for name, tensor in engine.shards.whole_weights()}
    engine.deepspeed.destroy()
    del engine, mean
    gc.collect()
    return losses, last, averaged


def run_policies(policies: list[str], ranks: Ranks) -> dict[str, list[float]]:
    """Losses by policy, with what learns behind it; rank 0 writes weights to POLICY.pt beside them."""
    results = {}
    for policy in policies:
        results[policy], last, mean = engine_steps(make_config(*policy.split()), ranks.rank)
        if ranks.rank == 0:
            torch.save({"last": last, "mean": mean}, Path(sys.argv[2]).with_name(f"{policy}.pt"))
    return results


if __name__ == "__main__":
    answer(run_policies)
