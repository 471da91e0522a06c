"""What a core reads: decoding by reader, GOP and height, the crop, the whole loader by views, and the cores that a GPU needs.

Everything here runs on the CPU, whatever the device, in one process and from the page cache: CPU seconds of one clip.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch

from benchmarks.case import Bench, Case, Group
from benchmarks.devices import CPU_TIMER, Step
from benchmarks.harness import Variant, measured_row, rows_of, time_interleaved
from benchmarks.record import Row
from benchmarks.scenes import FPS, draw_scene, width_of, write_scene
from benchmarks.steps import SEED
from vmae2_ds.config.pretrain import PretrainConfig, PretrainDataConfig
from vmae2_ds.cost.assumptions import Assumptions, End
from vmae2_ds.cost.cluster import make_cluster
from vmae2_ds.cost.hardware import get_accelerator
from vmae2_ds.cost.zero import ZeroPolicy
from vmae2_ds.data.clips.crops import crop_resize, draw_crop
from vmae2_ds.data.clips.sampling import stride_indices
from vmae2_ds.data.feed.loader import make_loader
from vmae2_ds.data.feed.pretrain import PretrainDataset
from vmae2_ds.data.readers.table import installed_readers, read_clip
from vmae2_ds.data.sources.mixture import open_mixture
from vmae2_ds.recipes import get_recipe
from vmae2_ds.tune.setting_cost import Setting, attention_kind, predict_time
from vmae2_ds.tune.workload import workload_of

HEIGHTS = (240, 480, 720)
GOPS = (16, 250)
"""Frames between key frames: as `write_video` prepares them, and libx264's default, which most collected videos have."""
VIEWS = (1, 2, 4, 8)
PUBLISHED_VIEWS = 4
LOADER_HEIGHT = 240
"""The published sets are stored with a short side of 256 or so."""
RECIPES = {"base": "vit_b_pretrain_hybrid", "giant": "vit_g_pretrain_hybrid"}
ACCELERATORS = ("a100-80g", "h100")
RECIPE: PretrainDataConfig = get_recipe("pretrain", RECIPES["base"]).data


def groups(bench: Bench) -> Iterator[Group]:
    """Decoding by height, the crop, and the loader by GOP with the cores that follow from it."""
    for height in HEIGHTS:
        yield Group(f"decode {height}p", partial(measure_decode, bench, height))
    yield Group("transform", partial(measure_transform, bench))
    for gop in GOPS:
        yield Group(f"loader {LOADER_HEIGHT}p gop {gop}", partial(measure_loader, bench, LOADER_HEIGHT, gop))


def measure_decode(bench: Bench, height: int) -> list[Row]:
    """16 frames, every 4th, from a few places spread over a video: open, seek, decode, as RGB. One row a reader and GOP."""
    starts = 1 if bench.options.quick else 4
    with TemporaryDirectory() as folder:
        variants = []
        for gop in reversed(GOPS):
            path = _scene(bench, Path(folder), height, gop)
            for reader in installed_readers():
                config = _described(bench, height, gop, path) | {"reader": reader, "starts": starts}
                variants.append(Variant(f"{reader} gop {gop}", partial(decode_step, path, reader, starts), config))
        return _timed(variants, bench, variants[0].name, clips=starts)


def measure_transform(bench: Bench) -> list[Row]:
    """The recipe's crop of frames that are decoded already: cut and resized as uint8, a new box for every clip."""
    clips, variants = 8, []
    for height in HEIGHTS:
        config = {"frames": RECIPE.num_frames, "height": height, "width": width_of(height), "size": RECIPE.size}
        variants.append(Variant(f"{height}p", partial(crop_step, height, clips), config))
    return _timed(variants, bench, variants[0].name, clips=clips)


def measure_loader(bench: Bench, height: int, gop: int) -> list[Row]:
    """The loader that training uses, without workers so that its CPU time counts: a video decoded once, cut `views` times.

    Beside each the planner's prior. Then, modelled, the cores that keep an accelerator fed at the published views.
    """
    clips = max(VIEWS) if bench.options.quick else 2 * max(VIEWS)
    with TemporaryDirectory() as folder:
        path = _scene(bench, Path(folder), height, gop)
        manifest = Path(folder, "videos.csv")
        manifest.write_text("path\n" + f"{path.name}\n" * clips)
        described, variants = _described(bench, height, gop, path), []
        for views in VIEWS:
            config = loader_config(manifest, views, clips)
            details = {"reader": config.data.reader, "views": views, "videos": clips // views, "size": config.data.size}
            variants.append(Variant(f"views {views}", partial(loader_step, config), described | details))
        rows = _timed(variants, bench, variants[0].name, clips=clips)
    for views, row in zip(VIEWS, rows, strict=True):
        predicted_s = workload_of(loader_config(manifest, views, clips), "flash").core_s(Assumptions()) / views
        row["predicted"] = {
            "time_s": predicted_s,
            "source": "cost.assumptions, decode_core_s and transform_core_s: 340x256",
        }
        if not row["error"]:
            row["residual"] = {"time": predicted_s / row["time_s"]["median"] - 1}
    published = rows[VIEWS.index(PUBLISHED_VIEWS)]
    return rows if published["error"] else [*rows, *cores_rows(published)]


def decode_step(path: Path, reader: str, starts: int) -> Step:
    """One clip from the middle of each of `starts` equal parts of where a clip may begin."""

    def choose(length: int, fps: float, number: int) -> np.ndarray:
        room = length - RECIPE.num_frames * RECIPE.stride
        start = room * (2 * number + 1) // (2 * starts)
        return stride_indices(length, RECIPE.num_frames, RECIPE.stride, start)

    def step() -> None:
        for number in range(starts):
            read_clip(path, partial(choose, number=number), reader)

    return step


def crop_step(height: int, clips: int) -> Step:
    """`clips` crops of one set of frames; every height draws the same boxes, in shares of the frame."""
    width = width_of(height)
    frames_THWC = torch.from_numpy(np.stack(list(draw_scene(height, width, RECIPE.num_frames))))
    rng = np.random.default_rng(SEED)

    def step() -> None:
        for _ in range(clips):
            crop_resize(frames_THWC, draw_crop(height, width, RECIPE.size, RECIPE.crop_scales, rng), RECIPE.size)

    return step


def loader_config(manifest: Path, views: int, clips: int) -> PretrainConfig:
    """The recipe with `clips` clips in a micro batch, read by the process itself."""
    return get_recipe("pretrain", RECIPES["base"]).changed(
        data={"manifest": manifest, "views": views, "workers": 0}, train={"micro_batch": clips // views}
    )


def loader_step(config: PretrainConfig) -> Step:
    """The loader's next micro batch."""
    batches = make_loader(
        config,
        PretrainDataset(config, open_mixture(config.data)),
        rank=0,
        world_size=1,
        accumulation=1,
        first_step=0,
        num_steps=2**31,
    )

    def step() -> None:
        next(batches)

    return step


def cores_rows(measured: Row) -> list[Row]:
    """Modelled: cores of this machine for each accelerator and size = its clips/s by the planner over clips/s of a core.

    `low` and `high` are the ends of the planner's assumptions about the accelerator; the core's rate is a measured median.
    """
    per_core = measured["values"]["clips_per_s"]
    rows = []
    for key in ACCELERATORS:
        for size, recipe in RECIPES.items():
            rates, config = accelerator_rates(key, recipe)
            values = {"clips_per_s_per_core": per_core}
            for end, rate in rates.items():
                values |= {f"accelerator_clips_per_s{end}": rate, f"cores{end}": rate / per_core}
            row = measured_row(f"cores {key} {size}", measured["config"] | config, ())
            rows.append(
                row | {"values": values, "kind": "modelled", "source": "vmae2_ds/tune/setting_cost.py, predict_time"}
            )
    return rows


def accelerator_rates(key: str, recipe: str) -> tuple[dict[str, float], dict[str, Any]]:
    """Clips a second of one accelerator training `recipe`: expected (""), "_low" and "_high"; and what was assumed."""
    assumptions = Assumptions()
    config = get_recipe("pretrain", recipe)
    clips = config.train.micro_batch * config.data.views
    alone = config.changed(train={"global_batch": clips})
    cluster = make_cluster(get_accelerator(key), 1, 1, None, assumptions.usable_memory)
    setting = Setting(alone, ZeroPolicy(stage=1))
    ends: dict[str, End] = {"": "expected", "_low": "worst", "_high": "best"}
    rates = {
        suffix: clips / predict_time(setting, cluster, assumptions.at(end)).device_s for suffix, end in ends.items()
    }
    assumed = {
        "accelerator": key, "recipe": recipe, "mask": "dual", "batch_size": clips,
        "precision": alone.train.precision, "attention": attention_kind(alone, on_cpu=False),
        "checkpointing": alone.model.checkpointing,
    }  # fmt: skip
    return rates, assumed


def _scene(bench: Bench, folder: Path, height: int, gop: int) -> Path:
    path = folder / f"{height}p_gop_{gop}.mp4"
    write_scene(path, height, _length(bench), gop)
    return path


def _length(bench: Bench) -> int:
    """Frames of a video: 10 s, as in Kinetics."""
    return 3 * FPS if bench.options.quick else 10 * FPS


def _described(bench: Bench, height: int, gop: int, path: Path) -> dict[str, Any]:
    return {
        "video": "drawn, H.264 crf 20", "height": height, "width": width_of(height), "fps": FPS, "gop": gop,
        "video_frames": _length(bench), "file_bytes": path.stat().st_size,
        "frames": RECIPE.num_frames, "stride": RECIPE.stride,
    }  # fmt: skip


def _timed(variants: Sequence[Variant], bench: Bench, base: str, *, clips: int) -> list[Row]:
    """Rows whose samples are CPU seconds of one clip, where a call reads `clips`."""
    options = bench.options
    timings = time_interleaved(
        variants, options.rounds, options.warmup, lambda step: CPU_TIMER(step) / clips, bench.tell
    )
    rows = rows_of(variants, timings, base)
    for row in rows:
        row |= {"device": "cpu", "clock": "process_time", "rounds": options.rounds, "warmup": options.warmup}
        row["config"] |= {"clips_in_a_call": clips, "unit": "one clip"}
        if not row["error"]:
            row |= {"values": {"clips_per_s": 1 / row["time_s"]["median"]}, "kind": "measured"}
    return rows


CASE = Case(groups, "clips a second and core: decoding, crop, whole loader by views; cores that an accelerator needs")
