"""The checkpoints of one run while it trains: written, dropped and copied, and what happens where the disk refuses one."""

from __future__ import annotations

import logging
import os
import shutil
from pathlib import Path
from typing import Any

from vmae2_ds.checkpoint.mirror import Mirror
from vmae2_ds.checkpoint.retention import RetentionRules
from vmae2_ds.checkpoint.save import checkpoint_bytes, save_checkpoint
from vmae2_ds.checkpoint.whole import find_newest_whole
from vmae2_ds.config.run import TrainConfig
from vmae2_ds.disk import flush_to_disk
from vmae2_ds.dist import Ranks
from vmae2_ds.engine.step import Engine
from vmae2_ds.errors import AgreedStop, ConfigError, SaveFailed
from vmae2_ds.train.ema import WeightAverage

log = logging.getLogger(__name__)


class Saver:
    """Saves when the loop asks.

    A save that fails costs itself alone: what it wrote is removed, the log says when the next try is, and training goes on;
    `train.max_failed_saves` in a row raise SaveFailed on all ranks.

    Args:
        folder: of the checkpoints.
        mean: the running mean of the weights, saved beside them.
        mirror: rank 0's, where checkpoints are copied to a second place.
    """

    def __init__(
        self,
        engine: Engine,
        folder: Path,
        config: TrainConfig,
        ranks: Ranks,
        mean: WeightAverage | None,
        mirror: Mirror | None,
    ) -> None:
        self._engine, self._folder, self._config, self._ranks, self._mean = engine, folder, config, ranks, mean
        self._mirror = mirror
        self._keep = RetentionRules(config.keep, config.keep_every_hours, config.keep_best)
        self._figures: dict[str, float] = {}
        self._failed_in_a_row = 0
        self.error: SaveFailed | None = None
        """Error of the newest save, where it failed."""

    def note(self, row: dict[str, Any]) -> None:
        """Take in the figures of a row, by which the best checkpoint is known."""
        found = {key: value for key, value in row.items() if key.endswith("loss") or key.startswith("val_top")}
        self._figures |= {key: value for key, value in found.items() if isinstance(value, float)}

    def save(self, step: int, state: dict[str, Any]) -> None:
        """Write the checkpoint of `step` (all ranks)."""
        more = None if self._mean is None else self._write_mean
        keep = self._keep if self._mirror is None else self._keep._replace(for_now=self._mirror.protected())
        try:
            target = save_checkpoint(
                self._engine, self._folder, step, state, self._ranks, keep, more, figures=self._figures
            )
        except SaveFailed as error:
            self.error = error
            self._failed_in_a_row += 1
            if self._failed_in_a_row >= self._config.max_failed_saves:
                raise SaveFailed(
                    f"{error}; {self._failed_in_a_row} saves in a row failed: {self._standing()}"
                ) from None
            if self._ranks.rank == 0:
                due = (step // self._config.save_every + 1) * self._config.save_every
                log.warning("%s; training goes on, the next try is after step %d", error, due)
        else:
            self.error, self._failed_in_a_row = None, 0
            if self._mirror is not None:
                self._mirror.put(target)

    def unsaved(self, stop: AgreedStop | None) -> SaveFailed:
        """How a run ends whose last save failed, where it would have ended with `stop`."""
        return SaveFailed(f"{self.error}: {self._standing()}" + (f" (stopping because: {stop})" if stop else ""))

    def _write_mean(self, files: Any) -> None:
        assert self._mean is not None, "asked for only with one"
        self._mean.save(files, self._ranks)

    def _standing(self) -> str:
        newest = find_newest_whole(self._folder)
        return (
            f"the newest whole checkpoint is {newest.name if newest else 'none'}; make room (or the folder writable) and start "
            "the same command again"
        )


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
