"""What a core delivers from videos to uint8 batches, beside the published way of doing it, by views per decoded video.

CPU seconds of one clip, in one process, from the page cache; and what reading in a killable child adds, in CPU seconds of
both processes (the wall's told 3 and 21 % of the same code). `--videos MANIFEST` takes real videos instead of drawn ones.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from benchmarks.case import Bench, Case, Group
from benchmarks.devices import CPU_TIMER, FAMILY_TIMER, Step
from benchmarks.harness import Variant, rows_of, time_interleaved
from benchmarks.record import Row
from benchmarks.scenes import FPS, write_scene
from benchmarks.steps import SEED
from vmae2_ds.config.pretrain import PretrainConfig
from vmae2_ds.contracts import PretrainBatch
from vmae2_ds.data.clips.crops import CropBox
from vmae2_ds.data.feed.pretrain import PretrainDataset
from vmae2_ds.data.sources.mixture import Mixture, open_mixture
from vmae2_ds.data.sources.order import SampleKey
from vmae2_ds.data.tools.synthetic import SynthArguments, write_synthetic_set
from vmae2_ds.recipes import get_recipe

VIEWS = (1, 2, 4, 8)
USUAL_VIEWS = 4
HEIGHT = 240
"""320x240: small films, as action data sets are often stored."""
RECIPE = "vit_b_pretrain_hybrid"
DESK_RECIPE = "vit_ti_pretrain_desk"
INSIDE, EACH_TIME = "in the worker", "decoded each time"
TIMERS = {"process_time": CPU_TIMER, "CPU time of both processes": FAMILY_TIMER}
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class PublishedDataset(PretrainDataset):
    """The same videos, frames, boxes and masks; crops as published: Pillow frame by frame, then normalised float32."""

    def _cut(self, frames_THWC: Tensor, box: CropBox) -> Tensor:
        """(T, S, S, 3) float32."""
        size = self.data.size
        edges = (box.left, box.top, box.left + box.width, box.top + box.height)
        images = [
            Image.fromarray(frame).crop(edges).resize((size, size), Image.Resampling.BILINEAR)
            for frame in frames_THWC.numpy()
        ]
        clip_THWC = torch.from_numpy(np.stack([np.asarray(image) for image in images])).float().div(255)
        return clip_THWC.sub_(torch.tensor(IMAGENET_MEAN)).div_(torch.tensor(IMAGENET_STD))


def groups(bench: Bench) -> Iterator[Group]:
    """One group a number of views: ours, published with one view a decoding, published with all views of one decoding."""
    settings = str(bench.options.videos or "")
    for views in VIEWS:
        yield Group(f"views {views}", partial(measure_views, bench, views), settings=settings)
    yield Group("watchdog", partial(measure_watchdog, bench), settings=settings)
    yield Group("cache", partial(measure_cache, bench), settings="")


def measure_views(bench: Bench, views: int) -> list[Row]:
    """`views` clips of each of a few videos; the published code reads a video `views` times, or once (its num_sample)."""
    videos = 2 if bench.options.quick else 8
    with TemporaryDirectory() as folder:
        manifest = bench.options.videos or draw_set(Path(folder), videos, gop=250)
        once = pipeline_config(manifest, views)
        each = once.changed(data={"views": 1})
        mixture = open_mixture(once.data)
        keys = keys_of(mixture, videos)
        described = _described(bench, once, videos)
        variants = [
            Variant(
                "ours", partial(pipeline_step, PretrainDataset(once, mixture), keys), described | {"dtype": "uint8"}
            ),
            Variant(
                "published, a decoding each",
                partial(pipeline_step, PublishedDataset(each, mixture), keys * views),
                described | {"dtype": "float32", "views": 1},
            ),
            Variant(
                "published, decoded once",
                partial(pipeline_step, PublishedDataset(once, mixture), keys),
                described | {"dtype": "float32"},
            ),
        ]
        return _timed(variants, bench, "published, a decoding each", clips=videos * views)


def measure_watchdog(bench: Bench) -> list[Row]:
    """Clips whose videos are read by the process that wants them, and by a child of it that can be killed."""
    videos = 2 if bench.options.quick else 8
    with TemporaryDirectory() as folder:
        manifest = bench.options.videos or draw_set(Path(folder), videos, gop=250)
        inside = pipeline_config(manifest, USUAL_VIEWS)
        watched = inside.changed(data={"read_timeout_s": 30})
        mixture = open_mixture(inside.data)
        keys = keys_of(mixture, videos)
        described = _described(bench, inside, videos) | {"dtype": "uint8"}
        variants = [
            Variant(
                name,
                partial(pipeline_step, PretrainDataset(config, mixture), keys),
                described | {"read_timeout_s": config.data.read_timeout_s},
            )
            for name, config in ((INSIDE, inside), ("in a child", watched))
        ]
        return _timed(variants, bench, INSIDE, clips=videos * USUAL_VIEWS, clock="CPU time of both processes")


def measure_cache(bench: Bench) -> list[Row]:
    """Clips of the desk recipe, one of a video, decoded each time and out of videos that are kept decoded (data.cache)."""
    videos = 4 if bench.options.quick else 64
    with TemporaryDirectory() as name:
        drawn = write_synthetic_set(SynthArguments(folder=Path(name) / "set", train_videos=videos, val_videos=0))
        decoded = get_recipe("pretrain", DESK_RECIPE).changed(
            data={"manifest": drawn.train, "views": 1, "workers": 0, "read_timeout_s": 0}, train={"seed": SEED}
        )
        kept = decoded.changed(data={"cache": 1.0, "cache_folder": Path(name) / "kept"})
        mixture = open_mixture(decoded.data)
        keys = keys_of(mixture, videos)
        described = _described(bench, decoded, videos) | {"source": "synthetic, 32 frames of 128x128", "dtype": "uint8"}
        variants = [
            Variant(name, partial(pipeline_step, PretrainDataset(config, mixture), keys), described | {"cache": cache})
            for name, config, cache in ((EACH_TIME, decoded, 0), ("kept decoded", kept, 1))
        ]
        return _timed(variants, bench, EACH_TIME, clips=videos)


def _described(bench: Bench, config: PretrainConfig, videos: int) -> dict[str, object]:
    data = config.data
    return {
        "videos": videos, "source": "real" if bench.options.videos else "drawn, H.264 crf 20", "views": data.views,
        "reader": data.reader, "frames": data.num_frames, "stride": data.stride, "size": data.size, "unit": "one clip",
    }  # fmt: skip


def keys_of(mixture: Mixture, count: int) -> list[SampleKey]:
    """`count` samples spread over the videos."""
    videos = mixture.num_videos
    return [mixture.key_of(videos * number // count) for number in range(count)]


def pipeline_config(manifest: Path, views: int) -> PretrainConfig:
    """The recipe's clips, read by this process itself so that its CPU time counts."""
    return get_recipe("pretrain", RECIPE).changed(
        data={"manifest": manifest, "views": views, "workers": 0, "read_timeout_s": 0}, train={"seed": SEED}
    )


def pipeline_step(dataset: PretrainDataset, keys: Sequence[SampleKey]) -> Step:
    """The batch of these samples, as the loader collates it."""

    def step() -> PretrainBatch:
        samples = [dataset[key] for key in keys]
        return PretrainBatch(*(torch.cat(part) for part in zip(*(sample[:4] for sample in samples), strict=True)))

    return step


def draw_set(folder: Path, videos: int, gop: int) -> Path:
    """A manifest of drawn videos of three seconds."""
    for number in range(videos):
        write_scene(folder / f"{number}.mp4", HEIGHT, 3 * FPS, gop)
    manifest = folder / "videos.csv"
    manifest.write_text("path\n" + "".join(f"{number}.mp4\n" for number in range(videos)))
    return manifest


def _timed(
    variants: Sequence[Variant], bench: Bench, reference: str, *, clips: int, clock: str = "process_time"
) -> list[Row]:
    options, timer = bench.options, TIMERS[clock]
    timings = time_interleaved(variants, options.rounds, options.warmup, lambda step: timer(step) / clips, bench.tell)
    rows = rows_of(variants, timings, reference)
    for row in rows:
        row |= {"device": "cpu", "clock": clock, "rounds": options.rounds, "warmup": options.warmup}
        if not row["error"]:
            row |= {"values": {"clips_per_s": 1 / row["time_s"]["median"]}, "kind": "measured"}
    return rows


CASE = Case(
    groups,
    "videos to uint8 batches against the published pipeline, by views; the watchdog's cost, data.cache's gain",
)
