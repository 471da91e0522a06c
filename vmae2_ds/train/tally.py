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
    is_written: bool
    """All ranks have written their part of a checkpoint behind training, or failed to."""
    supervised: float
    """`LossOutput.num_supervised` over all micro batches of all ranks."""


class StepTally:
    """One rank's loss, unreadable videos and videos by source, over the micro batches of a step.

    Args:
        sources: names under which the videos are counted, the same on every rank.
    """

    def __init__(self, device: torch.device, accumulation: int, sources: tuple[str, ...]) -> None:
        self._loss, self._accumulation = torch.zeros((), device=device), accumulation
        self._supervised = torch.zeros((), dtype=torch.float64, device=device)
        self._names = counted_names(sources)
        self._used: Counter[str] = Counter()
        self.failures: list[ReadFailure] = []

    def add(self, loaded: LoadedBatch, out: LossOutput) -> None:
        """Take in one micro batch and its loss, which stays on the device."""
        self._loss += out.loss.detach() / self._accumulation
        self._supervised += out.num_supervised.detach()
        self.failures += loaded.failures
        self._used.update(loaded.sources)

    def tell(
        self, ranks: Ranks, guard: SpikeGuard, stop: StopRequests, *, loader_failed: bool, is_written: bool
    ) -> torch.Tensor:
        """Tell the other ranks, in the one sum over ranks that a step takes: (n,) float64 on the device, not waited for."""
        flags = len(self.failures), bool(stop.caught), stop.is_time_over(), loader_failed, not is_written
        own = torch.tensor([*flags, *count_vector(self._used, self._names)], dtype=torch.float64)
        if self._loss.is_cuda:
            own = own.pin_memory()  # a copy out of other memory may wait for the device
        own = own.to(self._loss.device, non_blocking=True)
        return ranks.add_up(torch.cat([own, self._supervised.view(1), guard.own_place(self._loss)]))

    def agreed(self, told: list[float]) -> Agreed:
        """What `tell` has come to on all ranks, once it is read."""
        bad, signalled, late, failed, unwritten, *rest = told
        videos, (supervised, *losses) = rest[: len(self._names)], rest[len(self._names) :]
        by_source = {name: int(count) for name, count in zip(self._names, videos, strict=True)}
        return Agreed(int(bad), signalled > 0, late > 0, failed > 0, losses, by_source, not unwritten, supervised)


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
