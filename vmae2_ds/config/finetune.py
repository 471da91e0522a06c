"""Configuration of supervised training: post-pre-training and fine-tuning."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import tyro
from pydantic import Field, model_validator

from vmae2_ds.config.model import ClassifierConfig
from vmae2_ds.config.pretrain import StrictModel
from vmae2_ds.config.run import ListedValidation, OptimConfig, RunConfig, Sampling, TrainConfig
from vmae2_ds.config.strict import Amount, Count, Part, PartBelow1, Size, Views

Sides = tuple[Annotated[float, Field(ge=0.01, le=100)], Annotated[float, Field(ge=0.01, le=100)]]
Areas = tuple[Annotated[float, Field(gt=0, le=1)], Annotated[float, Field(gt=0, le=1)]]


class HeadlessConfig(ClassifierConfig):
    """A classifier whose head was taken off, the norm behind the pooling kept, as the authors' hub repositories have it."""

    num_classes: int = Field(0, ge=0, le=0)
    """Number of classes: 0, since there is no head."""


class LabelledDataConfig(ListedValidation):
    """Labelled videos, how clips are drawn from them, and how they are fed."""

    sampling: Sampling = "dense"
    """Which frames make a clip. dense: num_frames spread evenly over num_frames x stride frames (published for Kinetics,
    UCF101, HMDB51); segments: one frame from each of num_frames equal parts of the video (SSv2); stride: frames a fixed
    step apart; spread: num_frames spread evenly over 60 to 100 % of the video."""
    views: Views = 2
    """Number of clips cut from each decoded video, every one augmented independently (repeated augmentation; num_sample in
    the published code)."""
    crop_area: Areas = (0.08, 1.0)
    """Random resized crop: smallest and largest share of the picture's area that is cut out."""
    crop_aspect: Sides = (0.75, 4 / 3)
    """Random resized crop: smallest and largest ratio of width to height."""
    flip: Part = 0.5
    """Share of clips mirrored left to right. Set it to 0 where left and right carry meaning, as in SSv2."""
    labels: Path | None = None
    """Text file with one class name per line, in the order of the label numbers. Lists may then give class names instead
    of numbers, and the names are saved with the run."""

    @model_validator(mode="after")
    def _smallest_first(self) -> LabelledDataConfig:
        for name in ("crop_area", "crop_aspect"):
            smallest, largest = getattr(self, name)
            if smallest > largest:
                raise ValueError(f"{name}={smallest:g} {largest:g}: the smallest comes first")
        return self


class AugmentConfig(StrictModel):
    """Augmentation of training clips and labels."""

    rand_augment: str | None = "rand-m7-n4-mstd0.5-inc1"
    """RandAugment policy in timm's notation, drawn once per clip and applied to all its frames; None turns it off."""
    erase: Part = 0.25
    """Share of clips in which a random box, the same in all frames, is replaced by noise."""
    mixup: float = Field(0.8, ge=0, le=1000)
    """Alpha of the Beta distribution that mixup draws its mixing factor from; 0 turns mixup off."""
    cutmix: float = Field(1.0, ge=0, le=1000)
    """Alpha of the Beta distribution that cutmix draws the size of its box from; 0 turns cutmix off."""
    mix_share: Part = 1.0
    """Share of micro batches that mixup or cutmix is applied to."""
    cutmix_share: Part = 0.5
    """Where both are on: share of the mixed micro batches that get cutmix; the others get mixup."""
    label_smoothing: PartBelow1 = 0.1
    """Part of each target's probability that is spread evenly over all classes."""


class FinetuneOptimConfig(OptimConfig):
    """AdamW with layer-wise decay, and a cosine schedule with warm-up, stepped per optimizer step."""

    base_lr: Size = 1e-3
    """Learning rate for a batch of --optim.lr-batch videos; the peak used is base_lr x (global_batch / views) / lr_batch
    (published rule)."""
    min_lr: Amount = 1e-6
    """Learning rate at the end of the cosine schedule, for a batch of --optim.lr-batch videos; scaled to the batch used as
    base_lr is."""
    warmup_epochs: Amount = 5
    """Length of the linear warm-up from learning rate 0, in passes over the data."""
    betas: tuple[PartBelow1, PartBelow1] = (0.9, 0.999)
    """AdamW's decay rates for the mean of the gradient and for the mean of its square."""
    layer_decay: float = Field(0.75, gt=0, le=1)
    """Learning rate of each layer divided by that of the layer above it; 1 gives all layers the same rate."""
    train_only: Literal["all", "head"] = "all"
    """Which weights learn. all: the whole model; head: only the final norm and the head, on a frozen encoder (linear
    probing)."""
    last_blocks: Count | None = None
    """Learn only so many of the encoder's last blocks, with the final norm and the head; default: what --optim.train-only
    says."""
    ema_decay: PartBelow1 = 0.0
    """Decay per step of an exponential moving average of the weights, kept in float32 and sharded like the optimizer
    states; 0 keeps none (published)."""


class FinetuneTrainConfig(TrainConfig):
    """The loop: batch identity, length, precision, ZeRO policy, checkpoints."""

    epochs: Size = 35
    """Length of the run in passes over the data; each video gives `views` clips per pass."""
    head_map: Path | None = None
    """JSON list (written by `vmae2 data merge-kinetics`) that gives, for each class of this run, the class of the loaded
    head whose weights it takes, as from K710 to K400. Default: a head with the same number of classes is kept, any
    other is initialised from scratch."""


ViewSampling = Literal["dense", "segments"]
"""A way to place the clips of a test over a video (data/clips/sampling.py:TEST_SAMPLERS)."""


class ViewsConfig(StrictModel):
    """Multi-view testing: a video's score is the mean over several clips and crops of it."""

    clips: Views = 5
    """Number of clips along time."""
    crops: Views = 3
    """Number of square crops along the longer side of each clip; 1 takes the middle."""
    sampling: ViewSampling = "dense"
    """Which frames make the test clips. dense: every stride-th frame, clips at equal distances (published 5 x 3);
    segments: interleaved frames of the whole video (published 2 x 3 for SSv2)."""
    views_at_once: int = Field(8, ge=1, le=2**20)
    """Number of views of a video in one forward pass; lower it when memory runs out."""
    max_bad_share: Part = 0.0
    """The evaluation fails when more than this share of the videos could not be read; every unreadable video is named in
    any case."""


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

    @model_validator(mode="after")
    def _one_way_to_learn(self) -> FinetuneConfig:
        optim, model = self.optim, self.model
        ways = {
            "--model.lora.rank": model.lora.rank,
            "--optim.last-blocks": optim.last_blocks,
            "--optim.train-only": "head" if optim.train_only == "head" else None,
        }
        if len(chosen := [f"{option} {value}" for option, value in ways.items() if value]) > 1:
            raise ValueError(f"{' and '.join(chosen)} each say what of the encoder learns; keep one")
        if optim.optimizer == "muon" and (model.lora.rank or optim.train_only == "head"):
            raise ValueError(
                "--optim.optimizer muon is for whole matrices of transformer blocks, and with adapters or the head alone none "
                "of them learns; use --optim.optimizer adamw"
            )
        if optim.last_blocks is not None and optim.last_blocks > model.encoder.depth:
            raise ValueError(
                f"--optim.last-blocks {optim.last_blocks}: the encoder has {model.encoder.depth} blocks; name as many or "
                "fewer, or leave it out to learn all and the embedding too"
            )
        if optim.last_blocks is not None and model.checkpointing == "deepspeed":
            raise ValueError(
                "--model.checkpointing deepspeed gives no gradient to a block behind frozen ones, as --optim.last-blocks makes "
                "them; --model.checkpointing all does, and takes no more memory"
            )
        return self

    @property
    def frozen_blocks(self) -> int | None:
        """How many of the encoder's first blocks stay as they are, and the embedding with them; None where it learns too."""
        depth, last = self.model.encoder.depth, self.optim.last_blocks
        if self.model.lora.rank or self.optim.train_only == "head":
            return depth
        return None if last is None else depth - last

    @property
    def classes(self) -> int:
        """How many the model tells apart."""
        return self.model.num_classes

    @property
    def learnt_classes(self) -> int | None:
        """All of them."""
        return self.classes

    @property
    def head_map(self) -> Path | None:
        """Which class of a loaded head each class takes over."""
        return self.train.head_map

    @property
    def read_at_the_start(self) -> dict[str, Path | None]:
        """Files that a start reads: those of every run, and the head map."""
        return {**super().read_at_the_start, "--train.head-map": self.train.head_map}
