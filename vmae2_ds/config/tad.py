"""Configuration of temporal action detection: a head on features of long videos, or on an encoder that adapts to it."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import tyro
from pydantic import Field, model_validator

from vmae2_ds.config.adapters import AdapterConfig
from vmae2_ds.config.finetune import Areas, Sides
from vmae2_ds.config.model import EncoderConfig
from vmae2_ds.config.run import DataConfig, OptimConfig, RunConfig, TrainConfig
from vmae2_ds.config.strict import Amount, Count, Part, PartBelow1, Size, switched_off_by
from vmae2_ds.config.tad_head import DetectConfig, HeadConfig, HeadLossConfig
from vmae2_ds.errors import ConfigError

Subsets = tuple[str, ...]
Published = Literal["opengvlab_thumos", "opengvlab_fineaction", "opentad_thumos"]
"""Features that others have published, by the names of downstream/features/sidecar.py:PUBLISHED."""


class TadModelConfig(EncoderConfig):
    """An encoder, whose features are read from files or made as it goes, and a pyramid over time on top of them."""

    num_classes: Count = 20
    """Number of classes C. 1: the head tells action from background alone, whatever the labels, and classes come from scores
    of whole videos (--video-scores of `vmae2 tad detect`)."""
    head: HeadConfig = HeadConfig()
    """The pyramid on top of the features."""
    adapters: AdapterConfig = AdapterConfig()
    """What learns in a frozen encoder, end to end; without adapters the head learns alone, from features in files."""

    @model_validator(mode="after")
    def _has_those_blocks(self) -> TadModelConfig:
        self.adapters.numbers(self.encoder.depth)
        return self

    @property
    def is_end_to_end(self) -> bool:
        """Whether frames go in, and features are made on the way."""
        return bool(self.adapters.numbers(self.encoder.depth))

    @property
    def checkpointing(self) -> Literal["none", "all"]:
        """All blocks that are in a graph are computed again in the backward pass."""
        return "all" if self.is_end_to_end else "none"

    @property
    def made_by(self) -> str:
        """The class of this model, called with (config, geometry), as `module:NAME`."""
        kind = "end_to_end:EndToEndDetector" if self.is_end_to_end else "objective:FeatureDetector"
        return f"vmae2_ds.downstream.tad.{kind}"


class TadDataConfig(DataConfig):
    """Long videos with segments in time, and their features."""

    manifest: tyro.conf.Suppress[None] = None
    mixture: tyro.conf.Suppress[None] = None
    leave_out: tyro.conf.Suppress[tuple[()]] = ()
    root: tyro.conf.Suppress[None] = None
    ignore_columns: tyro.conf.Suppress[None] = None
    sampling: tyro.conf.Suppress[Literal["stride"]] = "stride"
    source_strides: tyro.conf.Suppress[dict[str, int]] = Field({}, max_length=0)
    min_frames: tyro.conf.Suppress[Literal[1]] = 1
    views: tyro.conf.Suppress[Literal[1]] = 1
    annotations: Path | None = None
    """Segments in time and the videos they are in: a JSON file as ActivityNet, THUMOS14, OpenTAD or ActionFormer have it."""
    classes: Path | None = None
    """Text file with a class name per line (OpenTAD's category_idx.txt), in the order of the class numbers; default: the
    labels of the annotations, in their own order."""
    features: Path | None = None
    """Folder of features, a file for each video, as `vmae2 extract` writes it, or as published with --data.features-are."""
    features_are: Published | None = None
    """What features without a features.json are: opengvlab_thumos or opengvlab_fineaction, from the archives of OpenGVLab
    (windows begin at frame stride x i); opentad_thumos, from OpenTAD's (windows have frame 4 x i in their middle). Taken for
    each other they shift all segments by 6 frames."""
    videos: Path | None = None
    """Folder of the videos themselves, NAME.mp4 or with another ending, at any depth, for an encoder with adapters."""
    frames_per_position: Count = 1
    """With --data.videos: frames for each position of the head. A window has --data.length times as many, --data.stride
    apart in the video, and is cut into clips of --data.num-frames."""
    crop_area: Areas = (0.08, 1.0)
    """With --data.videos, random resized crop of a whole window: smallest and largest share of the picture's area."""
    crop_aspect: Sides = (0.75, 4 / 3)
    """With --data.videos, random resized crop: smallest and largest ratio of width to height."""
    flip: Part = 0.5
    """With --data.videos: share of windows mirrored left to right. Set it to 0 where left and right carry meaning."""
    subset: Subsets = ("training",)
    """Subsets of the annotations to train on."""
    val_subset: Subsets = ()
    """Subsets to measure mAP on while training; default: no validation."""
    length: Count = 2304
    """Positions in time T that the head has in training; shorter videos are padded."""
    fit: Literal["pad", "resize", "windows"] = "pad"
    """How a video is brought to --data.length positions. pad: a stretch of a longer video in training, the whole video, padded,
    in a test; resize: always the whole video, interpolated; windows: as pad in training, in a test overlapping windows whose
    detections are merged."""
    overlap: PartBelow1 = 0.5
    """With --data.fit windows: part of a window that the next one has too."""
    keep_share: float = Field(0.5, gt=0, le=1)
    """In training, a segment of which less than this share lies in the stretch that was cut is left out of it."""
    crop: tuple[Part, Part] | None = (0.9, 1.0)
    """In training, of a video that fits, a random stretch of between these shares is taken; default: all of it, where the two
    are 1."""
    min_segment_share: Part = 0.0
    """In training, segments shorter than this share of their video are left out."""
    val_tious: tuple[Part, ...] = (0.3, 0.4, 0.5, 0.6, 0.7)
    """Overlaps in time (tIoU) from which on a detection counts; validation averages mAP over them."""

    @model_validator(mode="after")
    def _fits(self) -> TadDataConfig:
        if self.crop is not None and not 0 < self.crop[0] <= self.crop[1]:
            raise ValueError(
                f"crop={self.crop[0]:g} {self.crop[1]:g}: the smaller share comes first, and is more than 0"
            )
        if self.reader == "auto" and self.features is not None:
            raise ValueError("reader=auto times readers of videos, and features are no videos; leave it out")
        if self.videos is not None:
            self._check_windows()
        return self

    def _check_windows(self) -> None:
        if self.features is not None:
            raise ValueError(
                f"features={self.features} and videos={self.videos} both name what the head sees; keep one"
            )
        if self.reader != "pyav":
            raise ValueError(f"reader={self.reader}: the frames of long videos are read by pyav; leave it out")
        if self.window_frames % self.num_frames:
            raise ValueError(
                f"a window of length={self.length} x frames_per_position={self.frames_per_position} = {self.window_frames} "
                f"frames is not a multiple of num_frames={self.num_frames}, the frames of a clip"
            )
        for name in ("crop_area", "crop_aspect"):
            smallest, largest = getattr(self, name)
            if smallest > largest:
                raise ValueError(f"{name}={smallest:g} {largest:g}: the smallest comes first")

    @property
    def window_frames(self) -> int:
        """F, frames of a window, where the head sees frames."""
        return self.length * self.frames_per_position


class TadOptimConfig(OptimConfig):
    """AdamW, and a cosine schedule with warm-up, stepped per optimizer step; learning rates are given for the recipe's own
    batch."""

    base_lr: Size = 1e-4
    """Learning rate for a batch of --optim.lr-batch videos; the peak used is base_lr x global_batch / lr_batch."""
    min_lr: Amount = 1e-8
    """Learning rate at the end of the cosine schedule, for a batch of --optim.lr-batch videos."""
    lr_batch: Count = 2
    """Batch in videos that --optim.base-lr and --optim.min-lr are given for: that of the published run, which then has its
    published rate. No published recipe says how the rate follows another batch; here it is in proportion."""
    warmup_epochs: Amount = 5
    """Length of the linear warm-up from learning rate 0, in passes over the data."""
    betas: tuple[PartBelow1, PartBelow1] = (0.9, 0.999)
    """AdamW's decay rates for the mean of the gradient and for the mean of its square."""
    clip_grad: float = Field(1.0, ge=0, le=1e30, json_schema_extra=switched_off_by("0"))
    """Largest global gradient norm; larger gradients are scaled down to it. 0 turns clipping off."""
    ema_decay: PartBelow1 = 0.999
    """Decay per step of an exponential moving average of the weights, which validation and `vmae2 tad detect` take; 0 keeps
    none."""


class TadTrainConfig(TrainConfig):
    """The loop: batch identity, length, precision, ZeRO policy, checkpoints."""

    global_batch: Count = 2
    """Videos per optimizer step over all ranks: micro_batch x accumulation steps x ranks. A value that does not divide is
    refused."""
    micro_batch: Count = 2
    """Videos per rank in one forward pass."""
    epochs: Size = 35
    """Length of the run in passes over the data, warm-up included."""
    epoch_steps: Literal["whole", "exact"] = "whole"
    """How many optimizer steps count as one pass, for epochs and warm-up. whole: the full steps that fit into the data, its
    remainder uncounted (published recipes); exact: the fraction counts too, as it always does when the data is smaller than
    one step."""
    validate_every: Size = 1
    """Passes over the data between validations on --data.val-subset; the end of the run is always validated."""


class TadConfig(RunConfig):
    """Everything that decides a run of temporal action detection."""

    stage: tyro.conf.Suppress[Literal["tad"]] = "tad"
    """Which kind of run this is."""
    model: TadModelConfig
    """The encoder, the head and its classes."""
    data: TadDataConfig = TadDataConfig()
    """Videos, their features and segments."""
    loss: HeadLossConfig = HeadLossConfig()
    """How truth is assigned to points, and what they lose."""
    optim: TadOptimConfig = TadOptimConfig()
    """AdamW and its schedule."""
    train: TadTrainConfig = TadTrainConfig()
    """Batch, length, ZeRO, checkpoints."""
    detect: DetectConfig = DetectConfig()
    """From what the head says to segments in seconds: in validation and in `vmae2 tad detect`."""

    @property
    def read_at_the_start(self) -> dict[str, Path | None]:
        """Files and folders that a start reads."""
        data = self.data
        own = {"--data.annotations": data.annotations, "--data.classes": data.classes, "--data.features": data.features}
        return {**super().read_at_the_start, **own, "--data.videos": data.videos}


def check_is_named(config: TadConfig) -> None:
    """Raises ConfigError where annotations are not named, or not what the model sees: features, or with adapters videos; and
    for an optimizer that has nothing to do."""
    if config.optim.optimizer == "muon":
        raise ConfigError(
            "--optim.optimizer muon is for matrices of transformer blocks, and temporal detection trains none; leave it out"
        )
    if config.data.annotations is None:
        raise ConfigError("no annotations named: give --data.annotations FILE, whose --data.subset lists the videos")
    if config.model.is_end_to_end:
        if config.data.features is not None:
            raise ConfigError(
                f"--data.features {config.data.features}: an encoder with adapters makes its features itself: name "
                "--data.videos FOLDER instead, or set --model.adapters.blocks none"
            )
        if config.data.videos is None:
            raise ConfigError(
                "no videos named: give --data.videos FOLDER, which holds NAME.mp4 for each annotated video"
            )
        if config.data.fit != "windows":
            raise ConfigError(
                f"--data.fit {config.data.fit}: frames are seen in windows of one length; set --data.fit windows"
            )
        return
    if config.data.videos is not None:
        raise ConfigError(
            f"--data.videos {config.data.videos}: this recipe's head sees features in files (vmae2 extract makes them: "
            "--data.features FOLDER); for videos its encoder needs adapters (--model.adapters.blocks all)"
        )
    if config.data.features is None:
        raise ConfigError("no features named: give --data.features FOLDER (vmae2 extract makes one)")
