"""Configuration of spatial action detection: an encoder and a head that says of each person's box what that person does."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import tyro
from pydantic import Field, model_validator

from vmae2_ds.config.ava_head import BoxLossConfig, RoiHeadConfig
from vmae2_ds.config.ava_protocols import FrameProtocolName
from vmae2_ds.config.model import SIZES, WholeClipConfig
from vmae2_ds.config.run import DataConfig, OptimConfig, RunConfig, TrainConfig
from vmae2_ds.config.strict import Amount, ClipLength, Count, Edge, Part, PartBelow1, Size, switched_off_by
from vmae2_ds.errors import ConfigError

Files = tuple[Path, ...]
Seconds = Annotated[float, Field(ge=-1e6, le=1e6)]
Turn = Annotated[float, Field(ge=0, le=180)]
VideosAre = Literal["movies", "clips", "frames"]
"""How the frames around a key frame are kept on disk."""


KEY_FRAMES_AT_ONCE = 8
"""Key frames of one video, one after the other, that a test decodes in one go: a frame on the way to several clips is decoded
once, and what a worker hands over stays some tens of megabytes."""
ClipAround = Literal["videomae_ad", "pyslowfast"]
"""Where the key frame lies in its clip, by the names of downstream/ava/clip_files.py:FIRST."""


class AvaModelConfig(WholeClipConfig):
    """An encoder that sees a whole clip, and a head on the part of its features that a person's box covers."""

    num_classes: Count = 60
    """Number of actions C: as many as --data.label-map names. AVA's map for evaluation has 60, the whole one 80."""
    head: RoiHeadConfig = RoiHeadConfig()
    """The head on top of the features."""

    @model_validator(mode="after")
    def _has_those_classes(self) -> AvaModelConfig:
        self.head.exclusive_columns(self.num_classes)
        return self

    @property
    def exclusive(self) -> tuple[int, ...]:
        """Places of the classes that share a softmax."""
        return self.head.exclusive_columns(self.num_classes)

    @property
    def made_by(self) -> str:
        """The class of this model, called with (config, geometry), as `module:NAME`."""
        return "vmae2_ds.downstream.ava.model:PersonActionModel"

    @classmethod
    def of_size(cls, size: str, **changes: object) -> AvaModelConfig:
        """The published encoder called `size` (a key of SIZES), with fields changed."""
        encoder, _, patch = SIZES[size]
        return cls.model_validate({"encoder": encoder, "patch": patch, **changes})


class AvaDataConfig(DataConfig):
    """Key frames with people in boxes, and the frames around them."""

    manifest: tyro.conf.Suppress[None] = None
    mixture: tyro.conf.Suppress[None] = None
    leave_out: tyro.conf.Suppress[tuple[()]] = ()
    root: tyro.conf.Suppress[None] = None
    ignore_columns: tyro.conf.Suppress[None] = None
    sampling: tyro.conf.Suppress[Literal["stride"]] = "stride"
    source_strides: tyro.conf.Suppress[dict[str, int]] = Field({}, max_length=0)
    min_frames: tyro.conf.Suppress[Literal[1]] = 1
    views: tyro.conf.Suppress[Literal[1]] = 1
    size: Edge = 224
    """Height and width in pixels of the square that is cut out of a training clip; --data.short-side is what is cut from."""
    num_frames: ClipLength = 16
    """Number of frames of the clip around a key frame."""
    stride: ClipLength = 4
    """Step between two frames of a clip, in frames of the video, or as --data.stride-fps says."""
    truth: Files = ()
    """Files of boxes and their actions to train on, as AVA has them: video, second, x1, y1, x2, y2 in parts of the picture,
    action id, and perhaps a person id. Several files (AVA's and AVA-Kinetics') are read as one."""
    label_map: Path | None = None
    """File that names the actions by their ids: AVA's .pbtxt, lines of `id: name`, or a name a line."""
    excluded: Files = ()
    """Files of key frames to leave out of training: video, second, as AVA publishes them."""
    boxes: Files = ()
    """Files of detected people to train on besides the truth (--data.train-on truth_and_proposals): COCO results JSON, or as
    VideoMAE-Action-Detection, PySlowFast or mmaction2 have them; `vmae2 ava boxes` makes one."""
    box_threshold: Part = 0.8
    """Detected people whose score is lower are left out, in training and in tests."""
    train_on: Literal["truth", "truth_and_proposals"] = "truth"
    """Which boxes are learnt from. truth: those of --data.truth alone (VideoMAE-Action-Detection); truth_and_proposals: those
    of --data.boxes too, with the actions of the true box that they overlap (PySlowFast, mmaction2)."""
    proposal_overlap: Part = 0.9
    """With truth_and_proposals: a detected person whose overlap (IoU) with a true box is at least this has its actions; the
    others are left out."""
    keep_unmatched: bool = False
    """With truth_and_proposals: also learn from detected people who overlap no true box enough, as doing none of the actions
    (PySlowFast); by default they are left out (mmaction2)."""
    box_jitter: tuple[Part, Part, Part, Part] = (0.2, 0.1, 0.1, 0.05)
    """How far each edge of a training box is moved at most, in parts of the box: left and right edges outwards and inwards,
    upper and lower edges outwards and inwards. 0 0 0 0: never."""
    always_a_box: bool = False
    """Where no detected person of a key frame has --data.box-threshold, take the best one, and where there is none the whole
    picture (mmaction2); by default such a key frame is passed over."""
    most_boxes: Count = 100
    """Boxes of one key frame that a training clip has at most; of more, some are drawn."""
    videos: Path | None = None
    """Folder of the videos of training, at any depth, as --data.kind says."""
    kind: VideosAre = "movies"
    """How videos are kept. movies: VIDEO.mp4 or with another ending, whole or cut at --data.video-starts-s; clips: a file for
    each second, VIDEO/SECOND.mp4; frames: a folder VIDEO of pictures, in the order of their names."""
    video_starts_s: Seconds = 0.0
    """Time in seconds of the first frame of movies and of folders of frames: 900 for AVA's, cut to minutes 15 to 30."""
    frames_fps: Size = 30
    """With --data.kind frames: pictures a second."""
    video_starts: Path | None = None
    """File with a line `video,seconds` for each video that begins at another time than --data.video-starts-s, as where
    Kinetics' clips stand beside AVA's movies."""
    clip_around: ClipAround = "videomae_ad"
    """Where the key frame lies in its clip of --data.num-frames, --data.stride apart. videomae_ad: with 16 frames, 4 apart, the
    clip begins 31 frames before it; pyslowfast: 32 before, and its ninth frame is the key frame (mmaction2 too)."""
    stride_fps: Size | None = None
    """Frames a second that --data.stride is meant for: in a video of another rate the time between frames stays. Default: so
    many frames whatever the rate, as published for sets of one rate."""
    every_s: Amount = 0.0
    """Train only on key frames at whole multiples of so many seconds; 0: on all."""
    every: Count = 1
    """Train only on each so many-th key frame of a video, the first among them; 1: on all."""
    short_side: tuple[Edge, Edge] = (256, 256)
    """In training, the short side of the picture is brought to a size between these, in pixels, before the square is cut."""
    flip: Part = 0.5
    """Share of training clips mirrored left to right, boxes with them. Set it to 0 where left and right carry meaning."""
    hue_turn: Turn = 20.0
    """In training, the hue of a clip is turned by up to so many degrees either way; 0: never."""
    saturation: Part = 0.1
    """In training, the saturation of a clip is changed by up to this share either way; 0: never."""
    brightness: Part = 0.1
    """In training, the brightness of a clip is changed by up to this share either way; 0: never."""
    test_short_side: Edge = 256
    """In tests the short side of the picture is brought to this size in pixels, and the picture is seen whole."""
    val_truth: Files = ()
    """Files of boxes and actions, in the form of --data.truth, to measure frame mAP on in training; default: no validation."""
    val_excluded: Files = ()
    """Files of key frames, in the form of --data.excluded, that validation passes over."""
    val_boxes: Files = ()
    """Files of detected people to validate on, at the key frames that --data.val-truth names (rows of video and second alone
    too); default: the true boxes, which tell the actions apart from the detector."""
    val_videos: Path | None = None
    """Folder of the videos of validation; default: --data.videos."""
    val_every_s: Amount = 0.0
    """Validate only on key frames at whole multiples of so many seconds (PySlowFast: 4); 0: on all."""
    val_every: Count = 1
    """Validate only on each so many-th key frame of a video, the first among them; 1: on all."""
    val_protocol: FrameProtocolName = "activitynet"
    """Which published scorer frame mAP is counted as: activitynet, today's official one, which takes the 50 best rows of a key
    frame; legacy, that of VideoMAE-Action-Detection, whose figures the recipes cite, which takes all; legacy_pyslowfast;
    mmaction2; act. `vmae2 ava score --help` tells more."""
    person_score: bool = True
    """With detected people: an action's score is its probability times the person's score (VideoMAE-AD). Otherwise it is its
    probability alone (mmaction2, PySlowFast)."""

    @model_validator(mode="after")
    def _fits(self) -> AvaDataConfig:
        smallest, largest = self.short_side
        if smallest > largest:
            raise ValueError(f"short_side={smallest} {largest}: the smallest comes first")
        if smallest < self.size:
            raise ValueError(
                f"size={self.size}: a square of this edge is cut out of pictures whose short side may be {smallest}; lower it, "
                f"or raise short_side={smallest} {largest}"
            )
        if self.reader == "auto":
            raise ValueError("reader=auto times readers on lists of videos, and key frames are none; name a reader")
        if self.train_on == "truth" and self.boxes:
            raise ValueError(
                f"boxes={self.boxes[0]}: training on the truth alone (train_on=truth) sees no detected people; leave them out, "
                "or set --data.train-on truth_and_proposals"
            )
        if self.keep_unmatched and self.train_on == "truth":
            raise ValueError(
                "keep_unmatched=True is about detected people, of which train_on=truth sees none; leave it out"
            )
        if self.video_starts is not None and self.kind == "clips":
            raise ValueError(
                f"video_starts={self.video_starts}: with kind=clips the names of files say their seconds; leave it out"
            )
        return self

    @property
    def folder_of_validation(self) -> Path | None:
        """The folder of the validation videos."""
        return self.val_videos or self.videos


class AvaOptimConfig(OptimConfig):
    """AdamW with layer-wise decay, and a cosine schedule with warm-up, stepped per optimizer step."""

    base_lr: Size = 2.5e-4
    """Learning rate for a batch of --optim.lr-batch clips; the peak used is base_lr x global_batch / lr_batch."""
    min_lr: Amount = 1e-6
    """Learning rate at the end of the cosine schedule, for a batch of --optim.lr-batch clips; scaled to the batch used as
    base_lr is."""
    warmup_epochs: Amount = 5
    """Length of the linear warm-up from learning rate 0, in passes over the key frames."""
    betas: tuple[PartBelow1, PartBelow1] = (0.9, 0.999)
    """AdamW's decay rates for the mean of the gradient and for the mean of its square."""
    layer_decay: float = Field(0.75, gt=0, le=1)
    """Learning rate of each layer divided by that of the layer above it; 1 gives all layers the same rate."""
    clip_grad: float = Field(0.0, ge=0, le=1e30, json_schema_extra=switched_off_by("0"))
    """Largest global gradient norm; larger gradients are scaled down to it. 0 turns clipping off."""
    train_only: Literal["all", "head"] = "all"
    """Which weights learn. all: the whole model; head: only the final norm and the head, on a frozen encoder."""
    ema_decay: PartBelow1 = 0.0
    """Decay per step of an exponential moving average of the weights, which validation and `vmae2 ava detect` take; 0 keeps
    none (published)."""


class AvaTrainConfig(TrainConfig):
    """The loop: batch identity, length, precision, ZeRO policy, checkpoints."""

    global_batch: Count = 128
    """Clips per optimizer step over all ranks, one around each key frame: micro_batch x accumulation steps x ranks. A value
    that does not divide is refused."""
    micro_batch: Count = 8
    """Clips per rank in one forward pass."""
    epochs: Size = 30
    """Length of the run in passes over the key frames, warm-up included."""
    validate_every: Size = 1
    """Passes over the key frames between validations on --data.val-truth; the end of the run is always validated."""


class AvaConfig(RunConfig):
    """Everything that decides a run of spatial action detection."""

    stage: tyro.conf.Suppress[Literal["ava"]] = "ava"
    """Which kind of run this is."""
    model: AvaModelConfig
    """The encoder, the head and its classes."""
    data: AvaDataConfig = AvaDataConfig()
    """Key frames, boxes and videos."""
    loss: BoxLossConfig = BoxLossConfig()
    """What a box loses."""
    optim: AvaOptimConfig = AvaOptimConfig()
    """AdamW and its schedule."""
    train: AvaTrainConfig = AvaTrainConfig()
    """Batch, length, ZeRO, checkpoints."""

    @property
    def read_at_the_start(self) -> dict[str, Path | None]:
        """Files and folders that a start reads."""
        data = self.data
        own: dict[str, Path | None] = {
            "--data.label-map": data.label_map,
            "--data.videos": data.videos,
            "--data.video-starts": data.video_starts,
            "--data.val-videos": data.val_videos,
        }
        for name in ("truth", "excluded", "boxes", "val_truth", "val_excluded", "val_boxes"):
            for place, file in enumerate(getattr(data, name)):
                own[f"--data.{name.replace('_', '-')}{f' number {place + 1},' if place else ''}"] = file
        return {**super().read_at_the_start, **own}


def check_is_named(config: AvaConfig) -> None:
    """Raises ConfigError where truth, label map, videos, or the proposals to train on are not named."""
    data = config.data
    if not data.truth:
        raise ConfigError("no key frames named: give --data.truth FILE, rows of video, second, box and action as AVA's")
    if data.label_map is None:
        raise ConfigError("no actions named: give --data.label-map FILE, which says what the ids in --data.truth mean")
    if data.train_on == "truth_and_proposals" and not data.boxes:
        raise ConfigError(
            "no detected people named, which --data.train-on truth_and_proposals learns from beside the truth: give "
            "--data.boxes FILE (`vmae2 ava boxes` makes one), or set --data.train-on truth"
        )
    if data.videos is None:
        raise ConfigError("no videos named: give --data.videos FOLDER, which holds those of --data.truth")
    if data.val_boxes and not data.val_truth:
        raise ConfigError(
            f"--data.val-boxes {data.val_boxes[0]}: nothing says what is right in them; give --data.val-truth FILE"
        )
