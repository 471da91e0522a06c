"""Launched cases in which rank 1 fails in a variant or is killed in one, while rank 0 waits for it in a collective.

python -m deepspeed.launcher.runner ... --module tests.benchmarks.dying_ranks JOB.json
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Iterator
from functools import partial

import torch

from benchmarks import worker
from benchmarks.case import Bench, Case, Group
from benchmarks.cases.zero_engine import lost_before, try_variant
from benchmarks.harness import measured_row
from benchmarks.record import Row


def _fail() -> None:
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1 TiB")


def _die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _together(bench: Bench, before: Callable[[], None]) -> float:
    if bench.ranks.rank == 1:
        before()
    one = torch.ones(())
    torch.distributed.all_reduce(one)
    return float(one)


def _measure(bench: Bench, variants: dict[str, Callable[[], None]]) -> list[Row]:
    failed, sums = lost_before(bench), {}
    for name, before in variants.items():
        if name not in failed:
            sums[name] = try_variant(bench, name, partial(_together, bench, before), failed)
    return [measured_row(name, {}, [sums[name]] if name in sums else [], failed.get(name)) for name in variants]


def _case(variants: dict[str, Callable[[], None]]) -> Case:
    def groups(bench: Bench) -> Iterator[Group]:
        yield Group("first", partial(_measure, bench, variants))
        yield Group("second", lambda: [measured_row("c", {}, [float(bench.ranks.size)])])

    return Case(groups, "made", launched=True)


MADE = {
    "dying_ranks": _case({"a": lambda: None, "dies": _die, "b": lambda: None}),
    "failing_ranks": _case({"a": lambda: None, "fails": _fail, "b": lambda: None}),
}

if __name__ == "__main__":
    worker.CASES |= MADE
    worker.main(sys.argv[1:])
