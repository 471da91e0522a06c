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
    """Teacher, weights of the loss, and cache of the teacher's answers."""

    teacher: Annotated[Path | None, tyro.conf.arg(prefix_name=False)] = None
    """The frozen teacher, a classifier: a run folder, an exported file or a published checkpoint."""
    teacher_precision: Literal["bf16", "fp32"] = "bf16"
    """Number format of the teacher's weights and activations."""
    teacher_sharded: bool = False
    """Split the teacher's weights over the ranks and gather one layer at a time, as ZeRO-3 does; for a teacher that does
    not fit beside the student."""
    teacher_frames: ClipLength | None = None
    """Number of frames that the teacher sees, taken evenly from the student's. Default: what the teacher was trained with,
    where its run or file says so, else the student's."""
    teacher_size: Edge | None = None
    """Height and width in pixels that clips are resized to for the teacher. Default: what the teacher was trained with,
    where its run or file says so, else the student's."""
    teacher_head_map: Path | None = None
    """JSON list (written by `vmae2 data merge-kinetics`) that gives, for each class of the student, the class of the
    teacher's head, as from K710 to K400."""
    alpha: Part = 1.0
    """Weight of the teacher's class probabilities in the loss; the labels get 1 - alpha. With 1 the videos need no labels."""
    temperature: float = Field(1.0, ge=1e-3, le=1e3)
    """Temperature that both sides' logits are divided by; the divergence is multiplied by its square."""
    feature_weight: Amount = 0.0
    """Weight of a second loss, 1 - cosine between the teacher's pooled feature and the student's, projected to the same
    width; 0 turns it off."""
    cache: Path | None = None
    """Folder of the teacher's saved answers, filled by `vmae2 distil-cache`; a run that has it needs no teacher."""
    cache_dtype: Literal["float16", "float32"] = "float16"
    """Number format in which distil-cache saves answers. float16 keeps those of a bf16 teacher exactly, and those of an
    fp32 one within 1 part in 2048."""


class DistilConfig(FinetuneConfig):
    """Everything that decides a distillation run."""

    stage: tyro.conf.Suppress[Literal["distil"]] = "distil"  # type: ignore[assignment]
    """Which kind of run this is."""
    distil: DistilSettings = DistilSettings()
    """Teacher, weights of the loss, and cache of the teacher's answers."""

    @property
    def learnt_classes(self) -> int | None:
        """None where the teacher's answers are all that is learnt."""
        return self.classes if self.distil.alpha < 1 else None

    @property
    def read_at_the_start(self) -> dict[str, Path | None]:
        """Files that a start reads: those of fine-tuning, and the teacher's."""
        teacher = {"--teacher": self.distil.teacher, "--distil.teacher-head-map": self.distil.teacher_head_map}
        return {**super().read_at_the_start, **teacher}

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
