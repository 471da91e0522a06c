"""A made-up set of people in boxes: squares in grey noise that are red, green or blue, of which some blink."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from tests.downstream.tad.made_up_videos import FPS, write_pictures
from vmae2_ds.config.ava import AvaConfig, AvaDataConfig, AvaModelConfig, AvaOptimConfig, AvaTrainConfig
from vmae2_ds.config.ava_head import RoiHeadConfig
from vmae2_ds.config.model import TowerConfig

COLOURS = np.array([[220, 30, 30], [30, 200, 30], [30, 60, 230]])
ACTIONS = {3: "red", 5: "green", 6: "blue", 11: "blink"}
"""Ids as a label map may have them, with holes."""
HEIGHT, WIDTH, SECONDS, SIDE = 32, 48, 5, 12


class MadeUpSet(NamedTuple):
    """Files of the set."""

    videos: Path
    label_map: Path
    truth: Path
    """Of the videos to learn from."""
    val_truth: Path
    boxes: Path
    """Detected people of validation, PySlowFast's rows: those of the truth, one of them moved away, and more scores."""


def write_made_up_set(folder: Path, videos: int = 6, validation: int = 2, seed: int = 0) -> MadeUpSet:
    """Videos of 32 x 48 pixels with 1 to 3 squares each, and a key frame in each second but the first and the last."""
    rng = np.random.default_rng(seed)
    (folder / "videos").mkdir(parents=True)
    rows: dict[bool, list[str]] = {False: [], True: []}
    boxes: list[str] = []
    for number in range(videos + validation):
        name, is_val = f"video_{number:02}", number >= videos
        pixels = rng.integers(90, 110, (SECONDS * FPS, HEIGHT, WIDTH, 3), dtype=np.uint8)
        for person in range(1 + number % 3):
            left, top = 2 + 15 * person, int(rng.integers(0, HEIGHT - SIDE))
            colour, blinks = int(rng.integers(3)), bool(rng.integers(2))
            shown = np.arange(len(pixels)) % 2 == 0 if blinks else np.full(len(pixels), True)
            pixels[shown, top : top + SIDE, left : left + SIDE] = COLOURS[colour]
            corners = left / WIDTH, top / HEIGHT, (left + SIDE) / WIDTH, (top + SIDE) / HEIGHT
            box = ",".join(f"{corner:.4f}" for corner in corners)
            for second in range(1, SECONDS - 1):
                for action in [(3, 5, 6)[colour], *([11] if blinks else [])]:
                    rows[is_val].append(f"{name},{second:04d},{box},{action},{person}\n")
                if is_val:
                    boxes.append(f"{name},{second:04d},{box},,{0.99 - 0.01 * person:.3f}\n")
        write_pictures(folder / "videos" / f"{name}.mp4", pixels)
    boxes.append(f"{name},0001,0.0,0.0,0.1,0.1,,0.5\n")
    files = MadeUpSet(*(folder / file for file in ("videos", "actions.txt", "train.csv", "val.csv", "boxes.csv")))
    files.label_map.write_text("".join(f"{number}: {action}\n" for number, action in ACTIONS.items()))
    files.truth.write_text("".join(rows[False]))
    files.val_truth.write_text("".join(rows[True]))
    files.boxes.write_text("".join(boxes))
    return files


def made_up_ava(folder: Path, files: MadeUpSet, **train: Any) -> AvaConfig:
    """A run of seconds: clips of 4 frames of 32 pixels, an encoder of 2 blocks."""
    return AvaConfig(
        recipe="made_up_ava",
        model=AvaModelConfig(
            encoder=TowerConfig(width=32, depth=2, heads=2, mlp=64), patch=8, num_classes=len(ACTIONS), attention="math",
            head=RoiHeadConfig(init_scale=1.0), drop_path=0.1,
        ),
        data=AvaDataConfig(
            truth=(files.truth,), label_map=files.label_map, videos=files.videos, val_truth=(files.val_truth,),
            num_frames=4, stride=1, size=32, short_side=(32, 36), test_short_side=32, workers=0, read_timeout_s=0,
            hue_turn=0, box_jitter=(0.05, 0.05, 0.05, 0.05),
        ),
        optim=AvaOptimConfig(base_lr=3e-3, lr_batch=4, warmup_epochs=1, ema_decay=0.5),
        train=AvaTrainConfig.model_validate(
            {
                **{"global_batch": 4, "micro_batch": 2, "epochs": 12, "ds_config": "cpu", "precision": "fp32", "log_every": 1},
                **{"tensorboard": False, "runs": folder / "runs", "validate_every": 100, **train},
            }
        ),
    )  # fmt: skip
