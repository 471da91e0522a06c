"""The device that a test runs on: each has a twin on the CPU, which keeps it from rotting where there is no GPU."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from vmae2_ds.data.tools.synthetic import SynthArguments, SyntheticSet, write_synthetic_set


@pytest.fixture(
    scope="module",
    params=[pytest.param("cuda", marks=pytest.mark.gpu), pytest.param("cpu", marks=pytest.mark.slow)],
)
def device(request: pytest.FixtureRequest) -> torch.device:
    """A GPU under `-m gpu`; else the CPU."""
    return torch.device(request.param)


@pytest.fixture(scope="session")
def videos(tmp_path_factory: pytest.TempPathFactory) -> SyntheticSet:
    """Eight videos of 64 pixels to train on, two to test on."""
    folder = tmp_path_factory.mktemp("videos")
    return write_synthetic_set(SynthArguments(folder=folder, train_videos=8, val_videos=2, size=64, frames=16))


@pytest.fixture(scope="module")
def runs(device: torch.device, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of the runs of a file's tests on one device."""
    return tmp_path_factory.mktemp(f"runs_{device.type}")
