"""One pre-training run: from a config to a finished run folder, the same on one process or a thousand ranks."""

from __future__ import annotations

import logging
import time
from contextlib import closing
from pathlib import Path
from typing import Any

from vmae2_ds.config import RunConfig
from vmae2_ds.cost.flops import mae_macs, training_flops
from vmae2_ds.data.ledger import BadFileLedger, check_bad_share
from vmae2_ds.data.loader import make_loader, worker_failure
from vmae2_ds.data.manifest import Manifest, read_manifest
from vmae2_ds.dist import Agreement, World, default_device
from vmae2_ds.errors import ConfigError
from vmae2_ds.masking import MaskCounts, count_masks
from vmae2_ds.train.build import build_engine, resolve_attention
from vmae2_ds.train.checkpoint import load_checkpoint, save_checkpoint
from vmae2_ds.train.ds_config import resolve_ds_config
from vmae2_ds.train.engine import Engine, start_ranks
from vmae2_ds.train.loop import LoopHooks, TrainState, train
from vmae2_ds.train.metrics import MetricsWriter, Progress
from vmae2_ds.train.peak import Peak, device_peak
from vmae2_ds.train.plan import RunPlan, plan_run
from vmae2_ds.train.report import write_report
from vmae2_ds.train.runs import RunFolder, finish, open_run_folder, write_run_files

log = logging.getLogger(__name__)


def pretrain(config: RunConfig) -> Path:
    """Train `config` to its end, or go on where it was cut, and return the run folder."""
    world = start_ranks()
    agreement = Agreement(world)
    if config.data.manifest is None:
        raise ConfigError("no videos named: give --data.manifest FILE (or make a set with: vmae2 data synth FOLDER)")
    counts = count_masks(config.mask, config.geometry)
    manifest = read_manifest(config.data.manifest, config.data.root)
    plan = plan_run(config, len(manifest), world.size)
    ds_config = resolve_ds_config(config, plan, on_cpu=default_device().type == "cpu")
    folder = agreement.from_first(lambda: open_run_folder(config))
    engine = build_engine(config, ds_config)
    state = TrainState()
    if folder.checkpoint is not None:
        state = TrainState(**load_checkpoint(engine, folder.checkpoint, world, agreement))
    if state.attention is None:
        state.attention = agreement.from_first(lambda: resolve_attention(config, counts, plan, engine.device))
    engine.objective.model.use_attention(*state.attention)  # type: ignore[operator, union-attr]
    peak = device_peak(engine.device, config.train.precision, config.train.peak_flops)
    if world.rank == 0:
        _announce(config, plan, counts, folder, state, engine, peak)
        extra = {"attention": state.attention, "device": str(engine.device), "peak": peak._asdict() if peak else None}
        write_run_files(folder, config, ds_config, extra)
    state = _run(config, plan, manifest, counts, engine, state, folder, world, agreement, peak)
    if world.rank == 0:
        if state.step == plan.num_steps:
            finish(folder, {"steps": state.step, "skipped_steps": state.skipped_steps, "time": time.time()})
        log.info("run folder: %s", folder.path)
    return folder.path


def _run(
    config: RunConfig,
    plan: RunPlan,
    manifest: Manifest,
    counts: MaskCounts,
    engine: Engine,
    state: TrainState,
    folder: RunFolder,
    world: World,
    agreement: Agreement,
    peak: Peak | None,
) -> TrainState:
    ledger = BadFileLedger(folder.path / "bad_files.jsonl")
    flops_per_clip = training_flops(mae_macs(config.model, config.geometry, counts.visible, counts.decode).total)
    tensorboard = folder.path / "tensorboard" if config.train.tensorboard else None
    writer = MetricsWriter(folder.metrics, tensorboard, state.step) if world.rank == 0 else None
    progress = Progress(world, state.step, plan.num_steps)

    def report(row: dict[str, Any]) -> None:
        clips_per_s = plan.global_batch / row["step_time_s"]
        achieved = flops_per_clip * clips_per_s / world.size
        row |= {"clips_per_s": clips_per_s, "flops_per_s": achieved, "mfu": achieved / peak.flops if peak else None}
        progress.row(row)
        if writer is not None:
            writer.write(row)

    hooks = LoopHooks(
        save=lambda state: _save(engine, folder, state, world, config.train.keep),
        report=report,
        name_bad_files=ledger.record,
        check_bad_share=lambda bad, tried: check_bad_share(bad, tried, config.data.max_bad_share),
        stepped=progress.step,
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
    try:
        with closing(loader) as batches:
            reseed = config.model.drop_path > 0
            return train(engine, batches, plan, config.train, state, hooks, world, agreement, reseed=reseed)
    except RuntimeError as error:
        raise worker_failure(error) or error from None
    finally:
        progress.close()
        if writer is not None:
            writer.close()
            write_report(folder.path)


def _save(engine: Engine, folder: RunFolder, state: TrainState, world: World, keep: int) -> None:
    save_checkpoint(engine, folder.checkpoints, state.step, state.to_dict(), world, keep)


def _announce(
    config: RunConfig,
    plan: RunPlan,
    counts: MaskCounts,
    folder: RunFolder,
    state: TrainState,
    engine: Engine,
    peak: Peak | None,
) -> None:
    parameters = sum(getattr(p, "ds_numel", p.numel()) for p in engine.objective.parameters())
    macs = mae_macs(config.model, config.geometry, counts.visible, counts.decode)
    t, h, w = config.geometry.grid
    log.info("recipe %s: %.1f M parameters, %s, ZeRO stage %d on %s", config.recipe, parameters / 1e6,
             config.train.precision, engine.stage, engine.device)  # fmt: skip
    log.info("clip %dx%dx%d = %d cubes (%dx%dx%d): the encoder sees %d, the decoder fills %d, %.2f forward GMACs",
             config.data.num_frames, config.data.size, config.data.size, config.geometry.num_cubes, t, h, w,
             counts.visible, counts.decode, macs.total / 1e9)  # fmt: skip
    for line in plan.describe():
        log.info("%s", line)
    log.info("MFU against %s", peak.name if peak else "no known peak: set train.peak_flops to get one")
    if folder.checkpoint is not None:
        log.info("going on from %s (step %d)", folder.checkpoint, state.step)
    log.info("run folder: %s", folder.path)
