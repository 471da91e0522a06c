"""From a run, a checkpoint, a file or a folder to a model that is ready: `vmae2_ds.load_encoder`, `load_classifier` and
`load_autoencoder`. The verbs take the same steps: `open_model`, then `encoder_of`, `classifier_of` or `autoencoder_of`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np
import torch
from torch import Tensor

from vmae2_ds.config.pretrain import PretrainConfig
from vmae2_ds.config.run import RunConfig
from vmae2_ds.config.stages import with_options
from vmae2_ds.contracts import ClipGeometry, Masks, PretrainBatch
from vmae2_ds.data.clips.crops import crop_resize, view_crops
from vmae2_ds.data.clips.sampling import middle_clip
from vmae2_ds.data.readers.table import read_clip
from vmae2_ds.dist import default_device
from vmae2_ds.errors import ConfigError, VideoError
from vmae2_ds.masking import make_masks
from vmae2_ds.model.embed import IMAGENET_MEAN, IMAGENET_STD
from vmae2_ds.model.encoder import ClipEncoder
from vmae2_ds.model.mae import MaskedAutoencoder
from vmae2_ds.objectives import Classify, Reconstruct
from vmae2_ds.runs.open import class_names, classifier_of, labels_of, open_classifier, open_model
from vmae2_ds.weights.layouts import StateDict

# B clips, T frames, H x W pixels, S the clip's edge, C classes or 3 colours, N cubes, M decoded cubes, P values in a cube,
# D width.

Precision = Literal["fp32", "bf16"]
WeightsSource = str | Path
Module = TypeVar("Module", bound=torch.nn.Module)


@dataclass(frozen=True)
class Preprocessing:
    """How a model wants its clips: (B, num_frames, size, size, 3), RGB, uint8, or floats in [0, 1].

    `mean` and `std`, of pixels in [0, 1], are applied inside the model: they are here for those who prepare cubes themselves.
    """

    num_frames: int
    size: int
    """Height and width in pixels."""
    sampling: str
    """How frames are taken from a video, as `data.sampling`."""
    stride: int
    """Step between frames."""
    pixel_range: tuple[float, float] = (0.0, 1.0)
    """Smallest and largest pixel value of floats; uint8 goes to 255."""
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """Shape of one clip: (T, H, W, 3)."""
        return self.num_frames, self.size, self.size, 3


@dataclass(frozen=True)
class ReadyModel:
    """A model in inference on its device, and what has to be known to use it."""

    run: RunConfig
    """The config of its run; of a file, the model in a config of its kind."""
    checkpoint: Path
    """The checkpoint or the file that was read."""
    device: torch.device

    @property
    def geometry(self) -> ClipGeometry:
        """The clip as cubes."""
        return self.run.geometry

    @property
    def preprocessing(self) -> Preprocessing:
        """How clips are prepared."""
        data = self.run.data
        return Preprocessing(data.num_frames, data.size, data.sampling, data.stride)

    def read(self, *videos: WeightsSource) -> Tensor:
        """One clip of each file, as validation cuts it: uint8 (B, T, S, S, 3), the middle frames, a square of the short side.

        Raises VideoError for a file that cannot be read, with its name.
        """
        if not videos:
            raise ConfigError("read() takes at least one video file")
        return torch.stack([self._middle_of(video) for video in videos])

    def _middle_of(self, video: WeightsSource) -> Tensor:
        data = self.run.data

        def choose(length: int, fps: float) -> np.ndarray:
            del fps
            return middle_clip(data.sampling, length, data.num_frames, data.stride)

        try:
            frames_THWC = torch.from_numpy(read_clip(video, choose, "pyav" if data.reader == "auto" else data.reader))
        except VideoError as error:
            raise VideoError(f"{video}: {error}") from None
        (box,) = view_crops(frames_THWC.shape[1], frames_THWC.shape[2], 1)
        return crop_resize(frames_THWC, box, data.size)

    def clips(self, clip_BTHWC: Tensor | np.ndarray) -> Tensor:
        """The clips on the model's device. Raises ConfigError for others than `preprocessing` asks for."""
        clip_BTHWC = torch.as_tensor(clip_BTHWC)
        wants, found = self.preprocessing, tuple(clip_BTHWC.shape)
        if found[1:] != (wants.num_frames, wants.size, wants.size, 3):
            raise ConfigError(
                f"clips of shape {found}: the model takes (B, {wants.num_frames}, {wants.size}, {wants.size}, 3)"
            )
        if clip_BTHWC.dtype != torch.uint8 and not clip_BTHWC.is_floating_point():
            raise ConfigError(f"clips of {clip_BTHWC.dtype}: the model takes uint8, or floats in [0, 1]")
        return clip_BTHWC.to(self.device)


@dataclass(frozen=True)
class LoadedEncoder(ReadyModel):
    """Called with clips, the mean token behind the norm that the model was trained with: (B, D) float32."""

    module: ClipEncoder

    @torch.inference_mode()
    def __call__(self, clip_BTHWC: Tensor | np.ndarray) -> Tensor:
        """Clips as in `preprocessing` -> (B, D) float32."""
        return self.module(self.clips(clip_BTHWC)).float()

    @torch.inference_mode()
    def tokens(self, clip_BTHWC: Tensor | np.ndarray) -> Tensor:
        """Clips -> every token behind the last block, and behind the encoder's own norm where pre-training has one:
        (B, N, D) float32, in the order of `geometry.grid`."""
        return self.module.tokens(self.clips(clip_BTHWC)).float()


@dataclass(frozen=True)
class LoadedClassifier(ReadyModel):
    """Called with clips, logits: (B, C) float32."""

    module: Classify
    labels: tuple[str, ...]
    """A name for each class; numbers where nobody said any."""

    @torch.inference_mode()
    def __call__(self, clip_BTHWC: Tensor | np.ndarray) -> Tensor:
        """Clips as in `preprocessing` -> (B, C) float32."""
        return self.module.logits(self.clips(clip_BTHWC))


@dataclass(frozen=True)
class LoadedAutoencoder(ReadyModel):
    """Called with clips and masks, the cubes that its decoder predicts: (B, M, P) float32."""

    module: Reconstruct

    def draw_masks(self, count: int, seed: int = 0) -> list[Masks]:
        """Masks for `count` clips, as pre-training draws them (published: tube and running cell)."""
        assert isinstance(self.run, PretrainConfig), "an autoencoder has no other run"
        rng = np.random.default_rng(seed)
        return [make_masks(self.run.mask, self.geometry, rng) for _ in range(count)]

    @torch.inference_mode()
    def __call__(self, clip_BTHWC: Tensor | np.ndarray, masks: Sequence[Masks]) -> Tensor:
        """Clips and one set of masks for each -> predictions at `masks[b].decode_M`, in the terms of `run.objective.target`."""
        batch = PretrainBatch.of_clips(self.clips(clip_BTHWC), masks).to(self.device)
        return self.module.predict(batch)[0].float()


def load_encoder(
    source: WeightsSource,
    *,
    device: torch.device | str | None = None,
    precision: Precision = "fp32",
    num_frames: int | None = None,
    size: int | None = None,
    model_config: Mapping[str, Any] | None = None,
) -> LoadedEncoder:
    """The encoder of any model, ready for inference.

    Args:
        source: A run folder (its newest whole checkpoint), a folder of runs (the newest), runs/.../ckpt/stepN, a checkpoint
            file of any known key layout, or a folder with config.json and model.safetensors. No code in it is run.
        device: Where to; default: this process's accelerator, or the CPU.
        precision: Of weights and activations.
        num_frames: Frames of a clip; default: the run's, for a file what it says, or 16.
        size: Height and width of a clip; default: the run's, for a file what it says, or 224.
        model_config: For a file, fields of the model config that its weights do not show, such as {"encoder": {"heads": 8}}.

    Raises:
        ConfigError: `source` is nothing of the kind, or an option does not fit.
        CheckpointError: it cannot be read, or is not whole.
    """
    run, weights, checkpoint = open_model(Path(source), given=model_config)
    run, where = with_options(run, data={"num_frames": num_frames, "size": size}), _device(device)
    return LoadedEncoder(run, checkpoint, where, _placed(encoder_of(run, weights), precision, where))


def load_classifier(
    source: WeightsSource,
    *,
    device: torch.device | str | None = None,
    precision: Precision = "fp32",
    num_frames: int | None = None,
    size: int | None = None,
    model_config: Mapping[str, Any] | None = None,
    labels: WeightsSource | None = None,
) -> LoadedClassifier:
    """A classifier, ready for inference. `labels`: a file with a class name a line; default: the run's labels.txt, or what the
    file says. Else as `load_encoder`; raises ConfigError also for a model without classes."""
    run, weights, checkpoint = open_classifier(Path(source), given=model_config)
    run, where = with_options(run, data={"num_frames": num_frames, "size": size}), _device(device)
    names = labels_of(Path(source)) if labels is None else None
    named = names or class_names(None if labels is None else Path(labels), run.model.num_classes)
    _check_precision(precision)
    objective = classifier_of(run.changed(train={"precision": precision}), weights, where).requires_grad_(False)
    return LoadedClassifier(run, checkpoint, where, objective, tuple(named))


def load_autoencoder(
    source: WeightsSource,
    *,
    device: torch.device | str | None = None,
    precision: Precision = "fp32",
    num_frames: int | None = None,
    size: int | None = None,
    model_config: Mapping[str, Any] | None = None,
) -> LoadedAutoencoder:
    """A masked autoencoder, ready for inference. As `load_encoder`; raises ConfigError also for a model without a decoder."""
    run, weights, checkpoint = open_model(Path(source), given=model_config)
    if not isinstance(run, PretrainConfig):
        raise ConfigError(f"{source} is a classifier, which has no decoder; load_encoder or load_classifier takes it")
    run, where = with_options(run, data={"num_frames": num_frames, "size": size}), _device(device)
    return LoadedAutoencoder(run, checkpoint, where, _placed(autoencoder_of(run, weights), precision, where))


def encoder_of(run: RunConfig, weights: StateDict) -> ClipEncoder:
    """The encoder with these weights, on the host."""
    encoder = ClipEncoder(run.model, run.geometry)
    encoder.take(weights)
    return encoder


def autoencoder_of(run: PretrainConfig, weights: StateDict) -> Reconstruct:
    """The objective with these weights, on the host."""
    shape = run.model.model_copy(update={"attention": "sdpa", "checkpointing": "none"})  # on any machine
    model = MaskedAutoencoder(shape, run.geometry, seed=None)
    model.load_state_dict(weights)
    return Reconstruct(model, run.objective, run.geometry)


def _device(device: torch.device | str | None) -> torch.device:
    return default_device() if device is None else torch.device(device)


def _placed(module: Module, precision: Precision, device: torch.device) -> Module:
    _check_precision(precision)
    if precision == "bf16":
        module.bfloat16()
    return module.to(device).requires_grad_(False).eval()


def _check_precision(precision: str) -> None:
    if precision not in ("fp32", "bf16"):
        raise ConfigError(f"precision={precision!r}: fp32 or bf16")
