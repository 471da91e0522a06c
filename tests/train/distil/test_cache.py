"""Cached answers are the teacher's own, whatever the batch; a cache of something else, or of too little, is refused."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests.train.distil.test_teacher import STUDENT, TEACHER, written
from vmae2_ds.config.distil import DistilConfig, DistilSettings
from vmae2_ds.config.finetune import AugmentConfig, FinetuneTrainConfig, LabelledDataConfig
from vmae2_ds.contracts import TaughtBatch
from vmae2_ds.data.feed.labelled import LabelledDataset
from vmae2_ds.data.feed.loader import make_loader
from vmae2_ds.data.sources.mixture import open_mixture
from vmae2_ds.data.tools.synthetic import SynthArguments, write_synthetic_set
from vmae2_ds.dist import Ranks
from vmae2_ds.errors import ConfigError, DataError
from vmae2_ds.train.distil.answers import AnsweredDataset, CachedAnswers, read_index
from vmae2_ds.train.distil.cache import distil_cache, epochs_of, open_answers
from vmae2_ds.train.distil.teacher import Teacher

VIDEOS, VIEWS = 8, 2
Make = Callable[..., DistilConfig]


@pytest.fixture(scope="module")
def listed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_synthetic_set(
        SynthArguments(folder=tmp_path_factory.mktemp("videos"), train_videos=VIDEOS, val_videos=1, size=32, frames=8)
    ).train


@pytest.fixture
def make(listed: Path, tmp_path: Path) -> Make:
    """12 samples of 8 videos with all their draws but mixing: an epoch and a half."""
    teacher = written(tmp_path)

    def make(
        *, seed: int = 0, steps: int = 3, micro_batch: int = 2, data: dict[str, Any] | None = None, **settings: Any
    ) -> DistilConfig:
        chosen = {"teacher": teacher, "teacher_size": 24, "teacher_frames": 4, "teacher_precision": "fp32"}
        chosen |= {"feature_weight": 1.0, "cache": tmp_path / "cache", "cache_dtype": "float32"}
        clips = {"manifest": listed, "num_frames": 8, "size": 32, "views": VIEWS, "workers": 0}
        return DistilConfig(
            model=STUDENT,
            data=LabelledDataConfig.model_validate(clips | (data or {})),
            augment=AugmentConfig(mixup=0, cutmix=0),
            train=FinetuneTrainConfig(global_batch=4 * VIEWS, micro_batch=micro_batch, max_steps=steps, seed=seed),
            distil=DistilSettings.model_validate(chosen | settings),
        )

    return make


@pytest.fixture(autouse=True)
def small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vmae2_ds.train.distil.cache.SHARD_VIDEOS", 3)


def batches_of(config: DistilConfig, dataset: LabelledDataset) -> list[Any]:
    split = {"rank": 0, "world_size": 1, "first_step": 0, "num_steps": 3}
    accumulation = 4 // config.train.micro_batch
    return [loaded.batch for loaded in make_loader(config, dataset, accumulation=accumulation, **split)]


def test_a_run_gets_the_answers_that_the_teacher_would_give(make: Make) -> None:
    """Cached three at a time, learned from four at a time and in another order. Sums in another order: 1e-5."""
    said = distil_cache(make(micro_batch=2))
    assert said.endswith("answers for 2 epochs, 6 shards written now")
    config = make(micro_batch=4)
    mixture = open_mixture(config.data)
    index = open_answers(config, mixture)
    assert config.distil.cache is not None
    cached = AnsweredDataset(config, mixture, CachedAnswers(config.distil.cache, index), needs_labels=False)
    teacher = Teacher.of(config, Ranks())
    online = [teacher(batch) for batch in batches_of(config, LabelledDataset(config, mixture, needs_labels=False))]
    kept = batches_of(config, cached)
    assert len(kept) == len(online) == 3
    for one, other in zip(kept, online, strict=True):
        assert isinstance(one, TaughtBatch)
        assert all(torch.equal(a, b) for a, b in zip(one[:4], other[:4], strict=True))
        torch.testing.assert_close(one.teacher_logits_BC, other.teacher_logits_BC, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(one.teacher_feature_BE, other.teacher_feature_BE, rtol=1e-5, atol=1e-5)
    assert len({tuple(row.tolist()) for batch in kept for row in batch.teacher_logits_BC}) == 12 * VIEWS


def test_a_second_start_writes_what_is_missing_and_more_epochs_can_be_added(make: Make) -> None:
    config = make()
    distil_cache(config)
    folder = config.distil.cache
    assert folder is not None
    before = {file: file.stat().st_mtime_ns for file in folder.rglob("*.safetensors")}
    gone = sorted(before)[1]
    content = load_file(gone)
    gone.unlink()
    assert distil_cache(config).endswith("1 shard written now")
    torch.testing.assert_close(load_file(gone), content, rtol=0, atol=0)
    assert {file for file in before if file.stat().st_mtime_ns != before[file]} == {gone}
    more = make(steps=5)
    with pytest.raises(DataError, match=r"epoch0002/000000000\.safetensors: missing; run the same vmae2 distil-cache"):
        open_answers(more, open_mixture(more.data))
    assert distil_cache(more).endswith("answers for 3 epochs, 3 shards written now")
    open_answers(more, open_mixture(more.data))


def test_a_cache_of_something_else_is_refused_with_the_difference(make: Make, tmp_path: Path) -> None:
    distil_cache(make())
    (tmp_path / "other").mkdir()
    other = written(tmp_path / "other", TEACHER.model_copy(update={"head_init_scale": 20}))
    refused = [
        (make(seed=1), r"seed: was 0, now 1"),
        (make(data={"crop_area": (0.5, 1.0)}), r"data\.crop_area: was \[0\.08, 1\.0\], now \[0\.5, 1\.0\]"),
        (make(teacher=other), r"teacher\.weights: was \w+, now \w+"),
        (make(teacher_precision="bf16"), r"teacher\.precision: was fp32, now bf16"),
    ]
    for config, message in refused:
        for start in (distil_cache, lambda config: open_answers(config, open_mixture(config.data))):
            with pytest.raises(ConfigError, match=message) as error:
                start(config)
            assert "name another --distil.cache" in str(error.value)
            assert "\n" not in str(error.value)
    with pytest.raises(ConfigError, match="dtype: was float32, now float16"):
        distil_cache(make(cache_dtype="float16"))
    open_answers(make(teacher=None), open_mixture(make().data))  # the teacher itself is not needed any more
    wide = make(teacher=None).changed(model={"num_classes": 6})
    with pytest.raises(ConfigError, match=r"has 5 classes, and the student --model.num-classes 6"):
        open_answers(wide, open_mixture(wide.data))


def test_features_that_were_not_kept_cannot_be_learned(make: Make) -> None:
    distil_cache(make(feature_weight=0.0))
    with pytest.raises(ConfigError, match=r"holds no features; cache again with --distil.feature-weight set"):
        open_answers(make(teacher=None), open_mixture(make().data))


def test_a_video_that_can_no_longer_be_read_is_named(make: Make, listed: Path, tmp_path: Path) -> None:
    """The teacher saw the video; the student would be shown its replacement."""
    copied = tmp_path / "copied"
    shutil.copytree(listed.parent, copied)
    config = make(data={"manifest": copied / listed.name})
    distil_cache(config)
    for video in sorted((copied / "train").iterdir())[:4]:
        video.write_bytes(b"no video")
    mixture = open_mixture(config.data)
    assert config.distil.cache is not None
    answers = CachedAnswers(config.distil.cache, read_index(config.distil.cache))
    with pytest.raises(DataError, match=r"asked about replacement 0, and now it is replacement \d: .*copied"):
        batches_of(config, AnsweredDataset(config, mixture, answers, needs_labels=False))


def test_too_little_space_is_said_before_it_is_used(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    config = make()
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(100, 0, 100))
    with pytest.raises(ConfigError, match=r"take .* GiB, and .* GiB are free"):
        distil_cache(config)
    assert config.distil.cache is not None
    assert not any(config.distil.cache.iterdir())


def test_a_folder_of_something_else_is_refused_before_the_teacher_is_opened(make: Make, tmp_path: Path) -> None:
    config = make(teacher=tmp_path / "nowhere.pth")
    assert config.distil.cache is not None
    config.distil.cache.write_text("mine")
    with pytest.raises(ConfigError, match=r"--distil\.cache .* is a file; name a folder"):
        distil_cache(config)
    config.distil.cache.unlink()
    config.distil.cache.mkdir()
    (config.distil.cache / "thesis.txt").write_text("mine")
    with pytest.raises(ConfigError, match=r"--distil\.cache .* holds files of something else"):
        distil_cache(config)


def test_what_a_cache_cannot_be_used_with_is_refused(make: Make) -> None:
    with pytest.raises(ValueError, match=r"a mixed clip depends on its micro batch; set --augment.mixup 0"):
        DistilConfig.model_validate({**make().model_dump(), "augment": AugmentConfig()})
    with pytest.raises(ValueError, match=r"needs all ranks to ask together"):
        make(teacher_sharded=True)
    with pytest.raises(ValueError, match=r"name one .* instead of auto"):
        make(data={"reader": "auto"})
    with pytest.raises(ConfigError, match=r"give --distil\.cache FOLDER"):
        distil_cache(make(cache=None))


def test_epochs_do_not_depend_on_the_micro_batch(make: Make) -> None:
    mixture = open_mixture(make().data)
    assert [epochs_of(make(steps=steps), mixture) for steps in (1, 2, 3, 4, 5)] == [[1], [1], [2], [2], [3]]
    assert epochs_of(make(micro_batch=4), mixture) == epochs_of(make(micro_batch=1), mixture)
