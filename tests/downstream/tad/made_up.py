"""A made-up set for temporal detection: features in which each class has a direction of its own, and where its actions are."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from vmae2_ds.config.model import TowerConfig
from vmae2_ds.config.tad import TadConfig, TadDataConfig, TadModelConfig, TadOptimConfig, TadTrainConfig
from vmae2_ds.config.tad_head import HeadConfig, HeadLossConfig
from vmae2_ds.downstream.features.sidecar import FeatureInfo, VideoFeatures, claim_folder, write_features

WIDTH, CLASSES, FPS = 16, 3, 30.0
LABELS = ("Jump", "Throw", "Wave")
INFO = FeatureInfo(
    model="made up", weights="0" * 64, grid="opengvlab", window=16, stride=4, interval=1, offset_frames=8, pixels="imagenet",
    resize="crop", size=32, precision="fp32", width=WIDTH,
)  # fmt: skip


def write_set(
    folder: Path, videos: int = 12, validation: int = 6, rows: int = 64, seed: int = 0, info: FeatureInfo = INFO
) -> tuple[Path, Path]:
    """The annotations' file and the folder of features; rows are noise, and inside of an action its class's direction."""
    rng = np.random.default_rng(seed)
    features = folder / "features"
    features.mkdir(parents=True)
    claim_folder(features, info)
    database: dict[str, Any] = {}
    for number in range(videos + validation):
        frames = info.window + (rows - 1) * info.stride + 2
        array = rng.normal(0, 0.1, (rows, info.width)).astype(np.float32)
        actions, at = [], int(rng.integers(2, 8))
        while at + 16 < rows:
            length, label = int(rng.integers(4, 14)), int(rng.integers(CLASSES))
            array[at : at + length + 1, label] += 2
            array[at, 4] += 2  # the first and the last row of an action can be told
            array[at + length, 5] += 2
            ends = [(row * info.stride + info.offset_frames) / FPS for row in (at, at + length)]
            actions.append({"segment": ends, "label": LABELS[label]})
            at += length + int(rng.integers(4, 10))
        name, subset = f"video_{number:03}", "training" if number < videos else "validation"
        write_features(features, name, array, VideoFeatures(frames=frames, fps=FPS, rows=rows))
        database[name] = {"subset": subset, "duration": frames / FPS, "fps": FPS, "annotations": actions}
    file = folder / "annotations.json"
    file.write_text(json.dumps({"database": database}))
    return file, features


def made_up_config(folder: Path, set_: tuple[Path, Path], **train: Any) -> TadConfig:
    """A run of seconds on such a set, in a folder below `folder`."""
    annotations, features = set_
    return TadConfig(
        recipe="made_up",
        model=TadModelConfig(
            encoder=TowerConfig(width=WIDTH, depth=1, heads=1, mlp=16),
            num_classes=CLASSES,
            head=HeadConfig(width=16, heads=2, ranges=(4, 8), windows=(9,), drop_path=0.1, stem=1, head_convs=1),
        ),
        data=TadDataConfig(
            annotations=annotations, features=features, subset=("training",), val_subset=("validation",), length=64, workers=0
        ),
        loss=HeadLossConfig(normaliser_start=20),
        optim=TadOptimConfig(base_lr=6e-3, lr_batch=4, warmup_epochs=1, ema_decay=0.5),
        train=TadTrainConfig.model_validate(
            {
                **{"global_batch": 4, "micro_batch": 4, "epochs": 2, "ds_config": "cpu", "precision": "fp32", "log_every": 1},
                **{"tensorboard": False, "runs": folder / "runs", "validate_every": 100, **train},
            }
        ),
    )  # fmt: skip
