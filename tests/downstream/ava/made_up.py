"""Made-up key frames and videos: which frame a picture is, and where its person stands, can be read off its pixels."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from vmae2_ds.config.ava import AvaConfig, AvaDataConfig, AvaModelConfig, AvaTrainConfig
from vmae2_ds.config.model import TowerConfig
from vmae2_ds.data.tools.encode import write_frames

STEP = 3
"""Grey levels between two frames: which one it is can be read off after encoding."""


def write_video(path: Path, frame_FHWC: np.ndarray, fps: int = 10, gop: int = 12) -> None:
    """A video of these frames, a key frame (of the codec) every `gop`."""
    import av

    path.parent.mkdir(parents=True, exist_ok=True)
    frames = [av.VideoFrame.from_ndarray(np.ascontiguousarray(x), format="rgb24") for x in frame_FHWC]
    write_frames(path, frames, fps, gop, crf=6)


def grey(numbers: Iterable[int], height: int = 32, width: int = 48) -> np.ndarray:
    """Frames (F, H, W, 3) of these numbers, each of one grey level."""
    levels = np.array([20 + STEP * number for number in numbers], np.uint8)
    return np.broadcast_to(levels[:, None, None, None], (len(levels), height, width, 3))


def numbers_in(frames_THWC: np.ndarray | torch.Tensor) -> list[int]:
    """The numbers of frames that `grey` made."""
    means = np.asarray(frames_THWC, np.float64).mean(axis=(1, 2, 3))
    return np.rint((means - 20) / STEP).astype(int).tolist()


def write_label_map(file: Path, ids: Iterable[int]) -> Path:
    """A map of actions a1, a2, ... with these ids."""
    file.write_text("".join(f"{action}: a{action}\n" for action in ids))
    return file


def ava_config(folder: Path, **data: Any) -> AvaConfig:
    """Settings of a run on `folder`/truth.csv, map.txt and videos, of small clips and without any draw but the square's."""
    settings = {
        **{"truth": (folder / "truth.csv",), "label_map": folder / "map.txt", "videos": folder / "videos"},
        **{"num_frames": 8, "size": 24, "stride": 2, "short_side": (32, 32), "test_short_side": 32, "flip": 0.0},
        **{"hue_turn": 0.0, "saturation": 0.0, "brightness": 0.0, "box_jitter": (0, 0, 0, 0)},
        **{"workers": 0, "read_timeout_s": 0, **data},
    }
    return AvaConfig(
        recipe="made_up",
        model=AvaModelConfig(encoder=TowerConfig(width=32, depth=1, heads=2, mlp=64), patch=8, num_classes=3),
        data=AvaDataConfig.model_validate(settings),
        train=AvaTrainConfig(global_batch=2, micro_batch=2, ds_config="cpu", precision="fp32"),
    )
