"""Samples: functions of (seed, epoch, row, view) alone, and what happens to videos that cannot be used."""

from __future__ import annotations

import csv
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from vmae2_ds.config.pretrain import PretrainConfig
from vmae2_ds.data.feed.dataset import MAX_ATTEMPTS
from vmae2_ds.data.feed.pretrain import PretrainDataset, PretrainSample
from vmae2_ds.data.sources.manifest import read_manifest
from vmae2_ds.data.sources.mixture import Mixture
from vmae2_ds.data.sources.order import SampleKey
from vmae2_ds.data.tools.synthetic import SyntheticSet
from vmae2_ds.errors import ConfigError, DataError
from vmae2_ds.masking import count_masks

MakeConfig = Callable[..., PretrainConfig]


def same(one: PretrainSample, other: PretrainSample) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one[:4], other[:4], strict=True)) and one[4:] == other[4:]


def list_videos(folder: Path, rows: list[tuple[object, ...]], columns: str = "path") -> Mixture:
    path = folder / "list.csv"
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([tuple(columns.split(",")), *rows])
    return mixture_of(path)


def mixture_of(path: Path, reader: str = "pyav") -> Mixture:
    return Mixture.of_manifest(read_manifest(path), reader)


def test_shapes_and_masks(synthetic_set: SyntheticSet, make_config: MakeConfig) -> None:
    config = make_config(views=3)
    sample = PretrainDataset(config, mixture_of(synthetic_set.train))[SampleKey(0, 5)]
    counts = count_masks(config.mask, config.geometry)
    assert (sample.clip_KTHWC.shape, sample.clip_KTHWC.dtype) == ((3, 8, 32, 32, 3), torch.uint8)
    assert sample.visible_KV.shape == (3, counts.visible)
    assert sample.decode_KM.shape == sample.is_supervised_KM.shape == (3, counts.decode)
    assert (sample.visible_KV.dtype, sample.is_supervised_KM.dtype) == (torch.int64, torch.bool)
    assert (sample.failures, sample.source) == ([], "synthetic")


def test_a_sample_follows_from_seed_epoch_and_row(synthetic_set: SyntheticSet, make_config: MakeConfig) -> None:
    mixture = mixture_of(synthetic_set.train)
    dataset = PretrainDataset(make_config(), mixture)
    sample = dataset[SampleKey(1, 3)]
    dataset[SampleKey(0, 0)]  # other reads in between change nothing
    assert same(dataset[SampleKey(1, 3)], sample)
    assert same(PretrainDataset(make_config(), mixture)[SampleKey(1, 3)], sample)
    others = [
        dataset[SampleKey(2, 3)],
        dataset[SampleKey(1, 4)],
        PretrainDataset(make_config(seed=1), mixture)[SampleKey(1, 3)],
    ]
    assert not any(torch.equal(other.clip_KTHWC, sample.clip_KTHWC) for other in others)


def test_views_share_frames_but_not_crops_and_masks(synthetic_set: SyntheticSet, make_config: MakeConfig) -> None:
    mixture = mixture_of(synthetic_set.train)
    four, two = (PretrainDataset(make_config(views=views), mixture)[SampleKey(0, 1)] for views in (4, 2))
    assert torch.equal(four.clip_KTHWC[:2], two.clip_KTHWC)  # more views change none of the first
    assert torch.equal(four.visible_KV[:2], two.visible_KV)
    assert len({clip.numpy().tobytes() for clip in four.clip_KTHWC}) > 1
    assert len({visible.numpy().tobytes() for visible in four.visible_KV}) > 1
    whole = PretrainDataset(make_config(views=4, crop_scales=(1.0,), size=64), mixture)[SampleKey(0, 1)]
    assert len({clip.numpy().tobytes() for clip in whole.clip_KTHWC}) == 1  # one decode: the same frames


def test_bad_videos_are_replaced_and_named(
    synthetic_set: SyntheticSet, make_config: MakeConfig, tmp_path: Path
) -> None:
    (tmp_path / "text.mp4").write_text("no video\n")
    good = [(synthetic_set.train.parent / "train" / f"{number:05d}.mp4",) for number in range(3)]
    mixture = list_videos(tmp_path, [("text.mp4",), ("none.mp4",), *good])
    dataset = PretrainDataset(make_config(), mixture)
    for row, reason in ((0, "text, not a video"), (1, "cannot be opened: No such file or directory")):
        for epoch in range(5):
            sample = dataset[SampleKey(epoch, row)]
            assert sample.failures[0] == (str(tmp_path / mixture.sources[0].manifest[row].path), reason)
            assert same(PretrainDataset(make_config(), mixture)[SampleKey(epoch, row)], sample)
    replaced = {dataset[SampleKey(epoch, 0)].clip_KTHWC.numpy().tobytes() for epoch in range(5)}
    assert len(replaced) == 5


def test_nothing_usable_is_an_error_not_a_loop(make_config: MakeConfig, tmp_path: Path) -> None:
    (tmp_path / "text.mp4").write_text("no video\n")
    dataset = PretrainDataset(make_config(), list_videos(tmp_path, [("text.mp4",)]))
    with pytest.raises(DataError, match=rf"none of {MAX_ATTEMPTS} videos .*text\.mp4: text, not a video"):
        dataset[SampleKey(0, 0)]


def test_parts_of_a_video(synthetic_set: SyntheticSet, make_config: MakeConfig, tmp_path: Path) -> None:
    """`start` and `frames` name a part: the synthetic videos have 24 frames."""
    video = synthetic_set.train.parent / "train" / "00000.mp4"
    config = make_config(views=1, size=64, crop_scales=(1.0,), stride=1, min_frames=4)
    rows = [
        (video, "", ""),
        (video, 16, ""),
        (video, 16, 8),
        (video, 0, 8),
        (video, 22, ""),
        (video, 30, 5),
        (video, 3, 3),
    ]
    mixture = list_videos(tmp_path, rows, "path,start,frames")
    dataset = PretrainDataset(config, mixture)
    whole, tail, tail_by_count, head = (dataset[SampleKey(0, row)].clip_KTHWC for row in range(4))
    assert torch.equal(tail, tail_by_count)  # eight frames: no choice of start
    assert not torch.equal(tail, head)
    assert whole.shape == tail.shape
    reasons = [dataset[SampleKey(0, row)].failures[0].reason for row in (4, 5, 6)]
    assert reasons[0] == "too short: 2 frames from frame 22 of 24; min_frames=4"
    assert reasons[1].startswith("too short: 0 frames from frame 30 of 24")
    assert reasons[2].startswith("too short: 3 frames")


def test_stride_by_source(synthetic_set: SyntheticSet, make_config: MakeConfig) -> None:
    mixture = mixture_of(synthetic_set.train)
    plain = make_config(views=1, stride=3)
    by_source = make_config(views=1, stride=1, source_strides={"synthetic": 3})
    assert same(PretrainDataset(plain, mixture)[SampleKey(0, 2)], PretrainDataset(by_source, mixture)[SampleKey(0, 2)])
    with pytest.raises(ConfigError, match=re.escape("no source 'synthetik'; did you mean 'synthetic'?")):
        PretrainDataset(make_config(source_strides={"synthetik": 2}), mixture)


def test_readers_give_the_same_sample(synthetic_set: SyntheticSet, make_config: MakeConfig) -> None:
    mixtures = (mixture_of(synthetic_set.train, reader) for reader in ("decord", "pyav"))
    decord, pyav = (PretrainDataset(make_config(), mixture)[SampleKey(0, 7)] for mixture in mixtures)
    assert same(decord, pyav)
    assert np.asarray(decord.clip_KTHWC).std() > 10
