"""What the planner says about a step of the case `zero`, to stand beside the measurement."""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch

from vmae2_ds.config.pretrain import PretrainConfig
from vmae2_ds.cost.assumptions import Assumptions
from vmae2_ds.cost.cluster import Cluster, make_cluster
from vmae2_ds.cost.hardware import find_accelerator
from vmae2_ds.cost.states import state_bytes
from vmae2_ds.cost.zero import ZeroPolicy
from vmae2_ds.tune.setting_cost import Setting, accumulation, predict_memory, predict_time, traffic_of
from vmae2_ds.tune.this_cpu import CPU_ASSUMPTIONS, this_cpu

MATCHES = {"time_s": "time", "peak_bytes": "memory", "comm_bytes": "comm"}
"""Predicted -> its name in `residual`."""


@dataclass(frozen=True)
class Planner:
    """The machines at hand as the planner knows them."""

    cluster: Cluster
    assumptions: Assumptions
    source: str

    def predict(self, config: PretrainConfig, policy: dict[str, Any]) -> dict[str, Any]:
        """Seconds of a step without reading videos, bytes as the case measures them, bytes that one rank hands to collectives.

        On a CPU the interpreter (`context`) is held before an engine is built, and offloaded states lie in the same memory;
        on CUDA torch counts tensors alone.
        """
        zero = ZeroPolicy.of_ds_config(policy).on(self.cluster.num_gpus)
        setting = Setting(config, zero)
        memory = predict_memory(setting, self.cluster, self.assumptions)
        peak_bytes = memory.tensors
        if self.cluster.on_cpu:
            peak_bytes = memory.total - memory.parts["context"]
            peak_bytes += state_bytes(
                config.model, zero, self.cluster.num_gpus, precision=config.train.precision,
                accumulation=accumulation(config, self.cluster),
            ).host  # fmt: skip
        return {
            "time_s": predict_time(setting, self.cluster, self.assumptions).device_s,
            "peak_bytes": round(peak_bytes),
            "comm_bytes": sum(each.payload for each in traffic_of(setting, self.cluster).collectives),
            "source": self.source,
        }


@cache
def find_planner(device: torch.device, num_ranks: int, num_nodes: int) -> Planner | None:
    """The planner for these ranks, called on all of them, once in a process; None for a GPU that is not in the table.

    A CPU's rates are measured here, by all ranks at the same time as they will run, with one core each.
    """
    if device.type == "cpu":
        accelerator, assumptions = this_cpu(os.cpu_count() or 1), CPU_ASSUMPTIONS
    else:
        found = find_accelerator(torch.cuda.get_device_name(device))
        if found is None:
            return None
        accelerator, assumptions = found, Assumptions()
    cluster = make_cluster(accelerator, num_ranks, num_nodes, None, assumptions.usable_memory)
    return Planner(cluster, assumptions, f"{accelerator.source}; {assumptions.source}")


def residuals(predicted: dict[str, Any], measured: dict[str, float | None]) -> dict[str, float]:
    """Predicted over measured less 1, of what was measured and is not 0; keys of `measured` as in `predicted`."""
    return {MATCHES[key]: predicted[key] / value - 1 for key, value in measured.items() if value}
