"""When validation is due, and what a list that cannot be used says."""

from __future__ import annotations

from pathlib import Path

import pytest

from vmae2_ds.config.finetune import FinetuneConfig, LabelledDataConfig
from vmae2_ds.config.model import ClassifierConfig
from vmae2_ds.data.sources.manifest import read_manifest
from vmae2_ds.dist import Ranks
from vmae2_ds.errors import ConfigError, DataError
from vmae2_ds.train.validate import Validation, is_due


@pytest.mark.parametrize(
    ("steps_per_epoch", "every", "last", "due"),
    [
        (4, 1, 10, [4, 8, 10]),
        (2.5, 1, 6, [3, 5, 6]),
        (2.5, 2, 6, [5, 6]),
        (0.5, 1, 3, [1, 2, 3]),
        (4, 0.5, 5, [2, 4, 5]),
    ],
)
def test_due_after_every_epoch_and_at_the_end(steps_per_epoch: float, every: float, last: int, due: list[int]) -> None:
    assert [step for step in range(1, last + 1) if is_due(step, steps_per_epoch, every, last)] == due


def validation_of(listed: Path) -> Validation:
    config = FinetuneConfig(
        model=ClassifierConfig.of_size("tiny", num_classes=3), data=LabelledDataConfig(val_manifest=listed)
    )
    return Validation(config, read_manifest(listed), Ranks())


def test_an_empty_validation_list_is_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "val.csv").write_text("path,label\n")
    with pytest.raises(DataError, match=r"val\.csv: the manifest lists no videos"):
        validation_of(tmp_path / "val.csv")


def test_a_label_out_of_range_is_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "a.mp4").write_bytes(b"x")
    (tmp_path / "val.csv").write_text("path,label\na.mp4,3\n")
    with pytest.raises(ConfigError, match=r"val\.csv: video 1, a\.mp4, has label 3, .* num_classes=3"):
        validation_of(tmp_path / "val.csv")
