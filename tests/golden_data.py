"""Golden numbers of the published code, and the rule that rebuilds the weights they were made with."""

from __future__ import annotations

import json
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vmae2_ds.model.embed import IMAGENET_MEAN, IMAGENET_STD

GOLDEN = Path(__file__).parent / "golden"
TINY_EVERY = 11
"""Of the tiny model's outputs and targets every 11th value of a cube is kept: all colours, rows and columns are among them."""


def golden_json(name: str) -> Any:
    """A committed file of golden numbers."""
    return json.loads((GOLDEN / name).read_text())


def clip_by_rule(seed: int, *shape: int) -> Tensor:
    """The normalised golden clip (B, C, T, H, W) that was drawn from this seed."""
    return torch.from_numpy(np.random.default_rng(seed).standard_normal(shape).astype(np.float32))


def clip_of(x_BCTHW: Tensor) -> Tensor:
    """Unit pixels (B, T, H, W, C) from a golden clip, which is normalised."""
    return x_BCTHW.permute(0, 2, 3, 4, 1) * torch.tensor(IMAGENET_STD) + torch.tensor(IMAGENET_MEAN)


def fill(shapes: dict[str, tuple[int, ...]]) -> dict[str, Tensor]:
    """Weights from their published names alone (rule: golden/README.md)."""
    return {name: torch.from_numpy(_fill_one(name, shape)) for name, shape in shapes.items()}


def _fill_one(name: str, shape: tuple[int, ...]) -> np.ndarray:
    r = np.random.default_rng(zlib.crc32(name.encode())).standard_normal(shape).astype(np.float32)
    if "norm" in name and name.endswith(".weight"):
        return 1 + np.float32(0.1) * r
    if len(shape) == 1:
        return np.float32(0.05) * r
    return (r / np.sqrt(np.prod(shape[1:]))).astype(np.float32)
