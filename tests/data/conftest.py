"""What the data tests share: a small synthetic set, real and broken videos where they lie beside the checkout, configs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from vmae2_ds.config.model import ModelConfig
from vmae2_ds.config.pretrain import PretrainConfig, PretrainDataConfig
from vmae2_ds.config.run import TrainConfig
from vmae2_ds.data.tools.synthetic import SynthArguments, SyntheticSet, write_synthetic_set


@pytest.fixture(scope="session")
def synthetic_set(tmp_path_factory: pytest.TempPathFactory) -> SyntheticSet:
    return write_synthetic_set(
        SynthArguments(folder=tmp_path_factory.mktemp("set"), train_videos=12, val_videos=2, size=64, frames=24)
    )


@pytest.fixture(scope="session")
def shared() -> Path:
    folder = Path(__file__).parents[3] / "shared"
    if not (folder / "data").is_dir():
        pytest.skip("../shared (real and broken videos, class lists) is not beside this checkout")
    return folder


@pytest.fixture
def make_config() -> Callable[..., PretrainConfig]:
    """A run on 32-pixel clips of 8 frames: 4 x 2 x 2 cubes, one cell visible in each frame.

    Its reads have no time limit, for which each process that reads would start another one.
    """

    def make(micro_batch: int = 2, seed: int = 0, **data: object) -> PretrainConfig:
        small = {"num_frames": 8, "size": 32, "stride": 2, "views": 2, "workers": 0, "read_timeout_s": 0}
        return PretrainConfig(
            model=ModelConfig.of_size("tiny"),
            mask={"encoder_ratio": 0.75},
            data=PretrainDataConfig.model_validate(small | data),
            train=TrainConfig(micro_batch=micro_batch, seed=seed),
        )

    return make
