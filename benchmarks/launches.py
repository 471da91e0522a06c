"""How a step reaches its device: launches, host seconds until the last of them returns, and how long the device was at work."""

from __future__ import annotations

import statistics
import time
from typing import Any, NamedTuple

import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks.devices import Step

HOST_BOUND = 0.9
"""Share of a step's time from which on the host counts as what it waits for."""
LAUNCHES = ("LaunchKernel", "GraphLaunch")
"""What CUDA's calls that start work have in their names: cudaLaunchKernel, cuLaunchKernelEx, cudaGraphLaunch."""
NO_WORK = ("aten::empty", "aten::_unsafe_view")
"""How names of operations begin that are no view by their schema and neither compute nor copy."""


class Launches(NamedTuple):
    """What torch saw of one call."""

    launches: int
    """Kernels (a CUDA graph is one) that the host started on a GPU; on a CPU operations that compute or copy."""
    device_s: float | None
    """Seconds of a GPU's kernels and copies, added up; None on a CPU."""


class _Operations(TorchDispatchMode):
    """Counts what computes or copies of all that is dispatched, the backward pass included."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        is_view = any(each.alias_info is not None and not each.alias_info.is_write for each in func._schema.returns)
        self.count += not is_view and not func.name().startswith(NO_WORK)
        return func(*args, **(kwargs or {}))


def count_launches(step: Step, device: torch.device) -> Launches | None:
    """Watch one call; None where torch's profiler sees nothing of a GPU, as where its counters are for administrators only."""
    if device.type != "cuda":
        with _Operations() as seen:
            step()
        return Launches(seen.count, None)
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as profiled:
        step()
        torch.cuda.synchronize(device)
    events = list(profiled.events() or ())
    busy_us = sum(
        event.time_range.elapsed_us()
        for event in events  # a named range stands on the device as well, over the kernels within it
        if event.device_type == DeviceType.CUDA and not getattr(event, "is_user_annotation", False)
    )
    launches = sum(any(name in event.name for name in LAUNCHES) for event in events)
    return Launches(launches, busy_us / 1e6) if launches else None


def host_seconds(step: Step, device: torch.device, calls: int = 3) -> float:
    """Wall seconds until a call has returned while the GPU may still be at work: the median of some calls."""
    seconds = []
    for _ in range(calls):
        torch.cuda.synchronize(device)
        began = time.perf_counter()
        step()
        seconds.append(time.perf_counter() - began)
    torch.cuda.synchronize(device)
    return statistics.median(seconds)


def is_host_bound(host_s: float, time_s: float, device_s: float | None) -> bool:
    """Whether a step waits for its host.

    A host that runs ahead waits too, once some thousand launches are queued, so that a device that was at work all the time
    clears it.
    """
    return host_s >= HOST_BOUND * time_s and (device_s is None or device_s < HOST_BOUND * time_s)
