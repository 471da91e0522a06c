"""What the guards of a run cost: the training loop with and without them, around an engine that does nothing and a real one.

Time of one rank. The connection that tells of a lost rank takes none: its thread sleeps. What the losses of many ranks add
to the sum over ranks (8 bytes each) is not in it; what looking at them takes is.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import torch

from benchmarks.case import Bench, Case, Group, timed
from benchmarks.devices import Step
from benchmarks.harness import Variant
from benchmarks.record import Row
from benchmarks.steps import SEED
from vmae2_ds.checkpoint.state import TrainState
from vmae2_ds.config.ds_config import resolve_ds_config
from vmae2_ds.config.guard import GuardConfig
from vmae2_ds.config.pretrain import PretrainConfig
from vmae2_ds.config.run_plan import plan_run
from vmae2_ds.contracts import LoadedBatch, LossOutput, Movable, PretrainBatch, StepResult
from vmae2_ds.dist import Ranks
from vmae2_ds.engine.ranks import start_ranks
from vmae2_ds.engine.step import Engine
from vmae2_ds.guard.hang import HangSwitch
from vmae2_ds.guard.spikes import SpikeGuard
from vmae2_ds.guard.stopping import StopRequests
from vmae2_ds.recipes import get_recipe
from vmae2_ds.train.build import build_engine
from vmae2_ds.train.loop import LoopHooks, LoopSetup, train
from vmae2_ds.train.row import ModelFlops
from vmae2_ds.tune.trial import noise_batch

RECIPE = "vit_ti_pretrain_desk"
"""The smallest there is, in steps of one video: where the guards weigh most."""
IDLE_STEPS, REAL_STEPS = 500, 4
"""In one timing."""
MANY_RANKS = 512
DAY_S = 86_400.0
BASE = "without guards"


class Guards(NamedTuple):
    """What is on."""

    spikes: bool
    hang: bool
    ranks: int = 1
    """Whose losses are looked at."""


VARIANTS = {
    BASE: Guards(False, False),
    "spikes": Guards(True, False),
    f"spikes among {MANY_RANKS} ranks": Guards(True, False, MANY_RANKS),
    "hangs": Guards(False, True),
    "all": Guards(True, True),
}
"""The time limit, which costs two readings of a clock, is part of the loop."""


def groups(bench: Bench) -> Iterator[Group]:
    """The loop alone, and with a real step in it."""
    yield Group(f"{IDLE_STEPS} steps of an idle engine", partial(measure, bench, idle=True))
    yield Group(f"{REAL_STEPS} steps of {RECIPE}, one video", partial(measure, bench, idle=False))


def measure(bench: Bench, idle: bool) -> list[Row]:
    """`values`: seconds of a step, and the share that the guards add to the base's."""
    steps = IDLE_STEPS if idle else REAL_STEPS
    config = guarded_config()
    chosen = {name: guards for name, guards in VARIANTS.items() if idle or guards.ranks == 1}
    with TemporaryDirectory() as folder:
        engine: Any = idle_engine() if idle else real_engine(config)
        clips = clips_of(config)  # the same memory for all variants
        variants = [
            Variant(name, partial(loop_step, engine, config, clips, guards, Path(folder) / str(number), steps), {
                "recipe": RECIPE, "steps": steps, "idle": idle, "history": GuardConfig().history, **guards._asdict(),
            })
            for number, (name, guards) in enumerate(chosen.items())
        ]  # fmt: skip
        rows = timed(variants, bench, BASE, memory=False)
    for row in rows:
        if not row["error"]:
            gain = row["speedup"]
            row["values"] = {
                "step_s": row["time_s"]["median"] / steps,
                **{
                    f"added_share{end}": 1 / gain[of] - 1
                    for end, of in (("", "median"), ("_low", "high"), ("_high", "low"))
                },
            }
            row["kind"] = "measured"
    return rows


def guarded_config() -> PretrainConfig:
    """The recipe in steps of one video and without an end."""
    train = {"micro_batch": 1, "global_batch": 4, "max_steps": 10**9, "log_every": 10**9, "save_every": 10**9}
    return get_recipe("pretrain", RECIPE).changed(train={**train, "seed": SEED})


def loop_step(
    engine: Any, config: PretrainConfig, clips: PretrainBatch, guards: Guards, folder: Path, steps: int
) -> Step:
    """`steps` more steps of the run's own loop, with a full history of good steps behind it."""
    folder.mkdir()
    plan = plan_run(config, config.train.global_batch, 1)
    guard = SpikeGuard(GuardConfig(on_spike="skip" if guards.spikes else "off"), Ranks(0, 0, guards.ranks))
    switch = HangSwitch(folder, Ranks(), DAY_S if guards.hang else 0.0, DAY_S)
    batch = LoadedBatch(clips, [], {"noise": plan.videos_per_step})
    state = TrainState()
    setup = LoopSetup(plan, config.train, ("noise",), guard, StopRequests(DAY_S), ModelFlops(0, None), reseed=False)

    def step() -> None:
        until = config.train.model_copy(update={"stop_after_steps": state.step + steps})
        train(engine, itertools.repeat(batch), replace(setup, config=until), state, SwitchAlone(switch), Ranks())

    while guards.spikes and len(next(iter(state.recent.values()), ())) < GuardConfig().history:
        step()
    return step


class SwitchAlone(LoopHooks):
    """Hooks of the loop that move the hang switch on, and do nothing else."""

    def __init__(self, switch: HangSwitch) -> None:
        self._switch = switch

    def stepped(self, step: int) -> None:
        """The time of the next step begins."""
        self._switch.step(step)

    def worker_memory_gib(self) -> tuple[float, float]:
        """There are no workers."""
        return 0.0, 0.0

    def prepare(self, batch: Movable) -> Movable:
        """As it is."""
        return batch


def clips_of(config: PretrainConfig) -> PretrainBatch:
    """The clips of one video, noise."""
    return noise_batch(config.mask, config.geometry, config.data.views, np.random.default_rng(SEED))


def idle_engine() -> Any:
    """What the loop needs of an engine, and no more: a loss, a norm."""
    out = LossOutput(torch.tensor(1.0), torch.tensor(1), torch.tensor(1.0))
    return SimpleNamespace(
        device=torch.device("cpu"),
        parameter_groups=[{"lr": 0.0}],
        micro_step=lambda batch: out,
        update=lambda largest_norm, told: StepResult(largest_norm(told.tolist()) > 1, 1.0),
    )


def real_engine(config: PretrainConfig) -> Engine:
    """The recipe's engine in this process."""
    start_ranks()
    plan = plan_run(config, config.train.global_batch, 1)
    on_cpu = not torch.cuda.is_available()
    engine = build_engine(config, resolve_ds_config(config, plan, on_cpu=on_cpu))
    engine.objective.model.use_attention("math", "math")  # type: ignore[operator, union-attr]
    return engine


CASE = Case(
    groups, "what guards against spikes and hangs add to a step: the loop alone, and around the smallest real step"
)
