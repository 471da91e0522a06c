"""One rank of the counting test: videos of sources that other ranks lack, summed; memory, of the rank that has most."""

from __future__ import annotations

import json
import sys
from collections import Counter

import torch

from vmae2_ds.engine.ranks import start_ranks, stop_ranks
from vmae2_ds.train.tally import add_counts, count_vector


def main() -> None:
    """Counts of each rank from argv[1]; every rank's results go to argv[2] through rank 0."""
    asked = json.loads(sys.argv[1])
    ranks = start_ranks()
    names = tuple(asked["names"])
    videos = ranks.sum(*count_vector(Counter(asked["used"][ranks.rank]), names))
    new = {name: int(count) for name, count in zip(names, videos, strict=True)}
    mine = [add_counts(asked["before"], new), ranks.max(*asked["memory"][ranks.rank])]
    everyone: list[object] = [None] * ranks.size
    torch.distributed.all_gather_object(everyone, mine)
    if ranks.rank == 0:
        with open(sys.argv[2], "w") as file:
            json.dump(everyone, file)
    stop_ranks(ranks)


if __name__ == "__main__":
    main()
