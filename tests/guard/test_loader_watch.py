"""Advice where training waits for data, at the right time and with the right numbers; memory of real processes."""

from __future__ import annotations

import gc
import multiprocessing
import os

import psutil
import pytest

from vmae2_ds.config.pretrain import PretrainDataConfig
from vmae2_ds.guard.loader_watch import ROWS_LOOKED_AT, ROWS_SILENT, DataWaitWatch, WorkerMemory, remedy, worker_bytes


def warnings(shares: list[float]) -> list[int]:
    """Numbers of the rows that give a warning."""
    watch = DataWaitWatch(PretrainDataConfig(workers=2), ranks=1, cores=8)
    return [number for number, share in enumerate(shares) if watch.row(share)]


def test_a_slow_loader_is_named_now_and_then() -> None:
    apart = ROWS_SILENT + ROWS_LOOKED_AT
    assert warnings([0.3] * (3 * apart)) == [ROWS_LOOKED_AT, ROWS_LOOKED_AT + apart, ROWS_LOOKED_AT + 2 * apart]


def test_a_fast_loader_and_the_start_are_not() -> None:
    assert warnings([0.9] + [0.08] * 300) == []
    assert warnings([0.3] * ROWS_LOOKED_AT) == []  # the first does not count


def test_it_takes_several_rows() -> None:
    assert warnings([0.0, *([0.0] * 20), 0.45, *([0.0] * 20)]) == []
    assert warnings([0.0, 0.0, 0.0, 0.0, 0.3, 0.3]) == [5]


def test_the_message_holds_the_numbers() -> None:
    watch = DataWaitWatch(PretrainDataConfig(workers=2), ranks=2, cores=16)
    said = [message for message in map(watch.row, [0.9, 0.1, 0.2, 0.3, 0.4, 0.5]) if message]
    assert said == [
        "30% of the time of the last 5 rows went into waiting for data: raise --data.workers from 2 to 8 "
        "(2 ranks x 2 workers on the 16 cores of this host)"
    ]


@pytest.mark.parametrize("workers", [0, 1, 3])
def test_workers_while_cores_are_left(workers: int) -> None:
    assert f"--data.workers from {workers} to 4" in remedy(PretrainDataConfig(workers=workers), ranks=2, cores=9)


@pytest.mark.parametrize(("workers", "cores"), [(4, 8), (4, 9), (6, 8), (1, 1), (0, 1)])
def test_less_work_where_none_is_left(workers: int, cores: int) -> None:
    text = remedy(PretrainDataConfig(workers=workers, views=3, prefetch=7), ranks=2, cores=cores)
    for expected in (
        f"2 ranks x {workers} worker{'' if workers == 1 else 's'} on {cores} core{'' if cores == 1 else 's'}",
        "vmae2 data prepare",
        "now 3",
        "--data.cache, now 0 GiB",
        "now 7",
    ):
        assert expected in text, expected


def test_memory_of_workers() -> None:
    """A worker that writes 64 MiB and has a child of its own: both count, by what the system says of them."""
    context = multiprocessing.get_context("fork")
    ready, done = context.Event(), context.Event()

    def work() -> None:
        gc.freeze()
        block = bytearray(os.urandom(2**20) * 64)
        if (child := os.fork()) == 0:
            block[:] = bytes(len(block))  # 64 MiB of its own
            done.wait()
            os._exit(0)
        ready.set()
        done.wait()
        os.waitpid(child, 0)

    assert WorkerMemory().gib() == (0, 0)
    worker = context.Process(target=work)
    worker.start()
    assert worker.pid is not None
    try:
        assert ready.wait(60)
        assert worker_bytes(worker.pid) > 2**26
        family = [worker.pid, *(child.pid for child in psutil.Process(worker.pid).children())]
        assert len(family) == 2
        assert worker_bytes(worker.pid) < sum(psutil.Process(pid).memory_info().rss for pid in family)
        memory = WorkerMemory()
        largest, together = memory.gib()
        assert 2**26 / 2**30 < largest == together
    finally:
        done.set()
        worker.join()
    assert memory.gib() == (largest, together)  # not measured again so soon
    assert worker_bytes(worker.pid) == 0


def test_a_tenth_of_the_time_is_not_yet_too_much() -> None:
    for share, speaks in ((0.1, False), (0.101, True)):
        watch = DataWaitWatch(PretrainDataConfig(), ranks=1, cores=8)
        said = [watch.row(share) for _ in range(6)]  # the first row holds the start of the workers
        assert said[:5] == [None] * 5
        assert (said[5] is not None) == speaks
