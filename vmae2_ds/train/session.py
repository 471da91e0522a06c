"""One training run of any stage: from a config to a finished run folder, the same on one process or a thousand ranks."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import torch

from vmae2_ds.cost.flops import inference_flops, training_flops
from vmae2_ds.data.ledger import BadFileLedger, check_bad_share
from vmae2_ds.data.loader import make_loader
from vmae2_ds.dist import Agreement, World, default_device
from vmae2_ds.errors import AgreedStop, ConfigError, SaveFailed
from vmae2_ds.model.layouts import to_layout
from vmae2_ds.model.published import write_weights
from vmae2_ds.train.build import build_engine
from vmae2_ds.train.checkpoint import load_checkpoint
from vmae2_ds.train.ds_config import resolve_ds_config
from vmae2_ds.train.elastic import fitting
from vmae2_ds.train.ema import WEIGHTS, WeightAverage, check_ema
from vmae2_ds.train.engine import Engine, meet_ranks, start_ranks, stop_ranks
from vmae2_ds.train.hang import HangSwitch
from vmae2_ds.train.loader_watch import DataWaitWatch, WorkerMemory
from vmae2_ds.train.loop import LoopHooks, TrainState, train
from vmae2_ds.train.metrics import MetricsWriter, Reporter
from vmae2_ds.train.mirror import Mirror
from vmae2_ds.train.peak import device_peak
from vmae2_ds.train.peers import END_S, PeerWatch
from vmae2_ds.train.plan import plan_run
from vmae2_ds.train.report import write_report
from vmae2_ds.train.rollback import RollBack, SpikeActions, with_rollbacks
from vmae2_ds.train.runs import (
    AnyRun,
    RunFolder,
    checkpoint_to_resume,
    finish,
    open_run_folder,
    second_place,
    write_run_files,
)
from vmae2_ds.train.saver import Saver, check_room
from vmae2_ds.train.spikes import SpikeGuard, check_norm_is_taken
from vmae2_ds.train.stage import Stage
from vmae2_ds.train.startup import check_start
from vmae2_ds.train.stopping import stop_signals
from vmae2_ds.train.validate import is_due

log = logging.getLogger(__name__)

PATIENCE_S, PATIENCE_AT_STOP_S = 300.0, 10.0
"""How long the end of a run waits for the copy of its last checkpoint; launchers kill 30 s after their SIGTERM."""


def train_stage(config: AnyRun, stage: Stage) -> Path:
    """Train `config` to its end, or go on where it was cut, and return the run folder.

    Raises an AgreedStop on all ranks where the run ends early, saved; another Vmae2Error where it cannot run as asked.
    """
    with ExitStack() as guards:
        return _train_stage(config, stage, guards)


def _train_stage(config: AnyRun, stage: Stage, guards: ExitStack) -> Path:
    requests = guards.enter_context(stop_signals(config.train.time_limit_s))
    meeting = meet_ranks(config.train.collective_timeout_s)
    mixture, hosts = check_start(config, meeting)
    world = start_ranks(meeting)
    agreement = Agreement(world)
    peers = guards.enter_context(PeerWatch(world if config.guard.watch_ranks else World(), agreement))
    plan = plan_run(config, mixture.num_videos, world.size)
    ds_config = resolve_ds_config(config, plan, on_cpu=default_device().type == "cpu")
    check_norm_is_taken(config.guard, ds_config)
    if stage.ema_decay:
        check_ema(ds_config)
    validate = None if stage.validation is None else stage.validation(world, agreement)
    extras = stage.extras(mixture, world, agreement)
    folder = agreement.from_first(lambda: open_run_folder(config, extras.identity))
    hang = guards.enter_context(
        HangSwitch(folder.path, world, 60 * config.guard.hang_minutes, 60 * config.guard.hang_slow_minutes)
    )
    peers.on_loss = lambda why: hang.end_in(END_S, why)
    checkpoint = checkpoint_to_resume(config, folder, world, agreement)
    engine = build_engine(config, ds_config, fresh=checkpoint is None, make=extras.make_objective)
    mean = WeightAverage(engine, stage.ema_decay) if stage.ema_decay else None

    def load(source: Path) -> dict[str, Any]:
        source = fitting(engine, source, world, agreement)
        loaded = load_checkpoint(engine, source, world, agreement)
        if mean is not None:
            mean.load(source, world)
        return loaded

    state = TrainState()
    if checkpoint is not None:
        state = with_rollbacks(TrainState(**load(checkpoint)), folder.path)
    check_room(engine, folder.checkpoints, config.train.keep, mean is not None, world, agreement)
    if config.data.reader == "auto":
        if state.reader is None:
            state.reader = agreement.from_first(lambda: mixture.choose_reader(config.data.read_timeout_s))
        mixture = mixture.with_reader(state.reader)
    dataset = stage.dataset(mixture)
    if state.attention is None:
        state.attention = agreement.from_first(lambda: stage.attention(plan, engine.device))
    engine.objective.model.use_attention(*state.attention)  # type: ignore[operator, union-attr]
    peak = device_peak(engine.device, config.train.precision, config.train.peak_flops)
    if world.rank == 0:
        _announce(config, stage, engine)
        for line in [*extras.about, *mixture.describe(), *plan.describe()]:
            log.info("%s", line)
        log.info("MFU against %s", peak.name if peak else "no known peak: set train.peak_flops to get one")
        if peers.any_failed:
            log.warning(
                "a rank cannot reach rank 0 on a port of its own: a lost rank is noticed by the collectives alone"
            )
        log.info("run folder: %s, %s", folder.path, f"going on from step {state.step}" if state.step else "a new run")
        device = str(engine.device)
        write_run_files(
            folder,
            ds_config,
            {"attention": state.attention, "device": device, "peak": peak._asdict() if peak else None, "hosts": hosts},
        )
    tensorboard = folder.path / "tensorboard" if config.train.tensorboard else None
    reporter = Reporter(
        folder.metrics,
        tensorboard,
        world,
        plan,
        state.step,
        training_flops(stage.forward_macs) + inference_flops(extras.frozen_macs),
        peak.flops if peak else None,
        DataWaitWatch(config.data, ranks=int(agreement.max(world.local_rank)[0]) + 1),
        config.stage,
    )
    validated = None
    if validate is not None and world.rank == 0:
        validated = MetricsWriter(folder.path / "validation.jsonl", tensorboard, state.step)

    ledger = BadFileLedger(folder.path / "bad_files.jsonl")
    place = second_place(config)
    mirror = Mirror(place, folder.path) if place is not None and world.rank == 0 else None
    saver = Saver(engine, folder.checkpoints, config.train, world, mean, mirror)

    def report(row: dict[str, Any]) -> None:
        saver.note(row)
        reporter.row(row)

    def stepped(step: int) -> None:
        reporter.progress.step(step)
        hang.step(step)
        steps_per_epoch = plan.num_videos / plan.videos_per_step
        if validate is None or not is_due(step, steps_per_epoch, stage.validate_every, plan.num_steps):
            return
        with hang.slow("a validation"):
            figures = validate(engine)
        saver.note(figures)
        if validated is not None:
            validated.write({"step": step, "epoch": step / steps_per_epoch, **figures})
            log.info("step %d: %s", step, ", ".join(f"{key} {_short(value)}" for key, value in figures.items()))

    actions = SpikeActions(
        folder.path, folder.checkpoints, config.guard, mixture, plan, config.train.seed, load, world, agreement
    )

    def save(state: TrainState) -> None:
        with hang.slow("a save"), requests.saving():
            saver.save(state.step, state.to_dict())

    hooks = LoopHooks(
        save=save,
        report=report,
        name_bad_files=lambda failures: _try("bad_files.jsonl", lambda: ledger.record(failures)),
        check_bad_share=lambda bad, tried: check_bad_share(bad, tried, config.data.max_bad_share),
        stepped=stepped,
        worker_memory_gib=WorkerMemory().gib,
        updated=lambda: mean.update() if mean is not None else None,
        prepare=extras.prepare,
        spiked=actions.spiked,
    )

    def train_on(state: TrainState) -> None:
        loader = make_loader(
            config,
            dataset,
            rank=world.rank,
            world_size=world.size,
            accumulation=plan.accumulation,
            first_step=state.step,
            num_steps=plan.num_steps,
            skipped_windows=state.skipped_windows,
        )
        with closing(loader) as batches:
            train(
                engine,
                batches,
                plan,
                config.train,
                state,
                hooks,
                world,
                agreement,
                requests,
                SpikeGuard(config.guard, world),
                sources=mixture.names,
                reseed=stage.has_draws,
            )

    stop: AgreedStop | None = None
    requests.is_training = True
    try:
        while True:
            try:
                train_on(state)
                break
            except RollBack as back:
                with hang.slow("a rollback"):
                    state = actions.go_back(back)
                reporter.go_back(state.step)
                if validated is not None:
                    validated.go_back(state.step)
    except AgreedStop as error:
        stop = error
    except torch.OutOfMemoryError as error:
        raise ConfigError(
            f"out of device memory at step {state.step} with {plan.clips_per_micro_step} clips per micro step "
            f"({str(error).splitlines()[0]}); lower train.micro_batch (accumulation makes up for it), set "
            "model.checkpointing all, or take a higher ZeRO stage"
        ) from error
    finally:
        reporter.close()
        if validated is not None:
            validated.close()
    hang.slow_from_here("the end")
    if saver.error is not None and not isinstance(stop, SaveFailed):
        stop = saver.unsaved(stop)
    is_finished = state.step == plan.num_steps and stop is None
    if mean is not None and is_finished:
        _write_mean(mean, config, folder)
    if world.rank == 0:
        if is_finished:
            finish(folder, {"steps": state.step, "skipped_steps": state.skipped_steps, "time": time.time()})
        _try("report.html", lambda: write_report(folder.path))
        if mirror is not None:
            mirror.close(PATIENCE_S if stop is None else PATIENCE_AT_STOP_S)
        log.info("run folder: %s", folder.path)
    agreement.sum(0)  # a launcher ends all ranks once the first is gone: wait for rank 0
    stop_ranks(world)
    if stop is not None:
        raise stop
    return folder.path


def _announce(config: AnyRun, stage: Stage, engine: Engine) -> None:
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
        _try(WEIGHTS, lambda: write_weights(named, folder.path / WEIGHTS, config.model))


def _short(value: float | None) -> str:
    return "-" if value is None else f"{value:.4g}"


def _try(name: str, write: Callable[[], object]) -> None:
    """What is beside the checkpoints is a convenience: a full disk must not change how the run goes on or ends."""
    try:
        write()
    except OSError as error:
        log.warning("%s could not be written: %s", name, error)
