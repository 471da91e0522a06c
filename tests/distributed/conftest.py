"""What the runs of several ranks share: videos."""

from __future__ import annotations

from pathlib import Path

import pytest

from vmae2_ds.data.tools.synthetic import SynthArguments, write_synthetic_set


@pytest.fixture(scope="session")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight 64 pixel videos of 16 frames."""
    return write_synthetic_set(
        SynthArguments(
            folder=tmp_path_factory.mktemp("videos"), train_videos=8, val_videos=1, seed=0, size=64, frames=16, fps=15
        )
    ).train
