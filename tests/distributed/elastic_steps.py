"""Steps cut in two: some ranks at one ZeRO stage save, others at another load and go on; and the same in plain PyTorch.

As a module it is one rank that runs a list of parts, one after another, in one process.
"""

from __future__ import annotations

import gc
from pathlib import Path
from typing import Any

import torch

from tests.distributed.ranks import answer
from tests.distributed.state_bytes import MODELS
from tests.distributed.steps import make_clips
from vmae2_ds.config.ds_config import resolve_ds_config
from vmae2_ds.config.pretrain import PretrainConfig, PretrainDataConfig, PretrainOptimConfig
from vmae2_ds.config.run import TrainConfig
from vmae2_ds.config.run_plan import plan_run
from vmae2_ds.dist import Ranks
from vmae2_ds.model.mae import MaskedAutoencoder
from vmae2_ds.objectives import Reconstruct
from vmae2_ds.train.optim import learning_rate, make_optimizer, parameter_groups, set_learning_rate
from vmae2_ds.weights.layouts import StateDict

NUM_STEPS, CUT, GLOBAL_BATCH, MICRO_BATCH = 6, 3, 12, 2
LAYER_DECAY, EMA_DECAY, FROZEN = 0.5, 0.7, "bridge.weight"


def make_config(policy: str, precision: str) -> PretrainConfig:
    """Odd widths, so that shards are padded; four times four cells, so that every clip counts the same cubes."""
    return PretrainConfig(
        model=MODELS["small"],
        data=PretrainDataConfig(num_frames=8, size=64, views=1),
        optim=PretrainOptimConfig(base_lr=3e-3, lr_batch=GLOBAL_BATCH, min_lr=1e-4, warmup_epochs=1, clip_grad=0.5),
        train=TrainConfig(
            global_batch=GLOBAL_BATCH,
            micro_batch=MICRO_BATCH,
            max_steps=NUM_STEPS,
            ds_config=policy,
            precision=precision,  # type: ignore[arg-type]
        ),
    )


def make_objective(config: PretrainConfig) -> Reconstruct:
    model = MaskedAutoencoder(config.model, config.geometry, seed=0)
    model.get_parameter(FROZEN).requires_grad_(False)
    return Reconstruct(model, config.objective, config.geometry)


def groups_of(objective: torch.nn.Module, config: PretrainConfig) -> list[dict[str, Any]]:
    """Ten groups that all differ in weight decay or learning rate."""
    return parameter_groups(objective, 0.5, LAYER_DECAY, config.model.encoder.depth)


def plain_steps(config: PretrainConfig) -> tuple[list[float], StateDict]:
    """The reference: the whole batch at once, torch's own AdamW; the losses and the running mean of the weights."""
    plan = plan_run(config, GLOBAL_BATCH, 1)
    objective = make_objective(config)
    optimizer = torch.optim.AdamW(groups_of(objective, config), betas=config.optim.betas, eps=config.optim.eps)
    mean = {name: p.detach().clone() for name, p in objective.named_parameters()}
    losses = []
    for step in range(NUM_STEPS):
        set_learning_rate(optimizer.param_groups, learning_rate(step, plan))
        optimizer.zero_grad()
        loss = objective(make_clips(config, step, 0, GLOBAL_BATCH)).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(objective.parameters(), config.optim.clip_grad)
        optimizer.step()
        for name, parameter in objective.named_parameters():
            mean[name].lerp_(parameter.detach(), 1 - EMA_DECAY)
        losses.append(loss.item())
    return losses, mean


def run_part(part: dict[str, Any], ranks: Ranks) -> dict[str, Any]:
    """Train from the start to the cut and save into `save`, or load from `load` and train to the end."""
    from vmae2_ds.checkpoint.elastic import fitting
    from vmae2_ds.checkpoint.retention import RetentionRules
    from vmae2_ds.checkpoint.save import load_checkpoint, save_checkpoint
    from vmae2_ds.checkpoint.whole import newest_sound, tag_of
    from vmae2_ds.engine.step import Engine
    from vmae2_ds.train.ema import WeightAverage

    config = make_config(part["policy"], part["precision"])
    plan = plan_run(config, GLOBAL_BATCH, ranks.size)
    ds_config = resolve_ds_config(config, plan, on_cpu=True)
    if part.get("by_deepspeed"):
        ds_config["checkpoint"] = {"load_universal": True}
    engine = Engine(
        lambda: make_objective(config),
        lambda objective: make_optimizer(groups_of(objective, config), config.optim),
        ds_config,
    )
    mean, found = WeightAverage(engine, EMA_DECAY), {}
    first, last = (0, CUT) if "save" in part else (CUT, NUM_STEPS)
    if part.get("by_deepspeed"):
        load_as_deepspeed_does(engine, Path(part["load"]))
    elif "load" in part:
        newest = newest_sound(Path(part["load"]) / tag_of(CUT), ranks)
        assert newest is not None
        target = fitting(engine, newest, ranks)
        assert load_checkpoint(engine, target, ranks) == {"step": CUT}
        mean.load(target, ranks)
        found = states_of(engine)
    losses = []
    for step in range(first, last):
        set_learning_rate(engine.parameter_groups, learning_rate(step, plan))
        total = torch.zeros(())
        for micro_step in range(plan.accumulation):
            clips = make_clips(config, step, (micro_step * ranks.size + ranks.rank) * MICRO_BATCH, MICRO_BATCH)
            total += engine.micro_step(clips).loss.detach()
        assert engine.update().applied
        mean.update()
        torch.distributed.all_reduce(total)
        losses.append(total.item() / plan.accumulation / ranks.size)
    if "save" in part:
        save_checkpoint(
            engine,
            Path(part["save"]),
            CUT,
            {"step": CUT},
            ranks,
            RetentionRules(),
            write_more=lambda files: mean.save(files, ranks),
        )
    averaged = mean.weights()
    if averaged is not None and "load" in part:
        torch.save(averaged, f"{part['load']}.{part['name']}.pt")
    engine.deepspeed.destroy()
    del engine
    gc.collect()
    return {"losses": losses, **found}


def load_as_deepspeed_does(engine: Any, run: Path) -> None:
    """DeepSpeed's own loader on our folder, and what is known to be wrong with it put right."""
    hyperparameters = [{key: group[key] for key in ("weight_decay", "lr_scale")} for group in engine.parameter_groups]
    engine.deepspeed.load_checkpoint(str(run / "universal"), tag=f"step{CUT:08d}")
    for group, right in zip(engine.parameter_groups, hyperparameters, strict=True):
        group.update(right)
    for state in engine._basic_optimizer.state.values():
        state["step"] = state["step"].clone()


def states_of(engine: Any) -> dict[str, Any]:
    """What DeepSpeed's own loader gets wrong: hyper-parameters by group, and the counters of Adam's steps."""
    counters = [state["step"] for state in engine._basic_optimizer.state.values()]
    return {
        "groups": [(group["weight_decay"], group["lr_scale"]) for group in engine.parameter_groups],
        "counters": [float(counter) for counter in counters],
        "shared_counters": len(counters) - len({counter.data_ptr() for counter in counters}),
    }


def run_parts(parts: list[dict[str, Any]], ranks: Ranks) -> dict[str, Any]:
    """What came of them, by name."""
    return {part["name"]: run_part(part, ranks) for part in parts}


if __name__ == "__main__":
    answer(run_parts)
