"""This machine's CPU as an accelerator, so that plans can be checked where there is no GPU: its rates are measured."""

from __future__ import annotations

import os
import time

import psutil

from vmae2_ds.cost.assumptions import Assumptions, Range
from vmae2_ds.cost.cluster import CPU_KEY
from vmae2_ds.cost.hardware import Accelerator

CPU_ASSUMPTIONS = Assumptions(
    source="priors for ranks on a CPU (docs/SCALING.md, How right it is)",
    usable_memory=Range(low=0.8, value=0.9, high=0.95),
    context_gib=Range(low=0.65, value=0.75, high=1.0),
    workspace_gib=Range(low=0.0, value=0.05, high=0.2),
    fragmentation=Range(low=0.0, value=0.05, high=0.2),
    matmul_efficiency=Range(low=0.45, value=0.6, high=0.8),
    half_rate_tokens=Range(low=0, value=0, high=100),
    launch_s=Range(low=15e-6, value=23e-6, high=40e-6),
    zero3_module_s=Range(low=230e-6, value=500e-6, high=900e-6),
    memory_efficiency=Range(low=0.4, value=0.6, high=0.9),
    overlap=Range(low=0, value=0, high=0.3),
    cores_per_gpu=Range(low=0.5, value=1, high=2),
)
"""A step under DeepSpeed's engine keeps about 60 % of a large product's rate and of the memory's; an operation costs 23 us
before it does anything (case `prediction`); gloo's sums take the core that the rank computes on, so nothing hides them; a
module costs 0.5 ms in hooks of stage 3 (case `zero`); the interpreter with torch and DeepSpeed takes 0.75 GiB."""


def this_cpu(num_ranks: int) -> Accelerator:
    """One rank's share of this machine: a timed matrix product and copy, and an equal part of the memory."""
    import torch

    from vmae2_ds.engine.device_peak import measure_matmul

    cores = max(1, (os.cpu_count() or 1) // num_ranks)
    threads = torch.get_num_threads()
    torch.set_num_threads(cores)
    try:
        bf16, fp32 = measure_matmul("bf16", repeats=3), measure_matmul("fp32", repeats=3)
        bandwidth_gb_s = _measure_bandwidth()
    finally:
        torch.set_num_threads(threads)
    return Accelerator(
        key=CPU_KEY,
        name=f"CPU, {cores} core{'s' if cores > 1 else ''} a rank",
        memory_gb=psutil.virtual_memory().total / 2**30 / num_ranks,
        bandwidth_gb_s=bandwidth_gb_s,
        link_gb_s=bandwidth_gb_s / 8,  # gloo copies through loopback sockets
        peak_tflops={"bf16": bf16.flops / 1e12, "fp32": fp32.flops / 1e12},
        source=f"measured here: {bf16.name}",
    )


def _measure_bandwidth(size: int = 2**26, repeats: int = 3) -> float:
    """GB/s, read and written, of adding in place over 256 MB."""
    import torch

    values = torch.zeros(size)
    best_s = float("inf")
    for _ in range(repeats + 1):
        start = time.perf_counter()
        values.add_(1.0)
        best_s = min(best_s, time.perf_counter() - start)
    return 2 * values.numel() * values.element_size() / best_s / 1e9
