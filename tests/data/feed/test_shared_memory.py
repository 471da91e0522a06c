"""The closed form of what a loader holds in /dev/shm, against what the kernel says that torch's workers hold there."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from vmae2_ds.config.finetune import FinetuneConfig
from vmae2_ds.config.model import ClassifierConfig
from vmae2_ds.config.pretrain import PretrainConfig
from vmae2_ds.config.run import RunConfig
from vmae2_ds.data.feed import shared_memory
from vmae2_ds.data.feed.loader import make_loader
from vmae2_ds.data.feed.pretrain import MiddleClips, PretrainDataset
from vmae2_ds.data.feed.shared_memory import (
    Room,
    check_run,
    check_views,
    loader_bytes,
    room_in,
    tensor_bytes,
    validation_bytes,
    views_bytes,
)
from vmae2_ds.data.feed.views import ViewsDataset
from vmae2_ds.data.sources.manifest import read_manifest
from vmae2_ds.data.sources.mixture import Mixture
from vmae2_ds.data.tools.synthetic import SyntheticSet
from vmae2_ds.dist import Ranks
from vmae2_ds.doctor.recipe_needs import needs_of
from vmae2_ds.errors import ConfigError
from vmae2_ds.recipes.finetune import FINETUNE_RECIPES
from vmae2_ds.recipes.pretrain import RECIPES

MakeConfig = Callable[..., PretrainConfig]
FRAME = (64, 64)
"""Of the synthetic videos."""


def held_bytes() -> int:
    """What this process and its children hold open in /dev/shm, nameless files too, each once: blocks, as the kernel counts."""
    blocks = {}
    for process in [os.getpid(), *(child.pid for child in multiprocessing.active_children())]:
        with contextlib.suppress(OSError):
            for file in Path(f"/proc/{process}/fd").iterdir():
                with contextlib.suppress(OSError):
                    if os.readlink(file).startswith("/dev/shm/torch_"):
                        about = file.stat()
                        blocks[about.st_ino] = 512 * about.st_blocks
    return sum(blocks.values())


def most_held(batches: Iterator[object], expected: int) -> int:
    """While the first batch is held and the workers make what they may, until nothing more comes."""
    before = held_bytes()
    loaded = next(batches)
    until, most = time.monotonic() + 20, 0
    while most < expected and time.monotonic() < until:
        time.sleep(0.02)
        most = max(most, held_bytes() - before)
    time.sleep(0.1)
    del loaded
    return max(most, held_bytes() - before)


@pytest.mark.parametrize("crop_on", ["workers", "device"])
@pytest.mark.parametrize(("workers", "prefetch"), [(1, 3), (2, 1)])
def test_the_closed_form_is_what_the_kernel_counts(
    crop_on: str, workers: int, prefetch: int, synthetic_set: SyntheticSet, make_config: MakeConfig
) -> None:
    config = make_config(micro_batch=3, workers=workers, prefetch=prefetch, crop_on=crop_on)
    mixture = Mixture.of_manifest(read_manifest(synthetic_set.train), "pyav")
    batches = make_loader(
        config, PretrainDataset(config, mixture), rank=0, world_size=1, accumulation=1, first_step=0, num_steps=20
    )
    assert most_held(batches, loader_bytes(config, FRAME)) == loader_bytes(config, FRAME)
    batches.close()


def supervised(**data: object) -> FinetuneConfig:
    config = FinetuneConfig(model=ClassifierConfig.of_size("tiny", num_classes=4))
    return config.changed(data={"num_frames": 4, "size": 32, "read_timeout_s": 0, **data}, train={"micro_batch": 3})


def test_a_list_to_test_on_is_counted_too(synthetic_set: SyntheticSet) -> None:
    config = supervised(workers=1, prefetch=2)
    views = config.test.model_copy(update={"clips": 2, "crops": 3})
    videos = ViewsDataset(config, list(read_manifest(synthetic_set.train)), views).iterate(range(12))
    assert most_held(videos, views_bytes(config.data, 6)) == views_bytes(config.data, 6)
    videos.close()


def test_a_validation_of_pre_training_holds_what_the_closed_form_says(
    synthetic_set: SyntheticSet, make_config: MakeConfig
) -> None:
    """A clip and its three masks in files of their own, whatever the views; nothing without held-back videos."""
    config = make_config(workers=1, prefetch=2, views=4, hold_back=0.5)
    mixture = Mixture.of_manifest(read_manifest(synthetic_set.train), "pyav")
    with contextlib.closing(MiddleClips(config, mixture).iterate([*map(mixture.key_of, range(12))])) as clips:
        held = most_held(clips, validation_bytes(config))
    assert held == validation_bytes(config)
    assert needs_of(config, 2).shm_bytes == 2 * (loader_bytes(config) + validation_bytes(config))
    without = make_config(workers=1, prefetch=2, views=4)
    assert needs_of(without, 2).shm_bytes == 2 * loader_bytes(config)


def test_a_start_is_refused_or_warned_by_what_is_free(
    make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    config = make_config(workers=4)
    needed = loader_bytes(config)
    batch = needed // 9  # 4 workers x 2 ahead, and one

    def check(free: int | None, config: RunConfig = config) -> None:
        room = None if free is None else Room(2**40, free)
        monkeypatch.setattr(shared_memory, "room_in", lambda folder: room)
        check_run(config, Ranks())

    check(None)
    check(needed)
    check(0, make_config(workers=0))
    assert not caplog.messages
    check(4 * batch)
    (line,) = caplog.messages
    for part in ("0 MiB free", "--data.workers 4", "--data.prefetch 2", "--shm-size=1g"):
        assert part in line
    with pytest.raises(ConfigError, match=r"^/dev/shm has \S+ MiB free[^\n]*--shm-size=1g[^\n]*$"):
        check(4 * batch - 1)


def test_a_validation_and_an_evaluation_are_compared_as_well(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    config = supervised(workers=2, prefetch=3)
    needed = loader_bytes(config)
    monkeypatch.setattr(shared_memory, "room_in", lambda folder: Room(2**40, needed))
    check_run(config, Ranks())
    assert not caplog.messages
    check_run(config.changed(data={"val_manifest": tmp_path / "list.csv"}), Ranks())
    assert len(caplog.messages) == 1
    with pytest.raises(ConfigError, match="--shm-size"):
        check_views(config.data, 2 * needed, Ranks())


@pytest.mark.parametrize("crop_on", ["workers", "device"])
def test_the_sizes_are_those_of_the_batch_s_tensors(
    crop_on: str, synthetic_set: SyntheticSet, make_config: MakeConfig
) -> None:
    config = make_config(micro_batch=3, crop_on=crop_on)
    dataset = PretrainDataset(config, mixture := Mixture.of_manifest(read_manifest(synthetic_set.train), "pyav"))
    batch = dataset.collate([dataset[mixture.order(0).key_at(number)] for number in range(3)])
    parts = [part for each in batch for part in (each if isinstance(each, list) else [each])]
    assert tensor_bytes(config, FRAME) == [part.nbytes for part in parts if hasattr(part, "nbytes")]


def test_no_workers_take_nothing_and_the_recipes_are_not_small() -> None:
    """The published ViT-B: 17 batches of 32 videos x 4 clips x 2.4 MB, eighty times the 64 MB that a container has."""
    base = RECIPES["vit_b_pretrain_hybrid"]()
    assert loader_bytes(base.changed(data={"workers": 0})) == 0
    videos = base.train.micro_batch * base.data.views * (base.data.workers * base.data.prefetch + 1)
    assert loader_bytes(base) == pytest.approx(videos * 16 * 224 * 224 * 3, rel=0.01)
    labelled = FINETUNE_RECIPES["vit_b_finetune_k400"]()
    assert tensor_bytes(labelled)[0] == labelled.train.micro_batch * labelled.data.views * 16 * 224 * 224 * 3


def test_a_folder_that_is_not_there_has_no_room_to_tell(tmp_path: Path) -> None:
    assert room_in(tmp_path / "nowhere") is None
    assert (found := room_in(tmp_path)) is not None
    assert 0 < found.free <= found.total
