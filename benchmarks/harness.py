"""How everything here is timed: variants interleaved in one process, warm-up thrown out, medians, spread, paired ratios.

A busy machine slows neighbours in time alike, so variants take turns and are compared round by round. A variant that fails
is a row with the reason, not a missing row.
"""

from __future__ import annotations

import gc
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple, TypeVar

import torch

from benchmarks.devices import CPU_TIMER, Step, Timer
from benchmarks.record import Row
from vmae2_ds.errors import Vmae2Error

Result = TypeVar("Result")

FAILURES = (RuntimeError, MemoryError, ValueError, ImportError, OSError, Vmae2Error)
"""What a variant may raise and still leave a row; torch's out-of-memory error is a RuntimeError."""
NO_ROOM = "no room"
"""How the error begins of a group that was left out: the device has too little memory for a batch worth timing."""


@dataclass(frozen=True)
class Variant:
    """One thing to time. `build` allocates and returns the call that is timed."""

    name: str
    build: Callable[[], Step]
    config: Mapping[str, Any] = field(default_factory=dict)
    """Everything that decides what is computed."""
    flops: float | None = None
    """Work of one call, where it is known in closed form."""


class Spread(NamedTuple):
    """Middle and quartiles of some samples."""

    median: float
    low: float
    high: float


class Timing(NamedTuple):
    """What became of one variant."""

    samples_s: list[float]
    """One per counted round, in order; empty where it failed."""
    error: str | None
    step: Step | None = None
    """The call itself, for what is measured once and untimed; None where it failed."""


def spread(samples: Sequence[float]) -> Spread:
    """Median and quartiles (inclusive method: both ends are samples)."""
    if len(samples) == 1:
        return Spread(samples[0], samples[0], samples[0])
    low, median, high = statistics.quantiles(samples, n=4, method="inclusive")
    return Spread(median, low, high)


def time_interleaved(
    variants: Sequence[Variant],
    rounds: int,
    warmup: int = 2,
    timer: Timer = CPU_TIMER,
    tell: Callable[[str], None] = lambda _: None,
    up: tuple[type[BaseException], ...] = (),
) -> dict[str, Timing]:
    """Time each variant once per round; the first `warmup` rounds do not count. Errors of the kinds in `up` end it.

    Every second round goes backwards and every pair starts with another one: none always runs behind the same one.

    A variant that fails leaves its reason and is not called again; the others go on.
    """
    names = [variant.name for variant in variants]
    assert len(set(names)) == len(names), f"two variants of one name: {names}"
    samples: dict[str, list[float]] = {name: [] for name in names}
    errors: dict[str, str] = {}
    steps: dict[str, Step] = {}
    for variant in variants:
        built = attempt(variant.name, variant.build, errors, up)
        if built is not None:
            steps[variant.name] = built
    gc.collect()
    gc.disable()  # a collection in the middle of one variant would be counted as its work
    try:
        for number in range(warmup + rounds):
            turn = number // 2 % len(names)
            for name in (names[turn:] + names[:turn])[:: 1 if number % 2 == 0 else -1]:
                if name in errors:
                    continue
                elapsed_s = attempt(name, partial(timer, steps[name]), errors, up)
                if elapsed_s is not None and number >= warmup:
                    samples[name].append(elapsed_s)
            tell(f"round {number + 1} of {warmup + rounds}")
    finally:
        gc.enable()
    return {
        name: Timing([], errors[name]) if name in errors else Timing(samples[name], None, steps[name]) for name in names
    }


def attempt(
    name: str, call: Callable[[], Result], errors: dict[str, str], up: tuple[type[BaseException], ...] = ()
) -> Result | None:
    """What `call` returns, or None and its reason in `errors`; errors of the kinds in `up` are raised.

    A device that is broken for the rest of the process is nobody's row: that error goes up and ends the process.
    """
    try:
        return call()
    except FAILURES as error:
        if is_device_broken(error) or isinstance(error, up):
            raise
        errors[name] = reason_of(error)
        return None


def is_device_broken(error: BaseException) -> bool:
    """An error after which CUDA fails in every call of this process; out of memory is none."""
    broken = getattr(torch, "AcceleratorError", None)
    return broken is not None and isinstance(error, broken) and not isinstance(error, torch.OutOfMemoryError)


def reason_of(error: BaseException) -> str:
    """One line: the kind of error and the first line of what it says."""
    return f"{type(error).__name__}: {(str(error).strip() or 'no message').splitlines()[0]}"


def has_failed(row: Row) -> bool:
    """Whether a row tells of an error; that a package, a compiler or memory for a batch worth timing is not there is none."""
    missing = (NO_ROOM, "ModuleNotFoundError", "ImportError", "InductorError: InvalidCxxCompiler")
    return bool(row["error"]) and not row["error"].startswith(missing)


def paired_ratio(base_s: Sequence[float], other_s: Sequence[float]) -> Spread:
    """How many times faster `other` is than `base`, from the rounds both ran in."""
    return spread([base / other for base, other in zip(base_s, other_s, strict=True)])


def rows_of(variants: Sequence[Variant], timings: Mapping[str, Timing], base: str | None = None) -> list[Row]:
    """One row per variant: raw samples, median and quartiles, FLOP/s, and the ratio to `base`, if named, in the same rounds."""
    flops_of = {variant.name: variant.flops for variant in variants}
    rows = []
    for variant in variants:
        timing = timings[variant.name]
        row = measured_row(variant.name, variant.config, timing.samples_s, timing.error, variant.flops)
        if timing.samples_s and base is not None and timings[base].samples_s:
            ratio = paired_ratio(timings[base].samples_s, timing.samples_s)
            row["speedup"] = {"against": base, **ratio._asdict()}
            base_flops = flops_of[base]
            if base_flops and variant.flops:
                row["flop_ratio"] = base_flops / variant.flops
        rows.append(row)
    return rows


def measured_row(
    variant: str,
    config: Mapping[str, Any],
    samples_s: Sequence[float],
    error: str | None = None,
    flops: float | None = None,
) -> Row:
    """What a row says about one variant's times."""
    row: Row = {"variant": variant, "config": dict(config), "error": error, "samples_s": list(samples_s)}
    if samples_s:
        time_s = spread(samples_s)
        row["time_s"] = time_s._asdict()
        row["flops"] = flops
        row["flops_per_s"] = flops / time_s.median if flops else None
    return row
