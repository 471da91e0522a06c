"""Labelled training data: labels follow their clips, draws are a function of the sample, and wrong labels are named."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from vmae2_ds.config.finetune import AugmentConfig, FinetuneConfig, FinetuneTrainConfig, LabelledDataConfig
from vmae2_ds.config.model import ClassifierConfig
from vmae2_ds.contracts import LabelledBatch
from vmae2_ds.data.feed.labelled import LabelledDataset
from vmae2_ds.data.feed.loader import make_loader
from vmae2_ds.data.sources.mixture import open_mixture
from vmae2_ds.data.sources.order import SampleKey
from vmae2_ds.data.tools.synthetic import CLASS_NAMES, SyntheticSet
from vmae2_ds.errors import ConfigError

Make = Callable[..., FinetuneConfig]


@pytest.fixture
def make(synthetic_set: SyntheticSet) -> Make:
    def make(
        num_classes: int = len(CLASS_NAMES), manifest: Path = synthetic_set.train, **augment: object
    ) -> FinetuneConfig:
        return FinetuneConfig(
            model=ClassifierConfig.of_size("tiny", num_classes=num_classes),
            data=LabelledDataConfig(manifest=manifest, num_frames=8, size=32, stride=2, workers=0, reader="pyav"),
            augment=AugmentConfig.model_validate(augment),
            train=FinetuneTrainConfig(micro_batch=3),
        )

    return make


def dataset_of(config: FinetuneConfig) -> LabelledDataset:
    return LabelledDataset(config, open_mixture(config.data))


def batches_of(config: FinetuneConfig, steps: int = 4, first: int = 0) -> list[LabelledBatch]:
    split = {"rank": 0, "world_size": 1, "accumulation": 1, "first_step": first, "num_steps": steps}
    batches = [loaded.batch for loaded in make_loader(config, dataset_of(config), **split)]
    assert all(isinstance(batch, LabelledBatch) for batch in batches)
    return batches  # type: ignore[return-value]


def same(one: LabelledBatch, other: LabelledBatch) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def test_a_sample_has_its_video_s_label_and_views_of_their_own(make: Make) -> None:
    dataset = dataset_of(make())
    for row in (0, 5, 11):
        sample = dataset[SampleKey(0, row)]
        assert sample.label == dataset.mixture.sources[0].manifest[row].label == row % len(CLASS_NAMES)
        assert (sample.clip_KTHWC.shape, sample.clip_KTHWC.dtype) == ((2, 8, 32, 32, 3), torch.uint8)
        assert not torch.equal(sample.clip_KTHWC[0], sample.clip_KTHWC[1])


def test_batches_do_not_depend_on_workers_or_where_a_run_was_cut(make: Make) -> None:
    config = make()
    alone = batches_of(config)
    workers = batches_of(config.changed(data={"workers": 2}))
    resumed = batches_of(config, first=2)
    assert all(same(a, b) for a, b in zip(alone, workers, strict=True))
    assert all(same(a, b) for a, b in zip(alone[2:], resumed, strict=True))
    again = batches_of(config.changed(train={"seed": 1}))
    assert not any(same(a, b) for a, b in zip(alone, again, strict=True))


def test_labels_are_repeated_video_by_video_and_mixing_changes(make: Make) -> None:
    batches = batches_of(make(), steps=8)
    for batch in batches:
        assert batch.label_B.view(3, 2).diff(dim=1).eq(0).all()
    assert len({float(batch.keep_label) for batch in batches}) > 4
    assert {float(batch.keep_pixels) == 1 for batch in batches} == {True, False}
    plain = batches_of(make(mixup=0, cutmix=0, erase=0, rand_augment=None))
    assert all(batch.keep_pixels == batch.keep_label == 1 for batch in plain)


def test_a_label_without_a_class_is_named_with_its_row(make: Make) -> None:
    with pytest.raises(ConfigError, match=r"train\.csv: video 4, train/00003\.mp4, has label 3, .* num_classes=3"):
        dataset_of(make(num_classes=3))


def test_a_missing_label_is_named_with_its_row(make: Make, synthetic_set: SyntheticSet, tmp_path: Path) -> None:
    listed = tmp_path / "list.csv"
    folder = synthetic_set.train.parent / "train"
    listed.write_text(f"path,label\n{folder / '00000.mp4'},0\n{folder / '00001.mp4'},\n")
    with pytest.raises(ConfigError, match=r"list\.csv: video 2, .*00001\.mp4, has no label"):
        dataset_of(make(manifest=listed))
