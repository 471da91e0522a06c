"""The order of samples: one sequence, a function of (seed, sources, shares) alone, cut into steps and ranks."""

from __future__ import annotations

import bisect
import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from vmae2_ds.data.seeding import Purpose, generator

_ROUNDS = 10
"""Rounds of the Feistel network: with 6, some orders of a dozen rows were measurably likelier; with 10, only of five."""
_MASK64 = 2**64 - 1


class Shuffle:
    """A keyed permutation of 0 .. size-1 that is computed place by place: `shuffle[place]` needs no list, whatever the size.

    A Feistel network over the next even power of two, walked on from where it leaves the range (Black and Rogaway 2002,
    "Ciphers with arbitrary finite domains"); its round function is the finaliser of splitmix64.
    """

    def __init__(self, size: int, rng: np.random.Generator) -> None:
        self.size = size
        self._half = max(1, ((size - 1).bit_length() + 1) // 2)
        self._keys = [int(key) for key in rng.integers(2**64, size=_ROUNDS, dtype=np.uint64)]

    def __getitem__(self, place: int) -> int:
        if not 0 <= place < self.size:
            raise IndexError(f"place {place} of a shuffle of {self.size}")
        found = self._permute(place)
        while found >= self.size:  # ends: following a permutation leads back to `place`, which is in the range
            found = self._permute(found)
        return found

    def _permute(self, value: int) -> int:
        """A permutation of 0 .. 4**half - 1."""
        half, low = self._half, (1 << self._half) - 1
        left, right = value >> half, value & low
        for key in self._keys:
            left, right = right, left ^ (_mix(right ^ key) & low)
        return left << half | right


def _mix(value: int) -> int:
    """64 bits whose every bit depends on every bit of the 64 given (finaliser of splitmix64, Steele et al. 2014)."""
    value = (value ^ value >> 30) * 0xBF58476D1CE4E5B9 & _MASK64
    value = (value ^ value >> 27) * 0x94D049BB133111EB & _MASK64
    return value ^ value >> 31


class SampleKey(NamedTuple):
    """Which sample: a row of a source, in that source's own count of epochs. With the seed it decides every draw."""

    epoch: int
    row: int
    source: int = 0


class SampleOrder:
    """Position 0, 1, 2, ... of a run -> `SampleKey`: a function of (sizes, seed, shares, limits) alone.

    Sources take turns by a fixed table, so that after any number of samples each is within one of its share. Each epoch
    of a source is a permutation; none of its rows is dropped or repeated, and a step may span two. Memory and start-up
    do not depend on the number of videos.

    Args:
        sizes: videos of each source.
        seed: the run's.
        shares: positive numbers, of which each source gets its part; default: the sizes.
        limits: samples after which a source is used up and the others share what it had; None: never.
    """

    def __init__(
        self,
        sizes: Sequence[int],
        seed: int,
        shares: Sequence[float] | None = None,
        limits: Sequence[int | None] | None = None,
    ) -> None:
        assert min(sizes) > 0, "read_manifest refuses an empty manifest"
        self.sizes, self.seed = tuple(sizes), seed
        self._phases = list(_phases(shares or sizes, limits or [None] * len(sizes)))
        self._starts = [phase.start for phase in self._phases]
        self._shuffles: dict[int, tuple[int, Shuffle]] = {}

    @property
    def length(self) -> int | None:
        """Samples until every source is used up; None: endless."""
        last = self._phases[-1]
        return None if last.turns.sources else last.start

    def key_at(self, position: int) -> SampleKey:
        """The sample at `position`; raises IndexError behind the end."""
        phase = self._phases[bisect.bisect_right(self._starts, position) - 1]
        if not phase.turns.sources:
            raise IndexError(f"position {position} of an order of {phase.start} samples")
        source, place = phase.turns.at(position - phase.start)
        epoch, place = divmod(phase.used[source] + place, self.sizes[source])
        if self._shuffles.get(source, (None,))[0] != epoch:
            rng = generator(Purpose.ORDER, self.seed, epoch, source=source)
            self._shuffles[source] = epoch, Shuffle(self.sizes[source], rng)
        return SampleKey(epoch, self._shuffles[source][1][place], source)

    def used_before(self, position: int) -> tuple[int, ...]:
        """How many samples of each source stand before `position`."""
        phase = self._phases[bisect.bisect_right(self._starts, position) - 1]
        turns = {source: phase.turns.count_before(source, position - phase.start) for source in phase.turns.sources}
        return tuple(used + turns.get(source, 0) for source, used in enumerate(phase.used))


class _Phase(NamedTuple):
    """A stretch of positions with the same sources."""

    start: int
    used: tuple[int, ...]
    """Samples of each source before it."""
    turns: SourceTurns


def _phases(shares: Sequence[float], limits: Sequence[int | None]) -> Iterator[_Phase]:
    """Phases from position 0 on; a phase without sources ends a sequence that has an end."""
    start, used = 0, [0] * len(shares)
    while True:
        left = {
            source: None if limit is None else limit - used[source]
            for source, limit in enumerate(limits)
            if limit is None or limit > used[source]
        }
        turns = SourceTurns({source: shares[source] for source in left})
        yield _Phase(start, tuple(used), turns)
        ends = [turns.position_of(source, count - 1) + 1 for source, count in left.items() if count is not None]
        if not ends:
            return
        length = min(ends)
        for source in left:
            used[source] += turns.count_before(source, length)
        start += length


class SourceTurns:
    """Deals turns to sources for ever: after any number of turns each had its share, give or take less than one.

    A table of TABLE turns repeats. It is filled by the rule of Tijdeman ("The chairman assignment problem", Discrete
    Mathematics 32, 1980): among the sources that have waited long enough, the one whose deadline is nearest.
    """

    TABLE = 10_000
    """Shares are kept to a 10,000th; every source has a turn in the table, however small its share."""

    def __init__(self, shares: Mapping[int, float]) -> None:
        self.sources = tuple(shares)
        counts = _whole_counts(list(shares.values()), self.TABLE) if len(shares) > 1 else np.ones(len(shares), np.int64)
        self._table = _chairmen(counts.tolist())
        self._places = [np.flatnonzero(self._table == at) for at in range(len(counts))]
        self._before = np.zeros(len(self._table), np.int64)
        for places in self._places:
            self._before[places] = np.arange(len(places))

    def at(self, turn: int) -> tuple[int, int]:
        """(source, how many turns it had before)."""
        block, place = divmod(turn, len(self._table))
        at = int(self._table[place])
        return self.sources[at], block * len(self._places[at]) + int(self._before[place])

    def position_of(self, source: int, count: int) -> int:
        """The turn at which `source` has had `count` turns before."""
        places = self._places[self.sources.index(source)]
        block, place = divmod(count, len(places))
        return block * len(self._table) + int(places[place])

    def count_before(self, source: int, turn: int) -> int:
        """How many of the turns 0 .. turn-1 are of `source`."""
        places = self._places[self.sources.index(source)]
        block, place = divmod(turn, len(self._table))
        return block * len(places) + int(np.searchsorted(places, place))


def _whole_counts(shares: Sequence[float], total: int) -> np.ndarray:
    """`shares` as whole numbers from 1 on that sum to `total`: largest remainders (Hamilton)."""
    assert len(shares) <= total, f"{len(shares)} sources do not fit into a table of {total} turns"
    exact = np.asarray(shares, np.float64) / sum(shares) * total
    counts = np.maximum(1, np.floor(exact)).astype(np.int64)
    while (off := total - int(counts.sum())) != 0:
        lacks = exact - counts
        if off > 0:
            counts[np.argmax(lacks)] += 1
        else:  # small sources were lifted to 1: the largest surplus pays
            counts[np.argmin(np.where(counts > 1, lacks, np.inf))] -= 1
    return counts


def _chairmen(counts: Sequence[int]) -> np.ndarray:
    """A table with counts[i] turns of i, in which every beginning holds each i within 1 of its share."""
    sources, total = len(counts), sum(counts)
    table = np.zeros(total, np.int64)
    slack = 2 * sources - 2
    owed = [0] * sources  # in turns, times slack * total
    for turn in range(total if sources > 1 else 0):
        chosen, first = 0, math.inf
        for source, count in enumerate(counts):
            owed[source] += slack * count
            if owed[source] >= total:
                deadline = (total * (slack - 1) - owed[source]) / count
                if deadline < first:
                    chosen, first = source, deadline
        table[turn] = chosen
        owed[chosen] -= slack * total
    return table


def window_of(step: int, skipped: Collection[int]) -> int:
    """The stretch of samples that `step` reads: steps take the windows 0, 1, 2, ... in order, without those skipped."""
    window = step
    for gap in sorted(skipped):
        if gap <= window:
            window += 1
    return window


def positions_of(
    step: int, micro_step: int, rank: int, *, micro_batch: int, accumulation: int, world_size: int
) -> range:
    """Positions that `rank` reads in `micro_step` of `step`.

    Over ranks and micro steps a step covers `step * videos_per_step` onwards, so any split of the same
    videos_per_step = micro_batch * accumulation * world_size sees the same videos in the same step.
    """
    block = (step * accumulation + micro_step) * world_size + rank
    return range(block * micro_batch, (block + 1) * micro_batch)
