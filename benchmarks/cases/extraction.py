"""Features of long videos: each frame decoded once and windows in batches, against each window decoded anew and run by itself.

Both give the same features of the same windows. On a CPU its time, in one process from the page cache; on a GPU the wall's.
`--videos MANIFEST` takes two real videos, spread over the list, instead of a drawn one.
"""

from __future__ import annotations

import importlib.util
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from benchmarks.case import Bench, Case, Group
from benchmarks.devices import CPU_TIMER, Step, clock_timer
from benchmarks.harness import Variant, rows_of, time_interleaved
from benchmarks.published_features import Extracted, Windows, extract_with_decord, extract_with_pyav
from benchmarks.record import Row
from benchmarks.scenes import FPS, write_scene
from benchmarks.steps import SEED
from vmae2_ds.config.model import ModelConfig, TowerConfig
from vmae2_ds.contracts import ClipGeometry
from vmae2_ds.data.entry import VideoEntry
from vmae2_ds.data.sources.manifest import read_manifest
from vmae2_ds.downstream.features.sidecar import FeatureInfo
from vmae2_ds.downstream.features.video_windows import extract_video
from vmae2_ds.model.encoder import ClipEncoder
from vmae2_ds.model.mae import MaskedAutoencoder

# B windows of W frames, R windows of a video, S the clip's edge, D width.

HEIGHT, SECONDS, GOP = 240, 20, 250
"""A drawn video: 320x240 or so as action data sets are often stored, key frames as libx264 sets them by itself."""
REAL_VIDEOS = 2
STRIDE = 4
TOLERANCE = 0.01
"""Largest difference between both ways beside how much windows differ from each other: float32, windows in batches or alone."""
OURS, PUBLISHED = "ours", "published"


class Size(NamedTuple):
    """A model to take features with."""

    model: ModelConfig | None
    """None: the mean colour of a window, which costs next to nothing."""
    window: int = 16
    size: int = 224
    most_frames: int | None = None
    """Videos count as no longer than this, so that a round ends."""


DESK = ModelConfig.of_size("tiny", patch=8).model_copy(
    update={"encoder": TowerConfig(width=192, depth=4, heads=6, mlp=768)}
)
SIZES = {
    "no model": Size(None),
    "desk": Size(DESK, window=8, size=48),
    "small": Size(ModelConfig.of_size("small"), most_frames=48),
}
"""No model: what frames alone cost, as beside a model that runs on a GPU; the desk experiment's encoder; ViT-S."""


def groups(bench: Bench) -> Iterator[Group]:
    """One a model."""
    for name in SIZES if not bench.options.quick else ("no model", "desk"):
        yield Group(name, partial(measure, bench, name), settings=str(bench.options.videos or ""))


def measure(bench: Bench, name: str) -> list[Row]:
    """`values`: windows a second, and frames decoded by our reader, or by PyAV with the published way's seeks."""
    size = SIZES[name]
    with TemporaryDirectory() as folder:
        work = Work(size, videos_of(bench, Path(folder)), encoder_of(size, bench.device), bench.device)
        found: dict[str, list[Extracted]] = {}
        ways = {PUBLISHED: work.published, OURS: work.ours}
        config = {
            "model": name, "window": size.window, "stride": STRIDE, "size": size.size, "videos": len(work.videos),
            "frames": sum(work.frames), "windows": work.num_windows, "precision": "fp32",
            "source": "real" if bench.options.videos else f"drawn, H.264 crf 20, a key frame in {GOP}",
        }  # fmt: skip
        variants = [
            Variant(way, partial(step_of, work, way, run, found), config | {"reader": work.reader_of(way)})
            for way, run in ways.items()
        ]
        on_cpu = bench.device.type == "cpu"
        timer = CPU_TIMER if on_cpu else clock_timer(time.perf_counter)
        options = bench.options
        rows = rows_of(
            variants, time_interleaved(variants, options.rounds, options.warmup, timer, bench.tell), PUBLISHED
        )
        for row in rows:
            row |= {"device": bench.device.type, "clock": "process_time" if on_cpu else "wall"}
            row |= {"rounds": options.rounds, "warmup": options.warmup}
            if not row["error"]:
                decoded = work.decoded_by_seeking if row["variant"] == PUBLISHED else _decoded(found[OURS])
                row["values"] = {
                    "windows_per_s": work.num_windows / row["time_s"]["median"],
                    "frames_decoded": decoded,
                    "decoded_per_frame": decoded / sum(work.frames),
                    "difference": difference(found[OURS], found[PUBLISHED]),
                }
                row["kind"] = "measured"
    return rows


@dataclass(frozen=True)
class Work:
    """Videos, a model, and both ways to get features."""

    size: Size
    videos: Sequence[VideoEntry]
    encode: Callable[[Tensor], Tensor]
    device: torch.device

    @property
    def windows(self) -> Windows:
        """What is taken of each video."""
        return Windows(self.size.window, STRIDE, self.size.size, self.size.most_frames)

    @cached_property
    def info(self) -> FeatureInfo:
        """The same for our extractor: the published grid, and frames resized as published."""
        return FeatureInfo(
            model="", weights="", grid="opengvlab", window=self.size.window, stride=STRIDE, interval=1,
            offset_frames=self.size.window / 2, pixels="imagenet", resize="squash_no_antialias", size=self.size.size,
            precision="fp32", width=3 if self.size.model is None else self.size.model.encoder.width,
        )  # fmt: skip

    def ours(self) -> list[Extracted]:
        """By this package."""
        done = [
            extract_video(self.encode, entry._replace(frames=self.size.most_frames), self.info, device=self.device)
            for entry in self.videos
        ]
        return [Extracted(video.feature_RD, video.decoded) for video in done]

    def published(self) -> list[Extracted]:
        """Window by window, with decord where it is installed."""
        extract = extract_with_decord if self.reader_of(PUBLISHED) == "decord" else extract_with_pyav
        return [extract(entry.path, self._on_device, self.windows) for entry in self.videos]

    def reader_of(self, way: str) -> str:
        """The package that decodes."""
        return "decord" if way == PUBLISHED and importlib.util.find_spec("decord") else "pyav"

    @cached_property
    def decoded_by_seeking(self) -> int:
        """Frames that the published way decodes, counted by PyAV, which seeks to the same key frames."""
        windows = self.windows._replace(size=8)  # what the frames are resized to does not matter
        return _decoded([extract_with_pyav(entry.path, mean_colour, windows) for entry in self.videos])

    @cached_property
    def frames(self) -> list[int]:
        """Frames of each video that any window has."""
        counts = [len(features) for features, _ in self.ours()]
        return [(rows - 1) * STRIDE + self.size.window for rows in counts]

    @cached_property
    def num_windows(self) -> int:
        """Windows of all videos."""
        return sum((frames - self.size.window) // STRIDE + 1 for frames in self.frames)

    def _on_device(self, clip_BWSSC: Tensor) -> Tensor:
        return self.encode(clip_BWSSC.to(self.device))


def step_of(work: Work, way: str, run: Callable[[], list[Extracted]], found: dict[str, list[Extracted]]) -> Step:
    """All videos, one way. Raises ValueError where the other way's features, once they are there, are others."""

    def step() -> None:
        found[way] = run()
        if {OURS, PUBLISHED} <= found.keys() and not (off := difference(found[OURS], found[PUBLISHED])) <= TOLERANCE:
            raise ValueError(
                f"features of both ways differ by {off:.2g} of what windows do; at most {TOLERANCE:g} was due"
            )

    return step


def difference(ours: Sequence[Extracted], published: Sequence[Extracted]) -> float:
    """The largest difference of one number, in deviations of a number from its mean over all windows: drawn weights tell
    windows apart by little, and a deviation over all numbers would hide windows that are mixed up. Infinite: other shapes.
    """
    if [len(each.feature_RD) for each in ours] != [len(each.feature_RD) for each in published]:
        return float("inf")
    one, other = (np.concatenate([each.feature_RD for each in way]) for way in (ours, published))
    return float(np.abs(one - other).max() / (other - other.mean(axis=0)).std())


def mean_colour(clip_BWSSC: Tensor) -> Tensor:
    """(B, 3): a model that costs next to nothing."""
    return clip_BWSSC.float().mean((1, 2, 3))


def encoder_of(size: Size, device: torch.device) -> Callable[[Tensor], Tensor]:
    """Windows (B, W, S, S, 3) -> features (B, D), with weights drawn from the seed."""
    if size.model is None:
        return mean_colour
    geometry = ClipGeometry(size.window, size.size, size.size, size.model.tubelet, size.model.patch)
    encoder = ClipEncoder(size.model, geometry).eval()
    encoder.take(MaskedAutoencoder(size.model, geometry, SEED).state_dict())
    return encoder.to(device)


def videos_of(bench: Bench, folder: Path) -> list[VideoEntry]:
    """Two of the list that is given, or a drawn one."""
    if bench.options.videos is None:
        path = folder / "scene.mp4"
        write_scene(path, HEIGHT, (3 if bench.options.quick else SECONDS) * FPS, GOP)
        return [VideoEntry(str(path), None, "", 0, None)]
    manifest = read_manifest(bench.options.videos)
    count = min(REAL_VIDEOS, len(manifest))
    return [manifest[len(manifest) * number // count] for number in range(count)]


def _decoded(extracted: Sequence[Extracted]) -> int:
    return sum(frames or 0 for _, frames in extracted)


CASE = Case(groups, "features of long videos: each frame decoded once, against each window decoded anew, by model")
