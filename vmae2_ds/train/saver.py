"""The checkpoints of one run while it trains: written, dropped and copied, and what happens where the disk refuses one."""

from __future__ import annotations

import logging
import math
import os
import platform
import shutil
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple, TypeGuard

import psutil

from vmae2_ds.checkpoint.host_copies import HostCopies
from vmae2_ds.checkpoint.mirror import Mirror
from vmae2_ds.checkpoint.retention import RetentionRules, SavedCheckpoint, badness, best_of
from vmae2_ds.checkpoint.save import CheckpointSave, checkpoint_bytes, saved_in
from vmae2_ds.checkpoint.whole import find_newest_whole
from vmae2_ds.config.run import SaveBehind, TrainConfig
from vmae2_ds.disk import flush_to_disk
from vmae2_ds.dist import Ranks
from vmae2_ds.engine.step import Engine
from vmae2_ds.errors import AgreedStop, ConfigError, SaveFailed
from vmae2_ds.guard.stopping import StopRequests
from vmae2_ds.host import memory
from vmae2_ds.train.ema import WeightAverage

log = logging.getLogger(__name__)

MOST_MEMORY = 0.5
"""Share of a host's free memory that copies of states may take: files on their way to the disk and loader workers need some."""


class Saver:
    """Saves when the loop asks, one checkpoint at a time: behind training, or while training waits.

    Behind training: `save` copies this rank's states to host memory, a thread writes, hashes and flushes them, and the
    checkpoint counts from `declare` on, which all ranks call once `is_written` on all of them. `finish` waits for that.

    A save that fails costs itself alone: what it wrote is removed, the log says when the next try is, and training goes on;
    `train.max_failed_saves` in a row raise SaveFailed on all ranks.

    Args:
        folder: of the checkpoints.
        mean: the running mean of the weights, saved beside them.
        mirror: rank 0's, where checkpoints are copied to a second place.
        stop: is told how long saves take.
        behind: whether training goes on while a checkpoint is written.
    """

    def __init__(
        self,
        engine: Engine,
        folder: Path,
        config: TrainConfig,
        ranks: Ranks,
        mean: WeightAverage | None,
        mirror: Mirror | None,
        stop: StopRequests,
        *,
        behind: bool,
    ) -> None:
        self._engine, self._folder, self._config, self._ranks, self._mean = engine, folder, config, ranks, mean
        self._mirror, self._stop = mirror, stop
        self._keep = RetentionRules(config.keep, config.keep_every_hours, config.keep_best)
        self._copies = HostCopies() if behind else None
        self._thread = ThreadPoolExecutor(1, "saver")
        self._under_way: _UnderWay | None = None
        self._tidying: Future[None] | None = None
        self._figures: dict[str, float] = {}
        self._failed_in_a_row = 0
        self.error: SaveFailed | None = None
        """Error of the newest save, where it failed."""

    def note(self, row: dict[str, Any]) -> None:
        """Take in the figures of a row, by which the best checkpoint is known."""
        found = {key: value for key, value in row.items() if key.endswith("loss") or key.startswith("val_")}
        self._figures |= {key: value for key, value in found.items() if _is_number(value)}

    def are_best(self, figures: dict[str, Any]) -> bool:
        """Whether a validation's figures are better than those of all checkpoints, by `train.keep_best` (all ranks)."""
        best, found = self._keep.best, figures.get(self._keep.best or "")
        if best is None or not _is_number(found):
            return False

        def before() -> SavedCheckpoint | None:
            if self._tidying is not None:  # it may be removing what is looked at
                self._tidying.result()
            return best_of(saved_in(self._folder), best)

        there = self._ranks.from_first(before)
        others = [{} if there is None else there.figures, {} if self._under_way is None else self._under_way.figures]
        return all(badness(best, found) < badness(best, other[best]) for other in others if best in other)

    def save(self, step: int, state: dict[str, Any]) -> None:
        """Save the checkpoint of `step` (all ranks), after the one before it is finished."""
        self.finish()
        began = time.monotonic()
        more = None if self._mean is None else self._write_mean
        made = CheckpointSave(
            self._engine, self._folder, step, state, self._ranks, more, self._figures, copies=self._copies
        )
        stood_s = time.monotonic() - began
        self._stop.is_saving = True
        self._under_way = _UnderWay(step, made, dict(self._figures), stood_s, self._thread.submit(_timed, made.write))
        if self._copies is None:
            self.finish()

    def is_written(self) -> bool:
        """Whether this rank's part of a checkpoint was written, or has failed, and waits to be declared."""
        return self._under_way is not None and self._under_way.written.done()

    def declare(self) -> None:
        """Let the checkpoint under way count once it is written, if there is one (all ranks)."""
        if self._under_way is None:
            return
        step, made, _, stood_s, written = self._under_way
        began = time.monotonic()
        write_s = written.result()
        self._under_way, self._stop.is_saving = None, False
        try:
            target = made.declare()
        except SaveFailed as error:
            self._failed(step, error)
            return
        stood_s += time.monotonic() - began
        self._stop.save_took(stood_s + write_s)
        self.error, self._failed_in_a_row = None, 0
        if self._ranks.rank == 0:
            log.info(
                "%s is whole: written in %.1f s, for which training stood still %.1f s", target.name, write_s, stood_s
            )
            if self._mirror is not None:
                self._mirror.put(target)
            self._tidying = self._thread.submit(self._tidy_up, made)

    def finish(self) -> None:
        """Declare the checkpoint under way, if there is one, and wait until old ones are removed (all ranks)."""
        self.declare()
        if self._tidying is not None:
            self._tidying.result()
            self._tidying = None

    def close(self) -> None:
        """Give up what is under way, which stays torn."""
        if self._under_way is not None:
            self._under_way.save.give_up()
        self._thread.shutdown()

    def unsaved(self, stop: AgreedStop | None) -> SaveFailed:
        """How a run ends whose last save failed, where it would have ended with `stop`."""
        return SaveFailed(f"{self.error}: {self._standing()}" + (f" (stopping because: {stop})" if stop else ""))

    def _failed(self, step: int, error: SaveFailed) -> None:
        self.error = error
        self._failed_in_a_row += 1
        if self._failed_in_a_row >= self._config.max_failed_saves:
            raise SaveFailed(f"{error}; {self._failed_in_a_row} saves in a row failed: {self._standing()}") from None
        if self._ranks.rank == 0:
            due = (step // self._config.save_every + 1) * self._config.save_every
            log.warning("%s; training goes on, the next try is after step %d", error, due)

    def _tidy_up(self, made: CheckpointSave) -> None:
        made.tidy_up(self._keep if self._mirror is None else self._keep._replace(for_now=self._mirror.protected()))

    def _write_mean(self, files: Any) -> None:
        assert self._mean is not None, "asked for only with one"
        self._mean.save(files, self._ranks)

    def _standing(self) -> str:
        newest = find_newest_whole(self._folder)
        return (
            f"the newest whole checkpoint is {newest.name if newest else 'none'}; make room (or the folder writable) and start "
            "the same command again"
        )


def _is_number(value: object) -> TypeGuard[float]:
    return isinstance(value, float) and math.isfinite(value)


class _UnderWay(NamedTuple):
    """A checkpoint that is being written."""

    step: int
    save: CheckpointSave
    figures: dict[str, float]
    stood_s: float
    """Seconds for which training stood still so far."""
    written: Future[float]
    """Seconds that the writing took."""


def _timed(action: Callable[[], None]) -> float:
    began = time.monotonic()
    action()
    return time.monotonic() - began


def check_room(engine: Engine, folder: Path, keep: int, has_mean: bool, ranks: Ranks) -> None:
    """Write, flush and remove a file on every rank, and compare the free space with what a checkpoint needs.

    Raises ConfigError on all ranks where one cannot write, or where not even one checkpoint fits.
    """
    trial = folder / f".trial.rank{ranks.rank}"
    refused = None
    try:
        trial.write_bytes(os.urandom(1 << 16))
        flush_to_disk(trial)
        trial.unlink()
    except OSError as error:
        refused = f"rank {ranks.rank} cannot write there: {error.strerror}"
    if refused := ranks.first_said(refused):
        raise ConfigError(
            f"no checkpoint could be written to {folder}: {refused}; fix it, or name another --train.runs or --train.run"
        )
    needed = checkpoint_bytes(engine, has_mean)
    free = ranks.from_first(lambda: shutil.disk_usage(folder).free)
    missing = keep + 1 - len(list(folder.glob("step*")))  # a new one is written before an old one goes
    if free < needed:
        raise ConfigError(
            f"a checkpoint needs about {needed / 1e9:.3g} GB and {folder} has {free / 1e9:.3g} GB free; make room, or put the "
            "runs elsewhere with --train.runs"
        )
    if ranks.rank == 0 and free < missing * needed:
        log.warning(
            "%s has %.3g GB free; %d more checkpoints of about %.3g GB will not fit: make room, or lower --train.keep",
            folder, free / 1e9, missing, needed / 1e9,
        )  # fmt: skip


def saves_behind(wanted: SaveBehind, needed: int, ranks: Ranks) -> bool:
    """Whether checkpoints are written behind training: unless asked, where their copies have room in every host's memory.

    `needed`: bytes of this rank's copy. Raises ConfigError on all ranks where they have not, and `wanted` is "true".
    """
    if wanted == "false":
        return False
    found = memory()
    left = psutil.virtual_memory().available if found is None else found.left
    gathered = ranks.gather((platform.node(), needed, left))

    def missing() -> str | None:
        by_host: dict[str, list[tuple[int, int]]] = {}
        for host, needed, free in gathered or ():
            by_host.setdefault(host, []).append((needed, free))
        for host, found in by_host.items():
            needed, free = sum(needed for needed, _ in found), min(free for _, free in found)
            if needed > MOST_MEMORY * free:
                return (
                    f"copies of the states take {needed / 1e9:.3g} GB of host memory on {host}, more than {MOST_MEMORY:.0%} of "
                    f"the {free / 1e9:.3g} GB that are free"
                )
        return None

    reason = ranks.from_first(missing)
    if reason is None:
        return True
    if wanted == "true":
        raise ConfigError(f"--train.save-behind true: {reason}; take --train.save-behind false, or more ranks or hosts")
    if ranks.rank == 0:
        log.warning("%s: training stands still while a checkpoint is written (--train.save-behind auto)", reason)
    return False
