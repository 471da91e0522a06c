"""Validation of pre-training: the reconstruction loss on videos that are held back, and on as many that are trained on."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vmae2_ds.config.pretrain import PretrainConfig
from vmae2_ds.console.progress import Ticker, counted, heard
from vmae2_ds.contracts import PretrainBatch
from vmae2_ds.data.feed.ahead import ask_ahead
from vmae2_ds.data.feed.pretrain import MiddleClips
from vmae2_ds.data.sources.inputs import Inputs
from vmae2_ds.data.sources.mixture import Mixture, videos_of_both
from vmae2_ds.dist import Ranks
from vmae2_ds.engine.step import Engine
from vmae2_ds.masking import make_masks
from vmae2_ds.objectives import Reconstruct
from vmae2_ds.train.validate import Validate, batches_of_rank

log = logging.getLogger(__name__)


def held_back_loss(config: PretrainConfig, inputs: Inputs, ranks: Ranks) -> Validate | None:
    """What looks at the validation videos of a run; None, said in the log, where it has none."""
    data, held = config.data, inputs.held_back
    speaks = ranks.rank == 0
    if inputs.validation is not None:
        held = Mixture.of_manifest(inputs.validation, data.reader)
        if speaks and (both := videos_of_both(inputs.validation, inputs.mixture)):
            log.warning(
                "--data.val-manifest: %s of it %s trained on too, such as %s, and val_loss cannot tell what of them is learned "
                "by heart; take them out of one of the lists",
                counted(len(both), "video"), "is" if len(both) == 1 else "are", both[0],
            )  # fmt: skip
    if held is None:
        if data.hold_back and speaks:
            log.warning(
                "no validation: --data.hold-back %g holds back none of %s, which their paths decide; raise it, or name others "
                "with --data.val-manifest",
                data.hold_back, counted(inputs.mixture.num_videos, "video"),
            )  # fmt: skip
        return None
    if inputs.held_back is not None and speaks:
        trained, number = inputs.mixture.num_videos, held.num_videos
        log.info(
            "held back: %d of %s, %.1f %%, by %s; where files are cut from one film, --data.hold-back-by says what they share",
            number, counted(number + trained, "video"), 100 * number / (number + trained), data.hold_back_by,
        )  # fmt: skip
    return HeldBackLoss(config, held, inputs.mixture, ranks).run


class HeldBackLoss:
    """Mean reconstruction loss of one clip of every video of a list, and of as many that are trained on, at even distances."""

    def __init__(self, config: PretrainConfig, held: Mixture, trained: Mixture, ranks: Ranks) -> None:
        self._clips_at_once = config.train.micro_batch * config.data.views
        self._ranks = ranks
        self._held, self._seen = MiddleClips(config, held), MiddleClips(config, trained)
        number = min(held.num_videos, trained.num_videos)
        self._seen_videos = [(2 * place + 1) * trained.num_videos // (2 * number) for place in range(number)]
        blank = torch.zeros((1, config.data.num_frames, config.data.size, config.data.size, 3), dtype=torch.uint8)
        masks = make_masks(config.mask, config.geometry, np.random.default_rng(0))
        self._blank = PretrainBatch.of_clips(
            blank, [masks._replace(is_supervised_M=np.zeros_like(masks.is_supervised_M))]
        )

    def run(self, engine: Engine) -> dict[str, Any]:
        """Loss over the cubes that decoder and not encoder are shown, of the videos that could be read: the same on every rank,
        for any number of ranks and videos at once."""
        videos = self._held.mixture.num_videos
        read, loss = self._loss(engine, self._held, range(videos), "videos validated")
        if read < videos and self._ranks.rank == 0:
            log.warning(
                "%d of %s for validation, of %s, cannot be read and count in no loss: vmae2 data check says which, and why",
                videos - read, counted(videos, "video"), self._held.mixture.name,
            )  # fmt: skip
        _, seen_loss = self._loss(engine, self._seen, self._seen_videos, "trained videos looked at")
        return {"val_videos": read, "val_unreadable": videos - read, "val_loss": loss, "seen_loss": seen_loss}

    @torch.no_grad()
    def _loss(
        self, engine: Engine, clips: MiddleClips, videos: range | list[int], what: str
    ) -> tuple[int, float | None]:
        """(clips that could be read, their mean loss); all ranks have to ask."""
        objective, device, ranks = engine.objective, engine.device, self._ranks
        assert isinstance(objective, Reconstruct), "the objective of this stage"
        totals = torch.zeros(3, dtype=torch.float64)  # clips, cubes, loss

        def read(places: range) -> Iterator[PretrainBatch | None]:
            return clips.iterate([clips.mixture.key_of(videos[place]) for place in places])

        def move(batch: list[PretrainBatch | None]) -> PretrainBatch:
            filled = [*batch, *[None] * (self._clips_at_once - len(batch))]  # one shape for all, as a compiler likes it
            parts = [(self._blank if clip is None else clip).to(device) for clip in filled]
            return PretrainBatch(*(torch.cat(tensors) for tensors in zip(*parts, strict=True)))

        def ask(batch: tuple[Tensor, ...]) -> list[Tensor]:
            shown = PretrainBatch(*batch)
            pred_BMP = objective.model(objective.visible_cubes(shown), shown.visible_BV, shown.decode_BM)
            out = objective.loss_function(pred_BMP, shown, objective.geometry, objective.config.target)
            return [out.loss, out.num_supervised]

        objective.eval()
        ticker = Ticker(log, what, len(videos), draws=False, speaks=ranks.rank == 0)
        done = 0
        with heard(ticker):
            batches = batches_of_rank(read, len(videos), self._clips_at_once, ranks)
            for batch, (loss, cubes) in ask_ahead(batches, move, ask, device):
                found = sum(clip is not None for clip in batch)
                totals += torch.tensor([found, float(cubes), float(loss) * float(cubes)], dtype=torch.float64)
                done += len(batch)
                ticker.tell(min(done * ranks.size, len(videos)))  # the other ranks are about as far
        objective.train()
        read_clips, all_cubes, loss_sum = ranks.sum(*totals.tolist())
        return int(read_clips), loss_sum / all_cubes if all_cubes else None
