"""The training loop: micro steps, one update, agreement between ranks, a row, a checkpoint."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch

from vmae2_ds.checkpoint.state import TrainState
from vmae2_ds.config.run import TrainConfig
from vmae2_ds.config.run_plan import RunPlan
from vmae2_ds.contracts import LoadedBatch, Movable, ReadFailure, StepResult
from vmae2_ds.dist import Ranks
from vmae2_ds.engine.step import Engine
from vmae2_ds.errors import AgreedStop, Diverged, LoaderFailed, Preempted, TooManyBadFiles
from vmae2_ds.guard.spikes import NORM, Spike, SpikeGuard
from vmae2_ds.guard.stopping import StopRequests
from vmae2_ds.train.feed import Feed
from vmae2_ds.train.frozen import hold_encoder
from vmae2_ds.train.normaliser import Normaliser
from vmae2_ds.train.optim import learning_rate, set_learning_rate
from vmae2_ds.train.row import Interval, ModelFlops
from vmae2_ds.train.tally import Agreed, StepTally, add_counts


@dataclass(frozen=True)
class LoopSetup:
    """What does not change from step to step."""

    plan: RunPlan
    config: TrainConfig
    sources: tuple[str, ...]
    """The names in `LoadedBatch.sources`, in the same order on every rank."""
    guard: SpikeGuard
    """Finds spikes; what is done about them is up to `LoopHooks.spiked`."""
    stop: StopRequests
    """Tells when this process was asked to stop, and when its time is nearly over."""
    flops: ModelFlops
    reseed: bool
    """Seed torch's generator before every micro step from (seed, step, number of the micro batch in the global batch):
    stochastic depth then does not depend on where a run was cut, nor on how many ranks share the batch."""
    normaliser: Normaliser | None = None
    """What the objective's sums are divided by, where that runs on from step to step."""


class LoopHooks(Protocol):
    """What the loop calls besides the engine, on all ranks together unless a line says otherwise.

    What returns nothing does nothing in a class that is derived from this one and leaves it out.
    """

    def prepare(self, batch: Movable) -> Movable:
        """Return what the engine gets of a micro batch."""

    def spiked(self, spike: Spike, state: TrainState, result: StepResult) -> None:
        """Act on a spike, or on what is not finite, in the step after `state.step`; may raise to leave the loop."""

    def updated(self) -> None:
        """Follow an update that was applied."""

    def name_bad_files(self, failures: list[ReadFailure]) -> None:
        """Name the unreadable videos that this rank met in a step."""

    def check_bad_share(self, bad: int, tried: int) -> None:
        """Raise TooManyBadFiles where so many of the run's videos, over all ranks, are too many."""

    def stepped(self, step: int) -> None:
        """Follow a finished step, with a progress bar or a validation; the time this takes does not count as training."""

    def is_best(self) -> bool:
        """Return whether what `stepped` found by a validation is the best so far, for which a checkpoint is written."""

    def worker_memory_gib(self) -> tuple[float, float]:
        """Return the memory of this rank's loader workers: (the largest, all together)."""

    def report(self, row: dict[str, Any]) -> None:
        """Take one row of metrics, which rank 0 writes."""

    def save(self, state: TrainState) -> None:
        """Write a checkpoint, or begin to: what is written behind training is declared later."""

    def is_written(self) -> bool:
        """Return whether this rank has written its part of a checkpoint behind training."""

    def declare(self, step: int) -> None:
        """Let the checkpoint count that all ranks have written, after `step`."""


def train(
    engine: Engine,
    batches: Iterator[LoadedBatch],
    setup: LoopSetup,
    state: TrainState,
    hooks: LoopHooks,
    ranks: Ranks,
) -> None:
    """Run from `state.step` to the plan's last step, or to `stop_after_steps`; saves at the end.

    Raises an AgreedStop on all ranks together, after a checkpoint.
    """
    plan, config = setup.plan, setup.config
    last_step = min(plan.num_steps, config.stop_after_steps or plan.num_steps)
    interval = Interval(engine.device, plan, setup.flops, state)
    feed = Feed(batches, engine.device)
    saved_at = state.step or None  # what it goes on from is a checkpoint
    while state.step < last_step:
        rate = learning_rate(state.step, plan)
        set_learning_rate(engine.parameter_groups, rate)
        if plan.frozen_steps:
            hold_encoder_at(engine, state, plan)
        tally = StepTally(engine.device, plan.accumulation, setup.sources)
        for micro_step, loaded in enumerate(_batches_of_step(feed, engine, setup, state, ranks)):
            if setup.reseed:
                torch.manual_seed(seed_of(config.seed, state.step, micro_step * ranks.size + ranks.rank))
            out = engine.micro_step(hooks.prepare(loaded.batch))
            interval.add(out)
            tally.add(loaded, out)
            feed.fetch_ahead()
        told = tally.tell(
            ranks, setup.guard, setup.stop, loader_failed=feed.error is not None, is_written=hooks.is_written()
        )
        try:
            agreed, result = _update(engine, setup.guard, tally, told, state, hooks)
        except LoaderFailed:  # before the update: the step is run again after a resume
            if state.step != saved_at:  # else a whole checkpoint would be removed to write it again
                hooks.save(state)
            raise LoaderFailed(str(feed.error or "the loader of another rank failed; it says why")) from None
        _count(state, agreed, result, setup)
        if result.applied:
            hooks.updated()
        hooks.name_bad_files(tally.failures)
        with interval.paused():
            hooks.stepped(state.step)
        reason = _why_stop(state, agreed, config, hooks)
        is_last = state.step == last_step or reason is not None
        if is_last or state.step % config.log_every == 0:
            row = interval.row(ranks, rate, result, feed.take_wait_s(), hooks.worker_memory_gib)
            hooks.report(row.columns())
            interval.begin()
        with interval.saving():
            if is_last or state.step % config.save_every == 0 or hooks.is_best():
                hooks.save(state)
                saved_at = state.step
            elif agreed.is_written:
                hooks.declare(state.step)
        if reason is not None:
            raise reason


def hold_encoder_at(engine: Engine, state: TrainState, plan: RunPlan) -> None:
    """Freeze an encoder for the first steps. As it thaws the gradient grows by its part: norms of before are no measure."""
    hold_encoder(engine, state.step, plan)
    if state.step == plan.frozen_steps:
        state.recent = {key: values for key, values in state.recent.items() if key != NORM}


def _batches_of_step(
    feed: Feed, engine: Engine, setup: LoopSetup, state: TrainState, ranks: Ranks
) -> Iterator[LoadedBatch]:
    """The micro batches of a step, counted all together first where the objective divides by what is in them."""
    found = (next(feed) for _ in range(setup.plan.accumulation))
    return found if setup.normaliser is None else setup.normaliser.counted(found, engine, state, ranks)


def _update(
    engine: Engine, guard: SpikeGuard, tally: StepTally, told: torch.Tensor, state: TrainState, hooks: LoopHooks
) -> tuple[Agreed, StepResult]:
    """Apply the update that the micro steps have gathered, or leave it out where the guard finds a spike.

    The ranks learn what they agree on inside the engine's update: there the device is waited for, once, before weights change.
    Raises LoaderFailed there, on all ranks.
    """
    known: list[tuple[Agreed, Spike | None]] = []

    def largest_norm(told: list[float]) -> float:
        agreed = tally.agreed(told)
        if agreed.loader_failed:
            raise LoaderFailed
        known.append((agreed, guard.look_at_losses(state.recent, agreed.losses)))
        return guard.largest_norm(state.recent, known[0][1])

    result = engine.update(largest_norm, told)
    ((agreed, spike),) = known
    spike = spike or guard.look_at_norm(state.recent, result)
    if spike is not None:
        state.spikes += spike.limit is not None
        hooks.spiked(spike, state, result)
    state.recent = guard.remember(state.recent, agreed.losses, result, spike)
    return agreed, result


def _count(state: TrainState, agreed: Agreed, result: StepResult, setup: LoopSetup) -> None:
    """Take a finished step into the state."""
    state.step += 1
    state.skipped_steps += not result.applied
    state.skipped_in_a_row = 0 if result.applied else state.skipped_in_a_row + 1
    state.bad_videos += agreed.bad_videos
    state.videos_tried += setup.plan.videos_per_step + agreed.bad_videos
    state.source_videos = add_counts(state.source_videos, agreed.source_videos)
    if setup.normaliser is not None:
        setup.normaliser.follow(state, agreed.supervised)


def _why_stop(state: TrainState, agreed: Agreed, config: TrainConfig, hooks: LoopHooks) -> AgreedStop | None:
    """The reason to stop after this step, the same on every rank."""
    if state.skipped_in_a_row > config.max_nonfinite_steps:
        return Diverged(
            f"{state.skipped_in_a_row} steps in a row had a loss or gradient that is not finite or a spike, more than "
            f"--train.max-nonfinite-steps {config.max_nonfinite_steps}; stopped and saved at step {state.step}. Look at the "
            "last rows of metrics.jsonl; to go on from an earlier checkpoint with a lower --optim.base-lr or with "
            "--optim.clip-grad: vmae2 export RUN/ckpt/stepN --out w.safetensors, then a new run with --train.init w.safetensors"
        )
    if agreed.is_signalled or agreed.is_late:
        asked = "by a signal" if agreed.is_signalled else f"at the end of --train.time-limit {config.time_limit}"
        return Preempted(f"stopped {asked} and saved at step {state.step}; the same command goes on from there")
    try:
        hooks.check_bad_share(state.bad_videos, state.videos_tried)
    except TooManyBadFiles as error:
        return error
    return None


def seed_of(*numbers: int) -> int:
    """One 63-bit seed from several numbers."""
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0] >> np.uint64(1))
