"""The files of a long list as numbers, what the file system says of each, and which part of a job gets which of them."""

from __future__ import annotations

import functools
import hashlib
import heapq
import os
import stat
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]
Kept = TypeVar("Kept", bound=NDArray[Any])

SEEN = np.dtype([("size", "<i8"), ("device", "<u8"), ("inode", "<u8")])
"""What is known of a file; the size is -1 where there is none."""
LOOKS_AT_ONCE, LOOKED = 16, 256
"""Threads that ask the file system, and how many files each asks for in a row: they wait for a server, not for cores."""
PER_FILE = 1 << 16
"""Bytes that opening a file costs as much as reading: parts with many small files are not cheaper than they look."""


class Distinct:
    """Names by number, in the order in which each first occurs; 32 bytes a name, however long they are."""

    def __init__(self, names: Iterable[str]) -> None:
        digests = bytearray()
        for name in names:
            digests += _digest(name)
        low, high = np.frombuffer(bytes(digests), "<u8").reshape(-1, 2).T
        order = np.lexsort((high, low))  # stable: the first of equals stays in front
        low, high = low[order], high[order]
        begins = np.ones(len(order), bool)
        begins[1:] = (low[1:] != low[:-1]) | (high[1:] != high[:-1])
        group = np.cumsum(begins) - 1
        first = order[begins]
        by_first = np.argsort(first)
        number = np.empty(len(first), np.int64)
        number[by_first] = np.arange(len(first))
        self.first: Ints = first[by_first]
        """Place of the first of each."""
        self.of_place: Ints = np.empty(len(order), np.int64)
        """Number of the name at each place."""
        self.of_place[order] = number[group]
        self._low, self._high, self._number = low[begins], high[begins], number

    def __len__(self) -> int:
        return len(self.first)

    def number_of(self, name: str) -> int | None:
        """The number of a name; None for one that does not occur."""
        low, high = np.frombuffer(_digest(name), "<u8")
        at = int(np.searchsorted(self._low, low))
        while at < len(self._low) and self._low[at] == low:
            if self._high[at] == high:
                return int(self._number[at])
            at += 1
        return None


def _digest(name: str) -> bytes:
    return hashlib.blake2b(os.fsencode(name), digest_size=16).digest()


def look(paths: Callable[[int], str], count: int) -> NDArray[np.void]:
    """What the file system says of each of `count` files, as SEEN; nothing is known of what lies behind a URL."""
    seen = np.zeros(count, SEEN)
    _look_at.cache_clear()

    def one(number: int) -> None:
        seen[number] = _look_at(paths(number))

    for_each(range(count), one, LOOKED)
    return seen


def for_each(numbers: Sequence[int], work: Callable[[int], None], in_a_row: int = 1) -> None:
    """Do what waits for storage for each number, several at a time; each thread takes so many in a row."""

    def some(begin: int) -> None:
        for number in numbers[begin : begin + in_a_row]:
            work(number)

    with ThreadPoolExecutor(LOOKS_AT_ONCE) as pool:
        for _ in pool.map(some, range(0, len(numbers), in_a_row)):
            pass


@functools.lru_cache(maxsize=64)  # many videos of one shard come one after another
def _look_at(path: str) -> tuple[int, int, int]:
    try:
        status = os.stat(path)
    except (OSError, ValueError):
        return -1, 0, 0
    return status.st_size if stat.S_ISREG(status.st_mode) else -1, status.st_dev, status.st_ino


def kept_look(file: Path, paths: Callable[[int], str], count: int) -> NDArray[np.void]:
    """`look`, done once for all parts of a job: by the first that comes, into `file`, so that all divide alike."""
    return kept_array(file, lambda: look(paths, count), lambda seen: seen.dtype == SEEN and len(seen) == count)


def kept_array(file: Path, make: Callable[[], Kept], fits: Callable[[Kept], bool]) -> Kept:
    """What `file` holds, if it fits; else what `make` makes, which is then kept there."""
    if file.is_file():
        found: Kept = np.load(file)
        if fits(found):
            return found
    made = make()
    unfinished = file.with_suffix(".part.npy")
    np.save(unfinished, made)
    unfinished.replace(file)
    return made


def share(costs: Ints, part: int, parts: int) -> Ints:
    """Numbers of the files of part `part` (from 0) of `parts`, in order; all parts together have each file once.

    The costly ones are dealt first, each to the part that has least so far, so that parts cost about the same. Among files of
    like cost the deal is another for each number of parts: what a part left over spreads evenly over another number of them.
    """
    if parts == 1:
        return np.arange(len(costs))
    costs = np.maximum(costs, 0) + PER_FILE
    order = np.random.default_rng(parts).permutation(len(costs))
    order = order[np.argsort(-np.floor(4 * np.log2(costs[order])), kind="stable")]
    loads = [(0, number) for number in range(parts)]
    mine = []
    for job, cost in zip(order.tolist(), costs[order].tolist(), strict=True):
        load, number = loads[0]
        heapq.heapreplace(loads, (load + cost, number))
        if number == part:
            mine.append(job)
    return np.sort(np.array(mine, np.int64))
