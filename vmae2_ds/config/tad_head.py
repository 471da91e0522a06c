"""Configuration of the detection head: its pyramid, how it learns from segments, and how its answers become detections."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from vmae2_ds.config.model import Layer
from vmae2_ds.config.strict import Amount, Count, Part, PartBelow1, Size, StrictModel, Whole

Blocks = Annotated[int, Field(ge=0, le=1024)]
Window = Annotated[int, Field(ge=-1, le=2**20)]
SHORTEST_CHUNK = 32
"""Queries that local attention takes together, at least: each chunk reads its own keys and half a window on either side."""


class HeadConfig(StrictModel):
    """The ActionFormer pyramid: embedding, stem, a level for each power of two, and two heads shared by all levels."""

    width: Layer = 512
    """Width D of the pyramid and of both heads."""
    heads: Layer = 4
    """Number of attention heads; must divide the width."""
    embed_convs: Annotated[int, Field(ge=1, le=1024)] = 2
    """Convolutions of three positions, each with a norm and a ReLU, that take the features to the pyramid's width."""
    stem: Blocks = 2
    """Transformer blocks at full rate, in front of the first level."""
    ranges: tuple[Size, ...] = (4, 8, 16, 32, 64)
    """Where one level ends and the next begins, in positions: a point learns an action whose farther end lies within the range
    of its level. There is one level more than numbers here; each level has half the positions of the one before."""
    windows: tuple[Window, ...] = (19,)
    """Positions that a position attends to, itself in the middle: an odd number, or -1 for all. One number for all levels, or
    one for each level."""
    absolute_positions: bool = False
    """Add a sinusoid table to the embedded features, interpolated where a sequence is longer than --data.length."""
    head_convs: Blocks = 2
    """Convolutions of three positions, each with a norm and a ReLU, in front of the last layer of each of both heads."""
    prior: Annotated[float, Field(gt=0, lt=1)] = 0.01
    """Probability that the classification head gives to every class at first."""
    layer_scale: Amount = 1e-4
    """First value of the learnt gain of each branch of a transformer block; 0 leaves the gains out. The published code has them
    where drop_path is above 0."""
    drop_path: PartBelow1 = 0.1
    """Stochastic depth: rate at which each branch of a transformer block is dropped for a video, the same in all blocks."""
    input_noise: Amount = 0.0
    """Deviation of normal noise that is added to the features in training."""

    @property
    def levels(self) -> int:
        """L, the number of levels of the pyramid."""
        return len(self.ranges) + 1

    @property
    def level_windows(self) -> tuple[int, ...]:
        """The attention window of each level."""
        return self.windows * self.levels if len(self.windows) == 1 else self.windows

    @property
    def strides(self) -> tuple[int, ...]:
        """Positions between neighbouring points of each level."""
        return tuple(2**level for level in range(self.levels))

    @model_validator(mode="after")
    def _fits_together(self) -> HeadConfig:
        if self.width % self.heads:
            raise ValueError(f"width={self.width} must be a multiple of heads={self.heads}")
        if self.absolute_positions and self.width % 2:
            raise ValueError(f"width={self.width} must be even for a table of sines and cosines")
        if list(self.ranges) != sorted(set(self.ranges)):
            raise ValueError(f"ranges={_spoken(self.ranges)} must rise from level to level")
        if len(self.windows) not in (1, self.levels):
            raise ValueError(
                f"windows={_spoken(self.windows)}: give one number, or one for each of the {self.levels} levels "
                f"(one more than ranges={_spoken(self.ranges)})"
            )
        if wrong := [window for window in self.windows if window != -1 and window % 2 == 0]:
            raise ValueError(f"windows={wrong[0]} has no middle: give an odd number, or -1 for all positions")
        return self


def _spoken(numbers: tuple[float, ...]) -> str:
    return " ".join(f"{number:g}" for number in numbers)


def attention_chunk(window: int, length: int) -> int:
    """Queries of one chunk of local attention; `length` where one chunk takes all of them (a window of -1 always does)."""
    return length if window < 0 else min(length, max(SHORTEST_CHUNK, window))


class HeadLossConfig(StrictModel):
    """What the head learns from segments."""

    centre_radius: Amount = 1.5
    """A point learns an action whose middle is less than this many strides of the point's level away; 0 takes every point
    inside of the action."""
    focal_alpha: Part = 0.25
    """Weight of the focal loss where a class is present; where it is absent the weight is 1 minus it."""
    focal_gamma: Amount = 2.0
    """Power by which the focal loss plays down what is already right."""
    label_smoothing: PartBelow1 = 0.0
    """Part of each target that is spread over all classes and the background."""
    regression: Literal["diou", "giou"] = "diou"
    """Loss of the two ends: 1 minus the overlap, and beside it the squared distance of the middles over the length of both
    (diou), or the empty part of that length (giou)."""
    regression_weight: Size = 1.0
    """Weight of the loss of the two ends beside that of the classes."""
    normaliser_start: Size = 100.0
    """First value of the running number of points that learn an action, by which both losses are divided."""
    normaliser_momentum: PartBelow1 = 0.9
    """Part of the running number that each step keeps."""


class DetectConfig(StrictModel):
    """How the head's answers become detections."""

    threshold: Part = 0.001
    """Candidates with a lower score are left out at once."""
    top_k: Count = 2000
    """Candidates that are kept from each level, the best first."""
    min_length: Amount = 0.05
    """Candidates that are not longer are left out, in positions."""
    suppression: Literal["soft", "hard", "none"] = "soft"
    """What happens to candidates that overlap a better one. soft: their scores are lowered (--detect.sigma); hard: they are
    left out (--detect.max-overlap); none: nothing."""
    sigma: Size = 0.5
    """Width of soft suppression: a score is multiplied by exp(-overlap^2 / sigma), so a larger value lowers scores less."""
    max_overlap: Part = 0.1
    """Hard suppression: a candidate that overlaps a better one by as much, or more, is left out."""
    min_score: Part = 0.001
    """Candidates whose score was lowered below this are left out."""
    most: Count = 200
    """Detections that a video keeps, the best first."""
    by_class: bool = True
    """Whether only candidates of the same class suppress each other."""
    voting: Part = 0.7
    """Where candidates of all classes suppress each other: each detection's ends become the mean, weighted by score x
    overlap, of all candidates that overlap it by as much, or more; 0 leaves them as they are. It has no effect by class (as
    published)."""
    external_top_k: Whole = 2
    """Classes that each detection is given out of a file of scores for whole videos, where there is one; its score becomes the
    root of its own times the video's."""
