"""Where the rows of a run go: metrics.jsonl, TensorBoard, and a line or a progress bar."""

from __future__ import annotations

import contextlib
import json
import logging
import sys
from pathlib import Path
from typing import Any

from vmae2_ds.config.run_plan import RunPlan
from vmae2_ds.console.progress import time_left
from vmae2_ds.disk import write_whole
from vmae2_ds.dist import Ranks
from vmae2_ds.guard.loader_watch import DataWaitWatch
from vmae2_ds.json_lines import finite_or_none, rows_of

log = logging.getLogger(__name__)


class MetricsWriter:
    """Rank 0's writer of metrics.jsonl and TensorBoard events. Rows after `first_step` left by a killed run are dropped."""

    def __init__(self, path: Path, tensorboard: Path | None, first_step: int) -> None:
        self._path, self._events = path, tensorboard
        self._open(first_step)

    def go_back(self, step: int) -> None:
        """Drop the rows after `step`: they are written again."""
        self.close()
        self._open(step)

    def _open(self, first_step: int) -> None:
        path, tensorboard = self._path, self._events
        if path.exists():
            kept = [line for line in path.read_text().splitlines() if _step_of(line) <= first_step]
            write_whole(path, "".join(f"{line}\n" for line in kept))
        self._file = path.open("a", buffering=1)
        self._tensorboard = None
        if tensorboard is not None:
            from torch.utils.tensorboard import SummaryWriter

            self._tensorboard = SummaryWriter(str(tensorboard), purge_step=first_step + 1)

    def rows(self) -> list[dict[str, Any]]:
        """The rows that stand in the file."""
        return list(rows_of(self._path))

    def write(self, row: dict[str, Any]) -> None:
        """One row; numbers that are not finite become null, which JSON can hold."""
        clean = {key: finite_or_none(value) for key, value in row.items()}
        try:
            self._file.write(json.dumps(clean) + "\n")
        except OSError as error:  # a full disk costs rows, not the run
            log.warning("the row of step %s could not be written: %s", row["step"], error)
        self._draw(row["step"], clean)

    def _draw(self, step: int, clean: dict[str, Any]) -> None:
        """The row's numbers for TensorBoard, which writes in a thread that dies, with a traceback, of what it cannot write."""
        if self._tensorboard is None or self._events is None:
            return
        try:
            self._events.stat()
            for key, value in clean.items():
                if isinstance(value, (int, float)) and key not in ("step", "time"):
                    self._tensorboard.add_scalar(key, value, step)
        except OSError as error:
            log.warning("TensorBoard's events could not be written: %s; there are none from step %d on", error, step)
            self._tensorboard = None

    def close(self) -> None:
        """Flush and close both."""
        self._file.close()
        if self._tensorboard is not None:
            with contextlib.suppress(OSError):  # said before, or of a folder that is gone
                self._tensorboard.close()


class Progress:
    """A progress bar on a terminal, plain lines elsewhere; silent on other ranks."""

    def __init__(self, ranks: Ranks, first_step: int, num_steps: int, stage: str, log_every: int = 1) -> None:
        self._first_step, self._num_steps, self._log_every = first_step, num_steps, log_every
        self._bar = None
        self._speaks = ranks.rank == 0
        if self._speaks and sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

            self._bar = Progress(
                TextColumn(stage),
                BarColumn(),
                TextColumn("{task.completed}/{task.total} steps, {task.fields[news]}"),
                TimeElapsedColumn(),
                TimeRemainingColumn(),
                console=Console(stderr=True),
            )
            self._task = self._bar.add_task(stage, total=num_steps, completed=first_step, news="starting")
            self._bar.start()

    def step(self, step: int) -> None:
        """Advance the bar; without one, say that the first step of this start is behind, where its figures come later."""
        if self._bar is not None:
            self._bar.update(self._task, completed=step)
        elif self._speaks and step == self._first_step + 1 and step % self._log_every and step < self._num_steps:
            log.info("step %d/%d is done; figures come every %d steps", step, self._num_steps, self._log_every)

    def row(self, row: dict[str, Any]) -> None:
        """Show one row of metrics."""
        if not self._speaks:
            return
        loss = "not finite" if row["loss"] is None else f"{row['loss']:.4f}"
        news = f"loss {loss}, {row['clips_per_s']:.1f} clips/s"
        if self._bar is not None:
            self._bar.update(self._task, news=news)
            return
        left_s = (self._num_steps - row["step"]) * row["step_time_s"]
        mfu = f", MFU {row['mfu']:.0%}" if row.get("mfu") else ""
        log.info(
            "step %d/%d, %s, lr %s, gradient norm %s, data wait %.0f %%%s, %s",
            row["step"],
            self._num_steps,
            news,
            f"{row['lr']:.3g}" if row["lr"] else "0 (warm-up starts there)",
            "-" if row["grad_norm"] is None else f"{row['grad_norm']:.3g}",
            100 * row["data_wait_share"],
            mfu,
            time_left(left_s),
        )

    def close(self) -> None:
        """Take the bar away."""
        if self._bar is not None:
            self._bar.stop()


class Reporter:
    """Rows to the file, to TensorBoard and to the screen.

    Args:
        watch: says what to do where training waits for data.
        stage: what the progress bar calls the run.
    """

    def __init__(
        self,
        metrics: Path,
        tensorboard: Path | None,
        ranks: Ranks,
        plan: RunPlan,
        first_step: int,
        watch: DataWaitWatch,
        stage: str,
        log_every: int = 1,
    ) -> None:
        self._writer = MetricsWriter(metrics, tensorboard, first_step) if ranks.rank == 0 else None
        self._watch = watch
        self.progress = Progress(ranks, first_step, plan.num_steps, stage, log_every)

    def row(self, row: dict[str, Any]) -> None:
        """Show one row (`Row.columns`) everywhere."""
        self.progress.row(row)
        if self._writer is not None:
            self._writer.write(row)
            if advice := self._watch.row(row["data_wait_share"]):
                log.warning("%s", advice)

    def go_back(self, step: int) -> None:
        """Rows go on after `step`."""
        self.progress.step(step)
        if self._writer is not None:
            self._writer.go_back(step)

    def close(self) -> None:
        """Flush everything."""
        self.progress.close()
        if self._writer is not None:
            self._writer.close()


def _step_of(line: str) -> int:
    try:
        return int(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        return sys.maxsize  # a row torn by a kill
