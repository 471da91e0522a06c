"""What dual masking saves of a whole training step, beside its FLOP ratio: every size, precision, kernel and allocator."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from functools import partial

from benchmarks.case import Bench, Case, Group, batch_suffix, timed
from benchmarks.devices import keep_freed_memory
from benchmarks.filling import at_batch, planned_batch
from benchmarks.harness import Variant
from benchmarks.record import Row
from benchmarks.steps import MASKS, Precision, step_config, step_flops, workbench_of

BASE = "encoder_only"


def groups(bench: Bench) -> Iterator[Group]:
    """By size, precision and kernel; then on a CPU once more with freed memory kept, which holds for the rest of a process."""
    on_cpu = bench.device.type == "cpu" and sys.platform == "linux"
    for keep in (False, True)[: 1 + on_cpu]:
        for size in bench.options.sizes:
            for precision in bench.options.precisions:
                for attention in bench.attentions(precision):
                    plan = partial(planned_batch, size, precision, attention, tuple(MASKS.values()))
                    for batch in bench.batches:
                        name = f"{size} {precision} {attention}{batch_suffix(batch)}" + " kept" * keep
                        taken = partial(measure, size=size, precision=precision, attention=attention, keep=keep)
                        yield Group(name, partial(at_batch, bench, batch, plan, taken))


def measure(bench: Bench, size: str, precision: Precision, attention: str, batch_size: int, keep: bool) -> list[Row]:
    """Forward, loss, backward and optimizer under each masking, memory included."""
    allocator = "freed memory kept" if keep and keep_freed_memory() else "as it comes"
    workbench = workbench_of(size, precision, bench.device)
    kernels = (attention, attention)
    variants = []
    for name, mask in MASKS.items():
        config = step_config(size, name, mask, precision, batch_size, kernels) | {"allocator": allocator}
        build = partial(workbench.step, mask, batch_size, kernels)
        variants.append(Variant(name, build, config, step_flops(size, mask, batch_size)))
    return timed(variants, bench, BASE, peak=precision, count=True, launches=True)


CASE = Case(groups, "encoder-only masking against dual masking, both decoder token sets: the whole training step")
