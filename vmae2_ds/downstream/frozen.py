"""Frozen features of labelled videos: of a trained encoder, of a random one, or of the pixels alone."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torchvision.transforms.v2 import functional

from vmae2_ds.config import ClassifierConfig, PretrainConfig
from vmae2_ds.contracts import ClipGeometry
from vmae2_ds.data.manifest import read_manifest
from vmae2_ds.data.views import ViewsDataset
from vmae2_ds.dist import default_device
from vmae2_ds.errors import DataError
from vmae2_ds.finetune_config import FinetuneConfig, LabelledDataConfig
from vmae2_ds.model.block import NORM_EPS
from vmae2_ds.model.classifier import Classifier
from vmae2_ds.model.embed import every_cube, normalise_pixels
from vmae2_ds.model.encoder import Encoder
from vmae2_ds.model.layouts import State
from vmae2_ds.model.mae import MaskedAutoencoder
from vmae2_ds.train.runs import AnyRun

# B clips, T frames, N cubes, D width, V videos, F features.

PIXEL_FRAMES, PIXEL_SIZE = 8, 16
"""The clip that pixel features are taken from, in grey."""


Encode = Callable[[Tensor], Tensor]
"""uint8 clips (B, T, S, S, 3) -> (B, F)."""


class Features(NamedTuple):
    """Of every video of a list that could be read."""

    feature_VF: np.ndarray
    """float64."""
    label_V: np.ndarray
    source_V: np.ndarray
    """Names of the list's column `source`."""


class FrozenEncoder:
    """Mean token of all cubes of a clip, behind the norm that the model was trained with."""

    def __init__(self, run: AnyRun, weights: State | None, seed: int = 0) -> None:
        """`weights` are the run's, under our names; None draws a random encoder from the seed."""
        self.geometry: ClipGeometry = run.geometry
        is_pretrain = isinstance(run, PretrainConfig)
        self.encoder = Encoder(run.model, self.geometry, final_norm=is_pretrain)
        self.norm = (
            torch.nn.LayerNorm(run.model.encoder.width, eps=NORM_EPS) if not is_pretrain else torch.nn.Identity()
        )
        if weights is None:
            drawn = _drawn(run, seed)
            self.encoder.load_state_dict(drawn, strict=is_pretrain)
        else:
            inside = {name.removeprefix("encoder."): x for name, x in weights.items() if name.startswith("encoder.")}
            self.encoder.load_state_dict(inside)
            if not is_pretrain:
                self.norm.load_state_dict({key: weights[f"fc_norm.{key}"] for key in ("weight", "bias")})
        for module in (self.encoder, self.norm):
            module.to(default_device()).eval()

    @torch.inference_mode()
    def __call__(self, clip_BTHWC: Tensor) -> Tensor:
        """uint8 clips -> (B, D) float32 on the host."""
        cubes_BNP = normalise_pixels(every_cube(clip_BTHWC.to(default_device()), self.geometry))
        return self.norm(self.encoder(cubes_BNP).mean(dim=1)).float().cpu()


def _drawn(run: AnyRun, seed: int) -> State:
    """The first weights of pre-training for this encoder."""
    if isinstance(run, PretrainConfig):
        model = MaskedAutoencoder(run.model, run.geometry, seed=seed)
        return model.encoder.state_dict()
    return Classifier(run.model, run.geometry, seed=seed).encoder.state_dict()


def pixel_features(clip_BTHWC: Tensor) -> Tensor:
    """What no model has seen: the clip in grey at PIXEL_FRAMES x PIXEL_SIZE x PIXEL_SIZE, as one vector a clip."""
    grey_BTHW = clip_BTHWC.float().mean(dim=-1)
    frames = torch.linspace(0, grey_BTHW.shape[1] - 1, PIXEL_FRAMES).round().long()
    return functional.resize(grey_BTHW[:, frames], [PIXEL_SIZE, PIXEL_SIZE], antialias=True).flatten(1)


def features_of(
    run: AnyRun, encoders: Mapping[str, Encode], manifest: Path, root: Path | None, clips: int
) -> dict[str, Features]:
    """What each encoder makes of every video, averaged over `clips` clips; the middle one where it is 1.

    Every video is decoded once.

    Raises DataError where no video can be read, ConfigError for a video without a label.
    """
    listed = read_manifest(manifest, root)
    last_label = max(int(labels.max()) for _, labels in listed.label_blocks())
    data = LabelledDataConfig(
        **run.data.model_dump(include={"num_frames", "size", "sampling", "stride", "source_strides", "workers"})
    )
    classes = ClassifierConfig(encoder=run.model.encoder, patch=run.model.patch, num_classes=max(2, last_label + 1))
    config = FinetuneConfig(model=classes, data=data)
    views = None if clips == 1 else config.test.model_copy(update={"clips": clips, "crops": 1})
    dataset = ViewsDataset(config, listed, views)
    features: dict[str, list[np.ndarray]] = {name: [] for name in encoders}
    rows, labels = [], []
    for video in dataset.iterate(range(len(listed))):
        if video.clip_KTHWC is not None:
            for name, encode in encoders.items():
                features[name].append(encode(video.clip_KTHWC).double().mean(dim=0).numpy())
            rows.append(video.row)
            labels.append(video.label)
    if not rows:
        raise DataError(f"{manifest}: none of its {len(listed)} videos can be read")
    label_V, source_V = np.array(labels), np.array([listed[row].source for row in rows])
    return {name: Features(np.stack(found), label_V, source_V) for name, found in features.items()}
