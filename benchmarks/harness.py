"""How everything here is timed: variants interleaved in one process, warm-up thrown out, medians, spread, paired ratios.

A busy machine slows neighbours in time alike, so variants take turns and are compared round by round; on a CPU the clock
is the CPU time of the process with one thread. A variant that fails is a row with the reason, not a missing row.
"""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypeVar

from vmae2_ds.errors import Vmae2Error

Result = TypeVar("Result")
Step = Callable[[], None]
Clock = Callable[[], float]
"""Seconds; only differences count."""

FAILURES = (RuntimeError, MemoryError, ValueError, ImportError, Vmae2Error)
"""What a variant may raise and still leave a row; torch's out-of-memory error is a RuntimeError."""


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
    clock: Clock = time.process_time,
    tell: Callable[[str], None] = lambda _: None,
) -> dict[str, Timing]:
    """Time each variant once per round, starting each round with another one; the first `warmup` rounds do not count.

    A variant that fails leaves its reason and is not called again; the others go on.
    """
    names = [variant.name for variant in variants]
    assert len(set(names)) == len(names), f"two variants of one name: {names}"
    samples: dict[str, list[float]] = {name: [] for name in names}
    errors: dict[str, str] = {}
    steps: dict[str, Step] = {}
    for variant in variants:
        built = _attempt(variant.name, variant.build, errors)
        if built is not None:
            steps[variant.name] = built
    gc.collect()
    gc.disable()  # a collection in the middle of one variant would be counted as its work
    try:
        for number in range(warmup + rounds):
            turn = number % len(names)
            for name in names[turn:] + names[:turn]:
                if name in errors:
                    continue
                start = clock()
                _attempt(name, steps[name], errors)
                if number >= warmup:
                    samples[name].append(clock() - start)
            tell(f"round {number + 1} of {warmup + rounds}")
    finally:
        gc.enable()
    return {name: Timing([] if name in errors else samples[name], errors.get(name)) for name in names}


def _attempt(name: str, call: Callable[[], Result], errors: dict[str, str]) -> Result | None:
    """What `call` returns, or None and its reason in `errors`."""
    try:
        return call()
    except FAILURES as error:
        reason = str(error).strip() or "no message"
        errors[name] = f"{type(error).__name__}: {reason.splitlines()[0]}"
        return None


def paired_ratio(base_s: Sequence[float], other_s: Sequence[float]) -> Spread:
    """How many times faster `other` is than `base`, from the rounds both ran in."""
    return spread([base / other for base, other in zip(base_s, other_s, strict=True)])


def rows_of(
    case: str,
    variants: Sequence[Variant],
    timings: Mapping[str, Timing],
    base: str | None,
    shared: Mapping[str, Any],
) -> list[dict[str, Any]]:
    """One row per variant: raw samples, median and quartiles, FLOP/s, and the ratio to `base`, if named, in the same rounds."""
    rows = []
    for variant in variants:
        timing = timings[variant.name]
        row: dict[str, Any] = {
            "case": case,
            "variant": variant.name,
            "config": dict(variant.config),
            "error": timing.error,
            "samples_s": timing.samples_s,
        }
        if timing.samples_s:
            time_s = spread(timing.samples_s)
            row["time_s"] = time_s._asdict()
            row["flops"] = variant.flops
            row["flops_per_s"] = variant.flops / time_s.median if variant.flops else None
            if base is not None and timings[base].samples_s:
                row["speedup"] = {
                    "against": base,
                    **paired_ratio(timings[base].samples_s, timing.samples_s)._asdict(),
                }
        rows.append({**row, **shared})
    return rows
