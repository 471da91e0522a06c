"""The values that cross borders: clip geometry as pure integers, and the named tuples that layers hand each other."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple, Protocol

from vmae2_ds.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np
    import torch
    from torch import Tensor

TARGET_EPS = 1e-6
"""Added to a cube's deviation, not to its variance, where a target is normalised (docs/PAPER.md#numerics)."""

# B clips, T frames, H x W pixels, C = 3 colours, N cubes, V visible cubes, M decoded cubes.


@dataclass(frozen=True)
class ClipGeometry:
    """How a clip is cut into cubes (tubelets) of `tubelet` frames x `patch` x `patch` pixels."""

    num_frames: int
    height: int
    width: int
    tubelet: int
    patch: int

    def __post_init__(self) -> None:
        square = self.height == self.width  # as all settings have it
        for name, size, step in (
            ("--data.num-frames", self.num_frames, self.tubelet),
            ("--data.size" if square else "height", self.height, self.patch),
            ("--data.size" if square else "width", self.width, self.patch),
        ):
            if size < step or size % step:
                raise ConfigError(
                    f"{name} {size} is not a positive multiple of the cube's {step}; try {max(1, round(size / step)) * step}"
                )

    @property
    def grid(self) -> tuple[int, int, int]:
        """Cubes along time, height and width."""
        return self.num_frames // self.tubelet, self.height // self.patch, self.width // self.patch

    @property
    def num_cubes(self) -> int:
        """N, the tokens of an unmasked clip."""
        t, h, w = self.grid
        return t * h * w

    @property
    def cube_values(self) -> int:
        """P, the numbers in one cube: 3 * tubelet * patch * patch."""
        return 3 * self.tubelet * self.patch * self.patch


class Masks(NamedTuple):
    """The masks of one clip as sorted int64 index arrays of static shape, never boolean maps."""

    visible_V: np.ndarray
    """Cubes the encoder sees."""
    decode_M: np.ndarray
    """Cubes that get a mask token in the decoder."""
    is_supervised_M: np.ndarray
    """bool: those of `decode_M` that the encoder did not see; only they have full weight in the loss."""


class PretrainBatch(NamedTuple):
    """One micro batch for pre-training."""

    clip_BTHWC: Tensor
    """uint8 pixels, or float pixels in [0, 1]."""
    visible_BV: Tensor
    decode_BM: Tensor
    is_supervised_BM: Tensor

    @classmethod
    def of_clips(cls, clip_BTHWC: Tensor, masks: Sequence[Masks]) -> PretrainBatch:
        """The batch of these clips and one set of masks for each; the masks' static shapes let them be stacked."""
        import numpy as np
        import torch

        return cls(clip_BTHWC, *(torch.from_numpy(np.stack(arrays)) for arrays in zip(*masks, strict=True)))

    def to(self, device: torch.device | str) -> PretrainBatch:
        """Copy to `device` without waiting."""
        return PretrainBatch(*(tensor.to(device, non_blocking=True) for tensor in self))


class LabelledBatch(NamedTuple):
    """One micro batch of labelled clips, each mixed with its counterpart: the batch read backwards."""

    clip_BTHWC: Tensor
    """uint8 pixels, or float pixels in [0, 1]; boxes of cutmix are pasted already."""
    label_B: Tensor
    """int64 class of each clip."""
    keep_pixels: Tensor
    """float32 scalar: part of a clip's own pixels (mixup), 1 where there is none."""
    keep_label: Tensor
    """float32 scalar: part of a clip's own label."""

    def to(self, device: torch.device | str) -> LabelledBatch:
        """Copy to `device` without waiting."""
        return LabelledBatch(*(tensor.to(device, non_blocking=True) for tensor in self))


class TaughtBatch(NamedTuple):
    """A labelled micro batch, and what a teacher says of its clips as they are after mixing."""

    clip_BTHWC: Tensor
    label_B: Tensor
    """int64; -1 where there is none."""
    keep_pixels: Tensor
    keep_label: Tensor
    teacher_logits_BC: Tensor
    """float32."""
    teacher_feature_BE: Tensor
    """float32, what the teacher's head sees; E = 0 where features are not learned."""

    def to(self, device: torch.device | str) -> TaughtBatch:
        """Copy to `device` without waiting."""
        return TaughtBatch(*(tensor.to(device, non_blocking=True) for tensor in self))


class AskedBatch(NamedTuple):
    """Clips of single videos that a teacher is asked about, to keep what it says."""

    clip_BTHWC: Tensor
    """uint8, video by video."""
    attempt_V: Tensor
    """int64: videos that could not be used before the one that the clips are of."""

    def to(self, device: torch.device | str) -> AskedBatch:
        """Copy to `device` without waiting."""
        return AskedBatch(*(tensor.to(device, non_blocking=True) for tensor in self))


class TadBatch(NamedTuple):
    """One micro batch of long videos, T positions in time each, and the actions in them, G at most."""

    feature_BTD: Tensor
    """Floating point features; what lies behind a video's end does not count."""
    is_real_BT: Tensor
    """bool: where a video has features."""
    segment_BG2: Tensor
    """float32 start and end of each action, in positions."""
    label_BG: Tensor
    """int64 class of each action; -1 where there is none."""

    def to(self, device: torch.device | str) -> TadBatch:
        """Copy to `device` without waiting."""
        return TadBatch(*(tensor.to(device, non_blocking=True) for tensor in self))


class TadFramesBatch(NamedTuple):
    """What `TadBatch` holds, with frames in place of features, F for the T positions of each window."""

    window_BFHWC: Tensor
    """uint8 pixels, or float pixels in [0, 1]; behind a video's end its last frame."""
    is_real_BT: Tensor
    segment_BG2: Tensor
    label_BG: Tensor

    def to(self, device: torch.device | str) -> TadFramesBatch:
        """Copy to `device` without waiting."""
        return TadFramesBatch(*(tensor.to(device, non_blocking=True) for tensor in self))


class AvaBatch(NamedTuple):
    """One micro batch of clips of one height and width, each around a key frame, and the people in it, G at most."""

    clip_BTHWC: Tensor
    """uint8 pixels, or float pixels in [0, 1]; in a test the mean colour fills the right and the bottom up to a multiple of the
    patch."""
    box_BG4: Tensor
    """float32 x1 y1 x2 y2 of each person, in pixels of that clip from its left upper corner; zeros where there is none."""
    is_box_BG: Tensor
    """bool: where there is a person."""
    target_BGC: Tensor
    """float32, 1 for each action of the person; all 0 for a box that a detector found and no truth overlaps."""

    def to(self, device: torch.device | str) -> AvaBatch:
        """Copy to `device` without waiting."""
        return AvaBatch(*(tensor.to(device, non_blocking=True) for tensor in self))


class LossOutput(NamedTuple):
    """What an objective returns. `loss` is float32, averaged over what is supervised in the micro batch, or where the objective
    has a running number (train/normaliser.py) divided by that."""

    loss: Tensor
    num_supervised: Tensor
    """Cubes, labelled clips, or points that learn an action."""
    flat_loss: Tensor
    """The loss of knowing nothing: each cube's own mean colours (zeros, where the target is normalised), or equal chances."""


class ReadFailure(NamedTuple):
    """A video that could not be used, and why."""

    path: str
    reason: str


class Movable(Protocol):
    """A micro batch that is a tuple of tensors, as its objective takes it, once it is on a device."""

    def to(self, device: torch.device | str) -> tuple[Tensor, ...]:
        """Copy to `device` without waiting."""


class LoadedBatch(NamedTuple):
    """What the loader yields: the batch and what happened while it was read."""

    batch: Movable
    failures: list[ReadFailure]
    """Videos replaced in this batch."""
    sources: dict[str, int]
    """Videos used, counted by manifest source."""


class StepResult(NamedTuple):
    """What an optimizer step did."""

    applied: bool
    """False where the gradient was not finite or too large: all ranks left the update out."""
    grad_norm: float
    """Global gradient norm before clipping; inf or nan where it was not finite."""
