"""What a rank met in the micro batches of one step, and what all ranks know of it before its update."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import NamedTuple

import torch

from vmae2_ds.contracts import LoadedBatch, LossOutput, ReadFailure
from vmae2_ds.dist import Ranks
from vmae2_ds.guard.spikes import SpikeGuard
from vmae2_ds.guard.stopping import StopRequests

MOST_SOURCES, OTHERS = 100, "(others)"


class Agreed(NamedTuple):
    """What all ranks agree on after a step."""

    bad_videos: int
    """Replaced in this step."""
    is_signalled: bool
    """A rank was asked to stop."""
    is_late: bool
    """The time of a rank is nearly over."""
    loader_failed: bool
    """The loader of a rank has ended with an error; its last batch came again."""
    losses: list[float]
    """Loss of each rank; empty where the guard does not look at them."""
    source_videos: dict[str, int]
    """Videos of this step by source."""


class StepTally:
    """One rank's loss, unreadable videos and videos by source, over the micro batches of a step."""

    def __init__(self, device: torch.device, accumulation: int) -> None:
        self._loss, self._accumulation = torch.zeros((), device=device), accumulation
        self._used: Counter[str] = Counter()
        self.failures: list[ReadFailure] = []

    def add(self, loaded: LoadedBatch, out: LossOutput) -> None:
        """Take in one micro batch and its loss, which stays on the device."""
        self._loss += out.loss.detach() / self._accumulation
        self.failures += loaded.failures
        self._used.update(loaded.sources)

    def agree(
        self,
        ranks: Ranks,
        guard: SpikeGuard,
        stop: StopRequests,
        sources: tuple[str, ...],
        *,
        loader_failed: bool,
    ) -> Agreed:
        """Tell the other ranks, in the one sum over ranks that a step takes; waits for the device."""
        names = counted_names(sources)
        bad, signalled, late, failed, *rest = ranks.sum(
            len(self.failures),
            bool(stop.caught),
            stop.is_time_over(),
            loader_failed,
            *guard.own_place(self._loss),
            *count_vector(self._used, names),
        )
        losses, videos = rest[: guard.places], rest[guard.places :]
        by_source = {name: int(count) for name, count in zip(names, videos, strict=True)}
        return Agreed(int(bad), signalled > 0, late > 0, failed > 0, losses, by_source)


def counted_names(sources: tuple[str, ...]) -> tuple[str, ...]:
    """Names under which videos are counted: the sources, of very many only the first, and OTHERS."""
    return sources if len(sources) <= MOST_SOURCES else (*sources[: MOST_SOURCES - 1], OTHERS)


def count_vector(used: Counter[str], names: tuple[str, ...]) -> list[int]:
    """Counts in the order of `names`, which all ranks have alike, so that they can be summed."""
    counts = [used[name] for name in names]
    if names[-1] == OTHERS:
        counts[-1] = used.total() - sum(counts)
    assert sum(counts) == used.total(), f"videos of sources {sorted(used)}, where only {names} are known"
    return counts


def add_counts(total: Mapping[str, int], new: Mapping[str, int]) -> dict[str, int]:
    """`total` with the counts of a step added."""
    return {**total, **{name: total.get(name, 0) + count for name, count in new.items()}}
