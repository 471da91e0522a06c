"""The order of videos: one endless sequence, a function of (seed, number of videos) alone, cut into steps and ranks."""

from __future__ import annotations

import numpy as np

from vmae2_ds.data.seeding import Purpose, generator

_ROUNDS = 10
"""Of the Feistel network: with 6, some orders of a dozen rows were measurably likelier than others; with 10, only of five."""
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


class SampleOrder:
    """Position 0, 1, 2, ... of a run -> (epoch, row). Each epoch is a permutation; none of its rows is dropped.

    A step may span two epochs. Memory and start-up do not depend on the number of videos.
    """

    def __init__(self, num_videos: int, seed: int) -> None:
        assert num_videos > 0, "read_manifest refuses an empty manifest"
        self.num_videos = num_videos
        self.seed = seed
        self._epoch = 0
        self._rows = self._shuffle(0)

    def index_at(self, position: int) -> tuple[int, int]:
        """(epoch, row of the manifest) at `position`."""
        epoch, offset = divmod(position, self.num_videos)
        if epoch != self._epoch:
            self._epoch, self._rows = epoch, self._shuffle(epoch)
        return epoch, self._rows[offset]

    def _shuffle(self, epoch: int) -> Shuffle:
        return Shuffle(self.num_videos, generator(Purpose.ORDER, self.seed, epoch))


def positions_of(
    step: int, micro_step: int, rank: int, *, micro_batch: int, accumulation: int, world_size: int
) -> range:
    """Positions that `rank` reads in `micro_step` of `step`.

    Over ranks and micro steps a step covers `step * videos_per_step` onwards, so any split of the same
    videos_per_step = micro_batch * accumulation * world_size sees the same videos in the same step.
    """
    block = (step * accumulation + micro_step) * world_size + rank
    return range(block * micro_batch, (block + 1) * micro_batch)
