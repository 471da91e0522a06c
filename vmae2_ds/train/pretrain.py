"""One pre-training run: from a config to a finished run folder, the same on one process or a thousand ranks."""

from __future__ import annotations

import logging
import time
from contextlib import closing
from pathlib import Path

import torch

from vmae2_ds.config import RunConfig
from vmae2_ds.cost.flops import MaeMacs, mae_macs, training_flops
from vmae2_ds.data.ledger import BadFileLedger, check_bad_share
from vmae2_ds.data.loader import make_loader
from vmae2_ds.data.manifest import read_manifest
from vmae2_ds.dist import Agreement, default_device
from vmae2_ds.errors import AgreedStop, ConfigError
from vmae2_ds.masking import MaskCounts, count_masks
from vmae2_ds.train.build import build_engine, resolve_attention
from vmae2_ds.train.checkpoint import load_checkpoint, save_checkpoint
from vmae2_ds.train.ds_config import resolve_ds_config
from vmae2_ds.train.engine import Engine, start_ranks, stop_ranks
from vmae2_ds.train.loop import LoopHooks, TrainState, stop_signals, train
from vmae2_ds.train.metrics import Reporter
from vmae2_ds.train.peak import device_peak
from vmae2_ds.train.plan import plan_run
from vmae2_ds.train.report import write_report
from vmae2_ds.train.runs import finish, open_run_folder, write_run_files

log = logging.getLogger(__name__)


def pretrain(config: RunConfig) -> Path:
    """Train `config` to its end, or go on where it was cut, and return the run folder.

    Raises an AgreedStop on all ranks where the run ends early, saved; another Vmae2Error where it cannot run as asked.
    """
    world = start_ranks()
    agreement = Agreement(world)
    if config.data.manifest is None:
        raise ConfigError("no videos named: give --data.manifest FILE (or make a set with: vmae2 data synth FOLDER)")
    counts = count_masks(config.mask, config.geometry)
    macs = mae_macs(config.model, config.geometry, counts.visible, counts.decode)
    manifest = read_manifest(config.data.manifest, config.data.root)
    plan = plan_run(config, len(manifest), world.size)
    ds_config = resolve_ds_config(config, plan, on_cpu=default_device().type == "cpu")
    folder = agreement.from_first(lambda: open_run_folder(config))
    engine = build_engine(config, ds_config, fresh=folder.checkpoint is None)
    state = TrainState()
    if folder.checkpoint is not None:
        state = TrainState(**load_checkpoint(engine, folder.checkpoint, world, agreement))
    if state.attention is None:
        state.attention = agreement.from_first(lambda: resolve_attention(config, counts, plan, engine.device))
    engine.objective.model.use_attention(*state.attention)  # type: ignore[operator, union-attr]
    peak = device_peak(engine.device, config.train.precision, config.train.peak_flops)
    if world.rank == 0:
        _announce(config, counts, macs, engine)
        for line in plan.describe():
            log.info("%s", line)
        log.info("MFU against %s", peak.name if peak else "no known peak: set train.peak_flops to get one")
        log.info("run folder: %s, %s", folder.path, f"going on from step {state.step}" if state.step else "a new run")
        device = str(engine.device)
        write_run_files(
            folder,
            ds_config,
            {"attention": state.attention, "device": device, "peak": peak._asdict() if peak else None},
        )
    reporter = Reporter(
        folder.metrics,
        folder.path / "tensorboard" if config.train.tensorboard else None,
        world,
        plan,
        state.step,
        training_flops(macs.total),
        peak.flops if peak else None,
    )
    hooks = LoopHooks(
        save=lambda state: save_checkpoint(
            engine, folder.checkpoints, state.step, state.to_dict(), world, config.train.keep
        ),
        report=reporter.row,
        name_bad_files=BadFileLedger(folder.path / "bad_files.jsonl").record,
        check_bad_share=lambda bad, tried: check_bad_share(bad, tried, config.data.max_bad_share),
        stepped=reporter.progress.step,
    )
    loader = make_loader(
        config,
        manifest,
        rank=world.rank,
        world_size=world.size,
        accumulation=plan.accumulation,
        first_step=state.step,
        num_steps=plan.num_steps,
    )
    stop: AgreedStop | None = None
    with stop_signals() as caught_signals:
        try:
            with closing(loader) as batches:
                reseed = config.model.drop_path > 0
                train(
                    engine, batches, plan, config.train, state, hooks, world, agreement, caught_signals, reseed=reseed
                )
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
        if world.rank == 0:
            if state.step == plan.num_steps:
                finish(folder, {"steps": state.step, "skipped_steps": state.skipped_steps, "time": time.time()})
            _try_report(folder.path)
            log.info("run folder: %s", folder.path)
        agreement.sum(0)  # a launcher ends all ranks once the first is gone: wait for rank 0
        stop_ranks(world)
    if stop is not None:
        raise stop
    return folder.path


def _announce(config: RunConfig, counts: MaskCounts, macs: MaeMacs, engine: Engine) -> None:
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
        "clip %dx%dx%d = %d cubes (%dx%dx%d): the encoder sees %d, the decoder fills %d, %.2f forward GMACs",
        config.data.num_frames,
        config.data.size,
        config.data.size,
        config.geometry.num_cubes,
        t,
        h,
        w,
        counts.visible,
        counts.decode,
        macs.total / 1e9,
    )


def _try_report(folder: Path) -> None:
    """The report is a convenience: a full disk must not change how the run ends."""
    try:
        write_report(folder)
    except OSError as error:
        log.warning("report.html could not be written: %s", error)
