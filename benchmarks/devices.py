"""The device that is measured: how a call is timed on it, what memory a call takes, what its peak rate is."""

from __future__ import annotations

import ctypes
import gc
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Literal, NamedTuple

import torch

from vmae2_ds.errors import ConfigError
from vmae2_ds.model.attention import ATTENTION, get_attention

Step = Callable[[], None]
Timer = Callable[[Step], float]
"""Runs a call and returns its seconds."""
DeviceName = Literal["auto", "cpu", "cuda"]


def find_device(name: DeviceName) -> torch.device:
    """The device asked for; `auto` takes the GPU where there is one.

    Raises:
        ConfigError: cuda where torch sees none.
    """
    has_cuda = torch.cuda.is_available()
    if name == "cuda" and not has_cuda:
        raise ConfigError("--device cuda: torch sees no CUDA device here; use --device cpu, or look at nvidia-smi")
    return torch.device("cuda", torch.cuda.current_device()) if has_cuda and name != "cpu" else torch.device("cpu")


def describe(device: torch.device) -> str:
    """What a row calls the device."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"


def attentions_on(device: torch.device, precision: str) -> tuple[str, ...]:
    """Names of the kernels that can run: flash needs CUDA, 16 bit and the package."""
    names = ["math", "sdpa"]
    if device.type == "cuda" and precision != "fp32":
        try:
            get_attention("flash")
            names.append("flash")
        except ConfigError:
            pass  # a report shows that there are no flash rows
    assert set(names) <= set(ATTENTION)
    return tuple(names)


def timer_of(device: torch.device) -> tuple[str, Timer]:
    """Clock name and timer: events on CUDA; on a CPU the CPU time of this process, which a busy neighbour does not lengthen."""
    return ("cuda_events", _cuda_time) if device.type == "cuda" else ("process_time", CPU_TIMER)


def clock_timer(clock: Callable[[], float]) -> Timer:
    """A timer from a clock in seconds of which only differences count."""

    def run(step: Step) -> float:
        start = clock()
        step()
        return clock() - start

    return run


CPU_TIMER = clock_timer(time.process_time)


def _cuda_time(step: Step) -> float:
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    torch.cuda.synchronize()
    start.record()
    step()
    end.record()
    end.synchronize()
    return start.elapsed_time(end) / 1e3


class Memory(NamedTuple):
    """Most bytes that a call took above what was held before it."""

    peak_bytes: int
    source: str


def measure_memory(step: Step, device: torch.device) -> Memory | None:
    """Peak memory of one call; None where nobody counts it (neither CUDA nor Linux's /proc).

    On a CPU it is resident memory: kernels' scratch space counts, and so do pages that the allocator keeps.
    """
    gc.collect()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        step()
        torch.cuda.synchronize(device)
        return Memory(torch.cuda.max_memory_allocated(device) - before, "torch.cuda.max_memory_allocated")
    reset = Path("/proc/self/clear_refs")
    if not reset.exists():
        return None
    ctypes.CDLL(None).malloc_trim(0)  # gives freed pages back, or they would hide what the call takes
    reset.write_text("5")  # VmHWM starts again at VmRSS
    before = _status_bytes("VmRSS")
    step()
    return Memory(_status_bytes("VmHWM") - before, "VmHWM over VmRSS before the call")


def _status_bytes(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(f"{name}:")).split()[1]) * 1024


def keep_freed_memory() -> bool:
    """Let glibc keep what is freed instead of giving it back to the system, for this process from here on; False elsewhere.

    It gives every tensor above 32 MiB back, and the next one of that size pays a page fault for each 4 KiB: 18 % of the
    CPU time of a ViT-B encoder-only step at batch 2, whose scores take 59 MB, and 13 % of a ViT-S dual step. That belongs to
    neither the model nor the device, and jumps with the shapes.
    """
    m_trim_threshold, m_top_pad, m_mmap_max = -1, -2, -4  # malloc.h
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    return bool(
        mallopt and mallopt(m_mmap_max, 0) and mallopt(m_trim_threshold, 2**31 - 1) and mallopt(m_top_pad, 2**28)
    )
