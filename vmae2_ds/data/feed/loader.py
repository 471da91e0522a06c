"""Micro batches of a run in order, read by worker processes that outlive a SIGTERM and die with their parent."""

from __future__ import annotations

import errno
import gc
import multiprocessing
import os
import signal
import time
import traceback
from collections import Counter
from collections.abc import Collection, Generator, Iterator, Sequence
from functools import partial
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess
from multiprocessing.queues import Queue
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
POLL_S = 0.5
"""Between two looks at workers that owe a batch. One that dies without a word leaves nothing else to be noticed by, and with
pinned memory not even its broken connection: a thread of torch's meets that, and ends."""
DYING_S = 5.0
"""The kernel closes a killed worker's sockets a moment before it is gone; in less than this on a busy host."""
FULL = errno.ENOSPC
"""Exit code of a worker that found no room in /dev/shm."""

WORKER_ADVICE = (
    "a crash or hang inside a video reader: try --data.reader pyav, or --data.workers 0 to see it happen; out of memory: fewer "
    "--data.workers or a lower --data.prefetch"
)
FULL_ADVICE = "fewer --data.workers, a lower --data.prefetch, or for a container more of it (docker run --shm-size)"


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
        timeout=POLL_S if workers else 0,
        worker_init_fn=start_worker,
        pin_memory=default_device().type == "cuda",
        multiprocessing_context="fork" if workers else None,  # the manifests' rows are shared, not copied
    )
    return iterate(loader)


def load_items(data: DataConfig, dataset: Dataset[Any], order: Sequence[Any]) -> Generator[Any, None, None]:
    """The dataset's items in that order, read by `data.workers` processes at most. Raises DataError where one dies or hangs."""
    workers = min(data.workers, len(order))
    loader = DataLoader(
        dataset,
        sampler=order,
        batch_size=None,
        num_workers=workers,
        prefetch_factor=data.prefetch if workers else None,
        timeout=POLL_S if workers else 0,
        worker_init_fn=start_worker,
        pin_memory=default_device().type == "cuda",
        multiprocessing_context="fork" if workers else None,
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
    gc.freeze()  # what the fork began with is never let go of: a decoder would wait for threads that stayed behind
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):  # a queue signals every process of a job
        signal.signal(number, signal.SIG_IGN)
    Queue._on_queue_feeder_error = staticmethod(_end_worker)  # type: ignore[attr-defined]  # the fork's own
    torch.set_num_threads(1)


def _end_worker(error: Exception, batch: object) -> None:
    """A batch that cannot be sent is lost, and nobody would hear of it: its worker ends, as after a crash."""
    del batch
    is_full = os.strerror(errno.ENOSPC) in str(error)
    if not is_full:
        traceback.print_exception(error)
    os._exit(FULL if is_full else 1)


def iterate(loader: DataLoader[Any]) -> Generator[Any, None, None]:
    """The loader's items until it ends; raises DataError for one that it yields, and where a worker died or hung.

    A loader with workers has POLL_S as its timeout.
    """
    others = set(multiprocessing.active_children())
    on_child_death = signal.getsignal(signal.SIGCHLD)
    batches = iter(loader)
    # torch would raise in the main thread wherever it is, most likely in a collective that other ranks wait in
    signal.signal(signal.SIGCHLD, on_child_death)
    workers = set(multiprocessing.active_children()) - others
    try:
        while True:
            try:
                loaded = _next(batches, workers)
            except StopIteration:
                return
            except DataError:
                for worker in workers:
                    worker.kill()  # a hung one is deaf to SIGTERM, and torch would wait for a thread that waits for it
                raise
            if isinstance(loaded, DataError):
                raise loaded
            yield loaded
    finally:
        # Ends the workers that listen. `del batches` would not: while an error is on its way, its traceback holds them.
        getattr(batches, "_shutdown_workers", lambda: None)()
        for worker in workers:
            if worker.is_alive():
                worker.kill()
                worker.join()


def _next(batches: Iterator[Any], workers: set[BaseProcess]) -> Any:
    """The next item, or StopIteration; DataError where a worker died, or none came for STALL_S seconds."""
    asked_s = time.monotonic()
    pinning = getattr(batches, "_pin_memory_thread", None)
    while True:
        _check_alive(workers, 0)
        try:
            return next(batches)
        except (RuntimeError, OSError, EOFError) as error:
            first = str(error).partition("\n")[0]
            is_told = "DataLoader" in first and "Caught" not in first
            if isinstance(error, RuntimeError) and not is_told:
                raise  # a bug of ours inside a worker, with its traceback
            is_late = "timed out" in first  # torch can be asked again: nothing is lost by having asked
            pins = pinning is None or pinning.is_alive()
            # A batch comes through a socket of its worker, which breaks when that dies while it is fetched.
            _check_alive(workers, 0 if is_late and pins else DYING_S)
            if not is_told:
                raise
            waited_s = time.monotonic() - asked_s
            if not pins:
                raise DataError(f"the thread that pins batches ended with the error above; {WORKER_ADVICE}") from error
            if waited_s > STALL_S or not is_late:
                raise DataError(f"a loader worker hung: no batch for {waited_s:.0f} s; {WORKER_ADVICE}") from error


def _check_alive(workers: set[BaseProcess], patience_s: float) -> None:
    """Raises DataError where a worker is dead, or dies within that time."""
    ended = wait([worker.sentinel for worker in workers], patience_s)
    for worker in workers:
        if worker.sentinel in ended:
            worker.join()
            if worker.exitcode in (FULL, -signal.SIGBUS):  # torch 2.6 gives the signal
                raise DataError(f"a loader worker found no room for its batch in /dev/shm: {FULL_ADVICE}")
            raise DataError(f"a loader worker died with code {worker.exitcode}; {WORKER_ADVICE}")
