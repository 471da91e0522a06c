"""A row of metrics.jsonl: its columns, each with unit and meaning, and the steps between two rows that fill it."""

from __future__ import annotations

import contextlib
import re
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Annotated, Any, NamedTuple

import torch

from vmae2_ds.checkpoint.state import TrainState
from vmae2_ds.config.run_plan import RunPlan
from vmae2_ds.contracts import LossOutput, StepResult
from vmae2_ds.dist import Ranks

SOURCE_VIDEOS = "source_videos/"
"""What the columns of the field begin with, one for each source; TensorBoard makes a group of them."""


class Column(NamedTuple):
    """What a column says."""

    unit: str
    """Empty for plain numbers."""
    meaning: str


class Row(NamedTuple):
    """One row, its columns in their order; docs/TRAINING.md has the same table.

    A field that maps sources to numbers is a column for each of them, `source_share/NAME`.
    """

    step: Annotated[int, Column("steps", "optimizer steps done, those whose update was left out among them")]
    epoch: Annotated[float, Column("passes", "passes over the videos of the lists; the views of a video count as one")]
    loss: Annotated[
        float | None,
        Column(
            "", "mean of the loss over the micro batches of all ranks since the last row, those not finite left out"
        ),
    ]
    flat_loss: Annotated[
        float | None,
        Column(
            "",
            "the loss of flat predictions, averaged alike. In pre-training each cube's own mean colours, which only who sees "
            "the cube can know, or zeros where the target is normalised (a little below 1 by the unbiased variance, lower "
            "where cubes have one colour, as in black bars); a classifier gives all classes equal chances",
        ),
    ]
    step_time_s: Annotated[
        float, Column("s", "mean wall time of a step since the last row; a save counts, a validation does not")
    ]
    save_s: Annotated[
        float,
        Column(
            "s",
            "how long training stood still for saves since the last row, on the rank that writes it: copies to host memory and "
            "waiting, but not what was written behind training; the save after a row is in the next one",
        ),
    ]
    data_wait_share: Annotated[
        float,
        Column(
            "share",
            "part of the wall time in which the devices had no work for lack of a batch, mean over ranks. On CUDA from "
            "device events: asking for a batch while the device still computes is no wait",
        ),
    ]
    lr: Annotated[float, Column("", "learning rate of the last step, without the factors of layer decay")]
    grad_norm: Annotated[
        float,
        Column(
            "",
            "norm of the last step's gradient over all parameters and ranks, before clipping; `null` where it is not finite",
        ),
    ]
    skipped_steps: Annotated[
        int,
        Column("steps", "steps of the whole run whose update was left out, because of a spike or what was not finite"),
    ]
    spikes: Annotated[int, Column("steps", "steps of the whole run with a spike of the loss or the gradient norm")]
    rollbacks: Annotated[int, Column("rollbacks", "how often the run went back to a checkpoint")]
    bad_videos: Annotated[
        int,
        Column(
            "videos", "videos of the whole run and all ranks that were unreadable or too short, each time one came up"
        ),
    ]
    new_bad_videos: Annotated[int, Column("videos", "the part of `bad_videos` since the last row")]
    source_share: Annotated[
        Mapping[str, float],
        Column("share", "part of the videos since the last row, over all ranks, that is of the source NAME"),
    ]
    source_videos: Annotated[
        Mapping[str, int],
        Column(
            "videos",
            "videos of the source NAME in the whole run, over all ranks; a resumed run goes on counting. Of more than 100 "
            "sources the last ones are `(others)`",
        ),
    ]
    worker_mem_max_gib: Annotated[
        float,
        Column(
            "GiB",
            "memory of the largest loader worker with its reader, on the rank that has most. Shared memory is split among its "
            "users (PSS, Linux); measured at most every 30 s",
        ),
    ]
    worker_mem_sum_gib: Annotated[
        float, Column("GiB", "memory of all loader workers of a rank together, measured in the same way")
    ]
    time: Annotated[float, Column("s", "when the row was made, in seconds since 1970")]
    clips_per_s: Annotated[float, Column("clips/s", "clips of the global batch over `step_time_s`, all ranks together")]
    flops_per_s: Annotated[
        float,
        Column(
            "FLOP/s",
            "model FLOPs that one device gets done: 6 for each forward MAC of what is really computed (not recomputation), 2 "
            "for each of a frozen teacher's; of fine-tuning a part, what is left of the backward pass",
        ),
    ]
    mfu: Annotated[
        float | None,
        Column("share", "`flops_per_s` over the peak that `env.json` names; `null` where no peak is known"),
    ]

    def columns(self) -> dict[str, Any]:
        """The row as it is written."""
        found: dict[str, Any] = {}
        for name, value in self._asdict().items():
            by_source = isinstance(value, Mapping)
            found |= {f"{name}/{source}": number for source, number in value.items()} if by_source else {name: value}
        return found


VALIDATION = {
    "step": Column("steps", "optimizer steps done"),
    "epoch": Column("passes", "passes over the videos of the lists"),
    "val_videos": Column(
        "videos",
        "videos looked at; those that could not be read count in temporal detection alone, as videos without detections",
    ),
    "val_unreadable": Column("videos", "videos, in spatial detection key frames, that could not be read"),
    "val_loss": Column(
        "",
        "in pre-training the reconstruction loss of videos held back, under the same masks every time; of a classifier the "
        "cross entropy",
    ),
    "seen_loss": Column("", "pre-training: the same on as many videos that are trained on"),
    "val_top1": Column(
        "share",
        "classifiers: videos whose label is the first answer, of one clip from the middle of each",
    ),
    "val_top5": Column("share", "classifiers: videos whose label is among the first five answers"),
    "val_detections": Column("detections", "temporal detection: how many were found in all videos"),
    "val_map": Column("share", "temporal detection: mean over `data.val_tious` of the mean average precision"),
    "val_map_TIOU": Column(
        "share",
        "temporal detection: the mean average precision at one of them, such as `val_map_0.50`",
    ),
    "val_key_frames": Column("key frames", "spatial detection: key frames looked at"),
    "val_boxes": Column("boxes", "spatial detection: boxes in them whose actions were asked for"),
    "val_frame_map": Column("share", "spatial detection: frame mAP at an IoU of 0.5, by `data.val_protocol`"),
}
"""The columns of validation.jsonl, whatever the stage; `val_map_TIOU` is one for each number of `data.val_tious`."""


def validation_column(name: str) -> Column | None:
    """What a column of validation.jsonl says; None where there is no such column."""
    return VALIDATION.get("val_map_TIOU" if re.fullmatch(r"val_map_\d\.\d\d", name) else name)


class ModelFlops(NamedTuple):
    """What speed is measured by."""

    per_clip: int
    """FLOPs of a forward and backward pass of one clip, without recomputation."""
    peak_per_s: float | None
    """What 100 % MFU means for one device; None leaves MFU out."""
    encoder_backward: int = 0
    """FLOPs of `per_clip` that a step does not do while the encoder is frozen."""


class Interval:
    """The steps since the last row: sums kept on the device, so that only log steps wait for it.

    Args:
        state: of the run, which the loop moves on.
    """

    def __init__(self, device: torch.device, plan: RunPlan, flops: ModelFlops, state: TrainState) -> None:
        self._device, self._plan, self._flops, self._state = device, plan, flops, state
        self.begin()

    def begin(self) -> None:
        """Start a new interval."""
        self._before = replace(self._state)
        self._loss = torch.zeros((), device=self._device)
        self._flat_loss = torch.zeros((), device=self._device)
        self._finite = torch.zeros((), device=self._device)
        self._save_s = 0.0
        self._started = time.perf_counter()

    def add(self, out: LossOutput) -> None:
        """Count one micro step; a non-finite loss is left out of the average."""
        loss = out.loss.detach().float()
        finite = torch.isfinite(loss)
        self._loss += torch.where(finite, loss, 0.0)
        self._flat_loss += torch.where(finite, out.flat_loss.float(), 0.0)
        self._finite += finite

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Around what is no training."""
        began = time.perf_counter()
        yield
        self._started += time.perf_counter() - began

    @contextlib.contextmanager
    def saving(self) -> Iterator[None]:
        """Around what a save takes of the training."""
        began = time.perf_counter()
        yield
        self._save_s += time.perf_counter() - began

    def row(
        self,
        ranks: Ranks,
        rate: float,
        result: StepResult,
        wait_s: float,
        worker_memory_gib: Callable[[], tuple[float, float]],
    ) -> Row:
        """The row after the last step, the same on every rank but for its times.

        Args:
            rate: learning rate of the last step.
            result: what became of it.
            wait_s: seconds that this rank waited for data.
            worker_memory_gib: memory of this rank's loader workers: (the largest, all together).
        """
        now, before, plan = self._state, self._before, self._plan
        elapsed_s = time.perf_counter() - self._started
        loss, flat_loss, finite, waited_s, size = ranks.sum(
            float(self._loss), float(self._flat_loss), float(self._finite), wait_s, 1.0
        )
        steps, frozen = max(1, now.step - before.step), max(0, min(now.step, plan.frozen_steps) - before.step)
        step_time_s = elapsed_s / steps
        clips_per_s = plan.global_batch / step_time_s
        per_clip = self._flops.per_clip - self._flops.encoder_backward * frozen / steps
        flops_per_s = per_clip * clips_per_s / plan.world_size
        worker_mem_max_gib, worker_mem_sum_gib = ranks.max(*worker_memory_gib())
        return Row(
            step=now.step,
            epoch=plan.epochs_at(now.step),
            loss=loss / finite if finite else None,
            flat_loss=flat_loss / finite if finite else None,
            step_time_s=step_time_s,
            save_s=self._save_s,
            data_wait_share=min(1.0, waited_s / size / elapsed_s) if elapsed_s else 0.0,
            lr=rate,
            grad_norm=result.grad_norm,
            skipped_steps=now.skipped_steps,
            spikes=now.spikes,
            rollbacks=now.rollbacks,
            bad_videos=now.bad_videos,
            new_bad_videos=now.bad_videos - before.bad_videos,
            source_share=source_shares(now.source_videos, before.source_videos),
            source_videos=now.source_videos,
            worker_mem_max_gib=worker_mem_max_gib,
            worker_mem_sum_gib=worker_mem_sum_gib,
            time=time.time(),
            clips_per_s=clips_per_s,
            flops_per_s=flops_per_s,
            mfu=flops_per_s / self._flops.peak_per_s if self._flops.peak_per_s else None,
        )


def source_shares(now: Mapping[str, int], before: Mapping[str, int]) -> dict[str, float]:
    """Each source's share of the videos between two counts of the whole run."""
    new = {name: count - before.get(name, 0) for name, count in now.items()}
    videos = max(1, sum(new.values()))
    return {name: count / videos for name, count in new.items()}
