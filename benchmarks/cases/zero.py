"""ZeRO stages, offload and ZeRO++ as ds_configs/ has them: time, memory and traffic of whole steps under 1 to N ranks.

Weak scaling keeps the clips of a rank, strong scaling those of all ranks. The planner's figures stand beside the measured ones.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator
from functools import partial
from typing import Any, Literal, NamedTuple

import torch

from benchmarks.case import AUTO, Bench, Case, Group, batch_suffix
from benchmarks.cases.zero_engine import (
    MASK,
    Seconds,
    Traffic,
    count_traffic,
    lost_before,
    of_all_ranks,
    policies,
    run_config,
    set_up,
    tear_down,
    time_step,
    try_variant,
)
from benchmarks.cases.zero_plan import Planner, find_planner, residuals
from benchmarks.devices import held_bytes, memory_source, peak_of
from benchmarks.filling import planned_batch
from benchmarks.harness import measured_row, paired_ratio
from benchmarks.record import Row
from benchmarks.steps import MASKS, Precision, sdpa_took, step_config, step_flops
from vmae2_ds.config.pretrain import PretrainConfig
from vmae2_ds.cost.assumptions import Assumptions
from vmae2_ds.cost.zero import ZeroPolicy

Scaling = Literal["weak", "strong"]
BASE = "zero1"
"""What speed-ups are against."""
QUICK = ("zero1", "zero3", "zeropp")
"""Policies of a quick run, on ViT-Ti: most of it goes into engines being built."""
MOST_CLIPS = 32
"""Of an automatic micro batch, as published runs have them."""
UNLEARNED = 2
"""Steps in which stage 3 learns the order of the modules, and the first of which makes Adam's moments."""


class Load(NamedTuple):
    """What one group puts on the ranks."""

    scaling: Scaling
    size: str
    precision: Precision
    micro_batch: int
    global_batch: int


class Visit(NamedTuple):
    """What one engine of a variant gave, from being built to being torn down, on one rank."""

    seconds: list[Seconds]
    peak_bytes: int | None
    left_bytes: int | None
    """What is held after it that was not held before."""
    traffic: Traffic | None


def groups(bench: Bench) -> Iterator[Group]:
    """By scaling, size, precision and batch; strong scaling shares out the clips of the largest of --ranks; quick is weak."""
    options, ranks = bench.options, bench.ranks.size
    most = max(*options.ranks, ranks)
    scalings: tuple[Scaling, ...] = ("weak", "strong") if most % ranks == 0 and not options.quick else ("weak",)
    for size in ("tiny",) if options.quick else options.sizes:
        for precision in options.precisions:
            for batch in bench.batches:
                clips = micro_batch(bench, size, precision) if batch == AUTO else batch
                for scaling in scalings:
                    load = Load(scaling, size, precision, clips, clips * (ranks if scaling == "weak" else most))
                    share = f" of {load.global_batch} clips" if scaling == "strong" else ""
                    yield Group(
                        f"{scaling} {size} {precision}{share}{batch_suffix(batch)} {ranks} ranks",
                        partial(measure, bench, load),
                    )


def micro_batch(bench: Bench, size: str, precision: Precision) -> int:
    """Clips that every rank of a group can hold with all states to itself: of the GPU's whole memory, so that ranks agree."""
    memory = torch.cuda.get_device_properties(bench.device).total_memory * Assumptions().usable_memory.low
    return planned_batch(size, precision, "flash", (MASKS[MASK],), memory, most=MOST_CLIPS)


def measure(bench: Bench, load: Load) -> list[Row]:
    """Rows of all policies. They take turns as whole engines, in passes that each start with another one.

    Every engine warms up, is timed, takes one more step for its peak memory, the last one another for its traffic, and goes.
    """
    named = policies(load.precision, bench.device, bench.ranks.size)
    chosen = {name: policy for name, policy in named.items() if name in QUICK or not bench.options.quick}
    attention = attention_of(bench.device, load.precision, bench.attentions(load.precision))
    configs = {
        name: run_config(load.size, load.precision, name, attention, load.micro_batch, load.global_batch)
        for name in chosen
    }
    planner = find_planner(bench.device, bench.ranks.size, bench.nodes)
    passes, steps = passes_of(bench.options.rounds)
    failed, visits = lost_before(bench), {name: list[Visit]() for name in chosen}
    names = list(chosen)
    for number in range(passes):
        turn = number * max(1, len(names) // passes)
        for name in names[turn:] + names[:turn]:
            if name not in failed:
                bench.tell(f"pass {number + 1} of {passes}: {name}")
                last = number == passes - 1
                call = partial(visit, bench, configs[name], chosen[name], steps, count=last)
                if (found := try_variant(bench, name, call, failed)) is not None:
                    visits[name].append(found)
    rows = []
    for name, policy in chosen.items():
        config = row_config(bench, load, configs[name], policy)
        if name in failed:
            rows.append(measured_row(name, config, [], failed[name]))
        else:
            rows.append(row_of(bench, name, config, configs[name], policy, visits[name], planner))
    _add_speedups(rows)
    for row in rows:
        row |= {"clock": "wall", "rounds": passes * steps, "passes": passes, "warmup": warmup_of(bench)}
    return rows


def passes_of(rounds: int) -> tuple[int, int]:
    """(passes over the variants, timed steps in each): at least 2 passes and `rounds` steps in all."""
    passes = 3 if rounds >= 6 else 2
    return passes, math.ceil(rounds / passes)


def warmup_of(bench: Bench) -> int:
    """Steps thrown out in every pass."""
    return max(UNLEARNED, bench.options.warmup)


def attention_of(device: torch.device, precision: Precision, available: tuple[str, ...]) -> str:
    """What `auto` picks nearly everywhere, fixed so that all ranks and policies run one kernel: flash, else sdpa; in bf16 on
    a CPU math."""
    if device.type == "cpu" and precision == "bf16":
        return "math"
    return "flash" if "flash" in available else "sdpa"


def visit(bench: Bench, config: PretrainConfig, policy: dict[str, Any], steps: int, *, count: bool) -> Visit:
    """Build an engine, measure it, with `count` its traffic too, and tear it down."""
    device, ranks = bench.device, bench.ranks
    before = held_bytes(device)
    engine, step = set_up(config, policy, ranks)
    for _ in range(warmup_of(bench)):
        step()
    seconds = [time_step(step, device, ranks) for _ in range(steps)]
    peak = None if before is None else peak_of(step, device) - before
    traffic = count_traffic(step) if count and ranks.size > 1 else None
    tear_down()
    del engine, step
    after = held_bytes(device)
    left = None if before is None or after is None else after - before
    return Visit(seconds, peak, left, traffic)


def row_config(bench: Bench, load: Load, config: PretrainConfig, policy: dict[str, Any]) -> dict[str, Any]:
    """Everything that decides what a variant computes and sends."""
    zero = ZeroPolicy.of_ds_config(policy).on(bench.ranks.size)
    kernel = config.model.attention
    step = step_config(load.size, MASK, MASKS[MASK], load.precision, load.micro_batch, (kernel, kernel))
    return {
        **step,
        **sdpa_took(step, bench.device),
        "optimizer": "fused AdamW",
        "checkpointing": config.model.checkpointing,
        "scaling": load.scaling,
        "ranks": bench.ranks.size,
        "nodes": bench.nodes,
        "clips_per_rank": load.global_batch // bench.ranks.size,
        "micro_batch": load.micro_batch,
        "global_batch": load.global_batch,
        "policy": config.train.ds_config,
        "stage": zero.stage,
        "offload": [part for part in ("optimizer", "param") if getattr(zero, f"offload_{part}")],
        "hpz": zero.hpz,
        "quantized_weights": zero.quantized_weights,
        "quantized_gradients": zero.quantized_gradients,
        "zero_optimization": policy["zero_optimization"],
    }


def row_of(
    bench: Bench,
    name: str,
    config: dict[str, Any],
    run: PretrainConfig,
    policy: dict[str, Any],
    visits: list[Visit],
    planner: Planner | None,
) -> Row:
    """One variant's row; called on all ranks, of which the fullest one counts."""
    seconds = [step for visit in visits for step in visit.seconds]
    # The first engine of a process also loads libraries and grows pools that later ones find there.
    peaks = [visit.peak_bytes for visit in visits if visit.peak_bytes is not None]
    left = [visit.left_bytes for visit in visits if visit.left_bytes is not None]
    peak_bytes, left_bytes = (min(values) if values else None for values in (peaks, left))
    everyone = of_all_ranks((peak_bytes, left_bytes), bench.ranks)
    samples = [each.wall for each in seconds]
    row = measured_row(name, config, samples, None, step_flops(config["size"], MASKS[MASK], config["clips_per_rank"]))
    values: dict[str, float] = {
        "clips_per_s": config["global_batch"] / statistics.median(samples),
        "cpu_s": statistics.median(each.cpu for each in seconds),
    }
    if peak_bytes is not None:
        row["memory"] = {"peak_bytes": max(rank[0] for rank in everyone), "source": memory_source(bench.device)}
        values["left_bytes"] = max(rank[1] for rank in everyone)
    values |= traffic_values(visits[-1].traffic)
    row |= {"values": values, "kind": "measured"}
    if planner is not None:
        row["predicted"] = planner.predict(run, policy)
        memory = row.get("memory", {}).get("peak_bytes")
        measured = {"time_s": row["time_s"]["median"], "peak_bytes": memory, "comm_bytes": values["comm_bytes"]}
        row["residual"] = residuals(row["predicted"], measured)
    return row


def traffic_values(traffic: Traffic | None) -> dict[str, float]:
    """Bytes that one rank hands to collectives in a step, in all and by kind, and how many collectives; 0 for a rank alone."""
    if traffic is None:
        return {"comm_bytes": 0, "collectives": 0}
    by_kind = {f"{kind}_bytes": size for kind, size in sorted(traffic.payload.items())}
    return {"comm_bytes": sum(traffic.payload.values()), "collectives": traffic.calls, **by_kind}


def _add_speedups(rows: list[Row]) -> None:
    """Against BASE, step by step in the order of the passes: those of one pass ran within a minute or so."""
    base = next((row for row in rows if row["variant"] == BASE and row["samples_s"]), None)
    for row in rows:
        if base is not None and row["samples_s"]:
            ratio = paired_ratio(base["samples_s"], row["samples_s"])
            row["speedup"] = {"against": BASE, **ratio._asdict()}


CASE = Case(
    groups, "ZeRO stages, offload and ZeRO++ on 1 to N ranks: time, memory, traffic, the plan beside", launched=True
)
