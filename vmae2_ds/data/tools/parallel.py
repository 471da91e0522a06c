"""Work on many videos at once, each under a watchdog: threads that wait, children that work."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

from vmae2_ds.data.readers.watchdog import Watchdog

Item = TypeVar("Item")
Result = TypeVar("Result")


def in_parallel(
    items: Sequence[Item], work: Callable[[Item, Watchdog], Result], workers: int, timeout_s: float
) -> Iterator[Result]:
    """Results of `work` as they come, from `workers` threads that own a watchdog each. Its first error ends all."""
    results: queue.Queue[tuple[Result | None, BaseException | None]] = queue.Queue(maxsize=1000)
    rest, lock, stopped = iter(items), threading.Lock(), threading.Event()

    def run() -> None:
        with Watchdog(timeout_s) as watchdog:
            while not stopped.is_set():
                with lock:
                    item = next(rest, None)
                if item is None:
                    return
                try:
                    results.put((work(item, watchdog), None))
                except BaseException as error:  # handed to the thread that waits
                    results.put((None, error))
                    return

    for _ in range(min(workers, len(items))):
        threading.Thread(target=run, daemon=True).start()
    try:
        for _ in items:
            result, error = results.get()
            if error is not None:
                raise error
            yield result  # type: ignore[misc]
    finally:
        stopped.set()
