"""Run configuration: frozen models whose types are the schema and whose docstrings are the command line's help."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal

import tyro
from pydantic import Field, StringConstraints, model_validator
from typing_extensions import Self

from vmae2_ds.contracts import ClipGeometry
from vmae2_ds.guard_config import GuardConfig
from vmae2_ds.ranges import MANY, MOST_FRAMES, MOST_PIXELS, MOST_VIEWS, MOST_WORKERS
from vmae2_ds.strict import (
    LONG_S,
    Amount,
    Count,
    Part,
    PartBelow1,
    Seed,
    Size,
    StrictModel,
    TimeSpan,
    Whole,
    seconds_of,
    switched_off_by,
)

ReaderName = Annotated[
    str,
    StringConstraints(pattern=r"^(pyav|decord|torchcodec|[\w.]+:\w+)$"),
]
"""A video reader: one of ours, or `module:function` of the user's own."""
ConfigFile = Annotated[Path | None, tyro.conf.arg(name="config")]
"""A verb's `--config`: a JSON file with fields of a model config."""
AttentionName = Literal["auto", "flash", "sdpa", "math"]
CheckpointingName = Literal["none", "decoder", "every_k", "all", "deepspeed"]


Layer = Annotated[int, Field(ge=1, le=2**20)]
"""Channels, heads or blocks: a million of them is no model."""
ClipLength = Annotated[int, Field(ge=1, le=MOST_FRAMES)]
"""Frames of a clip, or steps between them."""
Edge = Annotated[int, Field(ge=1, le=MOST_PIXELS)]
"""Pixels along one side of a clip or a cube."""
Workers = Annotated[int, Field(ge=0, le=MOST_WORKERS)]
"""Processes of one rank."""


class TowerConfig(StrictModel):
    """One transformer tower: the encoder or the decoder."""

    width: Layer
    """Token width D."""
    depth: Layer
    """Number of blocks."""
    heads: Layer
    """Attention heads; must divide the width."""
    mlp: Layer
    """Hidden width of the MLP."""

    @model_validator(mode="after")
    def _heads_divide_width(self) -> TowerConfig:
        if self.width % self.heads or self.width % 2:
            raise ValueError(f"width={self.width} must be even and a multiple of heads={self.heads}")
        return self


def _tower(width: int, depth: int, heads: int, mlp: int | None = None) -> TowerConfig:
    return TowerConfig(width=width, depth=depth, heads=heads, mlp=4 * width if mlp is None else mlp)


SIZES: dict[str, tuple[TowerConfig, TowerConfig, int]] = {
    # name: (encoder, decoder, patch). S to g: PAPER A7 (published code). Tiny: DeiT-Ti's encoder (arXiv 2012.12877).
    "tiny": (_tower(192, 12, 3), _tower(96, 4, 3), 16),
    "small": (_tower(384, 12, 6), _tower(192, 4, 3), 16),
    "base": (_tower(768, 12, 12), _tower(384, 4, 6), 16),
    "large": (_tower(1024, 24, 16), _tower(512, 4, 8), 16),
    "huge": (_tower(1280, 32, 16), _tower(512, 4, 8), 16),
    # 48/11 is applied in the decoder too: int(512 * 48 / 11) = 2234 (published modeling_pretrain.py:467)
    "giant": (_tower(1408, 40, 16, 6144), _tower(512, 4, 8, 2234), 14),
    # Planning only, never trained by the paper: the encoder shape of InternVideo2-6B (arXiv 2403.15377), g's decoder.
    "6b": (_tower(3200, 48, 25, 12800), _tower(512, 4, 8), 14),
}
"""Model sizes by name: encoder, decoder, patch edge in pixels."""


class EncoderConfig(StrictModel):
    """What pre-training and everything after it have in common."""

    encoder: TowerConfig
    """Encoder blocks."""
    patch: Edge = 16
    """Cube edge in pixels."""
    tubelet: ClipLength = 2
    """Cube length in frames."""
    positions_from: tuple[ClipLength, Edge] | None = None
    """Frames and size of another clip, as in "16 224", whose position table is interpolated to this one's grid; default: this
    clip's own table (published)."""
    attention: AttentionName = "auto"
    """Attention kernel. A name never falls back; auto measures once for this device, dtype and shape, and logs it."""
    checkpoint_every: Layer = 2
    """With checkpointing=every_k: one block in this many is recomputed."""
    drop_path: PartBelow1 = 0.0
    """Stochastic depth rate at the last encoder block, rising linearly from 0 (published pre-training: 0)."""

    @property
    def positions_geometry(self) -> ClipGeometry | None:
        """The clip of `positions_from` as cubes; raises ConfigError where it does not divide."""
        if self.positions_from is None:
            return None
        frames, size = self.positions_from
        return ClipGeometry(frames, size, size, self.tubelet, self.patch)


class ModelConfig(EncoderConfig):
    """The masked autoencoder: its encoder sees visible cubes only."""

    decoder: TowerConfig
    """Decoder blocks, on encoder output plus mask tokens."""
    checkpointing: CheckpointingName = "none"
    """Activation checkpointing: recompute no block, the decoder's, one in every_k, all, or all through DeepSpeed's own."""

    @property
    def recomputed_blocks(self) -> tuple[range, range]:
        """Numbers of the encoder's and the decoder's blocks that `checkpointing` computes again."""
        step = self.checkpoint_every if self.checkpointing == "every_k" else 1
        encoder, decoder = range(0, self.encoder.depth, step), range(0, self.decoder.depth, step)
        if self.checkpointing == "none":
            return range(0), range(0)
        return range(0) if self.checkpointing == "decoder" else encoder, decoder

    @classmethod
    def of_size(cls, size: str, **changes: object) -> ModelConfig:
        """The published shape called `size` (a key of SIZES), with fields changed."""
        encoder, decoder, patch = SIZES[size]
        return cls.model_validate({"encoder": encoder, "decoder": decoder, "patch": patch, **changes})


class ClassifierConfig(EncoderConfig):
    """The encoder with a head: it sees all cubes."""

    num_classes: int = Field(400, ge=2, le=2**24)
    """Classes C; labels are 0 .. C-1."""
    checkpointing: Literal["none", "every_k", "all", "deepspeed"] = "none"
    """Activation checkpointing: recompute no block, one in every_k, all, or all through DeepSpeed's own."""
    head_dropout: PartBelow1 = 0.0
    """Dropout in front of the head."""
    head_init_scale: Size = 1e-3
    """The head's first weights are drawn and multiplied by this."""
    positions: Literal["own", "published_resize"] = "own"
    """own: the clip's own position table, or that of positions_from; published_resize: what the published fine-tuning script
    makes of the table for other clips than 16 frames of 224, which weights that it trained at 64 frames of 266 need."""

    @model_validator(mode="after")
    def _one_table(self) -> ClassifierConfig:
        if self.positions != "own" and self.positions_from is not None:
            raise ValueError(f"positions={self.positions} and positions_from={self.positions_from}: keep one of them")
        return self

    @property
    def recomputed_blocks(self) -> range:
        """Numbers of the blocks that `checkpointing` computes again."""
        if self.checkpointing == "none":
            return range(0)
        return range(0, self.encoder.depth, self.checkpoint_every if self.checkpointing == "every_k" else 1)

    @classmethod
    def of_size(cls, size: str, **changes: object) -> ClassifierConfig:
        """The published encoder called `size` (a key of SIZES), with fields changed."""
        encoder, _, patch = SIZES[size]
        return cls.model_validate({"encoder": encoder, "patch": patch, **changes})


AnyModel = ModelConfig | ClassifierConfig
"""What a file of weights can hold."""


class MaskConfig(StrictModel):
    """What the encoder and the decoder do not see."""

    encoder: Literal["tube", "random", "frame"] = "tube"
    """Encoder mask: the same cells in every frame, independent cubes, or whole frames."""
    encoder_ratio: PartBelow1 = 0.9
    """Share of cubes hidden from the encoder."""
    decoder: Literal["none", "running_cell", "frame", "random"] = "running_cell"
    """Decoder mask; none decodes every cube hidden from the encoder (VideoMAE V1, encoder-only masking)."""
    decoder_ratio: PartBelow1 = 0.5
    """Share of cubes that are not decoded; running_cell takes 0.25, 0.5 or 0.75."""
    decoder_tokens: Literal["official", "disjoint"] = "official"
    """official: a mask token at every decoder-visible cube (published); disjoint: only where the encoder saw nothing."""


class ObjectiveConfig(StrictModel):
    """What the decoder has to predict."""

    target: Literal["normalised", "pixels"] = "normalised"
    """Cubes normalised by their own mean and deviation per colour (published), or plain pixels in [0, 1]."""


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


class PretrainDataConfig(DataConfig):
    """Videos, how clips are drawn from them, and how they are fed."""

    crop_scales: Annotated[tuple[Annotated[float, Field(gt=0, le=1)], ...], Field(min_length=1)] = (
        1.0,
        0.875,
        0.75,
        0.66,
    )
    """Multi-scale crop: edges as shares of the short side."""
    flip: Part = 0.0
    """Share of clips mirrored left to right (published: none; wrong wherever a label or a motion has a side, as in SSv2)."""
    jitter: PartBelow1 = 0.0
    """Brightness and contrast of a clip are multiplied by up to 1 - jitter or 1 + jitter (published: none). For small sets,
    whose scenes are otherwise learned by heart."""
    crop_on: Literal["workers", "device"] = "workers"
    """Where clips are cut, resized and mirrored: by the loader's processes, or on the device, which then gets whole frames."""


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


class PretrainConfig(RunConfig):
    """Everything that decides a pre-training run."""

    stage: tyro.conf.Suppress[Literal["pretrain"]] = "pretrain"
    """Which kind of run this is."""
    model: ModelConfig
    """Shape and attention."""
    mask: MaskConfig = MaskConfig()
    """Encoder and decoder masks."""
    objective: ObjectiveConfig = ObjectiveConfig()
    """Reconstruction target."""
    data: PretrainDataConfig = PretrainDataConfig()
    """Videos and clips."""
