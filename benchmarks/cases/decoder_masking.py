"""The decoder masks of the paper's Table 1: what a whole training step costs under each."""

from __future__ import annotations

from functools import partial

from benchmarks.case import Bench, Case, timed
from benchmarks.filling import step_groups
from benchmarks.harness import Variant
from benchmarks.record import Row
from benchmarks.steps import DECODER_MASKS, Precision, kernels_of_run, step_config, step_flops, workbench_of

BASE = "none"


def measure(bench: Bench, size: str, precision: Precision, batch_size: int) -> list[Row]:
    """Forward, loss, backward and optimizer under each decoder mask."""
    workbench = workbench_of(size, precision, bench.device)
    kernels = kernels_of_run(size, DECODER_MASKS["running_cell_50"], precision, batch_size, bench.device)
    variants = [
        Variant(
            name,
            partial(workbench.step, mask, batch_size, kernels),
            step_config(size, name, mask, precision, batch_size, kernels),
            step_flops(size, mask, batch_size),
        )
        for name, mask in DECODER_MASKS.items()
    ]
    return timed(variants, bench, BASE, peak=precision, launches=True)


CASE = Case(
    partial(step_groups, measure=measure, masks=tuple(DECODER_MASKS.values()), kernel="flash"),
    "decoder masks of the paper's Table 1: none, frame, random, running cell at 25, 50 and 75 %",
)
