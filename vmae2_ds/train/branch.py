"""A cooldown's start: the checkpoint of another run, which goes on meanwhile, as the first one of a folder of its own.

The files are linked, not read: a file that is linked stays whole when the other run removes its checkpoint, and nothing of that
run is written to. What is in them is checked as at every resume, by all ranks together.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vmae2_ds.checkpoint.whole import WHOLE, why_torn
from vmae2_ds.config.run import RunConfig
from vmae2_ds.config.run_plan import plan_run
from vmae2_ds.config.stages import read_as_written
from vmae2_ds.console.progress import counted
from vmae2_ds.disk import flush_to_disk, write_whole
from vmae2_ds.errors import ConfigError
from vmae2_ds.guard.rollback import ROLLBACKS
from vmae2_ds.runs.identity import differing_settings

log = logging.getLogger(__name__)

CLIPS = {
    "data": {"num_frames", "size", "stride", "source_strides", "sampling", "min_frames"}
    | {"crop_scales", "flip", "jitter", "crop_on"},
    "mask": {"encoder", "encoder_ratio", "visible", "decoder", "decoder_ratio", "decoded", "decoder_tokens"},
    "model": {"positions_from"},
}  # fmt: skip
"""What a cooldown is shown may be another thing: no weight has another shape by it."""
OF_A_BRANCH = {
    **CLIPS,
    "train": {"branch", "init", "epochs", "max_steps", "compile"},
    "optim": {"schedule", "schedule_epochs", "decay", "decay_shape", "min_lr"},
    "model": CLIPS["model"] | {"attention", "checkpointing", "checkpoint_every"},
}
"""Settings that may differ from those of the run that is branched off, beside those that may change at a resume."""
OTHER_CLIPS = "other_clips"
"""What the first checkpoint of a cooldown says of itself in its whole.json."""


def check_branch(config: RunConfig, identity: Mapping[str, Any], num_videos: int) -> RunConfig | None:
    """The settings of the run that `train.branch` is of, None where that is gone or this run is no branch (rank 0).

    Raises ConfigError, before there is a folder, where it is nothing that this run can go on from. Whether it is there and
    whole `take_over` asks: a cooldown that is resumed has its copy.
    """
    source, step = config.train.branch, config.train.branch_step
    if source is None or not source.exists():
        return None
    run = source.parent.parent
    if not (run / "run.json").is_file():
        raise ConfigError(
            f"--train.branch {source} is no checkpoint of a run ({run} has no run.json): give RUN/ckpt/stepN; weights alone "
            "are for --train.init"
        )
    if different := differing_settings(config, dict(identity), run, OF_A_BRANCH):
        raise ConfigError(
            f"--train.branch {source} goes on with what {run} was started with, and these differ: {'; '.join(different)}; "
            "set them alike, or take its weights alone with --train.init"
        )
    before = read_as_written(run)
    plan = plan_run(before.changed(train={"micro_batch": 1}), num_videos, 1)
    if plan.decay_steps is None:
        raise ConfigError(
            f"--train.branch {source}: the rate of {run} falls all along (--optim.schedule cosine), and a cooldown starts from "
            f"a constant one; train with --optim.schedule wsd, or take its weights with --train.init {source}"
        )
    # behind steps with a frozen encoder its rate has a warm-up of its own (train/frozen.py)
    first, last = plan.frozen_steps + plan.warmup_steps, plan.num_steps - plan.decay_steps
    if step < first or (plan.decay_steps and step > last):
        why = f"rises up to step {first}" if step < first else f"falls from step {last} on"
        raise ConfigError(
            f"--train.branch {source}: the rate of {run} {why}, and a cooldown starts from a constant one; take a checkpoint "
            + (f"from step {first} on" if step < first else f"of step {first} to {last}")
        )
    return before


def take_over(config: RunConfig, before: RunConfig | None, folder: Path) -> Path | None:
    """Make `train.branch` the first checkpoint of the new run in `folder`; None where the run is no branch (rank 0).

    `before` is what `check_branch` gave. Raises ConfigError, and leaves nothing, where it is not there whole, or is removed
    meanwhile: a file that is linked, or open to be copied, stays.
    """
    source = config.train.branch
    if source is None:
        return None
    target = folder / "ckpt" / source.name
    shutil.rmtree(target, ignore_errors=True)
    try:
        if reason := why_torn(source):
            raise ConfigError(f"--train.branch {source} is no whole checkpoint: {reason}; {_others(source)}")
        whole = json.loads((source / WHOLE).read_text())
        linked = [_link(source / name, target / name) for name in whole["files"]]
        rollbacks = source.parent.parent / ROLLBACKS
        if rollbacks.is_file():
            write_whole(folder / ROLLBACKS, rollbacks.read_text())
        about = {"branch_of": str(source), OTHER_CLIPS: before is not None and _other_clips(before, config)}
        if about[OTHER_CLIPS]:
            whole["figures"] = {}
        write_whole(target / WHOLE, json.dumps({**whole, **about}, indent=1))
    except OSError as error:
        shutil.rmtree(target, ignore_errors=True)
        (folder / ROLLBACKS).unlink(missing_ok=True)
        raise ConfigError(
            f"--train.branch {source} could not be taken over: {error}; its run may have removed it: {_others(source)}"
        ) from None
    log.info("cooling down from %s: %s %s", source, counted(len(linked), "file"), "linked" if all(linked) else "copied")
    return target


def has_other_clips(checkpoint: Path) -> bool:
    """Whether a cooldown that begins with this checkpoint is shown other clips or masks than the run that it branches off."""
    return bool(json.loads((checkpoint / WHOLE).read_text()).get(OTHER_CLIPS))


def _other_clips(before: RunConfig, config: RunConfig) -> bool:
    was, now = before.model_dump(), config.model_dump()
    return any(was[part].get(name) != now[part].get(name) for part in CLIPS if part in now for name in CLIPS[part])


def _link(source: Path, target: Path) -> bool:
    """A hard link, or where the file system has none a copy: whether it is a link."""
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(source, target)
    except FileNotFoundError:
        raise
    except OSError:
        shutil.copyfile(source, target)
        flush_to_disk(target)
        return False
    return True


def _others(source: Path) -> str:
    found = sorted(path.parent.name for path in source.parent.glob(f"step*/{WHOLE}"))
    return f"{source.parent} has {', '.join(found)}" if found else f"{source.parent} has no whole checkpoint"
