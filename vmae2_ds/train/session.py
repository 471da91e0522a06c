"""One training run of any stage: from a config to a finished run folder, the same on one process or a thousand ranks."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import torch

from vmae2_ds.checkpoint.elastic import fitting
from vmae2_ds.checkpoint.mirror import Mirror
from vmae2_ds.checkpoint.save import load_checkpoint
from vmae2_ds.checkpoint.state import TrainState
from vmae2_ds.config.ds_config import resolve_ds_config
from vmae2_ds.config.run_plan import plan_run
from vmae2_ds.config.stages import AnyRun
from vmae2_ds.contracts import ReadFailure, StepResult
from vmae2_ds.cost.flops import inference_flops, training_flops
from vmae2_ds.data.bad_files import BadFileLedger, check_bad_share
from vmae2_ds.data.feed.loader import make_loader
from vmae2_ds.dist import Ranks, default_device
from vmae2_ds.engine.device_peak import device_peak
from vmae2_ds.engine.ranks import meet_ranks, start_ranks, stop_ranks
from vmae2_ds.engine.step import Engine
from vmae2_ds.errors import AgreedStop, ConfigError, SaveFailed
from vmae2_ds.guard.hang import HangSwitch
from vmae2_ds.guard.loader_watch import DataWaitWatch, WorkerMemory
from vmae2_ds.guard.peers import END_S, PeerWatch
from vmae2_ds.guard.rollback import RollBack, SpikeActions, with_rollbacks
from vmae2_ds.guard.spikes import Spike, SpikeGuard, check_norm_is_taken
from vmae2_ds.guard.startup import check_start
from vmae2_ds.guard.stopping import stop_signals
from vmae2_ds.runs.folder import (
    RunFolder,
    checkpoint_to_resume,
    finish,
    open_run_folder,
    second_place,
    write_run_files,
)
from vmae2_ds.runs.open import about_run, labels_of_run
from vmae2_ds.train.build import build_engine
from vmae2_ds.train.ema import WEIGHTS, WeightAverage, check_ema
from vmae2_ds.train.loop import LoopHooks, train
from vmae2_ds.train.metrics import MetricsWriter, Reporter
from vmae2_ds.train.report import write_report
from vmae2_ds.train.saver import Saver, check_room
from vmae2_ds.train.stage import Stage
from vmae2_ds.train.validate import ScheduledValidation, Validate
from vmae2_ds.weights.files import write_weights
from vmae2_ds.weights.layouts import to_layout

log = logging.getLogger(__name__)

PATIENCE_S, PATIENCE_AT_STOP_S = 300.0, 10.0
"""How long the end of a run waits for the copy of its last checkpoint; launchers kill 30 s after their SIGTERM."""


def train_stage(config: AnyRun, stage: Stage) -> Path:
    """Train `config` to its end, or go on where it was cut, and return the run folder.

    Raises an AgreedStop on all ranks where the run ends early, saved; another Vmae2Error where it cannot run as asked.
    """
    with ExitStack() as guards:
        return _Session(config, stage, guards).run()


class _Session:
    """One rank's part of a run: made in the order in which ranks agree on things, then `run` once."""

    def __init__(self, config: AnyRun, stage: Stage, guards: ExitStack) -> None:
        self.config, self.stage = config, stage
        self.requests = guards.enter_context(stop_signals(config.train.time_limit_s))
        meeting = meet_ranks(config.train.collective_timeout_s)
        self.mixture, hosts = check_start(config, meeting)
        self.ranks = start_ranks(meeting)
        peers = guards.enter_context(PeerWatch(self.ranks if config.guard.watch_ranks else Ranks()))
        self.plan = plan_run(config, self.mixture.num_videos, self.ranks.size)
        ds_config = resolve_ds_config(config, self.plan, on_cpu=default_device().type == "cpu")
        check_norm_is_taken(config.guard, ds_config)
        if stage.ema_decay:
            check_ema(ds_config)
        validate = None if stage.validation is None else stage.validation(self.ranks)
        self.extras = stage.extras(self.mixture, self.ranks)
        self.folder = self.ranks.from_first(lambda: open_run_folder(config, self.extras.identity))
        minutes = config.guard.hang_minutes, config.guard.hang_slow_minutes
        self.hang = guards.enter_context(HangSwitch(self.folder.path, self.ranks, *(60 * limit for limit in minutes)))
        hang = self.hang
        peers.on_loss = lambda why: hang.end_in(END_S, why)
        checkpoint = checkpoint_to_resume(config, self.folder, self.ranks)
        self.engine = build_engine(config, ds_config, fresh=checkpoint is None, make=self.extras.make_objective)
        self.mean = WeightAverage(self.engine, stage.ema_decay) if stage.ema_decay else None
        self.state = TrainState()
        if checkpoint is not None:
            self.state = with_rollbacks(TrainState(**self._load(checkpoint)), self.folder.path)
        kept = self.folder.checkpoints, config.train.keep
        check_room(self.engine, *kept, self.mean is not None, self.ranks)
        self._choose_reader_and_attention()
        self.dataset = stage.dataset(self.mixture)
        self.peak = device_peak(self.engine.device, config.train.precision, config.train.peak_flops)
        if self.ranks.rank == 0:
            self._announce()
            if peers.any_failed:
                log.warning(
                    "a rank cannot reach rank 0 on a port of its own: a lost rank is noticed by the collectives alone"
                )
            peak = self.peak._asdict() if self.peak else None
            about = {"attention": self.state.attention, "device": str(self.engine.device), "peak": peak, "hosts": hosts}
            write_run_files(self.folder, ds_config, about)
        self._open_logs(validate)
        place = second_place(config)
        self.mirror = Mirror(place, self.folder.path) if place is not None and self.ranks.rank == 0 else None
        self.saver = Saver(self.engine, self.folder.checkpoints, config.train, self.ranks, self.mean, self.mirror)

    def run(self) -> Path:
        """Train, and end as is due; see `train_stage`."""
        stop: AgreedStop | None = None
        self.requests.is_training = True
        try:
            self._train()
            self._check_there()
        except AgreedStop as error:
            stop = error
        except torch.OutOfMemoryError as error:
            raise ConfigError(
                f"out of device memory at step {self.state.step} with {self.plan.clips_per_micro_step} clips per micro step "
                f"({str(error).splitlines()[0]}); lower --train.micro-batch (accumulation makes up for it), set "
                "--model.checkpointing all, or take a higher ZeRO stage"
            ) from error
        finally:
            self.reporter.close()
            if self.validation is not None:
                self.validation.close()
        self.hang.slow_from_here("the end")
        if self.saver.error is not None and not isinstance(stop, SaveFailed):
            stop = self.saver.unsaved(stop)
        self._end(is_finished=self.state.step == self.plan.num_steps and stop is None, was_stopped=stop is not None)
        if stop is not None:
            raise stop
        return self.folder.path

    def _load(self, source: Path) -> dict[str, Any]:
        source = fitting(self.engine, source, self.ranks)
        loaded = load_checkpoint(self.engine, source, self.ranks)
        if self.mean is not None:
            self.mean.load(source, self.ranks)
        return loaded

    def _choose_reader_and_attention(self) -> None:
        """By measurement where `auto` is asked for, once in the life of a run."""
        data, state = self.config.data, self.state
        if data.reader == "auto":
            if state.reader is None:
                state.reader = self.ranks.from_first(lambda: self.mixture.choose_reader(data.read_timeout_s))
            self.mixture = self.mixture.with_reader(state.reader)
        if state.attention is None:
            state.attention = self.ranks.from_first(lambda: self.stage.attention(self.plan, self.engine.device))
        self.engine.objective.model.use_attention(*state.attention)  # type: ignore[operator, union-attr]

    def _announce(self) -> None:
        _describe(self.config, self.stage, self.engine)
        for line in [*self.extras.about, *self.mixture.describe(), *self.plan.describe()]:
            log.info("%s", line)
        for warning in self.plan.warnings():
            log.warning("%s", warning)
        if self.config.stage != "pretrain" and self.config.train.init is None and not self.state.step:
            log.warning("no --train.init: from random weights")
        log.info("MFU against %s", self.peak.name if self.peak else "no known peak: set --train.peak-flops to get one")
        going_on = f"going on from step {self.state.step}" if self.state.step else "a new run"
        log.info("run folder: %s, %s", self.folder.path, going_on)

    def _open_logs(self, validate: Validate | None) -> None:
        tensorboard = self.folder.path / "tensorboard" if self.config.train.tensorboard else None
        self.reporter = Reporter(
            self.folder.metrics,
            tensorboard,
            self.ranks,
            self.plan,
            self.state.step,
            training_flops(self.stage.forward_macs) + inference_flops(self.extras.frozen_macs),
            self.peak.flops if self.peak else None,
            DataWaitWatch(self.config.data, ranks=int(self.ranks.max(self.ranks.local_rank)[0]) + 1),
            self.config.stage,
        )
        self.validation = None
        if validate is not None:
            file = None
            if self.ranks.rank == 0:
                file = MetricsWriter(self.folder.path / "validation.jsonl", tensorboard, self.state.step)
            self.validation = ScheduledValidation(validate, self.stage.validate_every, self.plan, file)
        self.ledger = BadFileLedger(self.folder.path / "bad_files.jsonl")

    def _train(self) -> None:
        """Until the last step, over as many rollbacks as are asked for."""
        actions = SpikeActions(
            self.folder.path,
            self.folder.checkpoints,
            self.config.guard,
            self.mixture,
            self.plan,
            self.config.train.seed,
            self._load,
            self.ranks,
        )
        mean = self.mean

        def spiked(spike: Spike, state: TrainState, result: StepResult) -> None:
            self._check_there()  # notes and rollbacks lie in the run folder
            actions.spiked(spike, state, result)

        hooks = LoopHooks(
            save=self._save,
            report=self._report,
            name_bad_files=self._name_bad_files,
            check_bad_share=lambda bad, tried: check_bad_share(bad, tried, self.config.data.max_bad_share),
            stepped=self._stepped,
            worker_memory_gib=WorkerMemory().gib,
            updated=lambda: mean.update() if mean is not None else None,
            prepare=self.extras.prepare,
            spiked=spiked,
        )
        while True:
            try:
                self._train_on(hooks)
                return
            except RollBack as back:
                with self.hang.slow("a rollback"):
                    self.state = actions.go_back(back)
                self.reporter.go_back(self.state.step)
                if self.validation is not None:
                    self.validation.go_back(self.state.step)

    def _train_on(self, hooks: LoopHooks) -> None:
        loader = make_loader(
            self.config,
            self.dataset,
            rank=self.ranks.rank,
            world_size=self.ranks.size,
            accumulation=self.plan.accumulation,
            first_step=self.state.step,
            num_steps=self.plan.num_steps,
            skipped_windows=self.state.skipped_windows,
        )
        with closing(loader) as batches:
            train(
                self.engine,
                batches,
                self.plan,
                self.config.train,
                self.state,
                hooks,
                self.ranks,
                self.requests,
                SpikeGuard(self.config.guard, self.ranks),
                sources=self.mixture.names,
                reseed=self.stage.has_draws,
            )

    def _check_there(self) -> None:
        """Raises SaveFailed on all ranks where the run folder was removed: a save would make one that is no run's."""
        if self.ranks.from_first(lambda: self.folder.is_gone):
            raise SaveFailed(
                f"the run folder {self.folder.path} was removed while it trained: stopped at step {self.state.step}, and "
                "nothing is saved; the same command starts a new run"
            )

    def _name_bad_files(self, failures: list[ReadFailure]) -> None:
        if failures and not self.folder.is_gone:  # writing would make the folder anew
            _try("bad_files.jsonl", lambda: self.ledger.record(failures))

    def _report(self, row: dict[str, Any]) -> None:
        self._check_there()
        self.saver.note(row)
        self.reporter.row(row)

    def _stepped(self, step: int) -> None:
        self.reporter.progress.step(step)
        self.hang.step(step)
        if self.validation is not None and self.validation.are_due(step):
            with self.hang.slow("a validation"):
                figures = self.validation.run(step, self.engine)
            self.saver.note(figures)

    def _save(self, state: TrainState) -> None:
        with self.hang.slow("a save"), self.requests.saving():
            self._check_there()
            self.saver.save(state.step, state.to_dict())

    def _end(self, is_finished: bool, was_stopped: bool) -> None:
        """Write what a run leaves behind, and let go of the other ranks together."""
        if self.mean is not None and is_finished:
            _write_mean(self.mean, self.config, self.folder)
        if self.ranks.rank == 0:
            if is_finished:
                steps = {"steps": self.state.step, "skipped_steps": self.state.skipped_steps}
                finish(self.folder, {**steps, "time": time.time()})
            if not self.folder.is_gone:
                _try("report.html", lambda: write_report(self.folder.path))
                log.info("run folder: %s", self.folder.path)
            if self.mirror is not None:
                self.mirror.close(PATIENCE_AT_STOP_S if was_stopped else PATIENCE_S)
        self.ranks.sum(0)  # a launcher ends all ranks once the first is gone: wait for rank 0
        stop_ranks(self.ranks)


def _describe(config: AnyRun, stage: Stage, engine: Engine) -> None:
    parameters = sum(getattr(p, "ds_numel", p.numel()) for p in engine.objective.parameters())
    t, h, w = config.geometry.grid
    log.info(
        "recipe %s: %.1f M parameters, %s, ZeRO stage %d on %s",
        config.recipe,
        parameters / 1e6,
        config.train.precision,
        engine.stage,
        engine.device,
    )
    log.info(
        "clip %dx%dx%d = %d cubes (%dx%dx%d): %s, %.2f forward GMACs",
        config.data.num_frames,
        config.data.size,
        config.data.size,
        config.geometry.num_cubes,
        t,
        h,
        w,
        stage.about_clip,
        stage.forward_macs / 1e9,
    )


def _write_mean(mean: WeightAverage, config: AnyRun, folder: RunFolder) -> None:
    """The running mean under published names, from rank 0; all ranks have to ask for it."""
    weights = mean.weights()
    if weights is not None:
        named = to_layout(weights, config.model)
        about = about_run(config, labels_of_run(folder.path))
        _try(WEIGHTS, lambda: write_weights(named, folder.path / WEIGHTS, config.model, about))


def _try(name: str, write: Callable[[], object]) -> None:
    """What is beside the checkpoints is a convenience: a full disk must not change how the run goes on or ends."""
    try:
        write()
    except OSError as error:
        log.warning("%s could not be written: %s", name, error)
