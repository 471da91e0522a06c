"""What every run has, whatever its stage: data, optimizer, training. A field's docstring is its help on the command line."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal

import tyro
from pydantic import Field, StringConstraints, model_validator
from typing_extensions import Self

from vmae2_ds.config.guard import GuardConfig
from vmae2_ds.config.model import EncoderConfig
from vmae2_ds.config.ranges import MANY, MOST_VIEWS
from vmae2_ds.config.strict import (
    LONG_S,
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
    Whole,
    Workers,
    seconds_of,
    switched_off_by,
)
from vmae2_ds.contracts import ClipGeometry

ReaderName = Annotated[
    str,
    StringConstraints(pattern=r"^(pyav|decord|torchcodec|[\w.]+:\w+)$"),
]
"""A video reader: one of ours, or `module:function` of the user's own."""


class DataConfig(StrictModel):
    """Videos, how clips are drawn from them, and how they are fed."""

    manifest: Path | None = None
    """CSV with a header (path and optional label, source, start, frames), or a published space-separated list."""
    mixture: str | None = None
    """Instead of a manifest: a TOML or JSON file of sources with their shares, or unlabeled_hybrid, labeled_hybrid."""
    leave_out: tuple[str, ...] = ()
    """Sources of the mixture that this run does not have; the others take their share."""
    root: Path | None = None
    """Folder that relative paths start from; default: the manifest's, or the mixture file's, folder."""
    ignore_columns: tuple[str, ...] | None = None
    """Columns of the lists to leave out; without a name all that are none of ours. Default: a list with further columns is
    refused."""
    reader: Literal["auto"] | ReaderName = "pyav"
    """Video reader: pyav, decord, torchcodec, module:function of your own, or auto (measured on these videos at the start)."""
    read_timeout_s: float = Field(30, ge=0, le=LONG_S, json_schema_extra=switched_off_by("0"))
    """A read that takes longer is given up and its reader killed; 0: read without this guard, inside the loader's process."""
    num_frames: ClipLength = 16
    """Frames in a clip."""
    size: Edge = 224
    """Clip height and width in pixels."""
    sampling: Literal["stride", "dense", "segments", "spread"] = "stride"
    """stride: frames a fixed step apart (published pre-training); dense: evenly over num_frames x stride frames (published
    fine-tuning); segments: one of each of num_frames equal parts (SSv2); spread: evenly over 60 to 100 % of the video."""
    stride: ClipLength = 4
    """Step between frames, for sampling=stride and dense."""
    source_strides: dict[str, ClipLength] = Field({})
    """Step by manifest source, where it differs (published: 2 for SSv2)."""
    min_frames: Count = 2
    """A video with fewer frames is skipped, counted and named as too short."""
    views: int = Field(4, ge=1, le=MOST_VIEWS)
    """Clips cut from one decoded video, each with its own crop and masks (repeated sampling, published num_sample)."""
    workers: Workers = 8
    """Loader processes per rank; a warning tells where they are more than four for each core."""
    prefetch: int = Field(2, ge=1, le=1024)
    """Micro batches each worker reads ahead."""
    max_bad_share: Part = 0.1
    """The run stops when more than this share of the videos tried could not be read."""

    @model_validator(mode="after")
    def _one_list(self) -> DataConfig:
        if self.manifest is not None and self.mixture is not None:
            raise ValueError(f"manifest={self.manifest} and mixture={self.mixture} both name the videos; keep one")
        if self.leave_out and self.mixture is None:
            raise ValueError("leave_out names sources of a mixture; give --data.mixture")
        return self


class OptimConfig(StrictModel):
    """AdamW, and a cosine schedule with warm-up, stepped per optimizer step."""

    base_lr: Size = 1.5e-4
    """Learning rate for lr_batch videos; peak = base_lr x (global_batch / views) / lr_batch (published rule)."""
    min_lr: Amount = 1e-5
    """Final learning rate, scaled by the same rule."""
    lr_batch: Count = 256
    """Batch the base learning rate is given for."""
    warmup_epochs: Amount = 30
    """Linear warm-up from 0, in epochs over the manifest."""
    betas: tuple[PartBelow1, PartBelow1] = (0.9, 0.95)
    """AdamW decay rates of the two moments."""
    eps: Size = 1e-8
    """AdamW epsilon."""
    weight_decay: Amount = 0.05
    """Weight decay; biases, norms and the mask token have none (published groups)."""
    clip_grad: float = Field(0.0, ge=0, le=1e30, json_schema_extra=switched_off_by("0"))
    """Largest global gradient norm; 0 does not clip."""


class TrainConfig(StrictModel):
    """The loop: batch identity, length, precision, ZeRO policy, checkpoints."""

    global_batch: Count = 1024
    """Clips per optimizer step = micro_batch x accumulation x ranks x views; checked exactly."""
    micro_batch: Count = 8
    """Videos per rank in one forward pass; the device sees micro_batch x views clips."""
    epochs: Size = 300
    """Passes over the manifest (each video gives `views` clips a pass)."""
    epoch_steps: Literal["whole", "exact"] = "exact"
    """Steps of one pass, which epochs and warm-up are counted in. whole: those that fit into the manifest, its rest not counted
    (published, and in the published recipes); exact: with the fraction, as also where not one fits."""
    max_steps: Count | None = None
    """Length in optimizer steps instead of epochs; the schedule follows."""
    stop_after_steps: Count | None = None
    """Save and stop after this step while the schedule keeps its full length; resume goes on."""
    time_limit: TimeSpan | None = None
    """Save and stop (exit code 75) in time for a save to end this long after the process started: 23:50:00, 1-12:00:00 (days
    first), 90m, 1.5h or 600s. The longest save so far is kept free, and the longest step with what fell into it."""
    precision: Literal["bf16", "fp32"] = "bf16"
    """Weights and activations; bf16 keeps float32 master weights, and the loss is float32 in both."""
    ds_config: str = "zero1"
    """ZeRO policy: a name from ds_configs/ or the path of a JSON file."""
    ds_zero_init: bool = False
    """Build the model partitioned (zero.Init), for models that do not fit on one host; needs ZeRO stage 3."""
    seed: Seed = 0
    """Seeds weights, sample order, crops, masks and stochastic depth."""
    compile: Literal["none", "inductor", "aot_eager"] = "none"
    """torch.compile through the engine: inductor for speed (needs a compiler), aot_eager to see that it traces."""
    runs: Path = Path("runs")
    """Run folders are made below this folder."""
    run: Path | None = None
    """Exactly this run folder instead of a new one."""
    resume: Literal["auto", "never"] = "auto"
    """auto: go on from the newest whole checkpoint of this recipe's newest unfinished run; never: start a new run."""
    init: Path | None = None
    """Start from these weights (a published checkpoint or our export), not from a fresh initialisation."""
    save_every: Count = 1000
    """Checkpoint every this many steps, and at the end."""
    keep: int = Field(2, ge=2, le=MANY)
    """Newest whole checkpoints kept."""
    keep_every_hours: float = Field(0, ge=0, le=LONG_S / 3600, json_schema_extra=switched_off_by("0"))
    """Keep beside them one in as many hours; 0: none."""
    keep_best: Literal["loss", "val_loss", "val_top1", "val_top5"] | None = None
    """Keep beside them the one with the best of this figure of the log (a loss: the lowest)."""
    copy_to: str | None = None
    """Copy each checkpoint there in the background (a folder or any fsspec URL), and resume from there where they are gone."""
    max_failed_saves: Count = 3
    """Saves in a row that may fail (disk full, read-only) before the run stops; each costs only itself."""
    log_every: Count = 10
    """Steps between rows in metrics.jsonl; each row averages them."""
    tensorboard: bool = True
    """Write TensorBoard events beside metrics.jsonl."""
    max_nonfinite_steps: Whole = 20
    """Skipped steps (non-finite loss or gradient) after which the run stops with a checkpoint."""
    collective_timeout_s: float = Field(1800, ge=1, le=LONG_S)
    """Seconds that ranks wait for each other, at the start and in every collective, before they take one for lost."""
    peak_flops: float | None = Field(None, gt=0, le=1e30)
    """Peak FLOP/s of one device for MFU; default: the table of known GPUs, or on a CPU a measured matrix product."""

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

    @property
    def geometry(self) -> ClipGeometry:
        """The clip as cubes; raises ConfigError where it does not divide."""
        return ClipGeometry(self.data.num_frames, self.data.size, self.data.size, self.model.tubelet, self.model.patch)

    def changed(self, **sections: Mapping[str, object]) -> Self:
        """A copy in which fields of some sections differ, `changed(train={"micro_batch": 4})`; values are not checked again."""
        return self.model_copy(
            update={name: getattr(self, name).model_copy(update=fields) for name, fields in sections.items()}
        )
