"""One rank of the counting test: videos of sources that others lack, summed; memory, of the rank that has most; agreements."""

from __future__ import annotations

from collections import Counter
from typing import Any

from tests.distributed.ranks import answer, of_all
from vmae2_ds.dist import Ranks
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


def counts(asked: dict[str, Any], ranks: Ranks) -> list[Any]:
    """What every rank counts."""
    names = tuple(asked["names"])
    videos = ranks.sum(*count_vector(Counter(asked["used"][ranks.rank]), names))
    new = {name: int(count) for name, count in zip(names, videos, strict=True)}
    return of_all([add_counts(asked["before"], new), ranks.max(*asked["memory"][ranks.rank]), agreements(ranks)], ranks)


if __name__ == "__main__":
    answer(counts)
