"""The golden numbers of the published detection head, and the rule that rebuilds the weights they were made with."""

from __future__ import annotations

import zlib
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor

from tests.golden_data import GOLDEN, golden_json
from vmae2_ds.config.tad_head import HeadConfig

TINY_HEAD = HeadConfig(width=32, heads=4, ranges=(4, 8, 16), windows=(9,), layer_scale=0, drop_path=0)
TINY_LENGTH, TINY_INPUT, TINY_CLASSES = 128, 24, 4


def golden_head() -> tuple[Any, dict[str, Tensor]]:
    """Scalars and structure, and tensors by name."""
    return golden_json("tad/actionformer_tiny.json"), load_file(GOLDEN / "tad" / "actionformer_tiny.safetensors")


def published_weights(shapes: dict[str, list[int]]) -> dict[str, Tensor]:
    """The head's weights from their published names and shapes alone (rule: golden/README.md)."""
    return {name: torch.from_numpy(_fill_one(name, tuple(shape))) for name, shape in shapes.items()}


def _fill_one(name: str, shape: tuple[int, ...]) -> np.ndarray:
    drawn = np.random.default_rng(zlib.crc32(name.encode())).standard_normal(shape)
    r = np.asarray(drawn, dtype=np.float32)
    if name == "cls_head.cls_head.conv.bias":
        return np.full(shape, -np.log(99), dtype=np.float32)
    if name.startswith("reg_head.scale"):
        return np.ones(shape, dtype=np.float32)
    if name.startswith("cls_head"):
        return np.float32(0.1) * r
    if "norm" in name or ".ln" in name:
        return np.float32(0.1) * r + np.float32(name.endswith("weight"))
    if len(shape) == 1:
        return np.float32(0.05) * r
    return (r / np.sqrt(np.prod(shape[1:]))).astype(np.float32)


def batch_of(tensors: dict[str, Tensor]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Features (B, T, D) padded to the head's length, which are real, segments (B, G, 2) and labels (B, G)."""
    features = [tensors[f"videos/{i}/feats"].T for i in range(2)]
    is_real_BT = torch.arange(TINY_LENGTH) < torch.tensor([[len(feature)] for feature in features])
    feature_BTD = torch.zeros(2, TINY_LENGTH, TINY_INPUT)
    for padded, feature in zip(feature_BTD, features, strict=True):
        padded[: len(feature)] = feature
    segment_BG2, label_BG = (
        torch.stack([tensors[f"videos/{i}/{name}"] for i in range(2)]) for name in ("segments", "labels")
    )
    return feature_BTD, is_real_BT, segment_BG2, label_BG
