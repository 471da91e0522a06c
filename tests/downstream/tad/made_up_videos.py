"""A made-up set of long videos: grey noise, and while an action goes on a bright square, one place for each class."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from vmae2_ds.config.adapters import AdapterConfig
from vmae2_ds.config.model import TowerConfig
from vmae2_ds.config.tad import TadConfig, TadDataConfig, TadModelConfig, TadOptimConfig, TadTrainConfig
from vmae2_ds.config.tad_head import HeadConfig, HeadLossConfig
from vmae2_ds.data.tools.encode import write_frames

FPS, EDGE, LABELS = 10, 32, ("Left", "Right")


def write_pictures(path: Path, frame_FHWC: np.ndarray) -> None:
    """A video of these frames, FPS a second."""
    import av

    write_frames(
        path, [av.VideoFrame.from_ndarray(np.ascontiguousarray(x), format="rgb24") for x in frame_FHWC], FPS, 12, crf=6
    )


def write_videos(
    folder: Path, videos: int = 4, validation: int = 2, frames: int = 60, seed: int = 0
) -> tuple[Path, Path]:
    """The annotations' file and the folder of videos, each of `frames` frames of 32 x 48 pixels."""
    rng = np.random.default_rng(seed)
    (folder / "videos").mkdir(parents=True)
    database: dict[str, Any] = {}
    for number in range(videos + validation):
        pixels = rng.integers(90, 110, (frames, EDGE, 48, 3), dtype=np.uint8)
        actions, at = [], int(rng.integers(2, 8))
        while at + 12 < frames:
            length, label = int(rng.integers(8, 14)), int(rng.integers(2))
            pixels[at : at + length, 8:24, 10 + 16 * label : 22 + 16 * label] = 240
            ends = [at / FPS, min(at + length, frames) / FPS]
            actions.append({"segment": ends, "label": LABELS[label]})
            at += length + int(rng.integers(6, 12))
        name, subset = f"video_{number:02}", "training" if number < videos else "validation"
        write_pictures(folder / "videos" / f"{name}.mp4", pixels)
        database[name] = {"subset": subset, "duration": frames / FPS, "fps": FPS, "annotations": actions}
    file = folder / "annotations.json"
    file.write_text(json.dumps({"database": database}))
    return file, folder / "videos"


def end_to_end_config(folder: Path, set_: tuple[Path, Path], **train: Any) -> TadConfig:
    """A run of seconds: windows of 16 positions in 4 clips, an encoder of 3 blocks with adapters behind the last two."""
    annotations, videos = set_
    return TadConfig(
        recipe="made_up_end_to_end",
        model=TadModelConfig(
            encoder=TowerConfig(width=32, depth=3, heads=2, mlp=64), patch=8, num_classes=len(LABELS), attention="math",
            head=HeadConfig(width=16, heads=2, ranges=(4,), windows=(-1,), drop_path=0.0, stem=1, head_convs=1),
            adapters=AdapterConfig(blocks=(1, 2), clips_at_once=3, lr_scale=2.0),
        ),
        data=TadDataConfig(
            annotations=annotations, videos=videos, val_subset=("validation",), num_frames=4, size=16, stride=2, length=16,
            fit="windows", keep_share=0.75, flip=0.0, workers=0, read_timeout_s=0,
        ),
        loss=HeadLossConfig(normaliser_start=20),
        optim=TadOptimConfig(base_lr=3e-3, lr_batch=2, warmup_epochs=1, ema_decay=0.5),
        train=TadTrainConfig.model_validate(
            {
                **{"global_batch": 2, "micro_batch": 1, "epochs": 2, "ds_config": "cpu", "precision": "fp32", "log_every": 1},
                **{"tensorboard": False, "runs": folder / "runs", "validate_every": 100, **train},
            }
        ),
    )  # fmt: skip
