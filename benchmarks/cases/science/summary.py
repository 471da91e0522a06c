"""Rows over seeds: mean and range of each variant, and each sentence's paired difference, interval, p and verdict."""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

from benchmarks.cases.science.claims import CLAIMS, MARGIN, Claim, asked_of_errors, verdict_of
from benchmarks.cases.science.grid import LEAST_SEEDS
from benchmarks.cases.science.quantiles import detectable, holm, p_value, t_interval
from benchmarks.record import Row

Found = dict[tuple[str, str], dict[int, float]]
"""By variant and metric: the figure of each seed."""
LEVEL = 0.05
RANDOM = "random encoder"
RULE = {"margin": MARGIN, "least_seeds": LEAST_SEEDS}
COSTS = ("steps", "flops", "cpu_s")
"""Of a run, beside what came of it."""


def summary_rows(rows: Sequence[Row]) -> list[Row]:
    """A row for each variant and for each sentence; `rows` are those of single runs."""
    found: Found = defaultdict(dict)
    for row in rows:
        costs = {name: row["config"][name] for name in COSTS if name in row["config"]}
        for metric, value in {**row["values"], **costs}.items():
            found[row["variant"], metric][row["config"]["seed"]] = value
    variants = list(dict.fromkeys(row["variant"] for row in rows))
    return [*(_variant_row(variant, found) for variant in variants), *_claim_rows(found, (*CLAIMS, *asked_of_errors()))]


def _variant_row(variant: str, found: Found) -> Row:
    values: dict[str, float] = {}
    for (of, metric), by_seed in found.items():
        if of == variant:
            figures = list(by_seed.values())
            values |= {metric: statistics.fmean(figures), f"{metric}_low": min(figures), f"{metric}_high": max(figures)}
    seeds = max(len(by_seed) for (of, _), by_seed in found.items() if of == variant)
    return row_of(f"over seeds: {variant}", {"of": variant}, {**values, "seeds": seeds}, "computed")


def differences_of(first: str, second: str, metric: str, found: Found) -> list[float]:
    """How much better the first is, in points, by seed; seeds that both have. Of an error lower is better."""
    one, other = (found.get((name, metric), {}) for name in (first, second))
    sign = -100 if metric.startswith("error") else 100
    return [sign * (one[seed] - other[seed]) for seed in sorted(one.keys() & other.keys())]


def is_above_random(claim: Claim, found: Found) -> bool:
    """Whether one of the two is above the random encoder, by the interval of the rule; errors have no such guess to pass."""
    if claim.metric.startswith("error"):
        return True
    intervals = (t_interval(differences_of(name, RANDOM, claim.metric, found)) for name in (claim.first, claim.second))
    return any(interval is not None and interval.low > 0 for interval in intervals)


def _claim_rows(found: Found, claims: Sequence[Claim]) -> list[Row]:
    paired = [differences_of(claim.first, claim.second, claim.metric, found) for claim in claims]
    shift = [MARGIN if claim.kind == "no loss" else 0.0 for claim in claims]
    tested = [number for number, values in enumerate(paired) if len(values) >= LEAST_SEEDS]
    raw = {number: p_value([value + shift[number] for value in paired[number]]) or 0.0 for number in tested}
    corrected = dict(zip(tested, holm([raw[number] for number in tested]), strict=True))
    rows = []
    for number, (claim, values) in enumerate(zip(claims, paired, strict=True)):
        above = is_above_random(claim, found)
        verdict = verdict_of(claim.kind, values, told_apart=above)
        config: dict[str, Any] = {**claim._asdict(), "verdict": verdict, "differences": values, **RULE}
        if len(values) >= LEAST_SEEDS:
            config["above_random"] = above
        figures: dict[str, float] = {"seeds": len(values)}
        if values:
            figures["difference"] = statistics.fmean(values)
        interval = t_interval(values)
        if interval is not None:
            figures |= {"difference_low": interval.low, "difference_high": interval.high}
            figures["deviation"] = statistics.stdev(values)
            figures["detectable"] = detectable(figures["deviation"], len(values))
        if number in raw:
            figures |= {"p": raw[number], "p_holm": corrected[number]}
            config["holds_corrected"] = corrected[number] < LEVEL
        rows.append(row_of(f"claim: {claim.sentence} ({claim.metric})", config, figures, "computed"))
    return rows


def row_of(variant: str, config: dict[str, Any], values: dict[str, float], kind: str) -> Row:
    """A row of the case, of one run (`measured`) or of several (`computed`)."""
    return {"variant": variant, "config": config, "error": None, "samples_s": [], "kind": kind, "values": values}
