"""Configuration of distillation: a supervised run whose student learns what a frozen teacher says of the same clips."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import tyro
from pydantic import Field, model_validator

from vmae2_ds.config.finetune import FinetuneConfig
from vmae2_ds.config.pretrain import StrictModel
from vmae2_ds.config.strict import Amount, ClipLength, Edge, Part
from vmae2_ds.errors import ConfigError

INDEX = "index.json"
"""What is in every folder of a teacher's answers, and says whose they are."""


class DistilSettings(StrictModel):
    """The teacher, what is learned from it, and where its answers are kept."""

    teacher: Annotated[Path | None, tyro.conf.arg(prefix_name=False)] = None
    """The frozen teacher: a run folder or a checkpoint file of a classifier, as --train.init takes them."""
    teacher_precision: Literal["bf16", "fp32"] = "bf16"
    """The teacher's weights and activations."""
    teacher_sharded: bool = False
    """Every rank holds its part of the teacher and gathers a layer's weights while it runs, as ZeRO-3 does; for a teacher that
    does not fit beside the student."""
    teacher_frames: ClipLength | None = None
    """Frames that the teacher sees, evenly out of the student's; default: its run's, a file's own, or the student's."""
    teacher_size: Edge | None = None
    """Height and width that the clip is resized to for the teacher; default: its run's, a file's own, or the student's."""
    teacher_head_map: Path | None = None
    """JSON list (of merge-kinetics): which class of the teacher's head each of the student's classes is, as in K710 -> K400."""
    alpha: Part = 1.0
    """Weight of the teacher's class probabilities; labels have 1 - alpha. At 1 videos need no labels."""
    temperature: float = Field(1.0, ge=1e-3, le=1e3)
    """Both sides' logits are divided by it, and the divergence is multiplied by its square."""
    feature_weight: Amount = 0.0
    """Weight of 1 - cosine between the teacher's pooled feature and the student's, projected to its width; 0: none."""
    cache: Path | None = None
    """Folder of the teacher's answers: `vmae2 distil-cache` fills it, and with it a run needs no teacher."""
    cache_dtype: Literal["float16", "float32"] = "float16"
    """How distil-cache writes answers; float16 loses nothing of a bf16 teacher's, and 1 part in 2048 of an fp32 one's."""


class DistilConfig(FinetuneConfig):
    """Everything that decides a distillation run."""

    stage: tyro.conf.Suppress[Literal["distil"]] = "distil"  # type: ignore[assignment]
    """Which kind of run this is."""
    distil: DistilSettings = DistilSettings()
    """Teacher, weights of the loss, cache of answers."""

    @model_validator(mode="after")
    def _fits_together(self) -> DistilConfig:
        distil, augment = self.distil, self.augment
        if not distil.alpha and not distil.feature_weight:
            raise ValueError(
                "--distil.alpha 0 and --distil.feature-weight 0 leave the teacher unused; that is finetune"
            )
        if distil.cache is not None:
            if distil.teacher_sharded:
                raise ValueError(
                    "--distil.teacher-sharded needs all ranks to ask together, and with --distil.cache each asks about clips "
                    "of its own; leave one of the two out"
                )
            if augment.mix_share and (augment.mixup or augment.cutmix):
                raise ValueError(
                    "--distil.cache holds answers for single clips, and a mixed clip depends on its micro batch; set "
                    "--augment.mixup 0 and --augment.cutmix 0, or leave --distil.cache out"
                )
            if self.data.reader == "auto":
                raise ValueError(
                    "--distil.cache needs the same frames each time; name one --data.reader instead of auto"
                )
        return self


def check_has_teacher(config: DistilConfig, *, must_ask: bool = False) -> None:
    """Raises ConfigError where neither a teacher nor its answers are named; `must_ask`: answers do not do."""
    distil = config.distil
    if distil.teacher is None and (must_ask or distil.cache is None):
        instead = "" if must_ask else " (or its answers, --distil.cache FOLDER)"
        raise ConfigError(f"no teacher named: give --teacher RUN_OR_FILE, a classifier{instead}")
