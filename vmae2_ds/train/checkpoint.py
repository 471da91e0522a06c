"""Checkpoints that survive a kill at any point, and the newest whole one at resume.

DeepSpeed writes its shards in place, and `latest` before all ranks are done. So: shards go into a folder of their own,
are flushed to disk on every rank, and only then does rank 0 write the folder's `whole.json`, which lists every file
and its size, and rename `latest` into place. A folder without that list, or with a file missing or of another size,
does not count.
"""

from __future__ import annotations

import json
import logging
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from vmae2_ds.dist import Agreement, World
from vmae2_ds.errors import CheckpointError
from vmae2_ds.train.engine import Engine

log = logging.getLogger(__name__)

WHOLE = "whole.json"
LATEST = "latest"


def tag_of(step: int) -> str:
    """Folder name of the checkpoint after `step` optimizer steps."""
    return f"step{step:08d}"


def save_checkpoint(
    engine: Engine,
    folder: Path,
    step: int,
    state: dict[str, Any],
    world: World,
    keep: int,
    write_more: Callable[[Path], Path] | None = None,
) -> Path:
    """Write one checkpoint from all ranks and drop the oldest whole ones beyond `keep`. Returns its folder.

    `write_more` writes a file of this rank's own into the folder and returns it.
    """
    tag = tag_of(step)
    target = folder / tag
    if world.rank == 0 and target.exists():
        shutil.rmtree(target)  # a torn one, or one of a step that is run again
    _barrier(world)
    engine.deepspeed.save_checkpoint(str(folder), tag=tag, client_state={"vmae2": state}, save_latest=False)
    if write_more is not None:
        _flush_to_disk(write_more(target))
    for path in target.iterdir():
        writer = re.search(r"pp_rank_(\d+)_", path.name)
        if int(writer[1] if writer else 0) == world.rank:
            _flush_to_disk(path)
    _flush_to_disk(target)
    _barrier(world)  # every rank's shards are on disk
    if world.rank == 0:
        sizes = {path.name: path.stat().st_size for path in sorted(target.iterdir()) if path.is_file()}
        whole = {"step": step, "world_size": world.size, "stage": engine.stage, "files": sizes}
        write_atomically(target / WHOLE, json.dumps(whole, indent=1))
        write_atomically(folder / LATEST, tag)
        _drop_old(folder, keep)
    _barrier(world)
    return target


def find_newest_whole(folder: Path) -> Path | None:
    """The newest checkpoint below `folder` that is whole, or None; torn ones are named in the log and passed over."""
    for target in sorted(folder.glob("step*"), reverse=True):
        reason = why_torn(target)
        if reason is None:
            return target
        log.warning("%s is not whole (%s): passed over", target, reason)
    return None


def why_torn(target: Path) -> str | None:
    """None where every listed file is there with its size, else what is wrong."""
    try:
        whole = json.loads((target / WHOLE).read_text())
    except FileNotFoundError:
        return "it was never finished"
    except (OSError, ValueError) as error:
        return f"{WHOLE} cannot be read: {error}"
    for name, size in whole["files"].items():
        path = target / name
        found = path.stat().st_size if path.is_file() else None
        if found != size:
            return f"{name} has {found} bytes instead of {size}" if found is not None else f"{name} is missing"
    return None


def load_checkpoint(engine: Engine, target: Path, world: World, agreement: Agreement) -> dict[str, Any]:
    """Load `target` on all ranks, bit for bit, and return the state saved with it.

    Raises CheckpointError on all ranks where one cannot see it whole, or where it was written by another number of
    ranks or at another ZeRO stage.
    """
    reason = why_torn(target)
    if agreement.any(reason is not None):
        raise CheckpointError(f"{target}: not whole on every rank ({reason or 'this rank sees it, another does not'})")
    whole = json.loads((target / WHOLE).read_text())
    if (whole["world_size"], whole["stage"]) != (world.size, engine.stage):
        raise CheckpointError(
            f"{target} was written by {whole['world_size']} rank(s) at ZeRO stage {whole['stage']}, this run has "
            f"{world.size} rank(s) at stage {engine.stage}; resume with the same, or start anew from its weights: "
            f"vmae2 export {target} --out weights.safetensors, then --train.init weights.safetensors"
        )
    loaded, client_state = engine.deepspeed.load_checkpoint(str(target.parent), tag=target.name)
    if loaded is None:
        raise CheckpointError(f"{target}: DeepSpeed could not load it; resume from an older one by removing it")
    return client_state["vmae2"]


def write_atomically(path: Path, text: str) -> None:
    """Write `text` to `path` so that a reader sees the old content or the new, never half of it."""
    temporary = path.with_name(f".{path.name}.tmp{os.getpid()}")
    with open(temporary, "w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)
    _flush_to_disk(path.parent)


def _flush_to_disk(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _drop_old(folder: Path, keep: int) -> None:
    """Remove all but the `keep` newest whole checkpoints, and the torn ones among those removed."""
    found = sorted(folder.glob("step*"))
    whole = [target for target in found if why_torn(target) is None]
    for target in found[: found.index(whole[-keep])] if len(whole) > keep else []:
        (target / WHOLE).unlink(missing_ok=True)  # from here on it does not count
        shutil.rmtree(target)


def _barrier(world: World) -> None:
    if world.size > 1:
        torch.distributed.barrier()
