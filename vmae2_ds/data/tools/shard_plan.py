"""Which videos each tar shard of a list gets: worked out once, from sizes alone, so that all who write shards agree."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from vmae2_ds.data.tools.division import Ints, kept_array

BLOCK = 512
"""A tar file's headers, and what contents are filled up to (POSIX.1-2017, pax, "ustar Interchange Format")."""


class PackedShard(NamedTuple):
    """A line of shards.jsonl: videos of the places begin .. end-1 of the packing order."""

    shard: str
    begin: int
    end: int
    videos: int
    size: int
    sha256: str


class PlannedShard(NamedTuple):
    """A shard that is to be written."""

    shard: str
    begin: int
    end: int

    @property
    def files(self) -> int:
        """How many it was planned for."""
        return self.end - self.begin

    def is_of(self, written: PackedShard | None) -> bool:
        """Whether what was written is this one."""
        return written is not None and written[:3] == self


class ShardPlan:
    """Shards by number, from the place behind the last video of each and about how many bytes it has."""

    def __init__(self, ends: Ints, size: Ints) -> None:
        self._ends, self.size = ends.tolist(), size

    def __len__(self) -> int:
        return len(self._ends)

    def __getitem__(self, number: int) -> PlannedShard:
        begin = self._ends[number - 1] if number else 0
        return PlannedShard(f"{number:06d}.tar", begin, self._ends[number])


def plan_shards(
    file: Path, written: Iterable[PackedShard], places: int, tar_bytes: Callable[[], Ints], limit: int
) -> ShardPlan:
    """The plan in `file`, which is made where it is not there; the caller sees to it that one does so at a time.

    Args:
        file: Where it is kept, until the result is whole.
        written: Shards that are there; those that follow on each other from the first place on are kept, whatever their sizes.
        places: Number of videos.
        tar_bytes: What the video at each place takes in a tar file; 0 for one that cannot be read.
        limit: Bytes at which a shard is closed; 0: each place has a shard of its own.
    """

    def make() -> Ints:
        known = list(_chain(written))
        begin = known[-1].end if known else 0
        begun = np.array([[shard.end, shard.size] for shard in known], np.int64).reshape(-1, 2)
        return begun if begin == places else np.concatenate((begun, _planned(tar_bytes(), begin, limit)))

    plan = kept_array(file, make, lambda found: found.ndim == 2 and len(found) > 0 and found[-1, 0] == places)
    return ShardPlan(*plan.T)


def tar_bytes_of(sizes: Ints, has_label: np.ndarray) -> Ints:
    """Bytes that videos of these sizes take, with a member of their label's where there is one; 0 where there is no video."""
    return np.where(sizes > 0, BLOCK + -(-sizes // BLOCK) * BLOCK + 2 * BLOCK * has_label, 0)


def _chain(written: Iterable[PackedShard]) -> Iterator[PackedShard]:
    at = 0
    for shard in sorted(written, key=lambda shard: shard.begin):
        if shard.begin != at:
            return
        yield shard
        at = shard.end


def _planned(tar_bytes: Ints, begin: int, limit: int) -> Ints:
    """(end, size) of each shard from a place on: closed as soon as it has `limit` bytes, and at least one video."""
    total = np.concatenate((np.zeros(1, np.int64), np.cumsum(tar_bytes)))
    planned = []
    while begin < len(tar_bytes):
        full = int(np.searchsorted(total, total[begin] + limit))
        end = min(max(begin + 1, full), len(tar_bytes))
        planned.append((end, int(total[end] - total[begin])))
        begin = end
    return np.array(planned, np.int64)
