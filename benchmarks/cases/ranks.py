"""What grows with the number of ranks, past the machines at hand: one rank's part, with stand-ins for up to 4,095 others."""

from __future__ import annotations

import gc
import tracemalloc
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from benchmarks.case import Bench, Case, Group, timed
from benchmarks.devices import Step
from benchmarks.harness import Variant
from benchmarks.rank_parts import PARTS, MakePart
from benchmarks.record import Row

WORLDS = (64, 256, 1024, 4096)
"""Numbers of ranks; the law of a part is read off the last two."""


def groups(bench: Bench) -> Iterator[Group]:
    """One for each part."""
    for name, part in PARTS.items():
        yield Group(name, partial(measure, bench, part), {"worlds": WORLDS})


def measure(bench: Bench, part: MakePart, worlds: tuple[int, ...] = WORLDS) -> list[Row]:
    """`values` of each world: seconds, bytes of Python's memory at the peak, and counts; `growth`: their power of the world."""
    counts: dict[int, dict[str, float]] = {}
    with TemporaryDirectory() as folder:

        def build(ranks: int) -> Step:
            own = Path(folder) / str(ranks)
            own.mkdir()
            made = part(ranks, own)
            counts[ranks] = {"held_bytes": held_bytes(made.work), **made.counts}
            return made.work

        variants = [Variant(f"{ranks} ranks", partial(build, ranks), {"ranks": ranks}) for ranks in worlds]
        rows = timed(variants, bench, memory=False)
    for ranks, row in zip(worlds, rows, strict=True):
        if not row["error"]:
            row["values"] = {"cpu_s": row["time_s"]["median"], **counts[ranks]}
            row["kind"] = "measured"
    if len(rows) > 1 and not any(row["error"] for row in rows[-2:]):
        rows[-1]["growth"] = growth(rows[-2]["values"], rows[-1]["values"], worlds[-1] / worlds[-2])
    return rows


def held_bytes(work: Step) -> int:
    """The most that a call takes of Python's memory, numpy's arrays among it, tensors not."""
    gc.collect()
    tracemalloc.start()
    try:
        work()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def growth(less: dict[str, float], more: dict[str, float], times: float) -> dict[str, float]:
    """The power of the number of ranks by which each value grows: 0 where it is constant, 1 where it is in proportion."""
    return {
        key: float(np.log(more[key] / less[key]) / np.log(times)) for key in more if less[key] > 0 and more[key] > 0
    }


CASE = Case(
    groups, "one rank's part of what grows with the number of ranks, up to 4,096, with stand-ins for the others"
)
