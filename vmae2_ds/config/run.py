"""What every run has, whatever its stage: data, optimizer, training. A field's docstring is its help on the command line."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal

import tyro
from pydantic import Field, StringConstraints, model_validator
from typing_extensions import Self

from vmae2_ds.config.guard import GuardConfig
from vmae2_ds.config.model import EncoderConfig
from vmae2_ds.config.strict import (
    LONG_S,
    MANY,
    Amount,
    ClipLength,
    Count,
    Edge,
    Part,
    PartBelow1,
    Seed,
    Size,
    StrictModel,
    TimeSpan,
    Views,
    Whole,
    Workers,
    seconds_of,
    switched_off_by,
)
from vmae2_ds.config.trackers import TrackConfig
from vmae2_ds.contracts import ClipGeometry
from vmae2_ds.errors import ConfigError

ReaderName = Annotated[
    str,
    StringConstraints(pattern=r"^(pyav|decord|torchcodec|[\w.]+:\w+)$"),
]
"""A video reader: one of ours, or `module:function` of the user's own."""

Sampling = Literal["stride", "dense", "segments", "spread"]
"""A way to pick the frames of a clip (data/clips/sampling.py:SAMPLERS)."""


SaveBehind = Literal["auto", "true", "false"]
"""Whether checkpoints are written behind training."""


class DataConfig(StrictModel):
    """Videos, how clips are drawn from them, and how they are fed."""

    manifest: Path | None = None
    """List of the videos: a CSV with a header (path and optional label, source, start, frames), or a published
    space-separated list."""
    mixture: str | None = None
    """Several lists instead of --data.manifest: a TOML or JSON file that names sources and their shares, or one of the
    built-in unlabeled_hybrid and labeled_hybrid."""
    leave_out: tuple[str, ...] = ()
    """Names of the mixture's sources to run without; the shares of the other sources grow to fill the gap."""
    root: Path | None = None
    """Folder that relative paths in the lists start from; default: the folder of the manifest or mixture file."""
    ignore_columns: tuple[str, ...] | None = None
    """Names of extra columns to ignore in the lists; the option without a name ignores every column that is not used here.
    Default: a list with an unknown column is refused."""
    reader: Literal["auto"] | ReaderName = "pyav"
    """Video reader: pyav, decord, torchcodec, module:function for your own, or auto, which times the installed ones on
    these videos at the start."""
    read_timeout_s: float = Field(30, ge=0, le=LONG_S, json_schema_extra=switched_off_by("0"))
    """Seconds after which reading one video is given up and its reader process killed. 0 turns the limit off and reads
    inside the loader's own process."""
    cache: float = Field(0, ge=0, le=MANY, json_schema_extra=switched_off_by("0"))
    """GiB of decoded videos to keep in --data.cache-folder: each that fits is decoded once, and its clips are the same to the
    bit; the rest is decoded each time, as everything is with 0. For small sets (docs/DATA.md)."""
    cache_folder: Path | None = None
    """Folder of --data.cache, for all processes of a host and for later runs. Default: vmae2_frames_UID in the system's
    folder for temporary files."""
    num_frames: ClipLength = 16
    """Number of frames in a clip."""
    size: Edge = 224
    """Height and width of a clip in pixels."""
    sampling: Sampling = "stride"
    """Which frames make a clip. stride: frames a fixed step apart (published pre-training); dense: num_frames spread
    evenly over num_frames x stride frames (published fine-tuning); segments: one frame from each of num_frames equal
    parts of the video (SSv2); spread: num_frames spread evenly over 60 to 100 % of the video."""
    stride: ClipLength = 4
    """Step between two frames of a clip, for --data.sampling stride and dense."""
    source_strides: dict[str, ClipLength] = Field({})
    """Step between frames for single sources of the lists, where it differs from --data.stride (published: 2 for SSv2)."""
    min_frames: Count = 2
    """Videos with fewer frames than this are skipped, counted and reported as too short."""
    views: Views = 4
    """Number of clips cut from each decoded video, every one with its own crop and masks (repeated sampling; num_sample in
    the published code)."""
    workers: Workers = 8
    """Number of data loader processes per rank; more than four per CPU core give a warning."""
    prefetch: int = Field(2, ge=1, le=1024)
    """Number of micro batches that each loader process prepares ahead."""
    max_bad_share: Part = 0.1
    """The run stops when more than this share of the videos tried could not be read."""

    @model_validator(mode="after")
    def _one_list(self) -> DataConfig:
        if self.manifest is not None and self.mixture is not None:
            raise ValueError(f"manifest={self.manifest} and mixture={self.mixture} both name the videos; keep one")
        if self.leave_out and self.mixture is None:
            raise ValueError("leave_out names sources of a mixture; give --data.mixture")
        return self

    @property
    def validation(self) -> tuple[Path, Path | None] | None:
        """The list of validation videos, and the folder that its relative paths start from; None where there is none."""
        return None

    @property
    def validates(self) -> bool:
        """Whether single clips of validation videos are read while a run trains."""
        return self.validation is not None


class ListedValidation(DataConfig):
    """Validation videos in a list of their own."""

    val_manifest: Path | None = None
    """List of validation videos; one clip from the middle of each is looked at. Default: no validation, only the training
    loss is reported."""
    val_root: Path | None = None
    """Folder that relative paths in the validation list start from; default: data.root, else the list's own folder."""

    @property
    def validation(self) -> tuple[Path, Path | None] | None:
        """The validation list, if any; its root is data.root where val_root is not given."""
        return None if self.val_manifest is None else (self.val_manifest, self.val_root or self.root)


DecayShape = Literal["linear", "sqrt", "cosine"]
"""How a rate falls at the end of a schedule (train/optim.py:DECAYS)."""


MuonScale = Literal["match_rms_adamw", "original"]
"""How an update of Muon depends on its matrix's shape (engine/muon.py:SCALES)."""


class OptimConfig(StrictModel):
    """AdamW, and a schedule with warm-up, stepped per optimizer step."""

    base_lr: Size = 1.5e-4
    """Learning rate for a batch of --optim.lr-batch videos; the peak used is base_lr x (global_batch / views) / lr_batch
    (published rule)."""
    min_lr: Amount = 1e-5
    """Learning rate at the end of the schedule, for a batch of --optim.lr-batch videos; scaled to the batch used as base_lr
    is."""
    lr_batch: Count = 256
    """Batch in videos that --optim.base-lr and --optim.min-lr are given for."""
    warmup_epochs: Amount = 30
    """Length of the linear warm-up from learning rate 0, in passes over the data."""
    schedule: Literal["cosine", "wsd"] = "cosine"
    """What follows the warm-up. cosine: half a cosine down to --optim.min-lr (published); wsd: the peak rate, then a fall to
    --optim.min-lr over the last --optim.decay passes."""
    schedule_epochs: Size | None = None
    """Length of the whole cosine in passes over the data, where the run ends before its cosine does; default: that of the
    run."""
    decay: Amount = 0
    """Length of the fall at the end of a wsd schedule, or of a run with --train.branch, in passes over the data; 0: the rate
    stays at its peak to the end."""
    decay_shape: DecayShape = "linear"
    """How the rate falls over --optim.decay, from p = 0 to 1. linear: with 1 - p; sqrt: with 1 - sqrt(p); cosine: with
    (1 + cos(pi p)) / 2."""
    betas: tuple[PartBelow1, PartBelow1] = (0.9, 0.95)
    """AdamW's decay rates for the mean of the gradient and for the mean of its square."""
    eps: Size = 1e-8
    """AdamW's epsilon, added to the denominator of each update."""
    optimizer: Literal["adamw", "muon"] = "adamw"
    """adamw (published); muon: experimental, Muon for the matrices of transformer blocks, AdamW for all else. It needs torch
    2.9, and ZeRO stage 1 or 2 without offload (or 0 with --train.precision fp32)."""
    muon_scale: MuonScale = "match_rms_adamw"
    """How --optim.optimizer muon scales an update of a matrix of A outputs and B inputs. match_rms_adamw: 0.2 sqrt(max(A,
    B)), so that AdamW's rate and weight decay serve (arXiv 2502.16982); original: sqrt(max(1, A / B)) (Jordan's Muon),
    which needs another rate."""
    muon_rate: Size = 1.0
    """What --optim.optimizer muon multiplies the learning rate of its matrices by."""
    muon_momentum: PartBelow1 = 0.95
    """Decay rate of the mean of the gradient in --optim.optimizer muon."""
    weight_decay: Amount = 0.05
    """AdamW's weight decay; biases, norms and the mask token are not decayed (published groups)."""
    clip_grad: float = Field(0.0, ge=0, le=1e30, json_schema_extra=switched_off_by("0"))
    """Largest global gradient norm; larger gradients are scaled down to it. 0 turns clipping off."""


class TrainConfig(StrictModel):
    """The loop: batch identity, length, precision, ZeRO policy, checkpoints."""

    global_batch: Count = 1024
    """Clips per optimizer step over all ranks: micro_batch x accumulation steps x ranks x views. A value that does not
    divide is refused."""
    micro_batch: Count = 8
    """Videos per rank in one forward pass; the device then holds micro_batch x views clips."""
    epochs: Size = 300
    """Length of the run in passes over the data; each video gives `views` clips per pass."""
    epoch_steps: Literal["whole", "exact"] = "exact"
    """How many optimizer steps count as one pass, for epochs and warm-up. whole: the full steps that fit into the data,
    its remainder uncounted (published recipes); exact: the fraction counts too, as it always does when the data is
    smaller than one step."""
    max_steps: Count | None = None
    """Length of the run in optimizer steps, instead of --train.epochs; the learning rate schedule is fitted to it."""
    stop_after_steps: Count | None = None
    """Save and stop after this optimizer step without shortening the schedule; starting the same command again continues
    the run."""
    time_limit: TimeSpan | None = None
    """Save and stop with exit code 75 before this much time has passed since the process started: 23:50:00, 1-12:00:00
    (days first), 90m, 1.5h or 600s. Time for the slowest step and the slowest save seen so far is reserved."""
    precision: Literal["bf16", "fp32"] = "bf16"
    """Number format of weights and activations. bf16 keeps float32 master weights in the optimizer; the loss is float32 in
    both."""
    tf32: bool = False
    """With --train.precision fp32 on a GPU: matrix products round their inputs to TF32 (10 bits instead of 23), which is
    several times as fast."""
    ds_config: str = "zero1"
    """DeepSpeed ZeRO policy: the name of one that comes with the package (zero1, zero2, zero3, ...) or the path of a JSON
    file."""
    ds_zero_init: bool = False
    """Build the model already partitioned over the ranks (DeepSpeed's zero.Init), for models too large for one host; needs
    ZeRO stage 3."""
    seed: Seed = 0
    """Seed of weights, sample order, crops, masks and stochastic depth."""
    compile: Literal["none", "inductor", "aot_eager", "auto"] = "none"
    """Run transformer blocks and the loss through torch.compile. inductor: for speed, needs a C++ compiler; aot_eager: only
    traces them, to test that they can be compiled; auto: inductor where a block is measured to be faster with it, at the
    start of a run."""
    deterministic: bool = False
    """Compute the same bits in every run with these settings on the same devices and versions, on CUDA too: slower kernels
    that add in a fixed order; attention kernels that have none are refused, and left out by auto. CPU kernels do so anyway."""
    runs: Path = Path("runs")
    """Folder in which each new run gets a folder of its own."""
    run: Path | None = None
    """Folder of this run, instead of a new one below --train.runs."""
    resume: Literal["auto", "never"] = "auto"
    """auto: continue the newest unfinished run of this recipe from its newest complete checkpoint; never: start a new run."""
    init: Path | None = None
    """Weights to start from (a published checkpoint, a run folder or an exported file); default: freshly initialised
    weights."""
    branch: Path | None = None
    """Checkpoint RUN/ckpt/stepN of a run with a constant rate, to cool down in a run of its own: weights, optimizer states and
    the order of the videos go on from there, and the rate falls over --optim.decay, at whose end the run ends. RUN is only
    read, and may go on training."""
    save_every: Count = 1000
    """Optimizer steps between checkpoints; the end of the run is always saved."""
    save_behind: SaveBehind = "auto"
    """Whether training goes on while a checkpoint is written. true: it stops only while the states are copied to host memory,
    which has to have room for them; false: it stops until the checkpoint is on disk; auto: true where at most half of the
    free host memory is needed."""
    keep: int = Field(2, ge=2, le=MANY)
    """How many of the newest complete checkpoints to keep."""
    keep_every_hours: float = Field(0, ge=0, le=LONG_S / 3600, json_schema_extra=switched_off_by("0"))
    """Besides the newest checkpoints, keep one for every this many hours of wall time; 0 keeps no such extra ones."""
    keep_best: Literal["loss", "val_loss", "val_top1", "val_top5", "val_map", "val_frame_map"] | None = None
    """Besides the newest checkpoints, keep the one with the best value of this logged metric (lowest loss, highest
    accuracy or mAP). A validation that finds a better one than any checkpoint has is saved at once."""
    copy_to: str | None = None
    """Copy each checkpoint to this folder or fsspec URL (s3://...) in the background, and resume from the copy when the
    local checkpoint is gone."""
    max_failed_saves: Count = 3
    """The run stops after this many failed saves in a row (disk full, read-only); fewer only give a warning."""
    log_every: Count = 10
    """Optimizer steps between rows of metrics.jsonl; each row holds averages over these steps."""
    tensorboard: bool = True
    """Write TensorBoard events next to metrics.jsonl."""
    validate_every: Size = 1
    """Passes over the data between validations, where there are validation videos; the end of the run is always validated."""
    max_nonfinite_steps: Whole = 20
    """The run saves and stops when more than this many updates in a row were left out: not finite, or skipped as spikes."""
    collective_timeout_s: float = Field(1800, ge=1, le=LONG_S)
    """Seconds that ranks wait for each other, at the start and in every collective, before the run ends with an error."""
    peak_flops: float | None = Field(None, gt=0, le=1e30)
    """Peak FLOP/s of one device, for the model FLOPs utilisation (MFU) in the log; default: from the table of known GPUs,
    or on a CPU a measured matrix product."""

    @model_validator(mode="after")
    def _one_format(self) -> TrainConfig:
        if self.tf32 and self.precision != "fp32":
            raise ValueError(f"tf32 is for float32 products, and precision is {self.precision}; keep one of the two")
        return self

    @model_validator(mode="after")
    def _one_start(self) -> TrainConfig:
        if self.branch is not None and self.init is not None:
            raise ValueError(f"branch={self.branch} and init={self.init} both say what to start from; keep one")
        return self

    @property
    def branch_step(self) -> int:
        """The step that a run begins behind, as the name of `branch` says it; 0 without one. Raises ConfigError."""
        if self.branch is None:
            return 0
        named = re.fullmatch(r"step(\d+)", self.branch.name)
        if named is None:
            raise ConfigError(
                f"--train.branch {self.branch} is no checkpoint of a run: give the folder RUN/ckpt/stepN of one"
            )
        return int(named[1])

    @property
    def product_format(self) -> Literal["bf16", "fp32", "tf32"]:
        """Number format of matrix products: what a peak is looked up by."""
        return "tf32" if self.tf32 else self.precision

    @property
    def time_limit_s(self) -> float | None:
        """`time_limit` in seconds."""
        return None if self.time_limit is None else seconds_of(self.time_limit)


class RunConfig(StrictModel):
    """What every training run has; each stage adds its own sections."""

    recipe: tyro.conf.Suppress[str] = "custom"
    """Name of the recipe this run started from."""
    model: EncoderConfig
    """Shape and attention."""
    data: DataConfig = DataConfig()
    """Videos and clips."""
    optim: OptimConfig = OptimConfig()
    """AdamW and its schedule."""
    train: TrainConfig = TrainConfig()
    """Batch, length, ZeRO, checkpoints."""
    guard: GuardConfig = GuardConfig()
    """Spikes, hangs and lost ranks."""
    track: TrackConfig = TrackConfig()
    """Weights & Biases, MLflow, comet."""
    stage: tyro.conf.Suppress[str] = ""
    """Which kind of run this is: its name in the table of stages."""

    @property
    def target(self) -> str | None:
        """What a decoder predicts; None where the model has none."""
        return None

    @property
    def frozen_steps(self) -> int:
        """First steps in which the encoder does not learn."""
        return 0

    @property
    def classes(self) -> int | None:
        """How many the model tells apart; None where it has none."""
        return None

    @property
    def learnt_classes(self) -> int | None:
        """The number of classes of which every video's label has to be one; None where labels are not learnt."""
        return None

    @property
    def head_map(self) -> Path | None:
        """A file that says which class of a loaded head each class takes over."""
        return None

    @property
    def read_at_the_start(self) -> dict[str, Path | None]:
        """Files and folders besides the lists that have to be there, by the option that names them."""
        return {"--train.init": self.train.init}

    @property
    def geometry(self) -> ClipGeometry:
        """The clip as cubes; raises ConfigError where it does not divide."""
        return ClipGeometry(self.data.num_frames, self.data.size, self.data.size, self.model.tubelet, self.model.patch)

    def changed(self, **sections: Mapping[str, object]) -> Self:
        """A copy in which fields of some sections differ, `changed(train={"micro_batch": 4})`; values are not checked again."""
        return self.model_copy(
            update={name: getattr(self, name).model_copy(update=fields) for name, fields in sections.items()}
        )
