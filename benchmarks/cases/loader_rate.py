"""Clips a second that the real loader delivers with few and many workers, by reader, cut in the workers or on the device.

Wall time of one process and its workers on an otherwise idle machine, behind the batches that were read ahead. Cut on the
device means that workers deliver whole frames; cutting them is not in it.
"""

from __future__ import annotations

import importlib
import itertools
import time
from collections.abc import Iterator
from contextlib import closing
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Literal, get_args

from benchmarks.case import Bench, Case, Group
from benchmarks.cases.loader import loader_config
from benchmarks.cases.pipeline import draw_set
from benchmarks.harness import FAILURES, measured_row, reason_of
from benchmarks.record import Row
from vmae2_ds.config.pretrain import PretrainConfig
from vmae2_ds.data.feed.loader import make_loader
from vmae2_ds.data.feed.pretrain import PretrainDataset
from vmae2_ds.data.readers.table import PACKAGES
from vmae2_ds.data.sources.mixture import open_mixture
from vmae2_ds.host import cores

CropOn = Literal["workers", "device"]
READERS = ("pyav", "decord")
FEWEST = 4
"""Workers from which on a machine with more cores is measured, doubling up to all of them."""
VIDEOS = 16
BATCHES_EACH = 2
"""Of every worker in a round."""


def groups(bench: Bench) -> Iterator[Group]:
    """By reader and place of cutting."""
    counts = worker_counts(cores().usable)
    settings = [str(bench.options.videos or ""), counts]
    for reader in READERS:
        for crop_on in get_args(CropOn):
            yield Group(f"{reader}, cut on {crop_on}", partial(measure, bench, reader, crop_on, counts), settings)


def worker_counts(cores: int) -> tuple[int, ...]:
    """1 and 2 on 2 cores; on many 4, 8, 16 ... and all."""
    if cores <= FEWEST:
        return tuple(range(1, cores + 1))
    doubled = itertools.takewhile(lambda count: count < cores, (FEWEST << turn for turn in itertools.count()))
    return (*doubled, cores)


def measure(bench: Bench, reader: str, crop_on: CropOn, counts: tuple[int, ...]) -> list[Row]:
    """A row for each number of workers.

    Raises:
        ImportError: the reader's package, or av for drawing the videos, is not installed.
    """
    importlib.import_module(PACKAGES[reader])
    micro_batch = 1 if bench.options.quick else 4
    with TemporaryDirectory() as folder:
        if bench.options.videos is None:
            importlib.import_module(PACKAGES["pyav"])
        manifest = bench.options.videos or draw_set(Path(folder), VIDEOS, gop=16)
        rows = []
        for workers in counts:
            bench.tell(f"{workers} workers")
            config = loader_config(workers=workers, micro_batch=micro_batch).changed(
                data={"manifest": manifest, "reader": reader, "crop_on": crop_on}
            )
            try:
                rows.append(deliver(bench, config))
            except FAILURES as error:
                rows.append(measured_row(name_of(workers), described(config), [], reason_of(error)))
    return rows


def name_of(workers: int) -> str:
    """`1 worker`, `8 workers`."""
    return f"{workers} worker" + "s" * (workers != 1)


def described(config: PretrainConfig) -> dict[str, object]:
    """What a row says about its loader."""
    data = config.data
    return {
        "workers": data.workers, "reader": data.reader, "crop_on": data.crop_on, "views": data.views,
        "micro_batch": config.train.micro_batch, "frames": data.num_frames, "size": data.size, "unit": "one clip",
    }  # fmt: skip


def deliver(bench: Bench, config: PretrainConfig) -> Row:
    """Seconds a clip of each round of batches, as `samples_s`; `values` has the rates, and the wait for the first batch."""
    options, workers = bench.options, config.data.workers
    clips = config.train.micro_batch * config.data.views
    a_round = BATCHES_EACH * workers
    ahead = workers * config.data.prefetch
    steps = 1 + ahead + a_round * (options.warmup + options.rounds)
    dataset = PretrainDataset(config, open_mixture(config.data))
    began = time.perf_counter()
    with closing(
        make_loader(config, dataset, rank=0, world_size=1, accumulation=1, first_step=0, num_steps=steps + ahead)
    ) as batches:
        next(batches)
        first_s = time.perf_counter() - began
        for _ in range(ahead + a_round * options.warmup):
            next(batches)
        samples = []
        for _ in range(options.rounds):
            start = time.perf_counter()
            for _ in range(a_round):
                next(batches)
            samples.append((time.perf_counter() - start) / (a_round * clips))
    row = measured_row(name_of(workers), described(config), samples)
    rate = 1 / row["time_s"]["median"]
    values = {"clips_per_s": rate, "clips_per_s_per_worker": rate / workers, "first_batch_s": first_s}
    row |= {"device": "cpu", "clock": "wall", "rounds": options.rounds, "warmup": options.warmup}
    return row | {"values": values, "kind": "measured"}


CASE = Case(groups, "clips a second of the real loader by workers, reader and place of cutting, up to all cores")
