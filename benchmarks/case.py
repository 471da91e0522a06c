"""What a case is made of: options, groups that are measured in one go, and the usual way to measure a group of variants."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import torch
from pydantic import Field
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count

from benchmarks.ceiling import product_ceiling
from benchmarks.devices import DeviceName, attentions_on, find_device, measure_memory, timer_of
from benchmarks.harness import Timing, Variant, attempt, paired_ratio, rows_of, time_interleaved
from benchmarks.record import Row
from benchmarks.steps import Precision, matmul_step
from vmae2_ds.config.pretrain import StrictModel
from vmae2_ds.dist import Ranks
from vmae2_ds.engine.device_peak import device_peak
from vmae2_ds.errors import ConfigError

MATMUL = "matmul"
"""The variant that stands for a CPU's peak: timed in the rounds of what it is compared with."""
MATMUL_EDGE = 2048
USUAL_BATCH = 2
ALONE = Ranks()
UNCOUNTED = {
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: lambda q, k, v, *_, **__: sdpa_flop_count(q, k, v),
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: (
        lambda grad, q, k, v, *_, **__: sdpa_backward_flop_count(grad, q, k, v)
    ),
}
"""Shapes to FLOPs of what torch's counter takes for nothing: sdpa's CPU kernels. The backward one computes scores again."""


QUICK: dict[str, Any] = {"sizes": ("small",), "precisions": ("bf16",), "rounds": 3, "warmup": 1}
Positive = Annotated[int, Field(gt=0)]


class Options(StrictModel):
    """What the command line may change; the defaults give the figures of benchmarks/reports/."""

    device: DeviceName = "auto"
    """Where to measure; auto takes the GPU where there is one."""
    sizes: tuple[str, ...] = Field(("small", "base"), min_length=1)
    """Model sizes."""
    precisions: tuple[Precision, ...] = Field(("bf16", "fp32"), min_length=1)
    """Precisions of the weights; bf16 keeps float32 masters."""
    batch_sizes: tuple[Positive, ...] = Field((USUAL_BATCH,), min_length=1)
    """Clips of 16 x 224 x 224 in a step; 2 suit a CPU, a GPU wants what a run would use. Several show memory against batch."""
    rounds: int = Field(9, gt=0)
    """Counted rounds; every variant runs once in each."""
    warmup: int = Field(2, ge=0)
    """Rounds thrown out first."""
    ranks: tuple[Positive, ...] = Field((1, 2), min_length=1)
    """World sizes that zero and checkpoint are launched with; under `deepspeed` the launcher's own world counts."""
    interconnect: str = ""
    """What links the GPUs and hosts, for the rows: nothing here can ask for it ("NVLink 4, 8 x 400 Gb/s InfiniBand")."""
    videos: Path | None = None
    """Manifest of real videos for the case `pipeline`; without it, videos are drawn."""
    quick: bool = False
    """ViT-S in bf16 with 3 rounds: to see that everything runs; not for figures."""

    def resolved(self) -> Options:
        """With `quick` applied.

        Raises:
            ConfigError: `quick` beside a setting that it decides.
        """
        if not self.quick:
            return self
        asked = {name: getattr(self, name) for name in QUICK}
        if both := [
            f"--{name}"
            for name, value in asked.items()
            if value not in (QUICK[name], type(self).model_fields[name].default)
        ]:
            raise ConfigError(f"--quick decides {', '.join(both)} itself: leave one of the two out")
        return self.model_copy(update=QUICK)


@dataclass(frozen=True)
class Bench:
    """What a group gets to measure with."""

    options: Options
    tell: Callable[[str], None] = lambda _: None
    """Progress inside a group."""
    ranks: Ranks = ALONE
    """This process among the ranks of a launched case."""
    folder: Path | None = None
    """Of the rows: where a case may put files, and the note of what is in flight."""
    nodes: int = 1
    """Hosts of the ranks."""

    @property
    def device(self) -> torch.device:
        """Where to measure."""
        return find_device(self.options.device)

    def attentions(self, precision: Precision) -> tuple[str, ...]:
        """Kernels that can run on the device."""
        return attentions_on(self.device, precision)


class Group(NamedTuple):
    """Variants measured together; the unit that an interrupted run loses at most."""

    name: str
    measure: Callable[[], list[Row]]
    """Rows without what the runner adds: case, group, provenance."""
    settings: Any = None
    """What decides the figures and stands neither in the name nor in rounds, warm-up, ranks and `quick`."""


class Case(NamedTuple):
    """A named comparison."""

    groups: Callable[[Bench], Iterator[Group]]
    """Cheap: names the groups, measures nothing."""
    about: str
    launched: bool = False
    """Runs as ranks of the deepspeed launcher: once for each of `Options.ranks`."""


def batch_suffix(batch_size: int) -> str:
    """What a group's name says about a batch size that is not the usual one."""
    return "" if batch_size == USUAL_BATCH else f" batch {batch_size}"


def step_groups(bench: Bench, measure: Callable[[Bench, str, Precision, int], list[Row]]) -> Iterator[Group]:
    """A group for each size, precision and batch size of the options: `measure` gets them in this order."""
    for size in bench.options.sizes:
        for precision in bench.options.precisions:
            for batch_size in bench.options.batch_sizes:
                name = f"{size} {precision}{batch_suffix(batch_size)}"
                yield Group(name, partial(measure, bench, size, precision, batch_size))


def timed(
    variants: Sequence[Variant],
    bench: Bench,
    base: str | None = None,
    *,
    peak: Precision | None = None,
    memory: bool = True,
    count: bool = False,
) -> list[Row]:
    """Rows of variants timed in turns on the bench's device.

    With `memory` each variant's peak is measured in one more call, with `count` its FLOPs by torch's counter in another.
    `peak` names the precision whose peak rate MFU is a share of: on a CPU a matrix product joins the group.
    """
    device, options = bench.device, bench.options
    every = list(variants)
    if peak and device.type == "cpu":
        product = Variant(MATMUL, lambda: matmul_step(peak, MATMUL_EDGE), {"edge": MATMUL_EDGE}, 2.0 * MATMUL_EDGE**3)
        every.append(product)
    clock, timer = timer_of(device)
    timings = time_interleaved(every, options.rounds, options.warmup, timer, bench.tell)
    rows = rows_of(every, timings, base)
    for row in rows:
        if row["variant"] == MATMUL:  # work of another kind
            row.pop("speedup", None)
            row.pop("flop_ratio", None)
    for variant, row in zip(every, rows, strict=True):
        row |= {"clock": clock, "rounds": options.rounds, "warmup": options.warmup}
        if timings[variant.name].step is not None and variant.name != MATMUL:
            _add_untimed(row, variant, timings[variant.name], device, memory=memory, count=count)
    if peak:
        _add_mfu(rows, timings, device, peak)
        if device.type == "cuda":  # on a CPU the peak is measured in the same rounds
            _add_measured_mfu(rows, bench, peak)
    return rows


def _add_untimed(
    row: Row, variant: Variant, timing: Timing, device: torch.device, *, memory: bool, count: bool
) -> None:
    assert timing.step is not None, "of variants that ran"
    step, errors = timing.step, {}  # type: ignore[var-annotated]
    if memory:
        measured = attempt(variant.name, lambda: measure_memory(step, device), errors)
        row["memory"] = measured._asdict() if measured else None
    if count:
        with FlopCounterMode(display=False, custom_mapping=UNCOUNTED) as counter:
            attempt(variant.name, step, errors)
        # kernels of other packages are unknown to torch's counter
        row["flops_counted"] = None if "flash" in str(variant.config) else counter.get_total_flops()
    row["error"] = errors.get(variant.name)


def _add_mfu(rows: list[Row], timings: dict[str, Timing], device: torch.device, precision: Precision) -> None:
    """Share of the peak rate: a datasheet's on CUDA, on a CPU the matrix product of the same round."""
    if device.type == "cuda":
        known = device_peak(device, precision)
        if known is None:
            return
        peaks = {row["variant"]: [known.flops] * len(row["samples_s"]) for row in rows}
        source = known.name
    else:
        product = next(row for row in rows if row["variant"] == MATMUL)
        samples = timings[MATMUL].samples_s
        peaks = {row["variant"]: [product["flops"] / s for s in samples] for row in rows} if samples else {}
        source = f"{MATMUL_EDGE}^3 {precision} matrix product, {torch.get_num_threads()} thread, same rounds"
    for row in rows:
        if row["samples_s"] and row["flops"] and peaks:
            row["mfu"] = _share(row, peaks[row["variant"]], source)


def _add_measured_mfu(rows: list[Row], bench: Bench, precision: Precision) -> None:
    """Share of the fastest product that the case `ceilings` measured, beside that of the datasheet."""
    with_tf32 = precision == "fp32" and torch.get_float32_matmul_precision() != "highest"
    found = product_ceiling(bench.folder, bench.device, "tf32" if with_tf32 else precision)
    for row in rows:
        if found and row["samples_s"] and row["flops"]:
            row["mfu_measured"] = _share(row, [found.rate] * len(row["samples_s"]), found.source)


def _share(row: Row, peaks: Sequence[float], source: str) -> Row:
    """What a row attains of the peak of each round."""
    attained = [row["flops"] / s for s in row["samples_s"]]
    share = paired_ratio(attained, peaks)
    return {**share._asdict(), "peak_flops": sorted(peaks)[len(attained) // 2], "peak_source": source}
