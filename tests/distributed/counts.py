"""One rank of the counting test: videos of sources that others lack, summed; memory, of the rank that has most; agreements."""

from __future__ import annotations

import json
import sys
from collections import Counter

import torch

from vmae2_ds.dist import Ranks
from vmae2_ds.engine.ranks import start_ranks, stop_ranks
from vmae2_ds.errors import DataError
from vmae2_ds.train.tally import add_counts, count_vector


def agreements(ranks: Ranks) -> list[object]:
    """What a rank learns of the others: of a flag and a word of rank 1's, of all numbers, of rank 0's answer and its error."""

    def fail() -> None:
        raise DataError(f"rank {ranks.rank} cannot read it")

    try:
        told = ranks.from_first(fail)
    except DataError as error:
        told = str(error)
    word = "late" if ranks.rank == 1 else None
    mine = [ranks.any(ranks.rank == 1), ranks.gather(ranks.rank), ranks.first_said(word), ranks.first_said(None)]
    return [*mine, ranks.from_first(lambda: f"rank {ranks.rank}"), told]


def main() -> None:
    """Counts of each rank from argv[1]; every rank's results go to argv[2] through rank 0."""
    asked = json.loads(sys.argv[1])
    ranks = start_ranks()
    names = tuple(asked["names"])
    videos = ranks.sum(*count_vector(Counter(asked["used"][ranks.rank]), names))
    new = {name: int(count) for name, count in zip(names, videos, strict=True)}
    mine = [add_counts(asked["before"], new), ranks.max(*asked["memory"][ranks.rank]), agreements(ranks)]
    everyone: list[object] = [None] * ranks.size
    torch.distributed.all_gather_object(everyone, mine)
    if ranks.rank == 0:
        with open(sys.argv[2], "w") as file:
            json.dump(everyone, file)
    stop_ranks(ranks)


if __name__ == "__main__":
    main()
