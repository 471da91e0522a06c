"""Configuration of supervised training: post-pre-training and fine-tuning."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import tyro
from pydantic import Field, model_validator

from vmae2_ds.config.model import ClassifierConfig
from vmae2_ds.config.pretrain import StrictModel
from vmae2_ds.config.ranges import MOST_VIEWS
from vmae2_ds.config.run import DataConfig, OptimConfig, RunConfig, TrainConfig
from vmae2_ds.config.strict import Amount, Part, PartBelow1, Size

Sides = tuple[Annotated[float, Field(ge=0.01, le=100)], Annotated[float, Field(ge=0.01, le=100)]]
Areas = tuple[Annotated[float, Field(gt=0, le=1)], Annotated[float, Field(gt=0, le=1)]]


class HeadlessConfig(ClassifierConfig):
    """A classifier whose head was taken off, the norm behind the pooling kept, as the authors' hub repositories have it."""

    num_classes: int = Field(0, ge=0, le=0)
    """None."""


class LabelledDataConfig(DataConfig):
    """Labelled videos, how clips are drawn from them, and how they are fed."""

    sampling: Literal["stride", "dense", "segments", "spread"] = "dense"
    """dense: evenly over num_frames x stride frames (published for Kinetics, UCF101, HMDB51); segments: one frame of each of
    num_frames equal parts (SSv2); stride and spread as in pre-training."""
    views: int = Field(2, ge=1, le=MOST_VIEWS)
    """Clips cut from one decoded video, each augmented anew (repeated augmentation, published num_sample)."""
    crop_area: Areas = (0.08, 1.0)
    """Random resized crop: smallest and largest share of the picture's area."""
    crop_aspect: Sides = (0.75, 4 / 3)
    """Random resized crop: smallest and largest width over height."""
    flip: Part = 0.5
    """Share of clips mirrored left to right; 0 wherever a label has a side, as in SSv2."""
    labels: Path | None = None
    """A file with a class name a line, in the order of the labels: lists may then name classes instead of numbers, and the
    names are kept with the run."""
    val_manifest: Path | None = None
    """List of validation videos, each seen once in the middle; default: none, the run reports its training loss alone."""
    val_root: Path | None = None
    """Folder that the validation list's relative paths start from; default: data.root, else the list's own."""

    @model_validator(mode="after")
    def _smallest_first(self) -> LabelledDataConfig:
        for name in ("crop_area", "crop_aspect"):
            smallest, largest = getattr(self, name)
            if smallest > largest:
                raise ValueError(f"{name}={smallest:g} {largest:g}: the smallest comes first")
        return self


class AugmentConfig(StrictModel):
    """What is done to training clips and labels."""

    rand_augment: str | None = "rand-m7-n4-mstd0.5-inc1"
    """timm's name of a RandAugment policy, the same draw for all frames of a clip; None: none."""
    erase: Part = 0.25
    """Share of clips in which a random box is replaced by noise, the same box in all frames."""
    mixup: float = Field(0.8, ge=0, le=1000)
    """Alpha of mixup's Beta distribution; 0: no mixup."""
    cutmix: float = Field(1.0, ge=0, le=1000)
    """Alpha of cutmix's Beta distribution; 0: no cutmix."""
    mix_share: Part = 1.0
    """Share of micro batches that are mixed at all."""
    cutmix_share: Part = 0.5
    """Of those, the share that gets cutmix where both are on."""
    label_smoothing: PartBelow1 = 0.1
    """Part of each target that is spread evenly over all classes."""


class FinetuneOptimConfig(OptimConfig):
    """AdamW with layer-wise decay, and a cosine schedule with warm-up, stepped per optimizer step."""

    base_lr: Size = 1e-3
    """Learning rate for lr_batch videos; peak = base_lr x (global_batch / views) / lr_batch (published rule)."""
    min_lr: Amount = 1e-6
    """Final learning rate, scaled by the same rule."""
    warmup_epochs: Amount = 5
    """Linear warm-up from 0, in epochs over the manifest."""
    betas: tuple[PartBelow1, PartBelow1] = (0.9, 0.999)
    """AdamW decay rates of the two moments."""
    layer_decay: float = Field(0.75, gt=0, le=1)
    """Learning rate of each layer as a share of the next one's; 1: the same everywhere."""
    train_only: Literal["all", "head"] = "all"
    """head: the encoder stays as it is and only the norm and the head behind it learn (linear probing)."""
    ema_decay: PartBelow1 = 0.0
    """Decay per step of a running mean of the weights, kept in float32 shards beside the optimizer's; 0: none (published)."""


class FinetuneTrainConfig(TrainConfig):
    """The loop: batch identity, length, precision, ZeRO policy, checkpoints."""

    epochs: Size = 35
    """Passes over the manifest (each video gives `views` clips a pass)."""
    validate_every: Size = 1
    """Epochs between validations on data.val_manifest; there is one at the end either way."""
    head_map: Path | None = None
    """JSON list (of merge-kinetics): the class of the loaded head that each of this run's classes takes over, as in
    K710 -> K400; default: a head of as many classes is kept, another one is drawn anew."""


class ViewsConfig(StrictModel):
    """Multi-view testing."""

    clips: int = Field(5, ge=1, le=MOST_VIEWS)
    """Clips along time."""
    crops: int = Field(3, ge=1, le=MOST_VIEWS)
    """Square crops along the longer side of each; 1: the middle."""
    sampling: Literal["dense", "segments"] = "dense"
    """dense: every stride-th frame, clips at even distances (published 5x3); segments: interleaved frames of the whole video
    (published 2x3 for SSv2)."""
    views_at_once: int = Field(8, ge=1, le=2**20)
    """Views of a video in one forward pass."""
    max_bad_share: Part = 0.0
    """The evaluation fails when more than this share of the videos could not be read; each is named either way."""


class FinetuneConfig(RunConfig):
    """Everything that decides a supervised run."""

    stage: tyro.conf.Suppress[Literal["finetune"]] = "finetune"
    """Which kind of run this is."""
    model: ClassifierConfig
    """Shape, head and attention."""
    data: LabelledDataConfig = LabelledDataConfig()
    """Videos and clips."""
    augment: AugmentConfig = AugmentConfig()
    """Training clips and labels."""
    optim: FinetuneOptimConfig = FinetuneOptimConfig()
    """AdamW and its schedule."""
    train: FinetuneTrainConfig = FinetuneTrainConfig()
    """Batch, length, ZeRO, checkpoints."""
    test: ViewsConfig = ViewsConfig()
    """How `vmae2 evaluate` tests this model."""
