"""python -m benchmarks.desk.person_detector --data ../shared/data --out FILE: torchvision's smallest detector learns to
find the people of the detection set's training videos, from random weights, since no others can be fetched here."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import tyro
from numpy.typing import NDArray
from torch import Tensor
from torchvision.models.detection import fasterrcnn_mobilenet_v3_large_320_fpn

from vmae2_ds.data.readers.table import read_clip
from vmae2_ds.disk import whole_file
from vmae2_ds.downstream.ava.rows import read_truth

NAME = "fasterrcnn_mobilenet_v3_large_320_fpn"
SHORT_SIDE = 240
"""Height of one person's tile."""
TILE = 320
"""Its width."""
BATCH = 4
PEAK_LR = 1e-3
SAMPLES = {"box_batch_size_per_image": 48, "rpn_post_nms_top_n_train": 150, "rpn_pre_nms_top_n_train": 500}
"""Fewer candidates than published are learnt from: there are four people at most, and they are what takes the time."""


@dataclass(frozen=True)
class Detector:
    """Train a person detector from random weights on the key frames of the training videos."""

    data: Path
    """The folder that holds detection/ with videos and ava_like_train.csv."""
    out: Path
    """File of its weights."""
    epochs: int = 24
    """Passes over the key frames."""


Frame = tuple[NDArray[np.uint8], NDArray[np.float64]]
"""A picture (H, W, 3), and the boxes of its people (G, 4) in parts of it."""


def main(argv: list[str] | None = None) -> int:
    """Train and write the weights."""
    asked = tyro.cli(Detector, args=argv, prog="python -m benchmarks.desk.person_detector")
    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    frames = list(key_frames(asked.data / "detection"))
    model = fasterrcnn_mobilenet_v3_large_320_fpn(
        weights=None, weights_backbone=None, num_classes=2, min_size=SHORT_SIDE, max_size=2 * SHORT_SIDE, **SAMPLES
    )
    optimizer = torch.optim.AdamW(model.parameters(), PEAK_LR, weight_decay=1e-4)
    steps = asked.epochs * len(frames) // BATCH + 1
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, PEAK_LR, steps)
    model.train()
    for epoch in range(asked.epochs):
        total = 0.0
        for batch in np.array_split(rng.permutation(len(frames)), len(frames) // BATCH):
            seen = [cut for number in batch if len((cut := drawn(frames[number], rng))[1])]
            losses = model([picture for picture, _ in seen], [_target(boxes) for _, boxes in seen])
            loss = torch.stack(list(losses.values())).sum()
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 5.0)
            optimizer.step()
            schedule.step()
            total += loss.item()
        print(f"epoch {epoch + 1}, loss {total / (len(frames) // BATCH):.3f}", flush=True)
    asked.out.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(asked.out) as file:
        torch.save(model.state_dict(), file)
    return 0


def key_frames(folder: Path) -> Iterator[Frame]:
    """The key frames of the training videos."""
    truth = read_truth(folder / "ava_like_train.csv")
    for number, name in enumerate(truth.videos):
        of_video = truth.video_N == number
        times_ms = np.unique(truth.time_ms_N[of_video])
        file = folder / "videos" / f"{name}.mp4"
        pictures = read_clip(file, lambda length, fps, ms=times_ms: np.round(ms / 1000 * fps).astype(np.int64))  # type: ignore[misc]
        for picture, time_ms in zip(pictures.copy(), times_ms, strict=True):
            yield picture, np.unique(truth.box_N4[of_video & (truth.time_ms_N == time_ms)], axis=0)


def drawn(frame: Frame, rng: np.random.Generator) -> tuple[Tensor, NDArray[np.float64]]:
    """A picture (3, H, W) in [0, 1], mirrored or not, one tile of a wide one more often than all, and its boxes in pixels."""
    picture, part_G4 = frame
    height, width = picture.shape[:2]
    box_G4 = part_G4 * [width, height, width, height]
    if rng.random() < 0.5:
        picture = picture[:, ::-1]
        box_G4[:, [0, 2]] = width - box_G4[:, [2, 0]]
    if width > TILE and rng.random() < 0.7:
        left = TILE * int(rng.integers(width // TILE))
        picture = picture[:, left : left + TILE]
        box_G4 = box_G4 - [left, 0, left, 0]
        box_G4 = box_G4[(box_G4[:, 0] < TILE - 10) & (box_G4[:, 2] > 10)]
        box_G4[:, [0, 2]] = box_G4[:, [0, 2]].clip(0, TILE)
    tensor = torch.from_numpy(np.ascontiguousarray(picture)).permute(2, 0, 1) / 255
    return (tensor * float(rng.uniform(0.7, 1.3))).clamp(0, 1), box_G4


def _target(box_G4: NDArray[np.float64]) -> dict[str, Tensor]:
    return {
        "boxes": torch.tensor(box_G4, dtype=torch.float32),
        "labels": torch.ones(len(box_G4), dtype=torch.int64),
    }


if __name__ == "__main__":
    sys.exit(main())
