"""Going on with another number of ranks or at another ZeRO stage: from a checkpoint of any layout to one this engine loads."""

from __future__ import annotations

import json
import logging
import shutil
import time
from pathlib import Path
from typing import Any

from vmae2_ds.checkpoint.hashed_files import HashedFiles
from vmae2_ds.checkpoint.universal import FOLDER, convert, remove
from vmae2_ds.checkpoint.whole import WHOLE, declare_whole, why_unsound
from vmae2_ds.console.progress import counted
from vmae2_ds.disk import put_whole_folder, sha256_of
from vmae2_ds.dist import Ranks
from vmae2_ds.engine.step import Engine
from vmae2_ds.errors import CheckpointError

log = logging.getLogger(__name__)


def fitting(engine: Engine, source: Path, ranks: Ranks) -> Path:
    """`source` itself where this engine splits its states in the same way, else its universal form, made where there is none.

    The source is only read. A conversion that was cut is begun again; a whole one of the same source is used again. Raises
    CheckpointError on all ranks, in one line, where it cannot be converted or the disk is full.
    """
    whole = json.loads((source / WHOLE).read_text())
    before = {"world_size": whole["world_size"], "stage": whole["stage"], "zero": whole.get("zero", engine.zero_policy)}
    now = {"world_size": ranks.size, "stage": engine.stage, "zero": engine.zero_policy}
    if before == now:
        return source
    _refuse_uncovered(source, before, now)
    began = time.monotonic()
    target = source.parent / FOLDER / source.name
    made = _make(source, target, whole, ranks)
    if ranks.rank == 0:
        size = sum(json.loads((target / WHOLE).read_text())["files"].values())
        log.info(
            "resuming %s, from %s to %s: %s universal checkpoint %s (%.3g GB) in %.1f s; the global batches go on",
            source.name,
            _words(before),
            _words(now),
            "made the" if made else "took the whole",
            target,
            size / 1e9,
            time.monotonic() - began,
        )
    return target


def _make(source: Path, target: Path, whole: dict[str, Any], ranks: Ranks) -> bool:
    """False where a whole one is there already."""
    origin = sha256_of(source / WHOLE)
    unfinished = target.with_name(f".{target.name}.unfinished")

    def is_made() -> bool:
        try:
            return json.loads((target / WHOLE).read_text())["universal_of"] == origin
        except (OSError, ValueError, KeyError):
            return False

    if ranks.from_first(is_made) and ranks.first_said(why_unsound(target, ranks)) is None:
        return False
    ranks.from_first(lambda: _prepare(source, target, unfinished, whole))
    refused = None
    try:
        files = convert(source, unfinished, whole["world_size"], whole["stage"], ranks)
    except CheckpointError as told:  # a rank opens only the files that it needs: the others wait for it
        files, refused = HashedFiles(unfinished), str(told)
    if refused := ranks.first_said(refused):
        ranks.from_first(lambda: shutil.rmtree(unfinished, ignore_errors=True))
        raise CheckpointError(refused)
    about = {"step": whole["step"], "universal_of": origin}
    if error := declare_whole(files, about, ranks):
        ranks.from_first(lambda: shutil.rmtree(unfinished, ignore_errors=True))
        raise CheckpointError(f"{source} could not be converted to a universal checkpoint: {error}; it is as it was")
    ranks.from_first(lambda: put_whole_folder(unfinished, target))
    return True


def _prepare(source: Path, target: Path, unfinished: Path, whole: dict[str, Any]) -> None:
    """Remove what an earlier start left, and see that there is room (rank 0)."""
    needed = sum(whole["files"].values())  # the same states; at stages 1 and 2 the 16-bit weights less
    try:
        for folder in (target, unfinished):
            remove(folder)
        unfinished.mkdir(parents=True)
        free = shutil.disk_usage(unfinished).free
    except OSError as error:
        raise CheckpointError(f"{source} cannot be converted to a universal checkpoint: {error}") from None
    if free < needed:
        raise CheckpointError(
            f"{source}: its universal form needs about {needed / 1e9:.3g} GB and {target.parent} has {free / 1e9:.3g} GB free; "
            "make room, or resume with the number of ranks and the ZeRO stage that wrote it"
        )


def _refuse_uncovered(source: Path, before: dict[str, Any], now: dict[str, Any]) -> None:
    for state in (before, now):
        zero = state["zero"]
        for reason, is_so in {
            "keeps optimizer states on nvme": zero.get("offload_optimizer", {}).get("device") == "nvme",
            "keeps parameters on nvme": zero.get("offload_param", {}).get("device") == "nvme",
            "partitions over mics_shard_size ranks": "mics_shard_size" in zero,
            "aligns parameters in their shards": "parameter_alignment" in zero,
        }.items():
            if is_so:
                raise CheckpointError(
                    f"{source} was written by {_words(before)} and this run has {_words(now)}, one of which {reason}: that is "
                    "not converted; resume with the ranks and the policy that wrote it"
                )


def _words(state: dict[str, Any]) -> str:
    return f"{counted(state['world_size'], 'rank')} at ZeRO stage {state['stage']}"
