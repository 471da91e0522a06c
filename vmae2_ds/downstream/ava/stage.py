"""The stage "ava": training an encoder and a head on boxes to say what people do, validated by frame mAP."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import nn

from vmae2_ds.config.ava import AvaConfig
from vmae2_ds.console.progress import Ticker, heard
from vmae2_ds.cost.flops import classifier_macs
from vmae2_ds.data.sources.inputs import Inputs
from vmae2_ds.data.sources.mixture import Mixture
from vmae2_ds.dist import Ranks
from vmae2_ds.downstream.ava.clip_files import KeyFrameList
from vmae2_ds.downstream.ava.dataset import KeyFrameClips, KeyFrameDataset
from vmae2_ds.downstream.ava.detector import FoundInFrame, chunks_of, name_actions
from vmae2_ds.downstream.ava.found_rows import found_rows
from vmae2_ds.downstream.ava.objective import NameActions, ava_objective, boxes_of_a_step
from vmae2_ds.downstream.ava.score import FrameScores, score_frames
from vmae2_ds.downstream.ava.videos import actions_of, label_map_of, validation_truth
from vmae2_ds.engine.step import Engine
from vmae2_ds.train.build import tower_shape
from vmae2_ds.train.optim import parameter_groups
from vmae2_ds.train.stage import Extras, LossWords, Stage, Training
from vmae2_ds.train.validate import Validate

log = logging.getLogger(__name__)


def ava_stage(config: AvaConfig) -> Stage:
    """What training on boxes brings to a session."""
    model = config.model

    def validation(inputs: Inputs, ranks: Ranks) -> Validate | None:
        manifest = inputs.validation
        if manifest is None:
            return None
        assert isinstance(manifest, KeyFrameList), "what open_videos gives"
        return FrameMapValidation(config, manifest, ranks).run

    def extras(mixture: Mixture, ranks: Ranks) -> Extras:
        del mixture, ranks
        return Extras(identity={"actions": actions_of(label_map_of(config))})

    return Stage(
        dataset=lambda mixture: KeyFrameDataset(config, mixture),
        attention_shapes=lambda plan: (
            tower_shape(model.encoder, config.geometry.num_cubes, plan.clips_per_micro_step),
        ),
        forward_macs=classifier_macs(model, config.geometry),
        about_clip=f"the encoder sees all, the head people in boxes: {model.num_classes} actions",
        has_draws=model.drop_path > 0 or model.head.dropout > 0,
        ema_decay=config.optim.ema_decay,
        normaliser=boxes_of_a_step() if config.loss.mean_over == "boxes" else None,
        validation=validation,
        validates_mean=True,
        extras=extras,
    )


class FrameMapValidation:
    """Frame mAP on the key frames of `data.val_truth`."""

    def __init__(self, config: AvaConfig, manifest: KeyFrameList, ranks: Ranks) -> None:
        """Raises DataError for truth that `data.val_protocol` cannot score."""
        self._config, self._ranks, self._frames = config, ranks, manifest.key_frames
        self._truth = validation_truth(config.data, self._frames)
        self._clips = KeyFrameClips(config, manifest)
        self._scored([None] * len(self._frames))  # truth that cannot be scored is refused before anything is learnt

    def run(self, engine: Engine) -> dict[str, Any]:
        """Figures over all key frames, the same on every rank; those that could not be read have no detections."""
        objective, ranks = engine.objective, self._ranks
        assert isinstance(objective, NameActions), "the objective of this stage"
        chunks = chunks_of(range(len(self._frames)), self._config.train.micro_batch)
        ticker = Ticker(log, "key frames validated", len(self._frames), draws=False, speaks=ranks.rank == 0)
        found: list[FoundInFrame] = []
        with heard(ticker):
            for one in name_actions(objective, self._clips, chunks[ranks.rank :: ranks.size], ranks):
                found.append(one)
                ticker.tell(min(len(found) * ranks.size, len(self._frames)))  # the other ranks are about as far
        parts = ranks.gather(found)
        return ranks.from_first(lambda: self._figures([one for part in parts or [] for one in part]))

    def _figures(self, found: Sequence[FoundInFrame]) -> dict[str, Any]:
        in_order = [one.probability_GC for one in sorted(found, key=lambda one: one.row)]
        return {
            "val_key_frames": len(self._frames),
            "val_unreadable": sum(one.reason is not None for one in found),
            "val_boxes": len(self._frames.box_N4),
            "val_frame_map": self._scored(in_order).frame_map,
        }

    def _scored(self, probability_FGC: Sequence[NDArray[np.float32] | None]) -> FrameScores:
        data = self._config.data
        rows = found_rows(self._frames, probability_FGC, person_score=data.person_score)
        return score_frames(self._truth, rows, self._frames.label_map, protocol=data.val_protocol)


def groups(objective: nn.Module, config: AvaConfig) -> list[dict[str, Any]]:
    """Parameter groups by layer, with and without weight decay."""
    return parameter_groups(objective, config.optim.weight_decay, config.optim.layer_decay, config.model.encoder.depth)


def loss_words(config: AvaConfig) -> LossWords:
    """What a report calls the loss."""
    parts = "binary cross-entropy"
    if config.model.exclusive:
        alone = len(config.model.exclusive) < config.model.num_classes
        parts = f"{parts} and cross-entropy" if alone else "cross-entropy"
    per = "clip" if config.loss.mean_over == "clips" else "box"
    return LossWords(f"{parts} of the boxes, mean over actions, per {per}", "equal chances", "equal chances")


AVA_TRAINING = Training(ava_stage, ava_objective, groups, loss_words)
