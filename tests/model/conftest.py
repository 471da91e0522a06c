"""A model small enough to run in milliseconds, and a batch for it."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import pytest
import torch

from vmae2_ds.config.model import ModelConfig, TowerConfig
from vmae2_ds.config.pretrain import MaskConfig
from vmae2_ds.contracts import ClipGeometry, PretrainBatch
from vmae2_ds.masking import make_masks

TINY_GEOMETRY = ClipGeometry(8, 32, 32, 2, 8)
TINY = ModelConfig(
    encoder=TowerConfig(width=48, depth=3, heads=3, mlp=96),
    decoder=TowerConfig(width=32, depth=3, heads=2, mlp=64),
    patch=8,
    attention="math",
)


@pytest.fixture
def tiny() -> ModelConfig:
    return TINY


@pytest.fixture
def geometry() -> ClipGeometry:
    return TINY_GEOMETRY


@pytest.fixture
def batch() -> PretrainBatch:
    """Two clips."""
    return make_batch(MaskConfig(encoder_ratio=0.75), TINY_GEOMETRY)


def make_batch(config: MaskConfig, geometry: ClipGeometry, num_clips: int = 2) -> PretrainBatch:
    rng = np.random.default_rng(0)
    shape = (num_clips, geometry.num_frames, geometry.height, geometry.width, 3)
    clips = torch.from_numpy(rng.integers(0, 256, shape, dtype=np.uint8))
    masks = [make_masks(config, geometry, rng) for _ in range(num_clips)]
    return PretrainBatch.of_clips(clips, masks)


@pytest.fixture
def batch_for() -> Callable[..., PretrainBatch]:
    return make_batch


@pytest.fixture
def same_bits() -> Iterator[None]:
    """torch asks every operator for the same bits twice."""
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)
