"""The pipeline and loader cases: both ways give the same clips, and what is measured is what the rows say."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from benchmarks.case import Bench, Options
from benchmarks.cases import loader, pipeline
from benchmarks.record import Row
from tests.benchmarks.fresh import in_fresh_process
from vmae2_ds.data.feed.pretrain import PretrainDataset
from vmae2_ds.data.sources.mixture import open_mixture

QUICK = Bench(Options(device="cpu", rounds=1, warmup=0, quick=True))


def test_the_published_way_gives_the_same_clips_within_2_of_255(tmp_path: Path) -> None:
    config = pipeline.pipeline_config(pipeline.draw_set(tmp_path, 2, gop=16), views=4)
    mixture = open_mixture(config.data)
    keys = pipeline.keys_of(mixture, 2)
    ours = pipeline.pipeline_step(PretrainDataset(config, mixture), keys)()
    published = pipeline.pipeline_step(pipeline.PublishedDataset(config, mixture), keys)()
    assert ours.clip_BTHWC.dtype == torch.uint8
    assert ours.clip_BTHWC.shape == published.clip_BTHWC.shape == (8, 16, 224, 224, 3)
    mean, std = torch.tensor(pipeline.IMAGENET_MEAN), torch.tensor(pipeline.IMAGENET_STD)
    pixels = published.clip_BTHWC * std + mean
    assert (pixels - ours.clip_BTHWC / 255).abs().max() <= 2 / 255
    assert torch.equal(ours.decode_BM, published.decode_BM)


@pytest.mark.parametrize("views", [1, 2])
def test_all_ways_are_timed_on_the_same_number_of_clips(views: int) -> None:
    rows = {row["variant"]: row for row in pipeline.measure_views(QUICK, views)}
    assert list(rows) == ["ours", "published, a decoding each", "published, decoded once"]
    for row in rows.values():
        assert not row["error"]
        assert row["values"]["clips_per_s"] * row["time_s"]["median"] == pytest.approx(1)


def test_the_watchdog_is_compared_on_the_same_clips() -> None:
    inside, watched = pipeline.measure_watchdog(QUICK)
    assert not inside["error"]
    assert not watched["error"]
    assert (inside["config"].pop("read_timeout_s"), watched["config"].pop("read_timeout_s")) == (0, 30)
    assert inside["config"] == watched["config"]
    assert watched["clock"] == "CPU time of both processes"


def test_kept_videos_are_compared_on_the_same_clips() -> None:
    decoded, kept = pipeline.measure_cache(Bench(Options(device="cpu", rounds=2, warmup=1, quick=True)))
    assert not decoded["error"]
    assert not kept["error"]
    assert (decoded["config"].pop("cache"), kept["config"].pop("cache")) == (0, 1)
    assert decoded["config"] == kept["config"]
    assert kept["speedup"]["median"] > 1


def test_a_long_mixture_has_the_rows_it_says(tmp_path: Path) -> None:
    mixture = loader.write_long_mixture(tmp_path, 80_000)
    opened = open_mixture(loader.loader_config(0).changed(data={"manifest": None, "mixture": str(mixture)}).data)
    assert opened.num_videos == 80_000
    assert len(opened.sources) == loader.SOURCES
    assert Path(opened.sources[3].manifest[15_999].path).name == "7.mp4"


def loader_memory() -> list[Row]:
    """Rows of a start on many rows and of 1,200 clips."""
    return [*loader.measure_start(QUICK, 8_000_000, micro_batches=10), *loader.measure_growth(QUICK, 1200, size=64)]


@pytest.mark.slow
def test_loader_processes_hold_little_and_do_not_grow() -> None:
    """The issue's bars: 200 MB a worker, 20 KiB a clip; 1,200 small clips here, 3,000 in benchmarks/results."""
    # A heap's pages become a worker's own as soon as either writes them.
    start, growth = in_fresh_process(loader_memory)
    assert start["config"]["rows"] == 8_000_000
    assert start["values"]["worker_own_bytes"] + start["values"]["reader_own_bytes"] < 200e6
    assert growth["config"]["clips"] == 1200
    assert growth["values"]["worker_growth_kib_per_clip"] < 20
    assert growth["values"]["reader_growth_kib_per_clip"] < 20
