"""What a search found, in words: the Pareto front, why the rest was rejected, and what would help where nothing fits."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from vmae2_ds.console.tables import table
from vmae2_ds.cost.assumptions import Assumptions
from vmae2_ds.cost.cluster import USUAL_NODE
from vmae2_ds.errors import ConfigError
from vmae2_ds.tune.candidates import SAME_TIME, Candidate, Search, anything_fits, checkpointing_name, layout_name
from vmae2_ds.tune.setting_cost import GIB, accumulation, notes_on
from vmae2_ds.tune.tables import duration

FRONT_ROWS = 10
MORE_GPUS = (2, 4, 8, 16, 32, 64)


def candidate_json(candidate: Candidate) -> dict[str, Any]:
    """A candidate as plain values."""
    setting, time = candidate.setting, candidate.time
    return {
        "setting": candidate.describe(),
        "zero_optimization": setting.policy.zero_optimization(),
        "micro_batch": setting.config.train.micro_batch,
        "accumulation": accumulation(setting.config, candidate.cluster),
        "checkpointing": setting.config.model.checkpointing,
        "checkpoint_every": setting.config.model.checkpoint_every,
        "zero_init": setting.config.train.ds_zero_init,
        "memory_gib": {part: value / GIB for part, value in candidate.memory.parts.items()}
        | {"total": candidate.memory.total_gib, "worst": candidate.worst_memory.total_gib},
        "host_memory_gib": candidate.memory.host_gib,
        "margin_gib": candidate.margin_gib,
        "fits": candidate.fits,
        "fits_in_the_worst_case": candidate.is_safe,
        "step_s": vars(time) | {"total_s": time.total_s},
        "binds": time.binds,
        "notes": notes_on(setting, candidate.cluster),
    }


def front_table(found: Search) -> str:
    """The Pareto front, fastest first: memory, time, what binds, and the margins."""
    assert found.chosen is not None, "asked only where something fits"
    fastest_s = found.fitting[0].time.total_s
    shown = _spread_out(found.front, FRONT_ROWS)
    rows = [
        [
            candidate.describe(),
            duration(candidate.time.total_s),
            f"{candidate.time.total_s / fastest_s:.2f}",
            f"{candidate.memory.total_gib:.1f}",
            f"{candidate.margin_gib:.1f}" + ("" if candidate.is_safe else " (worst case: no)"),
            _binding(candidate),
        ]
        for candidate in shown
    ]
    left_out = f", {len(found.front) - len(shown)} more between these" if len(found.front) > len(shown) else ""
    return table(
        f"Pareto front of {len(found.fitting)} settings that fit ({len(found.candidates)} searched{left_out})",
        ["setting", "step", "x fastest", "GiB", "GiB to spare", "binds"],
        rows,
    )


def rejected_table(found: Search) -> str:
    """The best setting of each family, and what is wrong with it."""
    rows = []
    for name_of in (layout_name, checkpointing_name):
        for name, candidate in sorted(found.families(name_of).items()):
            rows.append([name, _reason(candidate, found), candidate.describe()])
    header = ["kind", "verdict", "its best setting"]
    return table("The best of each kind, and why it was not taken", header, rows, left=3)


def _reason(candidate: Candidate, found: Search) -> str:
    chosen = found.chosen
    if chosen is None or not candidate.fits:
        if candidate.margin_gib < 0:
            return f"{-candidate.margin_gib:.1f} GiB too much, at its smallest"
        return f"host memory: {candidate.memory.host_gib:.0f} GiB of {candidate.host_memory_gib:.0f} a {candidate.cluster.one}"
    slower = candidate.time.total_s / chosen.time.total_s - 1
    if candidate is chosen:
        return "taken"
    if not candidate.is_safe and chosen.is_safe:
        return f"{abs(slower):.1%} {'slower' if slower > 0 else 'faster'}, but may not fit in the worst case"
    if candidate.time.total_s > found.same_time_s:
        return f"{slower:.1%} slower ({candidate.time.binds} {_share(candidate):.0%})"
    return f"as fast within {SAME_TIME - 1:.0%}, and " + (
        "not as simple" if candidate.complexity > chosen.complexity else "larger"
    )


def _binding(candidate: Candidate) -> str:
    """What takes the longest and its share of the step; and how near the data supply comes to binding."""
    time = candidate.time
    if time.binds == "data":
        return f"data: the {candidate.cluster.one} waits {_share(candidate):.0%} of the step"
    return f"{time.binds} {_share(candidate):.0%} of the step; data supply {time.device_s / time.data_s:.1f}x faster"


def _share(candidate: Candidate) -> float:
    time = candidate.time
    parts = {
        "compute": time.compute_s,
        "network": time.network_s,
        "optimizer": time.optimizer_s,
        "data": time.data_s - time.device_s,
    }
    return parts[time.binds] / time.total_s


def nothing_fits(found: Search, assumptions: Assumptions, *, quantized: bool, offload: bool) -> ConfigError:
    """The error for a search without a result: the nearest miss, and what would fit."""
    smallest = min(found.candidates, key=lambda c: (c.memory.host_gib > c.host_memory_gib, c.memory.total))
    if smallest.margin_gib < 0:
        miss = f"the smallest setting ({smallest.describe()}) takes {smallest.memory.total_gib:.1f} GiB"
    else:
        miss = (
            f"{smallest.describe()} would fit the GPU, but takes {smallest.memory.host_gib:.0f} GiB of host memory a GPU "
            f"of {smallest.host_memory_gib:.0f}"
        )
    ways = list(_ways_out(found, assumptions, quantized=quantized, offload=offload))
    hosts = [candidate.memory.host_gib for candidate in found.candidates if candidate.margin_gib >= 0]
    if hosts:
        ways.append(f"{min(hosts):.0f} GiB of host memory a GPU (--host-memory, where there is more)")
    help_ = "; ".join(ways) if ways else "no number of these GPUs would do"
    larger = f"; or a GPU with more than {smallest.memory.total_gib:.0f} GiB" if smallest.margin_gib < 0 else ""
    return ConfigError(
        f"nothing fits {found.config.recipe} on {found.cluster}: {miss}, after {len(found.candidates)} settings. "
        f"What would: {help_}{larger}"
    )


def _ways_out(found: Search, assumptions: Assumptions, *, quantized: bool, offload: bool) -> list[str]:
    """Changes that make something fit: fewer clips at a time, offload, more GPUs."""
    config, cluster = found.config, found.cluster
    ways = []
    views = config.data.views
    for fewer in (n for n in range(views - 1, 0, -1) if views % n == 0):
        changed = config.changed(data={"views": fewer})
        if anything_fits(changed, cluster, assumptions, quantized=quantized, offload=offload):
            ways.append(f"fewer clips: --data.views {fewer}, at {views / fewer:g} times the decoding")
            break
    if not offload and anything_fits(config, cluster, assumptions, quantized=quantized):
        ways.append("offload: leave out --no-offload")
    if config.model.attention == "math":
        changed = config.changed(model={"attention": "flash"})
        if anything_fits(changed, cluster, assumptions, quantized=quantized, offload=offload):
            ways.append("fused attention: --model.attention flash")
    for times in MORE_GPUS:
        num_gpus = cluster.num_gpus * times
        nodes = max(cluster.num_nodes, -(-num_gpus // max(USUAL_NODE, cluster.gpus_per_node)))
        larger = replace(cluster, num_gpus=num_gpus, num_nodes=nodes)
        if num_gpus % nodes == 0 and anything_fits(config, larger, assumptions, quantized=quantized, offload=offload):
            ways.append(f"more GPUs: --gpus {num_gpus}")
            break
    return ways


def _spread_out(front: list[Candidate], count: int) -> list[Candidate]:
    """At most `count` of them, both ends included."""
    if len(front) <= count:
        return front
    return [front[round(i * (len(front) - 1) / (count - 1))] for i in range(count)]
