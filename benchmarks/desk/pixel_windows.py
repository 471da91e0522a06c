"""Features that no model has seen: the pixels of each window, small, in the form of `vmae2 extract`."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torchvision.transforms.v2 import functional as pictures

from vmae2_ds.data.readers.table import read_clip
from vmae2_ds.downstream.features.sidecar import FeatureInfo, VideoFeatures, claim_folder, is_finished, write_features
from vmae2_ds.downstream.features.windows import WindowGrid

STEPS, EDGE = 4, 8
"""Frames of a window that are kept, each the mean of its neighbours, and their height and width."""
WIDTH = STEPS * EDGE * EDGE * 3


def write_pixel_windows(videos: list[Path], folder: Path, grid: WindowGrid) -> None:
    """A folder of features for these videos; those that are there are left. A feature has WIDTH values in [-1, 1]."""
    folder.mkdir(parents=True, exist_ok=True)
    about = {"model": "pixels", "weights": "pixels", "pixels": "unit", "resize": "squash", "size": EDGE}
    settings = {"grid": grid.name, "window": grid.window, "stride": grid.stride, "interval": grid.interval}
    info = FeatureInfo(**about, **settings, offset_frames=grid.offset_frames, precision="fp32", width=WIDTH)  # type: ignore[arg-type]
    claim_folder(folder, info)
    for video in videos:
        if is_finished(folder, video.stem):
            continue
        small_FP, fps = _small_frames(video)
        window_RWP = small_FP[grid.indices(len(small_FP))]
        steps_RSP = window_RWP.reshape(len(window_RWP), STEPS, -1, small_FP.shape[1]).mean(axis=2)
        array = (2 * steps_RSP.reshape(len(steps_RSP), WIDTH) - 1).astype(np.float32)
        write_features(
            folder, video.stem, array, VideoFeatures(frames=len(small_FP), fps=fps, rows=len(array), video=str(video))
        )


def _small_frames(video: Path) -> tuple[np.ndarray, float]:
    """Every frame as EDGE x EDGE colours in [0, 1], (F, EDGE * EDGE * 3), and frames a second."""
    rates = []

    def all_of(length: int, fps: float) -> np.ndarray:
        rates.append(fps)
        return np.arange(length)

    frames_FCHW = torch.from_numpy(read_clip(video, all_of)).permute(0, 3, 1, 2)
    small_FCHW = pictures.resize(frames_FCHW, [EDGE, EDGE], antialias=True)
    return small_FCHW.permute(0, 2, 3, 1).flatten(1).numpy() / 255, rates[0]
