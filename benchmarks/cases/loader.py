"""What the loader takes besides processor time: the start of a run on 100 million rows, memory of its processes, growth."""

from __future__ import annotations

import json
import multiprocessing
import time
from collections.abc import Iterator
from contextlib import closing
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import psutil

from benchmarks.case import Bench, Case, Group
from benchmarks.cases.pipeline import RECIPE, draw_set
from benchmarks.harness import measured_row
from benchmarks.record import Row
from benchmarks.steps import SEED
from vmae2_ds.config.pretrain import PretrainConfig
from vmae2_ds.contracts import LoadedBatch
from vmae2_ds.data.feed.loader import make_loader
from vmae2_ds.data.feed.pretrain import PretrainDataset
from vmae2_ds.data.sources.mixture import open_mixture
from vmae2_ds.data.tools.index import IndexArguments, index_manifest
from vmae2_ds.recipes import get_recipe

ROWS, CLIPS = 100_000_000, 3_000
QUICK_ROWS, QUICK_CLIPS = 1_000_000, 240
SOURCES = 5
VIDEOS = 8
BLOCK = 1_000_000


def groups(bench: Bench) -> Iterator[Group]:
    """A run's first batch from a long list, and the memory of a long run."""
    rows = QUICK_ROWS if bench.options.quick else ROWS
    clips = QUICK_CLIPS if bench.options.quick else CLIPS
    yield Group(f"{rows} rows", partial(measure_start, bench, rows))
    yield Group(f"{clips} clips", partial(measure_growth, bench, clips), settings=str(bench.options.videos or ""))


def measure_start(bench: Bench, rows: int, micro_batches: int = 100) -> list[Row]:
    """Wall seconds from the config to the first batch, and what a worker and its reader hold of their own after many."""
    del bench
    with TemporaryDirectory() as folder:
        mixture = write_long_mixture(Path(folder), rows)
        config = loader_config(workers=2).changed(data={"manifest": None, "mixture": str(mixture)})
        began = time.perf_counter()
        opened = open_mixture(config.data)
        with closing(_batches(config, micro_batches)) as batches:
            next(batches)
            first_batch_s = time.perf_counter() - began
            for _ in batches:
                held = own_memory()  # the last one: before the workers end
        described = {"rows": opened.num_videos, "sources": SOURCES, "workers": 2, "micro_batches": micro_batches}
    row = measured_row("mixture", described, (first_batch_s,))
    worker, reader = max(held)
    row |= {"clock": "wall", "rounds": 1, "warmup": 0, "kind": "measured"}
    return [row | {"values": {"worker_own_bytes": worker, "reader_own_bytes": reader}}]


def measure_growth(bench: Bench, clips: int, size: int = 224) -> list[Row]:
    """Least squares over what one worker and its reader hold after every micro batch, in the second half."""
    videos_at_once = 5
    with TemporaryDirectory() as folder:
        manifest = bench.options.videos or draw_set(Path(folder), VIDEOS, gop=16)
        config = loader_config(workers=1, micro_batch=videos_at_once).changed(data={"manifest": manifest, "size": size})
        clips_at_once = videos_at_once * config.data.views
        seen, worker_bytes, reader_bytes = [], [], []
        with closing(_batches(config, clips // clips_at_once)) as batches:
            for number, _ in enumerate(batches, start=1):
                worker, reader = max(own_memory())
                seen.append(number * clips_at_once)
                worker_bytes.append(worker)
                reader_bytes.append(reader)
    late = len(seen) // 2  # buffers grow to the largest video first
    values = {
        "worker_growth_kib_per_clip": float(np.polyfit(seen[late:], worker_bytes[late:], 1)[0]) / 2**10,
        "reader_growth_kib_per_clip": float(np.polyfit(seen[late:], reader_bytes[late:], 1)[0]) / 2**10,
        "worker_own_bytes": worker_bytes[-1],
        "reader_own_bytes": reader_bytes[-1],
    }
    described = {
        "videos": "real" if bench.options.videos else "drawn, H.264 crf 20", "clips": seen[-1], "workers": 1,
        "views": config.data.views, "size": config.data.size, "reader": config.data.reader,
    }  # fmt: skip
    return [measured_row("one worker", described, ()) | {"values": values, "kind": "measured"}]


def own_memory() -> list[tuple[int, int]]:
    """Bytes that nobody shares (USS), of each loader worker and of its reader."""
    found = []
    for worker in multiprocessing.active_children():
        process = psutil.Process(worker.pid)
        readers = [child.memory_full_info().uss for child in process.children()]
        found.append((process.memory_full_info().uss, max(readers, default=0)))
    return found


def loader_config(workers: int, micro_batch: int = 4) -> PretrainConfig:
    """The recipe's clips."""
    return get_recipe("pretrain", RECIPE).changed(
        data={"workers": workers}, train={"micro_batch": micro_batch, "seed": SEED}
    )


def write_long_mixture(folder: Path, rows: int) -> Path:
    """A mixture of SOURCES equal sources with `rows` rows together: an indexed list of a few videos, over and over."""
    short = draw_set(folder, VIDEOS, gop=16)
    index = folder / "index"
    index_manifest(IndexArguments(manifest=short, out=index))
    a_time = np.frombuffer((index / "rows.bin").read_bytes(), np.uint8)
    times = rows // SOURCES // VIDEOS
    with (index / "rows.bin").open("wb") as file:
        for start in range(0, times, BLOCK):
            file.write(np.tile(a_time, min(BLOCK, times - start)).tobytes())
    about = json.loads((index / "index.json").read_text())
    about |= {"videos": times * VIDEOS, "rows_bytes": times * len(a_time)}
    (index / "index.json").write_text(json.dumps(about))
    sources = [{"name": f"source {number}", "manifest": "index", "weight": 1 + number} for number in range(SOURCES)]
    mixture = folder / "mixture.json"
    mixture.write_text(json.dumps({"name": "long", "source": sources}))
    return mixture


def _batches(config: PretrainConfig, steps: int) -> Iterator[LoadedBatch]:
    where = {"rank": 0, "world_size": 1, "accumulation": 1, "first_step": 0, "num_steps": steps}
    return make_loader(config, PretrainDataset(config, open_mixture(config.data)), **where)


CASE = Case(groups, "start of a run on 100 million rows, memory of loader processes, and its growth over 3,000 clips")
