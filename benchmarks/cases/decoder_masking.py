"""The decoder masks of the paper's Table 1: what a whole training step costs under each."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

from benchmarks.case import USUAL_BATCH, Bench, Case, Group, timed
from benchmarks.harness import Variant
from benchmarks.record import Row
from benchmarks.steps import DECODER_MASKS, Precision, Workbench, step_config, step_flops

BASE = "none"


def groups(bench: Bench) -> Iterator[Group]:
    """By size and precision, under math attention: the kernel of the paper."""
    for size in bench.options.sizes:
        for precision in bench.options.precisions:
            yield Group(f"{size} {precision}", partial(measure, bench, size, precision))


def measure(bench: Bench, size: str, precision: Precision) -> list[Row]:
    """Forward, loss, backward and optimizer under each decoder mask."""
    workbench, kernels = Workbench(size, precision, bench.device), ("math", "math")
    variants = [
        Variant(
            name,
            partial(workbench.step, mask, USUAL_BATCH, kernels),
            step_config(size, name, mask, precision, USUAL_BATCH, kernels),
            step_flops(size, mask, USUAL_BATCH),
        )
        for name, mask in DECODER_MASKS.items()
    ]
    return timed(variants, bench, BASE, peak=precision)


CASE = Case(groups, "decoder masks of the paper's Table 1: none, frame, random, running cell at 25, 50 and 75 %")
