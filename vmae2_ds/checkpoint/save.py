"""Checkpoints that survive a kill at any point, and the newest whole one at resume.

DeepSpeed writes its shards in place, and `latest` before all ranks are done. So: shards go into a folder of their own,
are hashed and flushed to disk on every rank, and only then does rank 0 write the folder's `whole.json`, which lists every
file with its size and SHA-256, and rename `latest` into place. A folder without that list, or with a file that is missing
or not what was written, does not count.
"""

from __future__ import annotations

import contextlib
import json
import logging
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from math import prod
from pathlib import Path
from typing import Any

import torch

from vmae2_ds.checkpoint.hashed_files import HashedFiles
from vmae2_ds.checkpoint.host_copies import HostCopies
from vmae2_ds.checkpoint.retention import RetentionRules, SavedCheckpoint, survivors
from vmae2_ds.checkpoint.safe_load import read_state
from vmae2_ds.checkpoint.universal import FOLDER as UNIVERSAL
from vmae2_ds.checkpoint.universal import WholeStates
from vmae2_ds.checkpoint.universal import remove as remove_universal
from vmae2_ds.checkpoint.whole import LATEST, WHOLE, declare_whole, tag_of, why_torn
from vmae2_ds.checkpoint.zero_shards import MOMENTS
from vmae2_ds.console.progress import counted
from vmae2_ds.disk import flush_to_disk, write_whole
from vmae2_ds.dist import Ranks
from vmae2_ds.engine.muon import SHAPES
from vmae2_ds.engine.step import Engine
from vmae2_ds.errors import CheckpointError, SaveFailed

log = logging.getLogger(__name__)


class CheckpointSave:
    """One checkpoint on its way: begun by all ranks together, written by each, and declared whole by all together.

    Only `write` may run in another thread, and then training may go on beside it.

    Args:
        step: after which the engine is.
        state: goes with it, and comes back from `load_checkpoint`.
        write_more: adds files of this rank's own.
        figures: how good the checkpoint is, for `RetentionRules.best`.
        copies: host memory to copy the states to, and the disk is left to `write`; without it the states have been written
            when this returns.
    """

    def __init__(
        self,
        engine: Engine,
        folder: Path,
        step: int,
        state: dict[str, Any],
        ranks: Ranks,
        write_more: Callable[[HashedFiles], None] | None = None,
        figures: Mapping[str, float] | None = None,
        copies: HostCopies | None = None,
    ) -> None:
        tag = tag_of(step)
        self.target = folder / tag
        layout = {"world_size": ranks.size, "stage": engine.stage, "zero": engine.zero_policy}
        self._ranks, self._about = ranks, {"step": step, **layout, "figures": dict(figures or {})}
        self._files = files = HashedFiles(self.target, copies)
        if copies is not None:
            copies.begin()
        if ranks.rank == 0 and self.target.exists():
            files.attempt(lambda: shutil.rmtree(self.target))  # a torn one, or one of a step that is run again
        _barrier(ranks)
        with _written_by(files, engine):
            engine.deepspeed.save_checkpoint(str(folder), tag=tag, client_state={"vmae2": state}, save_latest=False)
        if write_more is not None:
            write_more(files)

    def write(self) -> None:
        """Have this rank's files on disk. What the disk refuses is told by `declare`."""
        self._files.write_copies()
        self._files.add(sorted((self.target / "offloaded_tensors" / f"rank{self._ranks.rank:02d}").rglob("*.swp")))
        self._files.attempt(lambda: flush_to_disk(self.target))

    def give_up(self) -> None:
        """Have `write`, in another thread, end soon; the checkpoint stays torn."""
        self._files.error = self._files.error or OSError("given up")

    def declare(self) -> Path:
        """Let the checkpoint count, after all ranks have written theirs. Returns its folder.

        Raises SaveFailed on all ranks where the disk refused one of them; what was written is then removed, and training
        can go on.
        """
        if error := declare_whole(self._files, {**self._about, "time": time.time()}, self._ranks):
            if self._ranks.rank == 0:
                shutil.rmtree(self.target, ignore_errors=True)
            raise SaveFailed(
                f"the checkpoint of step {self._about['step']} could not be written to {self.target.parent}: {error}"
            )
        return self.target

    def tidy_up(self, keep: RetentionRules) -> None:
        """Name the declared checkpoint for other tools and drop the old ones that `keep` does not name (rank 0 only)."""
        folder = self.target.parent
        self._files.attempt(lambda: write_whole(folder / LATEST, self.target.name))
        self._files.attempt(lambda: _drop_old(folder, keep))
        if self._files.error is not None:  # the checkpoint is whole all the same
            log.warning("%s: %s", folder, self._files.error)


def save_checkpoint(
    engine: Engine,
    folder: Path,
    step: int,
    state: dict[str, Any],
    ranks: Ranks,
    keep: RetentionRules,
    write_more: Callable[[HashedFiles], None] | None = None,
) -> Path:
    """Write one checkpoint from all ranks, wait for it, and tidy up, as `CheckpointSave` says. Returns its folder."""
    save = CheckpointSave(engine, folder, step, state, ranks, write_more)
    save.write()
    target = save.declare()
    if ranks.rank == 0:
        save.tidy_up(keep)
    _barrier(ranks)
    return target


@contextlib.contextmanager
def _written_by(files: HashedFiles, engine: Engine) -> Iterator[None]:
    """DeepSpeed's shards go through `files`; its recovery scripts are a convenience whose failure is the disk's as well."""
    deepspeed = engine.deepspeed
    writer, copy_scripts = deepspeed.checkpoint_engine, deepspeed._copy_recovery_script
    kept = writer.save, writer.makedirs
    writer.save, writer.makedirs = files.save, files.makedirs
    deepspeed._copy_recovery_script = lambda path: files.attempt(lambda: copy_scripts(path))
    try:
        yield
    finally:
        writer.save, writer.makedirs = kept
        del deepspeed._copy_recovery_script


def load_checkpoint(engine: Engine, target: Path, ranks: Ranks) -> dict[str, Any]:
    """Load `target` on all ranks, bit for bit, and return the state saved with it.

    It is of the engine's own layout, or universal (elastic.fitting finds or makes that). No pickled code is run.
    Raises CheckpointError on all ranks where one cannot see it whole.
    """
    reason = ranks.first_said(why_torn(target, ranks))
    if reason is not None:
        raise CheckpointError(f"{target}: not whole on every rank ({reason})")
    whole = json.loads((target / WHOLE).read_text())
    if "universal_of" in whole:
        states = WholeStates(target)
        engine.shards.take_over(states.read, MOMENTS)
        saved = states.client_state()
        for counter in ("global_steps", "global_samples", "skipped_steps"):
            setattr(engine.deepspeed, counter, saved[counter])
        return saved["vmae2"]
    if (whole["world_size"], whole["stage"]) != (ranks.size, engine.stage):
        raise CheckpointError(
            f"{target} was written by {counted(whole['world_size'], 'rank')} at ZeRO stage {whole['stage']}, this run has "
            f"{counted(ranks.size, 'rank')} at stage {engine.stage}"
        )
    reader = engine.deepspeed.checkpoint_engine
    kept, reader.load = reader.load, read_state
    try:
        loaded, client_state = engine.deepspeed.load_checkpoint(str(target.parent), tag=target.name)
    finally:
        reader.load = kept
    if loaded is None:
        raise CheckpointError(f"{target}: DeepSpeed could not load it; resume from an older one by removing it")
    engine.shards.forget_second_copies()
    return client_state["vmae2"]


def checkpoint_bytes(engine: Engine, has_mean: bool) -> int:
    """About what one checkpoint takes on disk, over all ranks.

    A trained parameter has its master weight and two moments in float32, of which Muon has one (at stage 0 the weight is its
    own master), and its running mean; below stage 3, and where it is frozen, the weight that the model computes with is stored
    as well.
    """
    return sum(_bytes_of(engine, has_mean))


def own_bytes(engine: Engine, has_mean: bool, ranks: Ranks) -> int:
    """About what this rank writes of it: its shards of the states, and rank 0 below stage 3 all that is not sharded."""
    weights, states, mean = _bytes_of(engine, has_mean)
    if engine.stage == 0:
        return mean + (weights + states if ranks.rank == 0 else 0)
    first = weights if ranks.rank == 0 or engine.stage == 3 else 0
    return first // (ranks.size if engine.stage == 3 else 1) + (states + mean) // ranks.size


def _bytes_of(engine: Engine, has_mean: bool) -> tuple[int, int, int]:
    """Bytes of the weights that the model computes with, of the optimizer's states with the master weights, and of the mean."""
    width = 2 if engine.deepspeed.bfloat16_enabled() else 4
    weights = states = mean = 0
    for parameter in engine.objective.parameters():
        count = getattr(parameter, "ds_numel", parameter.numel())
        if engine.stage < 3 or not parameter.requires_grad:
            weights += count * width
        if parameter.requires_grad:
            states += count * (8 if engine.stage == 0 else 12)
            mean += count * 4 * has_mean
    states -= 4 * sum(prod(shape) for group in engine.parameter_groups for shape in group.get(SHAPES, ()))
    return weights, states, mean


def saved_in(folder: Path) -> list[SavedCheckpoint]:
    """The whole checkpoints in a folder."""
    return [_saved(target) for target in folder.glob("step*") if why_torn(target) is None]


def _drop_old(folder: Path, keep: RetentionRules) -> None:
    """Remove the whole checkpoints that do not stay, older torn ones, and conversions of what is gone."""
    found = {target.name: target for target in folder.glob("step*")}
    stay = survivors(saved_in(folder), keep)
    for name, target in found.items():
        if name not in stay and stay and name < max(stay):
            (target / WHOLE).unlink(missing_ok=True)  # from here on it does not count
            shutil.rmtree(target)
    for made in (folder / UNIVERSAL).glob("*"):
        if not (folder / made.name / WHOLE).is_file():
            remove_universal(made)


def _saved(target: Path) -> SavedCheckpoint:
    whole = json.loads((target / WHOLE).read_text())
    return SavedCheckpoint(target.name, whole.get("time", (target / WHOLE).stat().st_mtime), whole.get("figures", {}))


def _barrier(ranks: Ranks) -> None:
    if ranks.size > 1:
        torch.distributed.barrier()
