"""A pre-training run: masks, what the decoder predicts, data, model."""

from __future__ import annotations

import re
from typing import Annotated, Literal

import tyro
from pydantic import Field, model_validator
from typing_extensions import Self

from vmae2_ds.config.model import ModelConfig
from vmae2_ds.config.run import ListedValidation, OptimConfig, RunConfig
from vmae2_ds.config.strict import Count, Part, PartBelow1, StrictModel, Whole

EncoderMask = Literal["tube", "random", "frame"]
DecoderMask = Literal["none", "running_cell", "frame", "random"]
Target = Literal["normalised", "pixels"]
HELD_BACK_BY = ("video", "folder")
"""What `data.hold_back_by` knows by name."""


class MaskConfig(StrictModel):
    """What the encoder and the decoder do not see."""

    encoder: EncoderMask = "tube"
    """Which cubes the encoder mask hides. tube: the same places in every frame; random: cubes drawn independently; frame:
    whole frames."""
    encoder_ratio: PartBelow1 = 0.9
    """Share of all cubes that is hidden from the encoder."""
    visible: Count | None = None
    """Number of cubes that the encoder sees, instead of --mask.encoder-ratio: clips that are longer or larger then cost the
    encoder no more. tube: a multiple of the steps in time; frame: a multiple of the cubes in a frame."""
    decoder: DecoderMask = "running_cell"
    """Which cubes the decoder mask leaves out of the reconstruction. running_cell: the published dual masking; frame:
    whole frames; random: cubes drawn independently; none: decode every cube hidden from the encoder (VideoMAE V1)."""
    decoder_ratio: PartBelow1 = 0.5
    """Share of all cubes that is not decoded; running_cell takes 0.25, 0.5 or 0.75."""
    decoded: Count | None = None
    """Number of cubes that the decoder mask keeps, seen by the encoder or not, instead of --mask.decoder-ratio.
    running_cell: a quarter, a half or three quarters of all; random: any; frame: a multiple of the cubes in a frame."""
    decoder_tokens: Literal["official", "disjoint"] = "official"
    """Which cubes get a mask token in the decoder. official: every cube that the decoder mask keeps, seen by the encoder
    or not (published); disjoint: of these only the cubes that the encoder did not see."""

    @model_validator(mode="after")
    def _something_to_count(self) -> MaskConfig:
        if self.decoder == "none" and self.decoded is not None:
            raise ValueError(
                f"decoded={self.decoded} is what a decoder mask keeps, and decoder=none has every hidden cube decoded; keep one"
            )
        return self


class ObjectiveConfig(StrictModel):
    """What the decoder has to predict."""

    target: Target = "normalised"
    """What the decoder predicts. normalised: pixels with each cube's own mean and standard deviation per colour removed
    (published); pixels: plain pixels in [0, 1]."""
    new_decoder: bool = False
    """Draw the decoder anew, whatever --train.init has of one: for weights whose decoder has another shape, or was trained on
    another target. Of weights without a decoder it is always drawn."""
    context_weight: Part = 0.0
    """Weight in the loss of cubes that encoder and decoder both see, where a hidden one has 1. 0: they do not count
    (published); 1: the mean over all that the decoder gives. Needs --mask.decoder-tokens official."""


class PretrainDataConfig(ListedValidation):
    """Videos, how clips are drawn from them, and how they are fed."""

    crop_scales: Annotated[tuple[Annotated[float, Field(gt=0, le=1)], ...], Field(min_length=1)] = (
        1.0,
        0.875,
        0.75,
        0.66,
    )
    """Multi-scale crop: the edges that a crop may have, as shares of the video's short side."""
    flip: Part = 0.0
    """Share of clips mirrored left to right (published: 0). Leave it at 0 where left and right carry meaning, as in SSv2."""
    jitter: PartBelow1 = 0.0
    """Random change of a clip's brightness and contrast: each is multiplied by a factor from 1 - jitter to 1 + jitter
    (published: 0). Use it for small data sets, whose scenes the model would otherwise memorise."""
    crop_on: Literal["workers", "device"] = "workers"
    """Where clips are cut, resized and mirrored. workers: in the data loader processes; device: on the GPU, which then
    receives whole frames."""
    hold_back: PartBelow1 = 0.0
    """Share of the listed videos that is not trained on but validated: the reconstruction loss on them shows whether a small
    set is learned by heart. Which ones follows from their paths alone, not from the seed or from other videos. 0: none."""
    hold_back_by: str = "video"
    """What is held back as one. video: each file, with all parts of it that are listed; folder: all videos of a folder; or a
    regular expression for the part of a path (its first group, if it has one) that files cut from one film share, such as
    '(.*)_[0-9]+[.]mp4'."""

    @property
    def validates(self) -> bool:
        """Whether there are validation videos, in a list of their own or held back."""
        return super().validates or self.hold_back > 0

    @model_validator(mode="after")
    def _one_validation(self) -> PretrainDataConfig:
        if self.val_manifest is not None and self.hold_back:
            raise ValueError(
                f"val_manifest={self.val_manifest} and hold_back={self.hold_back:g} both name validation videos: leave "
                "val_manifest out, or set hold_back to 0"
            )
        if self.hold_back_by not in HELD_BACK_BY:
            try:
                re.compile(self.hold_back_by)
            except re.error as error:
                raise ValueError(
                    f"hold_back_by={self.hold_back_by!r} is neither {' nor '.join(HELD_BACK_BY)} nor a regular expression: "
                    f"{error}"
                ) from None
        return self


class PretrainOptimConfig(OptimConfig):
    """AdamW, and a schedule with warm-up, stepped per optimizer step."""

    layer_decay: float = Field(1.0, gt=0, le=1)
    """Learning rate of each layer of the encoder divided by that of the layer above it, for training that goes on from
    --train.init; the decoder has the full rate. 1 gives all layers the same rate (published)."""
    freeze_encoder_steps: Whole = 0
    """Optimizer steps at the start in which the decoder learns alone, for an encoder whose decoder is drawn anew: it stays as
    --train.init has it, bit for bit, and needs no backward pass. After them its rate rises from 0 over a warm-up of its own."""


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
    optim: PretrainOptimConfig = PretrainOptimConfig()
    """AdamW and its schedule."""

    @model_validator(mode="after")
    def _new_decoder_beside_weights(self) -> Self:
        if self.objective.new_decoder and self.train.init is None:
            raise ValueError(
                "--objective.new-decoder leaves out the decoder of --train.init, which is not given: without it the whole "
                "model is drawn anew; leave the switch out, or name the weights to start from"
            )
        return self

    @model_validator(mode="after")
    def _context_is_decoded(self) -> Self:
        weight, mask = self.objective.context_weight, self.mask
        if weight and (mask.decoder == "none" or mask.decoder_tokens == "disjoint"):
            setting = "--mask.decoder none" if mask.decoder == "none" else "--mask.decoder-tokens disjoint"
            raise ValueError(
                f"--objective.context-weight {weight:g} is for cubes that encoder and decoder both see, and with {setting} "
                "there are none; leave it at 0, or take a decoder mask with --mask.decoder-tokens official"
            )
        return self

    @property
    def target(self) -> str:
        """What the decoder predicts."""
        return self.objective.target

    @property
    def frozen_steps(self) -> int:
        """First steps in which the encoder does not learn."""
        return self.optim.freeze_encoder_steps
