"""Validation while training, when it is due: the middle clip of every video once, through the engine at any ZeRO stage."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from itertools import chain, islice, repeat
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor

from vmae2_ds.config.finetune import FinetuneConfig
from vmae2_ds.config.run import RunConfig
from vmae2_ds.config.run_plan import RunPlan
from vmae2_ds.console.progress import Ticker, heard
from vmae2_ds.data.feed.ahead import ask_ahead
from vmae2_ds.data.feed.views import ViewedVideo, ViewsDataset
from vmae2_ds.data.sources.manifest import Manifest
from vmae2_ds.dist import Ranks
from vmae2_ds.engine.step import Engine
from vmae2_ds.guard.by_heart import ByHeartWatch
from vmae2_ds.objectives import Classify
from vmae2_ds.train.metrics import MetricsWriter
from vmae2_ds.train.row import validation_column

log = logging.getLogger(__name__)

T = TypeVar("T")
Validate = Callable[[Engine], dict[str, Any]]
"""A row of figures, the same on every rank."""


class Validation:
    """Accuracy on a list of videos; raises ConfigError where its labels are no classes of the model."""

    def __init__(self, config: FinetuneConfig, manifest: Manifest, ranks: Ranks) -> None:
        data = config.data
        self.dataset = ViewsDataset(config, manifest, None)
        self._videos_at_once = config.train.micro_batch * data.views
        self._ranks = ranks

    @torch.no_grad()
    def run(self, engine: Engine) -> dict[str, Any]:
        """Top-1, top-5 and cross entropy over the videos that could be read, the same on every rank.

        All ranks make the same number of forward passes, which ZeRO-3 gathers weights for: short shards are filled up
        with blank clips that do not count.
        """
        objective, device = engine.objective, engine.device
        assert isinstance(objective, Classify), "only a classifier is validated"
        data, videos = self.dataset.data, len(self.dataset)
        blank = torch.zeros((data.num_frames, data.size, data.size, 3), dtype=torch.uint8)
        totals = torch.zeros(4, dtype=torch.float64)  # videos, right, right among five, loss

        def move(batch: list[ViewedVideo | None]) -> Tensor:
            clips = [blank if video is None or video.clip_KTHWC is None else video.clip_KTHWC[0] for video in batch]
            return torch.stack([clip.to(device, non_blocking=True) for clip in clips])

        def ask(clip_BTHWC: Tensor) -> list[Tensor]:
            return [objective.logits(clip_BTHWC)]

        objective.eval()
        ticker = Ticker(log, "videos validated", videos, draws=False, speaks=self._ranks.rank == 0)
        done = 0
        with heard(ticker):
            batches = batches_of_rank(self.dataset.iterate, videos, self._videos_at_once, self._ranks)
            for batch, (logits_BC,) in ask_ahead(batches, move, ask, device):
                found = [(at, video) for at, video in enumerate(batch) if video and video.clip_KTHWC is not None]
                label_B = torch.tensor([video.label for _, video in found], dtype=torch.int64)
                logits_BC = logits_BC[[at for at, _ in found]]
                best_B5 = logits_BC.topk(min(5, logits_BC.shape[1])).indices
                right_B5 = best_B5 == label_B[:, None]
                loss = F.cross_entropy(logits_BC, label_B, reduction="sum")
                totals += torch.tensor([len(found), right_B5[:, :1].sum(), right_B5.sum(), loss], dtype=torch.float64)
                done += len(batch)
                ticker.tell(min(done * self._ranks.size, videos))  # the other ranks are about as far
        objective.train()
        seen, right, right_of_five, loss_sum = self._ranks.sum(*totals.tolist())
        return {
            "val_videos": int(seen),
            "val_unreadable": videos - int(seen),
            "val_top1": right / seen if seen else None,
            "val_top5": right_of_five / seen if seen else None,
            "val_loss": loss_sum / seen if seen else None,
        }


def batches_of_rank(
    read: Callable[[range], Iterator[T]], videos: int, at_once: int, ranks: Ranks
) -> Iterator[list[T | None]]:
    """This rank's part of so many videos, `at_once` in a batch: as many batches, of the same sizes, on every rank.

    None fills short parts up: all ranks make the same number of forward passes, which ZeRO-3 gathers weights for.
    """
    rows = range(ranks.rank, videos, ranks.size)
    items = chain(read(rows), repeat(None, -(-videos // ranks.size) - len(rows)))
    while batch := list(islice(items, at_once)):
        yield batch


class ScheduledValidation:
    """When validation is due in a run, its file and its line in the log."""

    def __init__(
        self, validate: Validate, config: RunConfig, plan: RunPlan, file: MetricsWriter | None, *, first: bool = False
    ) -> None:
        """`file` on rank 0 alone. `first`: there is one before the first step, too."""
        self._validate, self._config, self._plan, self._file = validate, config, plan, file
        self._validates_first = first
        self._watch = self._watch_again()

    def are_due(self, step: int) -> bool:
        """Whether one follows this step."""
        return is_due(step, self._plan.steps_per_epoch, self._config.train.validate_every, self._plan.num_steps)

    def are_first(self, step: int, ranks: Ranks) -> bool:
        """Whether one stands before the first step, and none is written of this step yet; all ranks have to ask."""
        rows = ranks.from_first(lambda: [] if self._file is None else [row["step"] for row in self._file.rows()])
        return self._validates_first and step == self._plan.first_step and step not in rows

    def run(self, step: int, engine: Engine) -> dict[str, Any]:
        """All ranks have to ask for it."""
        figures = self._validate(engine)
        unknown = [name for name in figures if validation_column(name) is None]
        assert not unknown, f"what {unknown} are stands in VALIDATION, train/row.py"
        if self._file is not None:
            row = {"step": step, "epoch": self._plan.epochs_at(step), **figures}
            self._file.write(row)
            log.info("step %d: %s", step, ", ".join(f"{key} {_short(value)}" for key, value in figures.items()))
            if advice := self._watch.row(row):
                log.warning("%s", advice)
        return figures

    def go_back(self, step: int) -> None:
        """Forget what was found after this step."""
        if self._file is not None:
            self._file.go_back(step)
            self._watch = self._watch_again()

    def _watch_again(self) -> ByHeartWatch:
        """A watch that has seen what stands in the file, and said what there was to say of it."""
        watch = ByHeartWatch(self._config)
        for row in [] if self._file is None else self._file.rows():
            watch.row(row)
        return watch

    def close(self) -> None:
        """Write what is left."""
        if self._file is not None:
            self._file.close()


def is_due(step: int, steps_per_epoch: float, every_epochs: float, last_step: int) -> bool:
    """Whether the step that was just finished is the first after a multiple of `every_epochs`, or the last of all."""
    every = steps_per_epoch * every_epochs
    return step == last_step or int(step / every) > int((step - 1) / every)


def _short(value: float | None) -> str:
    return "-" if value is None else f"{value:.4g}"
