"""A detector of a test's own: a box around what is bright, by the door that a user's detector has."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch


class Bright:
    """Sees the bright part of a picture, and a box too small and one that reaches over the edge beside it."""

    def __init__(self, weights: Path, device: torch.device) -> None:
        self.said, self.log = json.loads(weights.read_text()), weights.with_suffix(".log")
        assert device.type == "cpu"

    def __call__(self, pictures: Sequence[np.ndarray]) -> list[np.ndarray]:
        if len(self.log.read_text().split() if self.log.exists() else []) >= self.said.get("dies_after", 99):
            raise OSError("the lights went out")
        with self.log.open("a") as log:
            log.write(f"{len(pictures)} ")
        found = []
        for picture in pictures:
            y, x = np.nonzero(picture[..., 0] > 170)
            boxes = [[0, 0, 0.5, 20, 0.9], [-4, -4, 8, 6, 0.3]]
            if len(y):
                boxes.append([x.min(), y.min(), x.max() + 1, y.max() + 1, self.said["score"]])
            found.append(np.array(boxes))
        return found


def bright(weights: Path, device: torch.device) -> Bright:
    """What --detector names."""
    return Bright(weights, device)


def wrong(weights: Path, device: torch.device) -> object:
    """Answers without scores."""
    del weights, device
    return lambda pictures: [np.zeros((1, 4)) for _ in pictures]
