"""The start of a run in four phases, each made from the one before: Met, Opened, Built, Ready.

All ranks go through them together. What one phase has agreed on between ranks, or checked, the next takes for granted; the
types keep the order.
"""

from __future__ import annotations

import logging
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from vmae2_ds.checkpoint.elastic import fitting
from vmae2_ds.checkpoint.mirror import Mirror
from vmae2_ds.checkpoint.save import load_checkpoint, own_bytes
from vmae2_ds.checkpoint.state import TrainState
from vmae2_ds.config.ds_config import fill_policy
from vmae2_ds.config.run import RunConfig
from vmae2_ds.config.run_plan import RunPlan, plan_run
from vmae2_ds.config.trackers import TrackConfig, check_installed
from vmae2_ds.data.bad_files import BadFileLedger
from vmae2_ds.data.feed import shared_memory
from vmae2_ds.data.feed.dataset import VideoDataset
from vmae2_ds.data.sources.inputs import Inputs
from vmae2_ds.data.sources.mixture import Mixture
from vmae2_ds.dist import Ranks, default_device
from vmae2_ds.engine.compiled import choose_compile, compile_parts, why_no_compiler
from vmae2_ds.engine.device_peak import DTYPES, Peak, device_peak
from vmae2_ds.engine.muon import check_muon
from vmae2_ds.engine.ranks import meet_ranks, start_ranks
from vmae2_ds.engine.same_bits import same_bits
from vmae2_ds.engine.step import Engine
from vmae2_ds.errors import ConfigError
from vmae2_ds.guard.hang import HangSwitch
from vmae2_ds.guard.loader_watch import DataWaitWatch
from vmae2_ds.guard.peers import END_S, PeerWatch
from vmae2_ds.guard.rollback import with_rollbacks
from vmae2_ds.guard.spikes import check_norm_is_taken
from vmae2_ds.guard.startup import check_start
from vmae2_ds.guard.stopping import StopRequests, stop_signals
from vmae2_ds.model.kernel_support import sdpa_took
from vmae2_ds.runs.folder import RunFolder, checkpoint_to_resume, open_run_folder, second_place, write_run_files
from vmae2_ds.track.start import Trackers
from vmae2_ds.train.branch import check_branch, has_other_clips, take_over
from vmae2_ds.train.build import build_engine, resolve_attention
from vmae2_ds.train.ema import WeightAverage, check_ema
from vmae2_ds.train.metrics import MetricsWriter, Reporter
from vmae2_ds.train.saver import Saver, check_room, saves_behind
from vmae2_ds.train.stage import Extras, Stage
from vmae2_ds.train.validate import ScheduledValidation, Validate

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Met:
    """The ranks have met: they have the same code, settings and videos, can agree, and notice one that is lost."""

    config: RunConfig
    stage: Stage
    requests: StopRequests
    inputs: Inputs
    """The run's files; its videos without the reader that `auto` stands for."""
    hosts: list[dict[str, Any]]
    """The table of hosts (guard/rank_report.py), on rank 0 alone."""
    ranks: Ranks
    peers: PeerWatch


def meet(config: RunConfig, stage: Stage, inputs: Inputs | None, guards: ExitStack) -> Met:
    """Find the other ranks and compare with them; the run's files are read unless they are given.

    `guards` keeps what has to be undone, whatever happens.
    """
    requests = guards.enter_context(stop_signals(config.train.time_limit_s))
    guards.enter_context(same_bits(config.train.deterministic))  # before the device is taken
    meeting = meet_ranks(config.train.collective_timeout_s)
    inputs, hosts = check_start(config, meeting, inputs)
    ranks = start_ranks(meeting)
    peers = guards.enter_context(PeerWatch(ranks if config.guard.watch_ranks else Ranks()))
    return Met(config, stage, requests, inputs, hosts, ranks, peers)


@dataclass(frozen=True)
class Opened:
    """The run is planned, its folder is open and locked, and from here on a hang is noticed."""

    met: Met
    plan: RunPlan
    ds_config: dict[str, Any]
    validate: Validate | None
    extras: Extras
    folder: RunFolder
    hang: HangSwitch
    checkpoint: Path | None
    """A sound checkpoint to go on from; None in a new run."""


def open_run(met: Met, guards: ExitStack) -> Opened:
    """Work out what the run will be, and open its folder, new or old."""
    config, stage, ranks, inputs = met.config, met.stage, met.ranks, met.inputs
    plan = plan_run(config, inputs.mixture.num_videos, ranks.size)
    ds_config = fill_policy(inputs.policy, config, plan, on_cpu=default_device().type == "cpu")
    check_norm_is_taken(config.guard, ds_config)
    if config.optim.optimizer == "muon":
        ranks.from_first(check_muon)
    if config.train.compile == "inductor" and (missing := ranks.first_said(why_no_compiler())):
        raise ConfigError(f"--train.compile inductor {missing}; install one, or set --train.compile none")
    if config.model.attention != "auto":  # refused before there is a folder
        shapes, dtype = stage.attention_shapes(plan), DTYPES[config.train.precision]
        ranks.from_first(lambda: resolve_attention(config.model.attention, shapes, dtype, default_device()))
    ranks.from_first(lambda: check_installed(config.track))
    shared_memory.check_run(config, ranks)
    if stage.ema_decay:
        check_ema(ds_config)
    validate = None if stage.validation is None else stage.validation(inputs, ranks)
    extras = stage.extras(inputs.mixture, ranks)
    identity = {**inputs.identity(), **extras.identity}
    folder = ranks.from_first(lambda: _open_folder(config, identity, inputs, plan))
    minutes = config.guard.hang_minutes, config.guard.hang_slow_minutes
    hang = guards.enter_context(HangSwitch(folder.path, ranks, *(60 * limit for limit in minutes)))
    met.peers.on_loss = lambda why: hang.end_in(END_S, why)
    checkpoint = checkpoint_to_resume(config, folder, ranks)
    return Opened(
        met=met,
        plan=plan,
        ds_config=ds_config,
        validate=validate,
        extras=extras,
        folder=folder,
        hang=hang,
        checkpoint=checkpoint,
    )


def _open_folder(config: RunConfig, identity: dict[str, Any], inputs: Inputs, plan: RunPlan) -> RunFolder:
    """The run's folder, new or old, with the checkpoint that a cooldown begins with (rank 0)."""
    before = check_branch(config, identity, plan.num_videos)
    return open_run_folder(config, identity, inputs.names, lambda path: take_over(config, before, path))


@dataclass(frozen=True)
class Built:
    """The engine stands, with first weights or those of a checkpoint, and the next checkpoint has room."""

    opened: Opened
    engine: Engine
    mean: WeightAverage | None
    state: TrainState
    """What the first step starts from."""

    @property
    def met(self) -> Met:
        """The first phase."""
        return self.opened.met


def build(opened: Opened) -> Built:
    """Build the engine, and load what the run goes on from."""
    met = opened.met
    config, ranks, decay = met.config, met.ranks, met.stage.ema_decay
    checkpoint, folder = opened.checkpoint, opened.folder
    engine = build_engine(config, opened.ds_config, fresh=checkpoint is None, make=opened.extras.make_objective)
    mean = WeightAverage(engine, decay) if decay else None
    state = TrainState()
    if checkpoint is not None:
        state = with_rollbacks(TrainState(**load(checkpoint, engine, mean, ranks)), folder.path)
        if state.step == opened.plan.first_step and ranks.from_first(lambda: has_other_clips(checkpoint)):
            state = replace(state, attention=None, compile=None, recent={})  # measured, and learnt, on other shapes
    elif config.train.branch is not None:
        raise ConfigError(f"{folder.checkpoints} has no checkpoint any more to go on from; start the cooldown anew")
    check_room(engine, folder.checkpoints, config.train.keep, mean is not None, ranks)
    return Built(opened, engine, mean, state)


def load(checkpoint: Path, engine: Engine, mean: WeightAverage | None, ranks: Ranks) -> dict[str, Any]:
    """Load a checkpoint into the engine and the mean, split again where it must be; returns the state saved with it."""
    checkpoint = fitting(engine, checkpoint, ranks)
    saved = load_checkpoint(engine, checkpoint, ranks)
    if mean is not None:
        mean.load(checkpoint, ranks)
    return saved


@dataclass(frozen=True)
class Ready:
    """Reader and attention are chosen, the run's files are open: all that is left is to train."""

    built: Built
    dataset: VideoDataset[Any]
    """The data set on the videos with their reader."""
    peak: Peak | None
    reporter: Reporter
    validation: ScheduledValidation | None
    ledger: BadFileLedger
    mirror: Mirror | None
    """The copies of checkpoints in a second place, on rank 0 of a run that makes them."""
    saver: Saver
    trackers: Trackers
    """The trackers that rank 0 shows the run in; there are none on other ranks."""

    @property
    def opened(self) -> Opened:
        """The second phase."""
        return self.built.opened

    @property
    def met(self) -> Met:
        """The first phase."""
        return self.opened.met


def make_ready(built: Built) -> Ready:
    """Choose what is to be measured, say what will be trained, and open the run's files."""
    met, opened, engine, state = built.met, built.opened, built.engine, built.state
    config, stage, ranks, plan, folder = met.config, met.stage, met.ranks, opened.plan, opened.folder
    mixture = _choose_reader(met, state)
    shapes, dtype = stage.attention_shapes(plan), DTYPES[config.train.precision]
    state.attention = ranks.from_first(
        lambda: resolve_attention(config.model.attention, shapes, dtype, engine.device, state.attention)
    )
    took = sdpa_took(state.attention, shapes, dtype, engine.device)
    engine.objective.model.use_attention(*state.attention)  # type: ignore[operator, union-attr]
    if config.train.compile == "auto":
        missing = ranks.first_said(why_no_compiler())
        if state.compile is None:
            objective = engine.objective
            state.compile = ranks.from_first(
                lambda: choose_compile(objective, shapes, dtype, stage=engine.stage, missing=missing)
            )
        elif missing is not None and state.compile != "none":
            log.warning("compile auto: none from here on, as this start %s on a rank", missing)
            state.compile = "none"
        if state.compile != "none":
            compile_parts(engine.objective, state.compile)
    dataset = stage.dataset(mixture)
    peak = device_peak(engine.device, config.train.precision, config.train.peak_flops)
    if ranks.rank == 0:
        _announce(built, mixture, peak)
        if kept := dataset.describe_cache():
            log.info("%s", kept)
        log.info("attention: %s%s", ", ".join(state.attention), f"; sdpa takes {took}" if took else "")
        about = {"device": str(engine.device), "peak": peak._asdict() if peak else None, "hosts": met.hosts}
        write_run_files(folder, opened.ds_config, {"attention": state.attention, "sdpa_took": took, **about})
    tensorboard = folder.path / "tensorboard" if config.train.tensorboard else None
    watch = DataWaitWatch(config.data, ranks=int(ranks.max(ranks.local_rank)[0]) + 1)
    reporter = Reporter(
        folder.metrics, tensorboard, ranks, plan, state.step, watch, config.stage, config.train.log_every
    )
    validation = None
    if opened.validate is not None:
        first = ranks.rank == 0
        file = MetricsWriter(folder.path / "validation.jsonl", tensorboard, state.step) if first else None
        validation = ScheduledValidation(opened.validate, config, plan, file, first=stage.validates_first)
    ledger = BadFileLedger(folder.path / "bad_files.jsonl")
    place = second_place(config)
    mirror = Mirror(place, folder.path) if place is not None and ranks.rank == 0 else None
    behind = saves_behind(config.train.save_behind, own_bytes(engine, built.mean is not None, ranks), ranks)
    saver = Saver(engine, folder.checkpoints, config.train, ranks, built.mean, mirror, met.requests, behind=behind)
    trackers = Trackers(folder.path, config.track if ranks.rank == 0 else TrackConfig())
    return Ready(
        built=built,
        dataset=dataset,
        peak=peak,
        reporter=reporter,
        validation=validation,
        ledger=ledger,
        mirror=mirror,
        saver=saver,
        trackers=trackers,
    )


def _choose_reader(met: Met, state: TrainState) -> Mixture:
    """The videos with their reader: what `auto` stands for is measured once in the life of a run."""
    data, mixture = met.config.data, met.inputs.mixture
    if data.reader != "auto":
        return mixture
    if state.reader is None:
        state.reader = met.ranks.from_first(lambda: mixture.choose_reader(data.read_timeout_s))
    return mixture.with_reader(state.reader)


def _announce(built: Built, mixture: Mixture, peak: Peak | None) -> None:
    """Say in the log of rank 0 what will be trained."""
    met, opened, step = built.met, built.opened, built.state.step
    _describe(met.config, met.stage, built.engine)
    for line in [*opened.extras.about, *mixture.describe(), *opened.plan.describe()]:
        log.info("%s", line)
    advice = built.engine.memory_advice
    for warning in [*opened.plan.warnings(), *([advice] if advice else []), *not_given(opened, step)]:
        log.warning("%s", warning)
    log.info("MFU against %s", peak.name if peak else "no known peak: set --train.peak-flops to get one")
    log.info("run folder: %s, %s", opened.folder.path, _where(step, opened.plan.num_steps))
    if met.peers.any_failed:
        log.warning("a rank cannot reach rank 0 on a port of its own: a lost rank is noticed by the collectives alone")


def _where(step: int, num_steps: int) -> str:
    """Where a run stands as it starts."""
    if not step:
        return "a new run"
    return f"all {num_steps} steps of it are done" if step == num_steps else f"going on from step {step}"


def not_given(opened: Opened, step: int) -> list[str]:
    """What is hardly ever left out on purpose, a line each."""
    train, found = opened.met.config.train, []
    if opened.met.stage.needs_init and train.init is None and not step:
        found.append("no --train.init: from random weights")
    if opened.validate is None and (train.keep_best or "").startswith("val_"):
        found.append(
            f"--train.keep-best {train.keep_best} needs validation videos, and this run has none: no checkpoint is kept as "
            "the best"
        )
    return found


def _describe(config: RunConfig, stage: Stage, engine: Engine) -> None:
    """Say in the log how large the model and its clips are."""
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
