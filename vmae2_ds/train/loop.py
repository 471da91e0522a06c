"""The training loop: micro steps, one update, agreement between ranks, a row, a checkpoint."""

from __future__ import annotations

import contextlib
import logging
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from types import FrameType
from typing import Any

import numpy as np
import torch

from vmae2_ds.config import TrainConfig
from vmae2_ds.contracts import LoadedBatch, ReadFailure
from vmae2_ds.dist import Agreement, World
from vmae2_ds.errors import Diverged, Preempted, TooManyBadFiles
from vmae2_ds.train.engine import Engine
from vmae2_ds.train.metrics import StepAverages
from vmae2_ds.train.optim import learning_rate, set_learning_rate
from vmae2_ds.train.plan import RunPlan

log = logging.getLogger(__name__)


@dataclass
class TrainState:
    """What goes on at resume, the same on every rank."""

    step: int = 0
    """Optimizer steps done, skipped ones included."""
    skipped_steps: int = 0
    videos_tried: int = 0
    bad_videos: int = 0
    attention: tuple[str, str] | None = None
    """Kernels of encoder and decoder, kept so that a resumed run computes the same bits."""

    def to_dict(self) -> dict[str, Any]:
        """Plain values for the checkpoint."""
        return asdict(self)


@dataclass(frozen=True)
class LoopHooks:
    """What the loop calls besides the engine."""

    save: Callable[[TrainState], None]
    """Write a checkpoint (all ranks)."""
    report: Callable[[dict[str, Any]], None]
    """Take one row of metrics (all ranks call it; rank 0 writes)."""
    name_bad_files: Callable[[list[ReadFailure]], object]
    """Name unreadable videos (the rank that met them)."""
    check_bad_share: Callable[[int, int], None]
    """Raise TooManyBadFiles for (bad, tried) summed over ranks."""
    stepped: Callable[[int], None]
    """Told each finished step, for the progress bar."""


def train(
    engine: Engine,
    batches: Iterator[LoadedBatch],
    plan: RunPlan,
    config: TrainConfig,
    state: TrainState,
    hooks: LoopHooks,
    world: World,
    agreement: Agreement,
    *,
    reseed: bool,
) -> TrainState:
    """Run from `state.step` to the plan's last step, or to `stop_after_steps`; saves at the end.

    Args:
        reseed: seed torch's generator before every micro step from (seed, step, micro step, rank): stochastic depth
            then does not depend on where a run was cut.

    Raises Preempted, Diverged or TooManyBadFiles on all ranks together, after a checkpoint.
    """
    averages = StepAverages(engine.device)
    last_step = min(plan.num_steps, config.stop_after_steps or plan.num_steps)
    with stop_signals() as stop:
        while state.step < last_step:
            rate = learning_rate(state.step, plan)
            set_learning_rate(engine.parameter_groups, rate)
            failures = []
            for micro_step in range(plan.accumulation):
                asked = time.perf_counter()
                loaded = next(batches)
                wait_s = time.perf_counter() - asked
                if reseed:
                    torch.manual_seed(seed_of(config.seed, state.step, micro_step, world.rank))
                averages.add(engine.micro_step(loaded.batch), wait_s)
                failures += loaded.failures
            result = engine.update()
            state.step += 1
            averages.steps += 1
            hooks.name_bad_files(failures)
            hooks.stepped(state.step)
            bad, stopping = agreement.sum(len(failures), bool(stop))
            state.bad_videos += int(bad)
            state.videos_tried += plan.videos_per_step + int(bad)
            if not result.applied:
                state.skipped_steps += 1
                log.warning("step %d skipped: its gradient is not finite (%d so far)", state.step, state.skipped_steps)
            if state.step % config.log_every == 0 or state.step == last_step:
                row = {
                    "step": state.step,
                    "epoch": state.step * plan.videos_per_step / plan.num_videos,
                    **averages.totals(agreement),
                    "lr": rate,
                    "grad_norm": result.grad_norm,
                    "skipped_steps": state.skipped_steps,
                    "bad_videos": state.bad_videos,
                    "time": time.time(),
                }
                hooks.report(row)
                averages.reset()
            _stop_if_asked(state, config, hooks, stopping > 0)
            if state.step % config.save_every == 0 or state.step == last_step:
                hooks.save(state)
    return state


def _stop_if_asked(state: TrainState, config: TrainConfig, hooks: LoopHooks, stopping: bool) -> None:
    if state.skipped_steps > config.max_nonfinite_steps:
        hooks.save(state)
        raise Diverged(
            f"{state.skipped_steps} steps had a non-finite loss or gradient, more than train.max_nonfinite_steps="
            f"{config.max_nonfinite_steps}; saved at step {state.step}. Lower optim.base_lr, set optim.clip_grad, "
            "or look at the last rows of metrics.jsonl"
        )
    try:
        hooks.check_bad_share(state.bad_videos, state.videos_tried)
    except TooManyBadFiles:
        hooks.save(state)
        raise
    if stopping:
        hooks.save(state)
        raise Preempted(f"stopped by a signal and saved at step {state.step}; the same command goes on from there")


@contextlib.contextmanager
def stop_signals() -> Iterator[list[int]]:
    """Collect SIGTERM and SIGINT in the yielded list instead of dying; a second SIGINT interrupts at once."""
    caught: list[int] = []

    def remember(number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT and signal.SIGINT in caught:
            raise KeyboardInterrupt
        caught.append(number)

    before = {number: signal.signal(number, remember) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield caught
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def seed_of(*numbers: int) -> int:
    """One 63-bit seed from several numbers."""
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0] >> np.uint64(1))
