"""Frozen features of labelled videos: of a trained encoder, of a random one, or of the pixels alone."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.transforms.v2 import functional as pictures

from vmae2_ds.config.finetune import FinetuneConfig, LabelledDataConfig
from vmae2_ds.config.model import ClassifierConfig
from vmae2_ds.config.run import RunConfig
from vmae2_ds.console.progress import Ticker, counted, heard
from vmae2_ds.contracts import ClipGeometry
from vmae2_ds.data.feed.views import ViewsDataset
from vmae2_ds.data.sources.list_formats import PLAIN_LIST, ListForm
from vmae2_ds.data.sources.manifest import read_manifest
from vmae2_ds.dist import Ranks, default_device
from vmae2_ds.downstream.probe.folds import Features
from vmae2_ds.errors import ConfigError, DataError
from vmae2_ds.model.embed import sinusoid_table
from vmae2_ds.model.encoder import ClipEncoder
from vmae2_ds.model.seeded import SeededModel
from vmae2_ds.train.stage import training_of
from vmae2_ds.weights.layouts import StateDict

log = logging.getLogger(__name__)

# B clips, T frames, N cubes, D width, P values in a cube, V videos, F features.

PIXEL_FRAMES, PIXEL_SIZE = 8, 16
"""The clip that pixel features are taken from, in grey."""
MOTION_CELLS = 3
"""Cells along height and along width that motion is averaged in."""
PIXEL_CELL = 8
"""Edge of a cube as a token of pixels; larger ones are averaged down to it."""


Encode = Callable[[Tensor], Tensor]
"""uint8 clips (B, T, S, S, 3) -> one vector a clip, (B, F), or its tokens, (B, N, D), on the clips' device."""


Allocate = Callable[[str, tuple[int, ...], np.dtype], np.ndarray]
"""(an encoder's name, shape, dtype) -> an array for its features."""


class FrozenEncoder:
    """An encoder's view of a clip: called, the mean token behind the norm that the model was trained with; `motion`, where
    tokens change and how much; `tokens`, every token."""

    def __init__(self, run: RunConfig, weights: StateDict | None, seed: int = 0) -> None:
        """`weights` are the run's, under our names; None draws a random encoder from the seed."""
        self.geometry: ClipGeometry = run.geometry
        self.module = ClipEncoder(run.model, self.geometry)
        self.module.take(drawn_weights(run, seed) if weights is None else weights)
        self.module.to(default_device()).eval()

    @property
    def identity(self) -> str:
        """What tells it from every other encoder: SHA-256 of its weights, its position table and the clips that it takes."""
        digest = hashlib.sha256(repr(self.geometry).encode())
        for module in (self.module.encoder, self.module.norm):
            for name, tensor in (*module.named_parameters(), *module.named_buffers()):
                digest.update(name.encode())
                digest.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy().data)
        return digest.hexdigest()

    @torch.inference_mode()
    def __call__(self, clip_BTHWC: Tensor) -> Tensor:
        """uint8 clips -> (B, D) float32."""
        return self.module(clip_BTHWC.to(default_device())).float()

    @torch.inference_mode()
    def motion(self, clip_BTHWC: Tensor) -> Tensor:
        """uint8 clips -> (B, 9 D) float32: how far tokens are from those of one step before at the same place,
        absolute, averaged over time in each of 3 x 3 cells of the frame.

        Behind the norm, as the mean token. Raises ConfigError for clips of a single step.
        """
        steps, rows, columns = self.geometry.grid
        if steps < 2:
            raise ConfigError(
                f"clips of {self.geometry.num_frames} frames are one step of tokens: nothing moves; pool mean"
            )
        tokens_BND = self.module.norm(self._encode(clip_BTHWC)).float()
        return _motion(tokens_BND.unflatten(1, (steps, rows, columns)))

    @torch.inference_mode()
    def tokens(self, clip_BTHWC: Tensor) -> Tensor:
        """uint8 clips -> (B, N, D) float32, every token scaled to mean 0 and deviation 1 over its channels."""
        return _scaled(self._encode(clip_BTHWC))

    def _encode(self, clip_BTHWC: Tensor) -> Tensor:
        return self.module.tokens(clip_BTHWC.to(default_device()))


def drawn_weights(run: RunConfig, seed: int) -> StateDict:
    """The first weights of a run of this stage."""
    model = training_of(run).make_objective(run).model
    assert isinstance(model, SeededModel), "the model of an objective"
    model.init_weights(seed)
    return model.state_dict()


def pixel_features(clip_BTHWC: Tensor) -> Tensor:
    """What no model has seen: the clip in grey at PIXEL_FRAMES x PIXEL_SIZE x PIXEL_SIZE, as one vector a clip."""
    grey_BTHW = clip_BTHWC.float().mean(dim=-1)
    frames = torch.linspace(0, grey_BTHW.shape[1] - 1, PIXEL_FRAMES).round().long()
    return pictures.resize(grey_BTHW[:, frames], [PIXEL_SIZE, PIXEL_SIZE], antialias=True).flatten(1)


def pixel_motion(clip_BTHWC: Tensor) -> Tensor:
    """What `FrozenEncoder.motion` makes of an encoder, of the clip of `pixel_features`: (B, 9)."""
    grey_BTHW = pixel_features(clip_BTHWC).unflatten(1, (PIXEL_FRAMES, PIXEL_SIZE, PIXEL_SIZE))
    return _motion(grey_BTHW.unsqueeze(-1))


def _motion(x_BTHWD: Tensor) -> Tensor:
    """Absolute change from step to step, averaged over time in cells: (B, 9 D)."""
    change_BDHW = x_BTHWD.diff(dim=1).abs().mean(dim=1).movedim(-1, 1)
    return F.adaptive_avg_pool2d(change_BDHW, MOTION_CELLS).flatten(1)


def pixel_tokens(geometry: ClipGeometry) -> Encode:
    """What an encoder starts from, as tokens (B, N, P): every cube in grey, at most PIXEL_CELL wide, plus its place's table."""
    steps, rows, columns = geometry.grid
    cell = min(geometry.patch, PIXEL_CELL)
    places_NP = sinusoid_table(geometry.num_cubes, geometry.tubelet * cell**2)

    def encode(clip_BTHWC: Tensor) -> Tensor:
        grey_BTHW = F.adaptive_avg_pool2d(clip_BTHWC.float().mean(dim=-1), (rows * cell, columns * cell))
        cubes = grey_BTHW.reshape(-1, steps, geometry.tubelet, rows, cell, columns, cell).permute(0, 1, 3, 5, 2, 4, 6)
        here_NP = places_NP.to(clip_BTHWC.device)
        return _scaled(cubes.reshape(-1, *places_NP.shape) / 64 - 2 + here_NP)  # -2 to 2, beside sinusoids of -1 to 1

    return encode


def _scaled(tokens_BND: Tensor) -> Tensor:
    """Layer norm without weights: what float16 holds of any encoder, and what an attentive probe looks at."""
    return F.layer_norm(tokens_BND.float(), tokens_BND.shape[-1:])


def clip_settings(run: RunConfig) -> dict[str, Any]:
    """How a run takes its clips from a video, as far as a frozen encoder is concerned."""
    return run.data.model_dump(include={"num_frames", "size", "sampling", "stride", "source_strides"})


def features_of(
    run: RunConfig,
    encoders: Mapping[str, Encode],
    manifest: Path,
    root: Path | None,
    clips: int,
    allocate: Allocate = lambda name, shape, dtype: np.empty(shape, dtype),
    form: ListForm = PLAIN_LIST,
) -> dict[str, Features]:
    """What each encoder makes of every video: its vectors averaged over `clips` clips (the middle one where it is 1), or the
    tokens of all of them.

    Every video is decoded once. `allocate` makes the room for what an encoder gives.

    Raises DataError where no video can be read, ConfigError for a video without a label.
    """
    listed = read_manifest(manifest, root, form=form)
    last_label = max(int(labels.max()) for _, labels in listed.label_blocks())
    data = LabelledDataConfig(**clip_settings(run), workers=run.data.workers)
    classes = ClassifierConfig(encoder=run.model.encoder, patch=run.model.patch, num_classes=max(2, last_label + 1))
    config = FinetuneConfig(model=classes, data=data)
    views = None if clips == 1 else config.test.model_copy(update={"clips": clips, "crops": 1})
    dataset = ViewsDataset(config, listed, views)
    features: dict[str, np.ndarray] = {}
    rows: list[int] = []
    labels: list[int] = []
    failures: list[str] = []
    log.info("%s: features of %s", manifest, counted(len(listed), "video"))
    dataset.check_shared_memory(Ranks())

    def ask(clip_KTHWC: Tensor) -> list[Tensor]:
        return [_of_video(encode(clip_KTHWC)) for encode in encoders.values()]

    with heard(Ticker(log, "videos looked at", len(listed))) as ticker:
        answers = dataset.answers(range(len(listed)), ask, default_device())
        for number, (video, every) in enumerate(answers, start=1):
            ticker.tell(number - 1)
            if video.clip_KTHWC is None:
                failures.append(video.reason or "")
                continue
            for name, answer in zip(encoders, every, strict=True):
                found = answer.numpy()
                if name not in features:  # for all videos at once: a list of all tokens would have to be copied
                    features[name] = allocate(name, (len(listed), *found.shape), found.dtype)
                features[name][len(rows)] = found
            rows.append(video.row)
            labels.append(video.label)
    if failures:
        log.warning(
            "%s: %s left out as unreadable: %s", manifest, counted(len(failures), "video"), "; ".join(failures[:3])
        )
    if not rows:
        raise DataError(f"{manifest}: none of its {len(listed)} videos can be read")
    label_V, videos = np.array(labels), [listed[row] for row in rows]
    source_V, path_V = (np.array([getattr(video, name) for video in videos]) for name in ("source", "name"))
    return {name: Features(found[: len(rows)], label_V, source_V, path_V) for name, found in features.items()}


def _of_video(clips: Tensor) -> Tensor:
    """Clips' vectors (K, F) -> (F,) float64; their tokens (K, N, D) -> (K N, D) float16."""
    return clips.flatten(0, 1).half() if clips.ndim == 3 else clips.double().mean(dim=0)


def views_of(trained: FrozenEncoder, random: FrozenEncoder, view: str) -> dict[str, Encode]:
    """What a probe looks at, by who says it; `view` is mean, motion or tokens."""
    if view == "tokens":
        return {"run": trained.tokens, "random": random.tokens, "pixels": pixel_tokens(trained.geometry)}
    if view == "motion":
        return {"run": trained.motion, "random": random.motion, "pixels": pixel_motion}
    return {"run": trained, "random": random, "pixels": pixel_features}
