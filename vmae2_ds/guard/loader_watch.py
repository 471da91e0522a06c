"""What the loader takes from this host and from the run: memory of its workers, and a remedy where training waits for it."""

from __future__ import annotations

import multiprocessing
import time
from collections import deque
from statistics import fmean

import psutil

from vmae2_ds import host
from vmae2_ds.config.run import DataConfig
from vmae2_ds.console.progress import counted

BINDS = 0.1
"""Share of the time that may go into waiting for data before a run says something."""
ROWS_LOOKED_AT, ROWS_SILENT = 5, 50
MEASURE_EVERY_S = 30.0  # one process takes 7 ms of this one's time: the kernel walks through all its pages


class WorkerMemory:
    """Memory of this rank's loader workers, each with its reader child; measured at most twice a minute."""

    def __init__(self) -> None:
        self._measured = float("-inf")
        self._gib = (0.0, 0.0)

    def gib(self) -> tuple[float, float]:
        """(the largest worker, all together) in GiB; memory that n processes share counts as 1/n in each (PSS)."""
        if time.monotonic() - self._measured > MEASURE_EVERY_S:
            workers = [worker_bytes(worker.pid) for worker in multiprocessing.active_children() if worker.pid]
            self._gib = max(workers, default=0) / 2**30, sum(workers) / 2**30
            self._measured = time.monotonic()
        return self._gib


def worker_bytes(process: int) -> int:
    """PSS of a process and all below it; resident memory where the system does not tell (not Linux), 0 once it is gone."""
    total = 0
    try:
        worker = psutil.Process(process)
        for member in (worker, *worker.children(recursive=True)):
            memory = member.memory_full_info()
            total += getattr(memory, "pss", memory.rss)
    except (psutil.NoSuchProcess, psutil.AccessDenied):
        pass  # a reader that has just been killed
    return total


class DataWaitWatch:
    """Says, now and then, what to change while data binds.

    Args:
        ranks: ranks on this host.
        cores: cores of this host that they may use; default: those of this process.
    """

    def __init__(self, data: DataConfig, ranks: int, cores: int | None = None) -> None:
        self._remedy = remedy(data, ranks, host.cores().usable if cores is None else cores)
        self._shares: deque[float] = deque(maxlen=ROWS_LOOKED_AT)
        self._silent = 1  # the first row holds the start of the workers

    def row(self, data_wait_share: float) -> str | None:
        """Take the share of one row; returns a warning where the last rows together are over the limit."""
        if self._silent:
            self._silent -= 1
            return None
        self._shares.append(data_wait_share)
        mean = fmean(self._shares)
        if len(self._shares) < ROWS_LOOKED_AT or mean <= BINDS:
            return None
        self._shares.clear()
        self._silent = ROWS_SILENT
        return f"{mean:.0%} of the time of the last {ROWS_LOOKED_AT} rows went into waiting for data: {self._remedy}"


def remedy(data: DataConfig, ranks: int, cores: int) -> str:
    """What would feed `ranks` ranks faster on a host with `cores` cores: more workers while cores are left, else less work."""
    most, used = cores // ranks, f"{counted(ranks, 'rank')} x {counted(data.workers, 'worker')}"
    if data.workers < most:
        return f"raise --data.workers from {data.workers} to {most} ({used} on the {cores} cores of this host)"
    return (
        f"no core is left for more loader workers ({used} on {counted(cores, 'core')}): re-encode the videos once with a "
        f"short side and short GOPs (vmae2 data prepare), or cut more clips from each decoded video (--data.views, "
        f"now {data.views}); keep a small set decoded (--data.cache, now {data.cache:g} GiB); where only some reads are slow, "
        f"raise --data.prefetch (now {data.prefetch})"
    )
