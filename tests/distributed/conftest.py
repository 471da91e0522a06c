"""Videos that the runs under a launcher share."""

from __future__ import annotations

from pathlib import Path

import pytest

from vmae2_ds.data.synthetic import write_synthetic_set


@pytest.fixture(scope="session")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight 64 pixel videos of 16 frames."""
    return write_synthetic_set(tmp_path_factory.mktemp("videos"), 8, 1, seed=0, size=64, frames=16, fps=15).train
