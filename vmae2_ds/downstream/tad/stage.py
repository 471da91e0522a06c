"""The stage "tad": training a detection head on features of long videos, validated by mAP."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

from torch import Tensor, nn

from vmae2_ds.config.tad import TadConfig, TadDataConfig
from vmae2_ds.contracts import Movable, TadBatch, TadFramesBatch
from vmae2_ds.cost.pyramid import pyramid_macs
from vmae2_ds.data.sources.inputs import Inputs
from vmae2_ds.data.sources.manifest import Manifest
from vmae2_ds.data.sources.mixture import Mixture
from vmae2_ds.dist import Ranks
from vmae2_ds.downstream.tad.annotations import AMBIGUOUS, Annotations
from vmae2_ds.downstream.tad.detections import Detections
from vmae2_ds.downstream.tad.detector import Found, detect_videos, files_of
from vmae2_ds.downstream.tad.end_to_end import end_to_end
from vmae2_ds.downstream.tad.features_data import FeaturesDataset
from vmae2_ds.downstream.tad.losses import next_normaliser
from vmae2_ds.downstream.tad.objective import DetectActions, tad_objective
from vmae2_ds.downstream.tad.score import TadScores, score_detections
from vmae2_ds.downstream.tad.videos import annotations_of, feature_info, name_of
from vmae2_ds.engine.step import Engine
from vmae2_ds.train.normaliser import Normaliser
from vmae2_ds.train.optim import parameter_groups
from vmae2_ds.train.stage import Extras, LossWords, Stage, Training
from vmae2_ds.train.validate import Validate

ONE_CLASS = "action"
"""The label of a head that tells actions from background alone."""


def tad_stage(config: TadConfig) -> Stage:
    """What training a detection head brings to a session."""
    head = config.model.head
    macs = pyramid_macs(head, config.model.encoder.width, config.model.num_classes, config.data.length)

    def validation(inputs: Inputs, ranks: Ranks) -> Validate | None:
        return None if inputs.validation is None else MapValidation(config, inputs.validation, ranks).run

    def extras(mixture: Mixture, ranks: Ranks) -> Extras:
        del mixture, ranks
        info = feature_info(config.data, config.model.encoder.width)
        about = f"features of {config.data.features}: {info.model}, {info.grid} grid, {info.window} frames every {info.stride}"
        return Extras(identity={"features": info.model_dump(mode="json", exclude={"model", "made_by"})}, about=(about,))

    stage = Stage(
        dataset=lambda mixture: FeaturesDataset(config, mixture),
        attention_shapes=lambda plan: (),
        forward_macs=macs,
        about_clip=f"features come from files, {config.data.length} positions at a time, {config.model.num_classes} classes",
        has_draws=head.drop_path > 0 or head.input_noise > 0,
        needs_init=False,
        ema_decay=config.optim.ema_decay,
        normaliser=Normaliser(config.loss.normaliser_start, partial(next_normaliser, config=config.loss), count),
        validation=validation,
        validates_mean=True,
        extras=extras,
    )
    return end_to_end(stage, config) if config.model.is_end_to_end else stage


def count(objective: nn.Module, batch: Movable) -> Tensor:
    """Points of a micro batch that learn an action."""
    assert isinstance(objective, DetectActions), "the objective of this stage"
    assert isinstance(batch, TadBatch | TadFramesBatch), "what its data set collates"
    return objective.count(batch)


class MapValidation:
    """mAP on the videos of `data.val_subset`; raises ConfigError or DataError as `feature_info`."""

    def __init__(self, config: TadConfig, manifest: Manifest, ranks: Ranks) -> None:
        self._config, self._ranks = config, ranks
        annotations = annotations_of(config.data)
        self._annotations = of_one_class(annotations) if config.model.num_classes == 1 else annotations
        self._names = [name_of(entry.path) for entry in manifest]
        self._files = files_of(config, annotations.videos)

    def run(self, engine: Engine) -> dict[str, Any]:
        """Figures over all videos of the subset, the same on every rank; those that could not be read have no detections."""
        objective = engine.objective
        assert isinstance(objective, DetectActions), "the objective of this stage"
        labels = self._annotations.class_names
        found = detect_videos(objective, self._files, self._names, labels, self._config, self._ranks)
        return self._ranks.from_first(lambda: self._figures(found))

    def _figures(self, found: Found | None) -> dict[str, Any]:
        assert found is not None, "rank 0 has them"
        scores = scores_of(self._annotations, found.detections, self._config.data)
        return {
            "val_videos": len(self._names),
            "val_unreadable": len(found.failures),
            "val_detections": len(found.detections),
            "val_map": scores.average_map,
            **{f"val_map_{tiou:.2f}": value for tiou, value in scores.map_of.items()},
        }


def scores_of(truth: Annotations, found: Detections, data: TadDataConfig) -> TadScores:
    """mAP as ActivityNet counts it; what is Ambiguous counts neither as truth nor as a class."""
    return score_detections(
        truth, found, subset=data.val_subset, tious=data.val_tious, without=(AMBIGUOUS,), drop_unknown=True
    )


def of_one_class(annotations: Annotations) -> Annotations:
    """The same segments, all of them with the label ONE_CLASS."""
    videos = {
        name: replace(video, segments=tuple(segment._replace(label=0) for segment in video.segments))
        for name, video in annotations.videos.items()
    }
    return replace(annotations, labels=(ONE_CLASS,), label_ids=(None,), videos=videos)


def groups(objective: nn.Module, config: TadConfig) -> list[dict[str, Any]]:
    """Parameter groups with and without weight decay: biases, norms, gains and scales of levels have none, as published.

    Adapters have groups and a learning rate of their own.
    """
    found = parameter_groups(objective, config.optim.weight_decay)
    return [part for group in found for part in _adapters_apart(group, config.model.adapters.lr_scale)]


def _adapters_apart(group: dict[str, Any], scale: float) -> list[dict[str, Any]]:
    parts = []
    for is_adapter in (False, True):
        pairs = [
            pair
            for pair in zip(group["param_names"], group["params"], strict=True)
            if pair[0].startswith("model.adapters.") == is_adapter
        ]
        if pairs:
            names, parameters = map(list, zip(*pairs, strict=True))
            lr_scale = group["lr_scale"] * (scale if is_adapter else 1)
            parts.append({**group, "params": parameters, "param_names": names, "lr_scale": lr_scale})
    return parts


def loss_words(config: TadConfig) -> LossWords:
    """What a report calls the loss."""
    return LossWords(
        f"focal + {config.loss.regression.upper()} of the ends", "no ends found", "first weights, no end near"
    )


TAD_TRAINING = Training(tad_stage, tad_objective, groups, loss_words)
