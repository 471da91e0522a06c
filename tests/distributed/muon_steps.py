"""Steps under Muon beside AdamW on ranks, cut in two and gone on with, whole weights and their running mean at the end.

As a module it is one rank that runs a list of parts, one after another, in one process.
"""

from __future__ import annotations

import contextlib
import gc
import math
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Any
from unittest import mock

import torch

from tests.distributed.ranks import answer, of_all
from tests.distributed.steps import NUM_VIDEOS, make_clips, make_config
from vmae2_ds.config.ds_config import resolve_ds_config
from vmae2_ds.config.pretrain import PretrainConfig
from vmae2_ds.config.run_plan import plan_run
from vmae2_ds.dist import Ranks
from vmae2_ds.engine.step import Engine
from vmae2_ds.train.optim import learning_rate, set_learning_rate

NUM_STEPS, CUT, EMA_DECAY = 5, 3, 0.5


def muon_config(world_size: int, policy: str, **changes: Any) -> PretrainConfig:
    """The configuration of the other steps, with Muon; `changes` as there."""
    train = {"ds_config": policy, **changes.pop("train", {})}
    optim = {"optimizer": "muon", "base_lr": 1e-3, **changes.pop("optim", {})}
    return make_config(world_size, train=train, **changes).changed(optim=optim)


@contextlib.contextmanager
def newton_schulz_in_float32() -> Iterator[None]:
    """torch's own has its products in bfloat16, which makes 0.4 % of a gradient's last digit: here they keep float32."""
    with mock.patch.object(torch.Tensor, "bfloat16", torch.Tensor.clone):
        yield


def run_part(part: dict[str, Any], ranks: Ranks) -> dict[str, Any]:
    """Losses from `load` on, to `save` or to the end; the update of step 2 is refused once and its clips are gone through
    again."""
    from vmae2_ds.checkpoint.elastic import fitting
    from vmae2_ds.checkpoint.retention import RetentionRules
    from vmae2_ds.checkpoint.save import load_checkpoint, save_checkpoint
    from vmae2_ds.checkpoint.whole import tag_of
    from vmae2_ds.train.build import build_engine
    from vmae2_ds.train.ema import WeightAverage

    config = muon_config(ranks.size, part["policy"], **part.get("changes", {}))
    plan = plan_run(config, NUM_VIDEOS, ranks.size)
    engine = build_engine(config, resolve_ds_config(config, plan, on_cpu=True))
    mean, first = WeightAverage(engine, EMA_DECAY), 0
    if "load" in part:
        target = fitting(engine, Path(part["load"]) / tag_of(CUT), ranks)
        first = load_checkpoint(engine, target, ranks)["step"]
        mean.load(target, ranks)
        keep_states(engine, ranks, part["states"])
    losses = []
    for step in range(first, NUM_STEPS):
        set_learning_rate(engine.parameter_groups, learning_rate(step + 1, plan))
        for refused in (True, False) if step == 1 else (False,):
            total = torch.zeros(())
            for micro_step in range(plan.accumulation):
                at = (micro_step * ranks.size + ranks.rank) * plan.micro_batch
                total += engine.micro_step(make_clips(config, step, at, plan.micro_batch)).loss.detach()
            with newton_schulz_in_float32() if part.get("exact") else contextlib.nullcontext():
                result = engine.update(lambda told, refused=refused: 0.0 if refused else math.inf)
            assert result.applied is not refused
        mean.update()
        torch.distributed.all_reduce(total)
        losses.append(total.item() / plan.accumulation / ranks.size)
        if step + 1 == CUT and "save" in part:
            more = lambda files: mean.save(files, ranks)  # noqa: E731
            save_checkpoint(engine, Path(part["save"]), CUT, {"step": CUT}, ranks, RetentionRules(), more)
            keep_states(engine, ranks, part["states"])
    weights = {name: value.clone() for name, value in engine.shards.whole_weights()}
    averaged = mean.weights()
    if ranks.rank == 0:
        torch.save(
            {**weights, **{f"mean of {name}": value for name, value in (averaged or {}).items()}}, part["weights"]
        )
    engine.deepspeed.destroy()
    del engine
    gc.collect()
    return {"losses": losses}


def keep_states(engine: Engine, ranks: Ranks, path: str) -> None:
    """Write master weights and the optimizer's states, whole, by name."""
    optimizer, masters = engine._basic_optimizer, engine.shards.masters
    pieces = []
    for piece in engine.shards.pieces():
        state = {"fp32": masters[piece.shard].detach(), **optimizer.state[masters[piece.shard]]}
        for key, value in state.items():
            mine = value if value.ndim == 0 else value.flatten()[piece.offset : piece.offset + piece.numel]
            pieces.append((f"{piece.name} {key}", piece.start, mine.clone()))
    whole: dict[str, list[tuple[int, torch.Tensor]]] = {}
    for name, start, mine in chain(*of_all(pieces, ranks)):
        whole.setdefault(name, []).append((start, mine))
    if ranks.rank == 0:
        found = {}
        for name, parts in whole.items():
            values = [value for _, value in sorted(parts, key=lambda part: part[0])]
            found[name] = values[0] if values[0].ndim == 0 else torch.cat(values)
        torch.save(found, path)


def run_parts(parts: list[dict[str, Any]], ranks: Ranks) -> dict[str, Any]:
    """What came of them, by name."""
    return {part["name"]: run_part(part, ranks) for part in parts}


if __name__ == "__main__":
    answer(run_parts)
