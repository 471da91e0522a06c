"""One rank of the non-finite test: a NaN on the last rank only, then a norm that is refused, at every stage."""

from __future__ import annotations

import math
from typing import Any

import torch

from tests.distributed.ranks import answer, of_all
from tests.distributed.steps import NUM_VIDEOS, make_clips, make_config
from vmae2_ds.config.ds_config import resolve_ds_config
from vmae2_ds.config.run_plan import plan_run
from vmae2_ds.dist import Ranks
from vmae2_ds.train.build import build_engine
from vmae2_ds.train.optim import set_learning_rate


def run_variant(changes: dict[str, Any], world_size: int, rank: int) -> dict[str, Any]:
    """Good step, one with a NaN clip, good step, one that is refused, the same again; the loss of a fixed batch after each."""
    config = make_config(world_size, **changes)
    plan = plan_run(config, NUM_VIDEOS, world_size)
    engine = build_engine(config, resolve_ds_config(config, plan, on_cpu=True))
    fixed = make_clips(config, 99, 0, plan.micro_batch)
    results, losses, norms = [], [], []
    for step in (0, 1, 2, 3, 3):
        largest = 1e-9 if step == 3 and len(results) == 3 else math.inf
        set_learning_rate(engine.parameter_groups, 1e-3)
        for micro_step in range(plan.accumulation):
            batch = make_clips(config, step, (micro_step * world_size + rank) * plan.micro_batch, plan.micro_batch)
            if step == 1 and rank == world_size - 1 and micro_step == 0:
                clip = batch.clip_BTHWC.float() / 255
                clip[0] = float("nan")
                batch = batch._replace(clip_BTHWC=clip)
            engine.micro_step(batch)
        result = engine.update(lambda told, largest=largest: largest)
        results.append(result.applied)
        norms.append(str(result.grad_norm))
        with torch.no_grad():
            losses.append(engine.deepspeed.module(fixed).loss.item())
    engine.deepspeed.destroy()
    return {"applied": results, "losses": losses, "norms": norms}


def run_variants(variants: dict[str, dict[str, Any]], ranks: Ranks) -> list[Any]:
    """What every rank has of each variant."""
    return of_all({name: run_variant(changes, ranks.size, ranks.rank) for name, changes in variants.items()}, ranks)


if __name__ == "__main__":
    answer(run_variants)
