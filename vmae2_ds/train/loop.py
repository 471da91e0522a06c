"""The training loop: micro steps, one update, agreement between ranks, a row, a checkpoint."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from vmae2_ds.checkpoint.state import TrainState
from vmae2_ds.config.run import TrainConfig
from vmae2_ds.config.run_plan import RunPlan
from vmae2_ds.contracts import LoadedBatch, Movable, ReadFailure, StepResult
from vmae2_ds.dist import Ranks
from vmae2_ds.engine.step import Engine
from vmae2_ds.errors import AgreedStop, Diverged, LoaderFailed, Preempted, TooManyBadFiles
from vmae2_ds.guard.spikes import Spike, SpikeGuard
from vmae2_ds.guard.stopping import StopRequests
from vmae2_ds.train.feed import Feed
from vmae2_ds.train.metrics import (
    MEMORY_COLUMNS,
    StepAverages,
    add_counts,
    count_vector,
    counted_names,
    source_columns,
)
from vmae2_ds.train.optim import learning_rate, set_learning_rate


@dataclass(frozen=True)
class LoopHooks:
    """What the loop calls besides the engine."""

    save: Callable[[TrainState], object]
    """Write a checkpoint (all ranks)."""
    report: Callable[[dict[str, Any]], None]
    """Take one row of metrics (all ranks call it; rank 0 writes)."""
    name_bad_files: Callable[[list[ReadFailure]], object]
    """Name unreadable videos (the rank that met them)."""
    check_bad_share: Callable[[int, int], None]
    """Raise TooManyBadFiles for (bad, tried) summed over ranks."""
    stepped: Callable[[int], None]
    """Told each finished step (all ranks), for the progress bar and validation; its time does not count as training."""
    worker_memory_gib: Callable[[], tuple[float, float]]
    """Memory of this rank's loader workers: (the largest, all together)."""
    updated: Callable[[], object] = lambda: None
    """Told each update that was applied."""
    prepare: Callable[[Movable], Movable] = lambda batch: batch
    """What becomes of a micro batch on its way to the engine."""
    spiked: Callable[[Spike, TrainState, StepResult], None] = lambda spike, state, result: None
    """Told of a spike, or of what is not finite, in the step after `state.step` (all ranks); may raise to leave the loop."""


def train(
    engine: Engine,
    batches: Iterator[LoadedBatch],
    plan: RunPlan,
    config: TrainConfig,
    state: TrainState,
    hooks: LoopHooks,
    ranks: Ranks,
    stop: StopRequests,
    guard: SpikeGuard,
    *,
    sources: tuple[str, ...],
    reseed: bool,
) -> None:
    """Run from `state.step` to the plan's last step, or to `stop_after_steps`; saves at the end.

    Args:
        guard: finds spikes; what is done about them is up to `hooks.spiked`.
        stop: tells when this process was asked to stop, and when its time is nearly over.
        sources: the names in `LoadedBatch.sources`, in the same order on every rank.
        reseed: seed torch's generator before every micro step from (seed, step, number of the micro batch in the global
            batch): stochastic depth then does not depend on where a run was cut, nor on how many ranks share the batch.

    Raises an AgreedStop on all ranks together, after a checkpoint.
    """
    averages = StepAverages(engine.device)
    sources = counted_names(sources)
    last_step = min(plan.num_steps, config.stop_after_steps or plan.num_steps)
    feed = Feed(batches, engine.device)
    at_last_row = replace(state)
    while state.step < last_step:
        rate = learning_rate(state.step, plan)
        set_learning_rate(engine.parameter_groups, rate)
        failures: list[ReadFailure] = []
        used: Counter[str] = Counter()
        loss = torch.zeros((), device=engine.device)
        for micro_step in range(plan.accumulation):
            loaded = next(feed)
            if reseed:
                torch.manual_seed(seed_of(config.seed, state.step, micro_step * ranks.size + ranks.rank))
            out = engine.micro_step(hooks.prepare(loaded.batch))
            averages.add(out)
            loss += out.loss.detach() / plan.accumulation
            feed.fetch_ahead()
            failures += loaded.failures
            used.update(loaded.sources)
        bad, signalled, late, broken, *rest = ranks.sum(
            len(failures),
            bool(stop.caught),
            stop.is_time_over(),
            feed.error is not None,
            *guard.own_place(loss),
            *count_vector(used, sources),
        )
        losses, videos = rest[: guard.places], rest[guard.places :]
        if broken:  # before the update: the step is run again after a resume
            hooks.save(state)
            raise LoaderFailed(str(feed.error or "the loader of another rank failed; it says why"))
        spike = guard.look_at_losses(state.recent, losses)
        result = engine.update(guard.largest_norm(state.recent, spike))
        spike = spike or guard.look_at_norm(state.recent, result)
        if spike is not None:
            state.spikes += spike.limit is not None
            hooks.spiked(spike, state, result)
        state.recent = guard.remember(state.recent, losses, result, spike)
        state.step += 1
        averages.steps += 1
        state.bad_videos += int(bad)
        state.source_videos = add_counts(state.source_videos, sources, videos)
        state.videos_tried += plan.videos_per_step + int(bad)
        state.skipped_steps += not result.applied
        if result.applied:
            hooks.updated()
        state.skipped_in_a_row = 0 if result.applied else state.skipped_in_a_row + 1
        hooks.name_bad_files(failures)
        began = time.perf_counter()
        hooks.stepped(state.step)
        averages.leave_out(time.perf_counter() - began)
        why = "by a signal" if signalled else f"at the end of --train.time-limit {config.time_limit}" if late else None
        reason = _why_stop(state, config, hooks, why)
        if state.step % config.log_every == 0 or state.step == last_step or reason is not None:
            hooks.report(
                {
                    "step": state.step,
                    "epoch": plan.epochs_at(state.step),
                    **averages.totals(ranks, feed.take_wait_s()),
                    "lr": rate,
                    "grad_norm": result.grad_norm,
                    "skipped_steps": state.skipped_steps,
                    "spikes": state.spikes,
                    "rollbacks": state.rollbacks,
                    "bad_videos": state.bad_videos,
                    "new_bad_videos": state.bad_videos - at_last_row.bad_videos,
                    **source_columns(state.source_videos, at_last_row.source_videos),
                    **dict(zip(MEMORY_COLUMNS, ranks.max(*hooks.worker_memory_gib()), strict=True)),
                    "time": time.time(),
                }
            )
            averages.reset()
            at_last_row = replace(state)
        if state.step % config.save_every == 0 or state.step == last_step or reason is not None:
            hooks.save(state)
        if reason is not None:
            raise reason


def _why_stop(state: TrainState, config: TrainConfig, hooks: LoopHooks, asked: str | None) -> AgreedStop | None:
    """The reason to stop after this step, the same on every rank; `asked` says who or what asked for it."""
    if state.skipped_in_a_row > config.max_nonfinite_steps:
        return Diverged(
            f"{state.skipped_in_a_row} steps in a row had a loss or gradient that is not finite or a spike, more than "
            f"--train.max-nonfinite-steps {config.max_nonfinite_steps}; stopped and saved at step {state.step}. Look at the "
            "last rows of metrics.jsonl; to go on from an earlier checkpoint with a lower --optim.base-lr or with "
            "--optim.clip-grad: vmae2 export RUN/ckpt/stepN --out w.safetensors, then a new run with --train.init w.safetensors"
        )
    if asked:
        return Preempted(f"stopped {asked} and saved at step {state.step}; the same command goes on from there")
    try:
        hooks.check_bad_share(state.bad_videos, state.videos_tried)
    except TooManyBadFiles as error:
        return error
    return None


def seed_of(*numbers: int) -> int:
    """One 63-bit seed from several numbers."""
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0] >> np.uint64(1))
