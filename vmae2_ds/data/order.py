"""The order of videos: one endless sequence, a function of (seed, number of videos) alone, cut into steps and ranks."""

from __future__ import annotations

import numpy as np

from vmae2_ds.data.seeding import Purpose, generator


class SampleOrder:
    """Position 0, 1, 2, ... of a run -> (epoch, row). Each epoch is a permutation; none of its rows is dropped.

    A step may span two epochs. Holds one epoch's permutation: 8 bytes a row.
    """

    def __init__(self, num_videos: int, seed: int) -> None:
        assert num_videos > 0, "read_manifest refuses an empty manifest"
        self.num_videos = num_videos
        self.seed = seed
        self._epoch = -1
        self._rows = np.empty(0, dtype=np.int64)

    def index_at(self, position: int) -> tuple[int, int]:
        """(epoch, row of the manifest) at `position`."""
        epoch, offset = divmod(position, self.num_videos)
        if epoch != self._epoch:
            self._rows = generator(Purpose.ORDER, self.seed, epoch).permutation(self.num_videos)
            self._epoch = epoch
        return epoch, int(self._rows[offset])


def positions_of(
    step: int, micro_step: int, rank: int, *, micro_batch: int, accumulation: int, world_size: int
) -> range:
    """Positions that `rank` reads in `micro_step` of `step`.

    Over ranks and micro steps a step covers `step * videos_per_step` onwards, so any split of the same
    videos_per_step = micro_batch * accumulation * world_size sees the same videos in the same step.
    """
    block = (step * accumulation + micro_step) * world_size + rank
    return range(block * micro_batch, (block + 1) * micro_batch)
