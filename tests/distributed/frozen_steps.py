"""Steps whose first ones have a frozen encoder: under an engine that is cut, resumed or rolled back, and in plain PyTorch.

As a module it is one rank that runs a list of parts, one after another, in one process.
"""

from __future__ import annotations

import gc
from pathlib import Path
from typing import Any

import torch

from tests.distributed.ranks import answer
from tests.distributed.steps import GLOBAL_BATCH, NUM_VIDEOS, make_clips, make_config
from vmae2_ds.config.ds_config import resolve_ds_config
from vmae2_ds.config.pretrain import PretrainConfig
from vmae2_ds.config.run_plan import RunPlan, plan_run
from vmae2_ds.dist import Ranks
from vmae2_ds.model.mae import MaskedAutoencoder
from vmae2_ds.objectives import Reconstruct
from vmae2_ds.train.optim import learning_rate, parameter_groups

STEPS, CUT, FROZEN, LAYER_DECAY, WEIGHT_DECAY = 5, 1, 2, 0.5, 0.5


def frozen_config(world_size: int, **train: Any) -> PretrainConfig:
    optim = {"freeze_encoder_steps": FROZEN, "layer_decay": LAYER_DECAY, "weight_decay": WEIGHT_DECAY}
    return make_config(world_size, train=train).changed(optim=optim, train={"max_steps": STEPS})


def plain_steps(config: PretrainConfig) -> tuple[list[float], list[float]]:
    """The reference: the whole batch at once, torch's AdamW, an encoder that asks for no gradient at first.

    Losses, and gradient norms before clipping.
    """
    plan = plan_run(config, NUM_VIDEOS, 1)
    model = MaskedAutoencoder(config.model, config.geometry, seed=config.train.seed)
    objective = Reconstruct(model, config.objective, config.geometry)
    encoder = {f"model.encoder.{name}" for name, _ in model.encoder.named_parameters()}
    optimizer = torch.optim.AdamW(
        parameter_groups(objective, WEIGHT_DECAY, LAYER_DECAY, config.model.encoder.depth),
        betas=config.optim.betas, eps=config.optim.eps,
    )  # fmt: skip
    apart = []
    for group in optimizer.param_groups:
        names = dict(zip(group.pop("param_names"), group["params"], strict=True))
        for is_encoder in (True, False):
            mine = [p for name, p in names.items() if (name in encoder) == is_encoder]
            apart += [{**group, "params": mine, "is_encoder": is_encoder}] if mine else []
    optimizer.param_groups[:] = apart
    losses, norms = [], []
    for step in range(STEPS):
        model.encoder.requires_grad_(step >= FROZEN)
        for group in optimizer.param_groups:
            rate = learning_rate(step, plan)
            if group["is_encoder"] and step - FROZEN < plan.warmup_steps:
                # as the schedule's own beginning: from 0, in equal steps, to the peak
                rate = min(rate, plan.peak_lr * max(0, step - FROZEN) / (plan.warmup_steps - 1))
            group["lr"] = rate * group["lr_scale"]
        optimizer.zero_grad()
        loss = objective(make_clips(config, step, 0, GLOBAL_BATCH)).loss
        loss.backward()
        norms.append(float(torch.nn.utils.clip_grad_norm_(objective.parameters(), config.optim.clip_grad)))
        optimizer.step()
        losses.append(loss.item())
    return losses, norms


def run_part(part: dict[str, Any], ranks: Ranks) -> dict[str, Any]:
    """Train to the end, from the start or from `load`; with `save` a checkpoint at the cut, with `back` the steps again."""
    from vmae2_ds.checkpoint.elastic import fitting
    from vmae2_ds.checkpoint.retention import RetentionRules
    from vmae2_ds.checkpoint.save import load_checkpoint, save_checkpoint
    from vmae2_ds.checkpoint.whole import tag_of
    from vmae2_ds.train.build import build_engine

    config = frozen_config(ranks.size, ds_config=part["policy"], precision=part["precision"])
    config = config.changed(optim={"optimizer": "muon" if "muon" in part["name"] else "adamw"})
    plan = plan_run(config, NUM_VIDEOS, ranks.size)
    engine = build_engine(config, resolve_ds_config(config, plan, on_cpu=True))
    found: dict[str, Any] = {"rows": [], "encoder": []}
    first = 0
    if "load" in part:
        source = Path(part["load"]) / tag_of(CUT)
        load_checkpoint(engine, fitting(engine, source, ranks), ranks)
        first = CUT
    for step in range(first, STEPS):
        found["encoder"].append(_encoder(engine, config))
        found["rows"].append(_step(engine, step, plan, config, ranks))
        if step == 0:
            found["first_counters"] = _counters(engine)
        if step + 1 == CUT and "save" in part:
            save_checkpoint(engine, Path(part["save"]), CUT, {}, ranks, RetentionRules())
    if "back" in part:
        load_checkpoint(engine, Path(part["save"]) / tag_of(CUT), ranks)
        found["again"] = [_step(engine, step, plan, config, ranks) for step in range(CUT, STEPS)]
    found["counters"] = _counters(engine)
    engine.deepspeed.destroy()
    del engine
    gc.collect()
    return found


def _step(engine: Any, step: int, plan: RunPlan, config: PretrainConfig, ranks: Ranks) -> list[float]:
    """(loss over all ranks, gradient norm)."""
    from vmae2_ds.train.frozen import hold_encoder
    from vmae2_ds.train.optim import set_learning_rate

    set_learning_rate(engine.parameter_groups, learning_rate(step, plan))
    hold_encoder(engine, step, plan)
    total = torch.zeros(())
    for micro_step in range(plan.accumulation):
        clips = make_clips(config, step, (micro_step * ranks.size + ranks.rank) * plan.micro_batch, plan.micro_batch)
        total += engine.micro_step(clips).loss.detach()
    result = engine.update()
    assert result.applied
    torch.distributed.all_reduce(total)
    return [total.item() / plan.accumulation / ranks.size, result.grad_norm]


def _counters(engine: Any) -> list[float]:
    """What Adam has counted, of all states that there are."""
    return sorted({float(state["step"]) for state in engine._basic_optimizer.state.values()})


def _encoder(engine: Any, config: PretrainConfig) -> list[float]:
    """The encoder in two numbers that change where a bit of it does: of what it says of a clip, and of its master weights."""
    batch = make_clips(config, 99, 0, 1)
    with torch.no_grad():
        model = engine.objective.model
        dtype = next(model.parameters()).dtype
        features = model.encoder(engine.objective.visible_cubes(batch).to(dtype), batch.visible_BV)
    weights = [tensor.double() for name, tensor in engine.shards.whole_weights() if ".encoder." in name]
    return [
        float((features.double().flatten() * torch.arange(1, features.numel() + 1)).sum()),
        sum(float((x.flatten() * torch.arange(1, x.numel() + 1)).sum()) for x in weights),
    ]


def run_parts(parts: list[dict[str, Any]], ranks: Ranks) -> dict[str, Any]:
    """What came of them, by name."""
    found = {}
    for part in parts:
        print(part["name"], flush=True)
        found[part["name"]] = run_part(part, ranks)
    return found


if __name__ == "__main__":
    answer(run_parts)
