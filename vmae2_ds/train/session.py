"""One training run of any stage: from a config to a finished run folder, the same on one process or a thousand ranks."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from contextlib import ExitStack, closing, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import torch

from vmae2_ds.checkpoint.state import TrainState
from vmae2_ds.config.run import RunConfig
from vmae2_ds.contracts import Movable, ReadFailure, StepResult
from vmae2_ds.cost.flops import inference_flops, training_flops
from vmae2_ds.data.bad_files import check_bad_share
from vmae2_ds.data.feed.loader import make_loader
from vmae2_ds.data.sources.inputs import Inputs
from vmae2_ds.engine.ranks import stop_ranks
from vmae2_ds.errors import AgreedStop, ConfigError, SaveFailed
from vmae2_ds.guard.loader_watch import WorkerMemory
from vmae2_ds.guard.rollback import RollBack, SpikeActions
from vmae2_ds.guard.spikes import Spike, SpikeGuard
from vmae2_ds.runs.folder import RunFolder, finish
from vmae2_ds.runs.open import about_run, labels_of_run
from vmae2_ds.track import start as tracking
from vmae2_ds.track.start import state_of
from vmae2_ds.train.ema import WEIGHTS, WeightAverage
from vmae2_ds.train.loop import LoopSetup, train
from vmae2_ds.train.phases import Ready, build, load, make_ready, meet, open_run
from vmae2_ds.train.report import write_report
from vmae2_ds.train.row import ModelFlops
from vmae2_ds.train.stage import training_of
from vmae2_ds.train.validate import ScheduledValidation
from vmae2_ds.weights.files import write_weights
from vmae2_ds.weights.layouts import to_layout
from vmae2_ds.weights.merge import merged_state

log = logging.getLogger(__name__)

PATIENCE_S, PATIENCE_AT_STOP_S = 300.0, 10.0
"""How long the end of a run waits for the copy of its last checkpoint; launchers kill 30 s after their SIGTERM."""


def train_run(config: RunConfig, inputs: Inputs | None = None) -> Path:
    """Train `config` to its end, or go on where it was cut, and return the run folder.

    `inputs`: the run's files, where they have been read already.

    Raises an AgreedStop on all ranks where the run ends early, saved; another Vmae2Error where it cannot run as asked.
    """
    with ExitStack() as guards:
        met = meet(config, training_of(config).stage(config), inputs, guards)
        opened = open_run(met, guards)
        ready = make_ready(build(opened))
        with closing(ready.saver), ready.trackers:
            return _run(ready)


def _run(ready: Ready) -> Path:
    """Train, write what a run leaves behind, and end as `train_run` says."""
    opened, saver = ready.opened, ready.saver
    session = _Session(ready)
    ready.met.requests.is_training = True
    try:
        stop = session.train()
    except torch.OutOfMemoryError as error:
        advice = ready.built.engine.memory_advice
        raise ConfigError(
            f"out of device memory at step {session.state.step} with {opened.plan.clips_per_micro_step} clips per micro step "
            f"({str(error).splitlines()[0]}); lower --train.micro-batch (accumulation makes up for it), set "
            "--model.checkpointing all, or take a higher ZeRO stage" + (f"; first of all: {advice}" if advice else "")
        ) from error
    finally:
        ready.reporter.close()
        if ready.validation is not None:
            ready.validation.close()
    opened.hang.slow_from_here("the end")
    if saver.error is not None and not isinstance(stop, SaveFailed):
        stop = saver.unsaved(stop)
    _end(ready, session.state, stop)
    if stop is not None:
        raise stop
    return opened.folder.path


class _Session:
    """Training from the first step to the last, over as many rollbacks as are asked for."""

    def __init__(self, ready: Ready) -> None:
        met, opened, built = ready.met, ready.opened, ready.built
        self.state = built.state
        self._ready = ready
        flops_per_clip = training_flops(met.stage.forward_macs) + inference_flops(
            opened.extras.frozen_macs - met.stage.spared_macs
        )
        backward = training_flops(met.stage.encoder_macs) - inference_flops(met.stage.encoder_macs)
        self._setup = LoopSetup(
            plan=opened.plan,
            config=met.config.train,
            sources=ready.dataset.mixture.names,
            guard=SpikeGuard(met.config.guard, met.ranks),
            stop=met.requests,
            flops=ModelFlops(flops_per_clip, ready.peak.flops if ready.peak else None, backward),
            reseed=met.stage.has_draws,
            normaliser=met.stage.normaliser,
        )
        self._actions = SpikeActions(
            opened.folder.path,
            opened.folder.checkpoints,
            met.config.guard,
            ready.dataset.mixture,
            opened.plan,
            met.config.train.seed,
            partial(load, engine=built.engine, mean=built.mean, ranks=met.ranks),
            met.ranks,
        )
        self._hooks = _Hooks(ready, self._actions)

    def train(self) -> AgreedStop | None:
        """Train until the last step and have the last save on disk; returns why the run ends early, where it does."""
        stop: AgreedStop | None = None
        try:
            self._train_to_the_end()
        except AgreedStop as error:
            stop = error
        try:
            self._hooks.finish_save(self.state.step)
        except SaveFailed as error:
            stop = stop if isinstance(stop, SaveFailed) else error
        return stop

    def _train_to_the_end(self) -> None:
        """Train until the last step, over all rollbacks; raises an AgreedStop where the run ends early."""
        self._hooks.begin(self.state.step)
        while True:
            try:
                self._train_on()
                break
            except RollBack as back:
                self._go_back(back)

    def _train_on(self) -> None:
        """Train from the present state until the last step; raises RollBack where the run is to go back."""
        ranks, plan = self._ready.met.ranks, self._ready.opened.plan
        loader = make_loader(
            self._ready.met.config,
            self._ready.dataset,
            rank=ranks.rank,
            world_size=ranks.size,
            accumulation=plan.accumulation,
            first_step=self.state.step,
            num_steps=plan.num_steps,
            skipped_windows=self.state.skipped_windows,
        )
        with closing(loader) as batches:
            train(self._ready.built.engine, batches, self._setup, self.state, self._hooks, ranks)

    def _go_back(self, back: RollBack) -> None:
        """Load the checkpoint that a rollback names, and drop the rows behind it."""
        ready = self._ready
        with ready.opened.hang.slow("a rollback"):
            self.state = self._actions.go_back(back)
        ready.reporter.go_back(self.state.step)
        if ready.validation is not None:
            ready.validation.go_back(self.state.step)


class _Hooks:
    """What a run does around the loop's steps (`LoopHooks`)."""

    def __init__(self, ready: Ready, actions: SpikeActions) -> None:
        self._ready, self._actions = ready, actions
        self._hang, self._folder, self._mean = ready.opened.hang, ready.opened.folder, ready.built.mean
        self._memory = WorkerMemory()
        self._is_best = False

    def prepare(self, batch: Movable) -> Movable:
        """Let the stage add what the objective needs: in a distillation, the teacher's answers."""
        return self._ready.opened.extras.prepare(batch)

    def spiked(self, spike: Spike, state: TrainState, result: StepResult) -> None:
        """Do what `guard.on_spike` asks for."""
        _check_folder(self._ready, state.step)  # notes and rollbacks lie in it
        if self._ready.met.config.guard.on_spike == "rollback":
            self.finish_save(state.step)  # it is one to go back to, or one to be removed
        self._actions.spiked(spike, state, result)

    def updated(self) -> None:
        """Take the new weights into their running mean, where there is one."""
        if self._mean is not None:
            self._mean.update()

    def name_bad_files(self, failures: list[ReadFailure]) -> None:
        """Write the videos that this rank could not use into bad_files.jsonl."""
        if failures and not self._folder.is_gone:  # writing would make the folder again
            _try("bad_files.jsonl", lambda: self._ready.ledger.record(failures))

    def check_bad_share(self, bad: int, tried: int) -> None:
        """Raise TooManyBadFiles where the share of unusable videos is above `data.max_bad_share`."""
        check_bad_share(bad, tried, self._ready.met.config.data.max_bad_share)

    def stepped(self, step: int) -> None:
        """Move the progress bar and the hang switch on, and validate where that is due."""
        self._ready.reporter.progress.step(step)
        self._hang.step(step)
        self._is_best, validation = False, self._ready.validation
        if validation is not None and validation.are_due(step):
            figures = self._validate(validation, step)
            self._ready.saver.note(figures)
            self._is_best = self._ready.saver.are_best(figures)

    def begin(self, step: int) -> None:
        """Validate before the first step, where the stage does. No checkpoint has these figures: there is none of that step."""
        validation = self._ready.validation
        if validation is not None and validation.are_first(step, self._ready.met.ranks):
            self._validate(validation, step)

    def _validate(self, validation: ScheduledValidation, step: int) -> dict[str, Any]:
        mean = self._mean if self._ready.met.stage.validates_mean else None
        with self._hang.slow("a validation"), nullcontext() if mean is None else mean.in_use():
            return validation.run(step, self._ready.built.engine)

    def is_best(self) -> bool:
        """Return whether the validation behind this step, if there was one, is to be kept."""
        return self._is_best

    def worker_memory_gib(self) -> tuple[float, float]:
        """Return the memory of this rank's loader workers, measured at most twice a minute."""
        return self._memory.gib()

    def report(self, row: dict[str, Any]) -> None:
        """Write the row, and keep its figures for the next checkpoint."""
        _check_folder(self._ready, row["step"])
        self._ready.saver.note(row)
        self._ready.reporter.row(row)

    def save(self, state: TrainState) -> None:
        """Write a checkpoint of this state, or have it written behind the next steps."""
        with self._hang.slow("a save"):
            _check_folder(self._ready, state.step)
            self._ready.saver.save(state.step, state.to_dict())

    def is_written(self) -> bool:
        """Return whether this rank's part of the checkpoint under way is written."""
        return self._ready.saver.is_written()

    def declare(self, step: int) -> None:
        """Let the checkpoint under way count."""
        _check_folder(self._ready, step)
        self._ready.saver.declare()

    def finish_save(self, step: int) -> None:
        """Wait until the checkpoint under way, if there is one, counts."""
        with self._hang.slow("a save"):
            _check_folder(self._ready, step)
            self._ready.saver.finish()


def _check_folder(ready: Ready, step: int) -> None:
    """Raises SaveFailed on all ranks where the run folder was removed: a save would make one that is no run's."""
    folder = ready.opened.folder
    if ready.met.ranks.from_first(lambda: folder.is_gone):
        raise SaveFailed(
            f"the run folder {folder.path} was removed while it trained: stopped at step {step}, and nothing is saved; the "
            "same command starts a new run"
        )


def _end(ready: Ready, state: TrainState, stop: AgreedStop | None) -> None:
    """Write what a run leaves behind, and let go of the other ranks together."""
    ranks, folder, mean = ready.met.ranks, ready.opened.folder, ready.built.mean
    is_finished = stop is None and state.step == ready.opened.plan.num_steps
    if mean is not None and is_finished:
        _write_mean(mean, ready.met.config, folder)
    if ranks.rank == 0:
        if is_finished:
            finish(folder, {"steps": state.step, "skipped_steps": state.skipped_steps, "time": time.time()})
        if not folder.is_gone:
            _try("report.html", lambda: write_report(folder.path))
            log.info("run folder: %s", folder.path)
        ready.trackers.close(
            state_of(stop, is_finished=is_finished),
            tracking.PATIENCE_S if stop is None else tracking.PATIENCE_AT_STOP_S,
        )
        if ready.mirror is not None:
            ready.mirror.close(PATIENCE_S if stop is None else PATIENCE_AT_STOP_S)
    ranks.sum(0)  # a launcher ends all ranks once the first is gone: wait for rank 0
    stop_ranks(ranks)


def _write_mean(mean: WeightAverage, config: RunConfig, folder: RunFolder) -> None:
    """The running mean under published names, from rank 0; all ranks have to ask for it."""
    weights = mean.weights()
    if weights is not None:
        named = to_layout(merged_state(weights, config.model), config.model.merged)
        about = about_run(config, labels_of_run(folder.path))
        _try(WEIGHTS, lambda: write_weights(named, folder.path / WEIGHTS, config.model.merged, about))


def _try(name: str, write: Callable[[], object]) -> None:
    """What is beside the checkpoints is a convenience: a full disk must not change how the run goes on or ends."""
    try:
        write()
    except OSError as error:
        log.warning("%s could not be written: %s", name, error)
