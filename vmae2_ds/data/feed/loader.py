"""Micro batches of a run in order, read by worker processes that outlive a SIGTERM and die with their parent."""

from __future__ import annotations

import multiprocessing
import signal
from collections import Counter
from collections.abc import Collection, Generator, Iterator
from functools import partial
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset

from vmae2_ds.config.run import DataConfig, RunConfig
from vmae2_ds.contracts import LoadedBatch
from vmae2_ds.data.feed.dataset import Sample, VideoDataset
from vmae2_ds.data.sources.order import SampleKey, positions_of, window_of
from vmae2_ds.dist import default_device
from vmae2_ds.errors import ConfigError, DataError

STALL_S = 300.0
"""A micro batch that takes longer ends the run: a reader hangs (dmlc/decord#269) or the storage is gone. Well below the
ten minutes after which the other ranks give up waiting."""
DYING_S = 5.0
"""The kernel closes a killed worker's sockets a moment before it is gone; in less than this on a busy host."""

WORKER_ADVICE = (
    "a crash or hang inside a video reader: try --data.reader pyav, or --data.workers 0 to see it happen; out of memory, or of "
    "/dev/shm in a container: fewer --data.workers or a lower --data.prefetch"
)


def make_loader(
    config: RunConfig,
    dataset: VideoDataset[Any],
    *,
    rank: int,
    world_size: int,
    accumulation: int,
    first_step: int,
    num_steps: int,
    skipped_windows: Collection[int] = (),
) -> Generator[LoadedBatch, None, None]:
    """Micro batches of `rank` for steps first_step .. num_steps - 1, `accumulation` of them a step, in order.

    Steps read the sample order window by window, without `skipped_windows` (data/sources/order.py).

    A micro batch is micro_batch * views clips, video by video. What it holds depends neither on `data.workers` nor on
    where a run was resumed, and what a whole step holds does not depend on how it is split (data/sources/order.py).
    Closing the iterator, or its end, ends the workers.

    Raises:
        ConfigError: at once, where config and mixture do not fit, or the mixture is used up before num_steps.
        DataError: while iterating: no usable video for a sample, a worker that died, or one silent for STALL_S seconds.
    """
    mixture = dataset.mixture
    split = {"micro_batch": config.train.micro_batch, "accumulation": accumulation, "world_size": world_size}
    order = mixture.order(config.train.seed)
    wanted = (num_steps + len(skipped_windows)) * config.train.micro_batch * accumulation * world_size
    if order.length is not None and order.length < wanted:
        raise ConfigError(
            f"{mixture.name} is used up after {order.length} samples (max_epochs of its sources), and the run wants {wanted}: "
            "lower --train.epochs, or leave a source without max_epochs"
        )

    def micro_batches() -> Iterator[list[SampleKey]]:
        for step in range(first_step, num_steps):
            window = window_of(step, skipped_windows)
            for micro_step in range(accumulation):
                yield [order.key_at(at) for at in positions_of(window, micro_step, rank, **split)]

    return load_samples(config.data, dataset, micro_batches())


def load_samples(
    data: DataConfig, dataset: VideoDataset[Any], keys: Iterator[list[SampleKey]]
) -> Generator[LoadedBatch, None, None]:
    """The batches of these samples in order, read by `data.workers` processes. Raises DataError as `make_loader`."""
    workers = data.workers
    loader = DataLoader(
        _Guarded(dataset),
        batch_sampler=keys,  # type: ignore[arg-type]  # any iterable of key lists; consumed once
        collate_fn=partial(_collate, dataset=dataset),
        num_workers=workers,
        prefetch_factor=data.prefetch if workers else None,
        timeout=STALL_S if workers else 0,
        worker_init_fn=start_worker,
        pin_memory=default_device().type == "cuda",
        multiprocessing_context="fork" if workers else None,  # the manifests' rows are shared, not copied
    )
    return iterate(loader)


class _Guarded(Dataset["Sample | DataError"]):
    """Hands a DataError over as a value: raised in a worker it would arrive with a traceback in its one line."""

    def __init__(self, dataset: VideoDataset[Any]) -> None:
        self.dataset = dataset

    def __getitem__(self, key: SampleKey) -> Sample | DataError:
        try:
            return self.dataset[key]
        except DataError as error:
            return error


def _collate(samples: list[Sample | DataError], dataset: VideoDataset[Any]) -> LoadedBatch | DataError:
    good: list[Sample] = []
    for sample in samples:
        if isinstance(sample, DataError):
            return sample
        good.append(sample)
    try:
        batch = dataset.collate(good)
    except DataError as error:
        return error
    return LoadedBatch(
        batch=batch,
        failures=[failure for sample in good for failure in sample.failures],
        sources=dict(Counter(sample.source for sample in good)),
    )


def start_worker(worker: int) -> None:
    """Make a loader worker ignore Ctrl-C, SIGTERM and SIGUSR1; the main process saves and then ends its workers."""
    del worker
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):  # a queue signals every process of a job
        signal.signal(number, signal.SIG_IGN)
    torch.set_num_threads(1)


def iterate(loader: DataLoader[Any]) -> Generator[Any, None, None]:
    """The loader's items until it ends; raises DataError for one that it yields, and where a worker died or hung."""
    others = set(multiprocessing.active_children())
    on_child_death = signal.getsignal(signal.SIGCHLD)
    batches = iter(loader)
    # torch would raise in the main thread wherever it is, most likely in a collective that other ranks wait in
    signal.signal(signal.SIGCHLD, on_child_death)
    workers = set(multiprocessing.active_children()) - others
    try:
        while True:
            if dead := [worker for worker in workers if not worker.is_alive()]:
                raise DataError(f"loader worker died with code {dead[0].exitcode}; {WORKER_ADVICE}")
            try:
                loaded = next(batches)
            except StopIteration:
                return
            except (RuntimeError, OSError, EOFError) as error:
                # A batch comes through a socket of its worker, which breaks when that dies while it is fetched.
                told = "DataLoader" in str(error).partition("\n")[0] and "Caught" not in str(error)
                if not told and (isinstance(error, RuntimeError) or not _any_ends(workers)):
                    raise  # a bug of ours inside a worker, with its traceback
                raise DataError(
                    f"a loader worker died or hung ({str(error) or 'its connection ended'}); {WORKER_ADVICE}"
                ) from error
            if isinstance(loaded, DataError):
                raise loaded
            yield loaded
    finally:
        # Ends the workers that listen. `del batches` would not: while an error is on its way, its traceback holds them.
        getattr(batches, "_shutdown_workers", lambda: None)()
        for worker in workers:
            if worker.is_alive():
                worker.kill()  # hung, and deaf to the SIGTERM that torch sends
                worker.join()


def _any_ends(workers: set[BaseProcess]) -> bool:
    """Whether a worker is dead, or dies at once."""
    return bool(wait([worker.sentinel for worker in workers], DYING_S))
