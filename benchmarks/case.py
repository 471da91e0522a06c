"""What a case is made of: options, groups that are measured in one go, and the usual way to measure a group of variants."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import torch
from pydantic import Field
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count

from benchmarks.ceiling import product_ceiling, product_step
from benchmarks.devices import DeviceName, attentions_on, find_device, measure_memory, timer_of
from benchmarks.harness import Timing, Variant, attempt, paired_ratio, rows_of, time_interleaved
from benchmarks.launches import count_launches, host_seconds, is_host_bound
from benchmarks.record import Row
from benchmarks.steps import Precision, sdpa_took
from vmae2_ds.config.pretrain import StrictModel
from vmae2_ds.dist import Ranks
from vmae2_ds.engine.device_peak import device_peak
from vmae2_ds.errors import ConfigError
from vmae2_ds.model.kernel_support import SUPPORT

MATMUL = "matmul"
"""The variant that stands for a CPU's peak: timed in the rounds of what it is compared with."""
MATMUL_EDGE = 2048
USUAL_BATCH = 2
AUTO = "auto"
Batch = int | Literal["auto"]
"""Clips of a step, or as many as fill the device."""
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
    batch_sizes: tuple[Positive | Literal["auto"], ...] = Field((AUTO,), min_length=1)
    """Clips of 16 x 224 x 224 in a step, or auto: on a GPU what fills its memory by the planner's closed forms, halved where
    memory runs out, on a CPU 2. Several show memory against batch."""
    rounds: int = Field(9, gt=0)
    """Counted rounds; every variant runs once in each."""
    warmup: int = Field(2, ge=0)
    """Rounds thrown out first."""
    ranks: tuple[Positive, ...] = Field((1, 2), min_length=1)
    """World sizes that zero and checkpoint are launched with; under `deepspeed` the launcher's own world counts."""
    interconnect: str = ""
    """What links the GPUs and hosts, for the rows: nothing here can ask for it ("NVLink 4, 8 x 400 Gb/s InfiniBand")."""
    videos: Path | None = None
    """Manifest of real videos for the cases `pipeline` and `extraction`; without it, videos are drawn. `science`: labelled, and
    in groups."""
    hours: float = Field(4.0, gt=0, le=1000)
    """Wall hours of the case `science`: a training that would not end in them is not begun."""
    seeds: int = Field(5, ge=1, le=100)
    """Seeds of the case `science`, one after another through the whole grid."""
    jobs: int = Field(2, ge=1, le=64)
    """Trainings of the case `science` at once, a core each."""
    group_by: str | None = None
    """Regular expression that finds a video's group (person, scene) in its path, for `science` with --videos; default: the
    column `source`."""
    on_videos: bool = False
    """The whole grid of `science` is trained and tested on the list of --videos; otherwise on synthetic videos, and the list
    is for the question which data helps."""
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
    give_up_for_memory: bool = False
    """A group is left as soon as one variant runs out of memory: it will be measured with fewer clips."""

    @property
    def device(self) -> torch.device:
        """Where to measure."""
        return find_device(self.options.device)

    @property
    def batches(self) -> tuple[Batch, ...]:
        """Batch sizes as asked for; on a CPU, whose memory no step fills in reasonable time, auto is the usual one."""
        on_cpu = self.device.type == "cpu"
        return tuple(
            dict.fromkeys(USUAL_BATCH if on_cpu and each == AUTO else each for each in self.options.batch_sizes)
        )

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
    alone: bool = False
    """Takes hours: --all leaves it out but for --quick."""
    launched: bool = False
    """Runs as ranks of the deepspeed launcher: once for each of `Options.ranks`."""


def batch_suffix(batch_size: Batch) -> str:
    """What a group's name says about a batch size that is not the usual one."""
    return "" if batch_size == USUAL_BATCH else f" batch {batch_size}"


def timed(
    variants: Sequence[Variant],
    bench: Bench,
    base: str | None = None,
    *,
    peak: Precision | None = None,
    memory: bool = True,
    count: bool = False,
    launches: bool = False,
) -> list[Row]:
    """Rows of variants timed in turns on the bench's device.

    With `memory` each variant's peak is measured in one more call, with `count` its FLOPs by torch's counter in another, with
    `launches` what it starts on the device, and on a GPU what time the host takes for that.
    `peak` names the precision whose peak rate MFU is a share of: on a CPU a matrix product joins the group.
    """
    device, options = bench.device, bench.options
    every = list(variants)
    if peak and device.type == "cpu":
        product = Variant(
            MATMUL, partial(product_step, peak, MATMUL_EDGE, 1, device), {"edge": MATMUL_EDGE}, 2.0 * MATMUL_EDGE**3
        )
        every.append(product)
    clock, timer = timer_of(device)
    up = (torch.OutOfMemoryError,) if bench.give_up_for_memory else ()
    timings = time_interleaved(every, options.rounds, options.warmup, timer, bench.tell, up)
    rows = rows_of(every, timings, base)
    for row in rows:
        if row["variant"] == MATMUL:  # work of another kind
            row.pop("speedup", None)
            row.pop("flop_ratio", None)
    for variant, row in zip(every, rows, strict=True):
        row |= {"clock": clock, "rounds": options.rounds, "warmup": options.warmup}
        row["config"] |= sdpa_took(row["config"], device)
        if timings[variant.name].step is not None and variant.name != MATMUL:
            _add_untimed(row, variant, timings[variant.name], device, memory=memory, count=count)
            if launches:
                _add_launches(row, timings[variant.name], device)
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
        row["flops_counted"] = None if _is_foreign(variant) else counter.get_total_flops()
    row["error"] = errors.get(variant.name)


def _add_launches(row: Row, timing: Timing, device: torch.device) -> None:
    assert timing.step is not None, "of variants that ran"
    step, errors = timing.step, {}  # type: ignore[var-annotated]
    seen = attempt("launches", lambda: count_launches(step, device), errors)
    row["launches"] = seen.launches if seen else None
    if device.type == "cuda" and row["samples_s"]:
        busy_s = seen.device_s if seen else None
        host_s = attempt("host", lambda: host_seconds(step, device), errors)
        row |= {"host_s": host_s, "device_s": busy_s}
        row["host_bound"] = None if host_s is None else is_host_bound(host_s, row["time_s"]["median"], busy_s)
    row["error"] = row["error"] or next(iter(errors.values()), None)


def _is_foreign(variant: Variant) -> bool:
    kernels = [variant.config.get(key) for key in ("attention", "attention_encoder", "attention_decoder")]
    return any(name in SUPPORT and SUPPORT[name].function for name in kernels)


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
