"""What a run reports per logged step: a row in metrics.jsonl, TensorBoard, and a line or a progress bar."""

from __future__ import annotations

import contextlib
import json
import logging
import math
import sys
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from vmae2_ds.config.run_plan import RunPlan
from vmae2_ds.console.progress import time_left
from vmae2_ds.contracts import LossOutput
from vmae2_ds.disk import write_whole
from vmae2_ds.dist import Ranks
from vmae2_ds.guard.loader_watch import DataWaitWatch

log = logging.getLogger(__name__)

SOURCE_SHARE, SOURCE_VIDEOS = "source_share/", "source_videos/"
"""Columns by source begin so; TensorBoard makes a group of each."""
MEMORY_COLUMNS = "worker_mem_max_gib", "worker_mem_sum_gib"
"""The largest loader worker with its reader, and all of a rank together; of the rank that has most."""
MOST_SOURCES, OTHERS = 100, "(others)"


class StepAverages:
    """Sums since the last row, kept on the device so that only log steps wait for it."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self.reset()

    def reset(self) -> None:
        """Start the next interval."""
        self._loss = torch.zeros((), device=self._device)
        self._flat_loss = torch.zeros((), device=self._device)
        self._finite = torch.zeros((), device=self._device)
        self.steps = 0
        self._started = time.perf_counter()

    def leave_out(self, seconds: float) -> None:
        """Seconds since the last row that were no training."""
        self._started += seconds

    def add(self, out: LossOutput) -> None:
        """Count one micro step; a non-finite loss is left out of the average."""
        loss = out.loss.detach().float()
        finite = torch.isfinite(loss)
        self._loss += torch.where(finite, loss, 0.0)
        self._flat_loss += torch.where(finite, out.flat_loss.float(), 0.0)
        self._finite += finite

    def totals(self, ranks: Ranks, wait_s: float) -> dict[str, float | None]:
        """Means over ranks and micro steps (losses None if none was finite), seconds per step, share waited for data.

        Args:
            wait_s: seconds that this rank waited for data.
        """
        elapsed = time.perf_counter() - self._started
        loss, flat, finite, wait, size = ranks.sum(
            float(self._loss), float(self._flat_loss), float(self._finite), wait_s, 1.0
        )
        return {
            "loss": loss / finite if finite else None,
            "flat_loss": flat / finite if finite else None,
            "step_time_s": elapsed / max(1, self.steps),
            "data_wait_share": min(1.0, wait / size / elapsed) if elapsed else 0.0,
        }


def counted_names(sources: tuple[str, ...]) -> tuple[str, ...]:
    """Names under which videos are counted: the sources, of very many only the first, and OTHERS."""
    return sources if len(sources) <= MOST_SOURCES else (*sources[: MOST_SOURCES - 1], OTHERS)


def count_vector(used: Counter[str], names: tuple[str, ...]) -> list[int]:
    """Counts in the order of `names`, which all ranks have alike, so that they can be summed."""
    counts = [used[name] for name in names]
    if names[-1] == OTHERS:
        counts[-1] = used.total() - sum(counts)
    assert sum(counts) == used.total(), f"videos of sources {sorted(used)}, where only {names} are known"
    return counts


def add_counts(total: Mapping[str, int], names: tuple[str, ...], counts: Sequence[float]) -> dict[str, int]:
    """`total` with a summed vector of counts added."""
    return {**total, **{name: total.get(name, 0) + int(count) for name, count in zip(names, counts, strict=True)}}


def source_columns(now: Mapping[str, int], before: Mapping[str, int]) -> dict[str, float]:
    """Columns of a row: each source's share of the videos since the last row, and its videos of the whole run."""
    new = {name: count - before.get(name, 0) for name, count in now.items()}
    videos = max(1, sum(new.values()))
    shares = {f"{SOURCE_SHARE}{name}": count / videos for name, count in new.items()}
    return {**shares, **{f"{SOURCE_VIDEOS}{name}": count for name, count in now.items()}}


class MetricsWriter:
    """Rank 0's writer of metrics.jsonl and TensorBoard events. Rows after `first_step` left by a killed run are dropped."""

    def __init__(self, path: Path, tensorboard: Path | None, first_step: int) -> None:
        self._path, self._events = path, tensorboard
        self._open(first_step)

    def go_back(self, step: int) -> None:
        """Drop the rows after `step`: they are written anew."""
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

    def write(self, row: dict[str, Any]) -> None:
        """One row; numbers that are not finite become null, which JSON can hold."""
        clean = {key: _finite_or_none(value) for key, value in row.items()}
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

    def __init__(self, ranks: Ranks, first_step: int, num_steps: int, stage: str) -> None:
        self._num_steps = num_steps
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
        """Advance the bar."""
        if self._bar is not None:
            self._bar.update(self._task, completed=step)

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
    """Rows to the file, to TensorBoard and to the screen; rates per device are worked out here.

    Args:
        flops_per_clip: model FLOPs of forward and backward of one clip, without recomputation.
        peak_flops: what 100 % MFU means for one device; None leaves MFU out.
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
        flops_per_clip: int,
        peak_flops: float | None,
        watch: DataWaitWatch,
        stage: str,
    ) -> None:
        self._clips, self._ranks = plan.global_batch, ranks.size
        self._flops_per_clip, self._peak_flops = flops_per_clip, peak_flops
        self._writer = MetricsWriter(metrics, tensorboard, first_step) if ranks.rank == 0 else None
        self._watch = watch
        self.progress = Progress(ranks, first_step, plan.num_steps, stage)

    def row(self, row: dict[str, Any]) -> None:
        """Complete one row and show it everywhere."""
        clips_per_s = self._clips / row["step_time_s"]
        achieved = self._flops_per_clip * clips_per_s / self._ranks
        mfu = achieved / self._peak_flops if self._peak_flops else None
        row = {**row, "clips_per_s": clips_per_s, "flops_per_s": achieved, "mfu": mfu}
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


def _finite_or_none(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value
