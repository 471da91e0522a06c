"""Some steps end to end on made-up windows, under an engine and in plain PyTorch.

As a module it is one rank that runs a list of ZeRO policies, one after another, in one process.
"""

from __future__ import annotations

import gc
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tests.distributed.ranks import answer
from tests.downstream.tad.made_up_videos import LABELS, end_to_end_config
from vmae2_ds.config.ds_config import resolve_ds_config
from vmae2_ds.config.run_plan import plan_run
from vmae2_ds.config.tad import TadConfig
from vmae2_ds.contracts import TadFramesBatch
from vmae2_ds.dist import Ranks
from vmae2_ds.downstream.tad.objective import DetectActions, tad_objective
from vmae2_ds.downstream.tad.stage import TAD_TRAINING
from vmae2_ds.train.optim import learning_rate, set_learning_rate

NUM_STEPS, GLOBAL_BATCH = 4, 4


def steps_config(ds_config: str = "zero1") -> TadConfig:
    """Four windows a step, one at a time."""
    config = end_to_end_config(
        Path(), (Path(), Path()), global_batch=GLOBAL_BATCH, micro_batch=1, max_steps=NUM_STEPS, ds_config=ds_config
    )
    return config.changed(optim={"warmup_epochs": 0, "lr_batch": GLOBAL_BATCH})


def undrawn_objective(config: TadConfig) -> DetectActions:
    """Whose adapters, once drawn, do something already: their last projections are other than zero."""
    objective = tad_objective(config)
    published = objective.model.draw

    def draw(name: str, values: torch.Tensor, rng: torch.Generator) -> None:
        if name.endswith("across.up.weight"):
            values.copy_(_up(values))
        else:
            published(name, values, rng)

    objective.model.draw = draw  # type: ignore[method-assign]
    return objective


def first_objective(config: TadConfig) -> DetectActions:
    """The same, drawn."""
    objective = undrawn_objective(config)
    objective.model.init_weights(config.train.seed)
    return objective


def _up(like: torch.Tensor) -> torch.Tensor:
    return torch.linspace(-0.2, 0.2, like.numel()).view(like.shape).sin()


def make_batch(config: TadConfig, step: int, number: int, windows: int = 1) -> TadFramesBatch:
    """Noise and two actions a window, a function of the step and of the micro batch's number in it alone."""
    rng = np.random.default_rng((step, number))
    data = config.data
    shape = (windows, data.window_frames, data.size, data.size, 3)
    start = rng.uniform(0, data.length / 2 - 3, (windows, 1))
    segment_BG2 = np.stack([np.hstack([start, start + 6]), np.hstack([start + 5, start + 8])], axis=-1)
    return TadFramesBatch(
        torch.from_numpy(rng.integers(0, 256, shape, dtype=np.uint8)),
        torch.arange(data.length)[None].expand(windows, -1) < torch.from_numpy(rng.integers(12, 17, (windows, 1))),
        torch.from_numpy(segment_BG2.astype(np.float32)),
        torch.from_numpy(rng.integers(len(LABELS), size=(windows, 2))),
    )


def plain_steps(config: TadConfig) -> tuple[list[float], dict[str, torch.Tensor]]:
    """The reference: losses of the steps, and the last weights."""
    plan = plan_run(config, GLOBAL_BATCH, 1)
    objective = first_objective(config)
    groups = TAD_TRAINING.groups(objective, config)
    optimizer = torch.optim.AdamW(groups, betas=config.optim.betas, eps=config.optim.eps)
    losses = []
    for step in range(NUM_STEPS):
        set_learning_rate(optimizer.param_groups, learning_rate(step, plan))
        optimizer.zero_grad()
        parts = [objective(make_batch(config, step, number)).loss / GLOBAL_BATCH for number in range(GLOBAL_BATCH)]
        torch.stack(parts).sum().backward()
        torch.nn.utils.clip_grad_norm_(objective.parameters(), config.optim.clip_grad)
        optimizer.step()
        losses.append(sum(part.item() for part in parts))
    return losses, {name: parameter.detach() for name, parameter in objective.named_parameters()}


def engine_steps(config: TadConfig, ranks: Ranks) -> tuple[list[float], dict[str, torch.Tensor]]:
    """The same under the engine."""
    from vmae2_ds.train.build import build_engine

    plan = plan_run(config, GLOBAL_BATCH, ranks.size)
    engine = build_engine(config, resolve_ds_config(config, plan, on_cpu=True), make=undrawn_objective)  # type: ignore[arg-type]
    losses = []
    for step in range(NUM_STEPS):
        set_learning_rate(engine.parameter_groups, learning_rate(step, plan))
        total = torch.zeros(())
        for micro_step in range(plan.accumulation):
            batch = make_batch(config, step, micro_step * ranks.size + ranks.rank)
            total += engine.micro_step(batch).loss.detach()
        assert engine.update().applied
        if ranks.size > 1:
            torch.distributed.all_reduce(total)
        losses.append(total.item() / GLOBAL_BATCH)
    last = {name: tensor.clone() for name, tensor in engine.shards.whole_weights()}
    engine.deepspeed.destroy()
    del engine
    gc.collect()
    return losses, last


def run_policies(asked: dict[str, Any], ranks: Ranks) -> dict[str, list[float]]:
    """Losses by policy; rank 0 writes weights to POLICY.pt in the folder."""
    results = {}
    for policy in asked["policies"]:
        results[policy], last = engine_steps(steps_config(policy), ranks)
        if ranks.rank == 0:
            torch.save(last, Path(asked["folder"]) / f"{Path(policy).stem}.pt")
    return results


if __name__ == "__main__":
    answer(run_policies)
