"""The frozen teacher of distillation: opened once, sent to all ranks, asked about the clips that the student sees.

It is no part of the objective, so that the student's engine neither partitions, optimises nor saves it; what it says comes
with the batch. Every rank holds all of it, or with `distil.teacher_sharded` its part, under an engine of its own.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vmae2_ds.checkpoint.hashed_files import digest_of
from vmae2_ds.config.distil import DistilConfig, check_has_teacher
from vmae2_ds.config.finetune import FinetuneConfig
from vmae2_ds.contracts import LabelledBatch, TaughtBatch
from vmae2_ds.cost.flops import classifier_macs
from vmae2_ds.dist import Ranks, default_device
from vmae2_ds.engine.partitioned import FrozenShards
from vmae2_ds.errors import ConfigError
from vmae2_ds.model.embed import is_resized, unit_pixels
from vmae2_ds.objectives import Classify
from vmae2_ds.runs.open import bare_classifier, classifier_of, mapped_head, open_classifier, read_head_map
from vmae2_ds.weights.layouts import StateDict

# B clips, T frames, H x W pixels, S the clip's edge, C classes, E the teacher's width.


class TeacherCard(NamedTuple):
    """Who the teacher is, without its weights."""

    source: Path
    config: FinetuneConfig
    """Config of the teacher: model, clip, precision."""
    macs: int
    """Multiply-accumulates of the teacher's forward pass on one clip."""
    digest: str
    """SHA-256 of its weights' names and float32 values, in hex: the same for a run and for a file exported from it."""

    def identity(self) -> dict[str, Any]:
        """What decides its answers, as plain JSON."""
        model = self.config.model.model_dump(
            mode="json", include={"encoder", "patch", "tubelet", "positions_from", "num_classes"}
        )
        if is_resized(self.config.model):  # only then: what was noted before there was a choice stays true
            model["positions"] = self.config.model.positions
        clip = self.config.data.model_dump(include={"num_frames", "size"})
        return {"weights": self.digest, "precision": self.config.train.precision, **clip, **model}


def open_teacher(config: DistilConfig) -> tuple[TeacherCard, StateDict]:
    """The teacher that the run names, and its weights.

    Raises:
        ConfigError: none is named; it has no classes, or other classes than the student; its clip cannot be made out of
            the student's.
        CheckpointError: it cannot be read.
    """
    distil, student = config.distil, config.data
    check_has_teacher(config, must_ask=distil.cache is not None)
    assert distil.teacher is not None, "just checked"
    found, weights, _ = open_classifier(distil.teacher, student)
    model = found.model
    if distil.teacher_head_map is not None:
        setting = "--distil.teacher-head-map"
        head_map = read_head_map(distil.teacher_head_map, config.model.num_classes, setting)
        weights = weights | mapped_head(weights, head_map, distil.teacher, setting)
        model = model.model_copy(update={"num_classes": len(head_map)})
    check_classes(model.num_classes, config, str(distil.teacher))
    frames, size = distil.teacher_frames or found.data.num_frames, distil.teacher_size or found.data.size
    if student.num_frames % frames:
        raise ConfigError(
            f"the teacher {distil.teacher} sees {frames} frames, and the student's clip of {student.num_frames} does not hold "
            f"them at even steps; set --data.num-frames to a multiple of {frames}, or --distil.teacher-frames to what divides "
            f"{student.num_frames}"
        )
    taught = FinetuneConfig(model=model, data=found.data).changed(
        data={"num_frames": frames, "size": size}, train={"precision": distil.teacher_precision}
    )
    try:
        macs = classifier_macs(model, taught.geometry)
    except ConfigError as error:
        said = (
            str(error)
            .replace("--data.num-frames", "--distil.teacher-frames")
            .replace("--data.size", "--distil.teacher-size")
        )
        raise ConfigError(f"the clip of the teacher {distil.teacher}: {said}; see --distil.teacher-size") from None
    return TeacherCard(distil.teacher, taught, macs, digest_of(weights)), weights


def check_classes(num_classes: int, config: DistilConfig, teacher: str) -> None:
    """Raises ConfigError where the teacher's answers are of other classes than the student's."""
    if num_classes != config.model.num_classes:
        raise ConfigError(
            f"the teacher {teacher} has {num_classes} classes, and the student --model.num-classes {config.model.num_classes}; "
            "set --model.num-classes, or map the teacher's with --distil.teacher-head-map"
        )


class Teacher:
    """A classifier in inference on this rank's device: a micro batch in, the same with its answers out.

    Args:
        card: on every rank.
        weights: on rank 0; the others get them from it.
        features: whether its pooled feature is asked for beside its logits.
        sharded: whether each rank holds a part; all ranks then have to ask together.
    """

    def __init__(
        self, card: TeacherCard, weights: StateDict | None, ranks: Ranks, *, features: bool, sharded: bool = False
    ) -> None:
        self.card, self._features = card, features
        self.shards: FrozenShards | None = None
        if sharded:

            def fill(objective: nn.Module, name: str, parameter: Tensor) -> None:
                del objective
                assert weights is not None, "called on rank 0 alone"
                parameter.copy_(weights[name.removeprefix("model.")])

            self.shards = FrozenShards(
                partial(bare_classifier, card.config), fill, bf16=card.config.train.precision == "bf16"
            )
            module = self.shards.module
            assert isinstance(module, Classify), "what bare_classifier makes"
            self.objective = module
            return
        self.objective = classifier_of(card.config, weights).requires_grad_(False)
        if ranks.size > 1:
            for parameter in self.objective.parameters():
                torch.distributed.broadcast(parameter.data, src=0)

    @classmethod
    def of(cls, config: DistilConfig, ranks: Ranks) -> Teacher:
        """Read on rank 0, with errors raised on all ranks. Errors as `open_teacher`."""
        opened: list[StateDict] = []

        def read() -> TeacherCard:
            card, weights = open_teacher(config)
            opened.append(weights)
            return card

        card = ranks.from_first(read)
        weights, distil = opened[0] if opened else None, config.distil
        return cls(card, weights, ranks, features=distil.feature_weight > 0, sharded=distil.teacher_sharded)

    def __call__(self, batch: LabelledBatch) -> TaughtBatch:
        """The clips as they are, mixed as the student's are; on the teacher's device."""
        batch = batch.to(default_device())
        logits_BC, feature_BE = self.answers(batch)
        return TaughtBatch(*batch, logits_BC, feature_BE)

    def answers(self, batch: LabelledBatch) -> tuple[Tensor, Tensor]:
        """Logits (B, C) and pooled feature (B, E), float32; E = 0 where it is not asked for."""
        data = self.card.config.data
        with torch.inference_mode():
            clip_BTHWC = fit_clips(batch.clip_BTHWC, data.num_frames, data.size)
            mixed_BNP = self.objective.mixed_cubes(batch._replace(clip_BTHWC=clip_BTHWC))
            feature_BE = self.objective.model.features(mixed_BNP)
            logits_BC = self.objective.model.classify(feature_BE)
        # copies: what inference mode made cannot be kept for a backward pass
        feature_BE = feature_BE if self._features else feature_BE[:, :0]
        return logits_BC.clone().float(), feature_BE.clone().float()


def fit_clips(clip_BTHWC: Tensor, num_frames: int, size: int) -> Tensor:
    """Every (T / num_frames)-th frame, resized: as it is where nothing has to be done, else float32 in [0, 1].

    Bilinear with antialias, on the clips' device. It is linear, so that a mixed clip stays the same mixture.
    """
    clip_BTHWC = clip_BTHWC[:, :: clip_BTHWC.shape[1] // num_frames]
    if clip_BTHWC.shape[2:4] == (size, size):
        return clip_BTHWC
    frames_XCHW = unit_pixels(clip_BTHWC).flatten(0, 1).permute(0, 3, 1, 2)
    resized_XCSS = F.interpolate(frames_XCHW, size=(size, size), mode="bilinear", antialias=True)
    return resized_XCSS.permute(0, 2, 3, 1).unflatten(0, clip_BTHWC.shape[:2])
