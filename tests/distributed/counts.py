"""One rank of the counting test: videos of sources that other ranks lack, summed; memory, of the rank that has most."""

from __future__ import annotations

import json
import sys
from collections import Counter

import torch

from vmae2_ds.dist import Agreement
from vmae2_ds.engine.ranks import start_ranks, stop_ranks
from vmae2_ds.train.metrics import add_counts, count_vector


def main() -> None:
    """Counts of each rank from argv[1]; every rank's results go to argv[2] through rank 0."""
    asked = json.loads(sys.argv[1])
    world = start_ranks()
    agreement = Agreement(world)
    names = tuple(asked["names"])
    videos = agreement.sum(*count_vector(Counter(asked["used"][world.rank]), names))
    mine = [add_counts(asked["before"], names, videos), agreement.max(*asked["memory"][world.rank])]
    everyone: list[object] = [None] * world.size
    torch.distributed.all_gather_object(everyone, mine)
    if world.rank == 0:
        with open(sys.argv[2], "w") as file:
            json.dump(everyone, file)
    stop_ranks(world)


if __name__ == "__main__":
    main()
