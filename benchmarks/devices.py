"""The device that is measured: how a call is timed on it, what memory a call takes, what its peak rate is."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Literal, NamedTuple

import psutil
import torch

from vmae2_ds.config.model import SIZES
from vmae2_ds.dist import default_device
from vmae2_ds.engine.device_peak import DTYPES
from vmae2_ds.errors import ConfigError
from vmae2_ds.model.attention import ATTENTION, runnable

Step = Callable[[], None]
Timer = Callable[[Step], float]
"""Runs a call and returns its seconds."""
DeviceName = Literal["auto", "cpu", "cuda"]


def find_device(name: DeviceName) -> torch.device:
    """The device asked for; `auto` takes this rank's GPU where there is one and DS_ACCELERATOR=cpu does not forbid it.

    Raises:
        ConfigError: cuda where there is none, or where it is forbidden.
    """
    device = torch.device("cpu") if name == "cpu" else default_device()
    if name == "cuda" and device.type != "cuda":
        why = "DS_ACCELERATOR=cpu is set" if torch.cuda.is_available() else "torch sees no CUDA device here"
        raise ConfigError(f"--device cuda: {why}; use --device cpu, or look at nvidia-smi and at DS_ACCELERATOR")
    return device


def describe(device: torch.device) -> str:
    """What a row calls the device."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"


def attentions_on(device: torch.device, precision: str) -> tuple[str, ...]:
    """Names of the kernels that can run with every head width of the published sizes; by_head has math's rows and bits."""
    widths = {tower.width // tower.heads for encoder, decoder, _ in SIZES.values() for tower in (encoder, decoder)}
    can_run = [set(runnable(DTYPES[precision], width, device)) for width in widths]
    return tuple(name for name in ATTENTION if name != "by_head" and all(name in names for names in can_run))


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


def family_cpu_s() -> float:
    """CPU seconds of this process and of the children that it has now, on Linux to the nanosecond."""
    seconds = time.process_time()
    for child in psutil.Process().children(recursive=True):
        with contextlib.suppress(OSError, psutil.Error):  # it may just have ended
            told = Path(f"/proc/{child.pid}/schedstat")
            seconds += int(told.read_text().split()[0]) / 1e9 if told.exists() else sum(child.cpu_times()[:2])
    return seconds


CPU_TIMER = clock_timer(time.process_time)
FAMILY_TIMER = clock_timer(family_cpu_s)


def _cuda_time(step: Step) -> float:
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    torch.cuda.synchronize()
    start.record()
    step()
    end.record()
    end.synchronize()
    return start.elapsed_time(end) / 1e3


RESET_PEAK = Path("/proc/self/clear_refs")


class Memory(NamedTuple):
    """Most bytes that a call took above what was held before it."""

    peak_bytes: int
    source: str


def measure_memory(step: Step, device: torch.device) -> Memory | None:
    """Peak memory of one call; None where nobody counts it (neither CUDA nor Linux's /proc).

    On a CPU it is resident memory: kernels' scratch space counts. Where the C library is glibc, freed tensors do not: left to
    its heap, a ViT-S step takes 1.1 to 2.6 times what its tensors ever hold at once, depending on what ran before.
    """
    before = held_bytes(device)
    return None if before is None else Memory(peak_of(step, device) - before, memory_source(device))


def held_bytes(device: torch.device) -> int | None:
    """Bytes that this process holds on the device when garbage is gone; None where nobody counts them."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        return torch.cuda.memory_allocated(device)
    if not RESET_PEAK.exists():
        return None
    ctypes.CDLL(None).malloc_trim(0)  # gives freed pages back, or they would hide what a call takes
    return _status_bytes("VmRSS")


def peak_of(step: Step, device: torch.device) -> int:
    """Most bytes held while a call runs, with what was held before it; only where `held_bytes` counts."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        step()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device)
    with _own_pages():
        RESET_PEAK.write_text("5")  # VmHWM starts again at VmRSS
        with ThreadPoolExecutor(1) as fresh:  # a thread has a heap of its own, without the holes that steps before left
            fresh.submit(step).result()
        return _status_bytes("VmHWM")


def memory_source(device: torch.device) -> str:
    """How `held_bytes` and `peak_of` count."""
    if device.type == "cuda":
        return "torch.cuda.max_memory_allocated"
    return "VmHWM over VmRSS before the call" + ", tensors on pages of their own" * (_mallopt() is not None)


_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_THRESHOLD, _M_MMAP_MAX = -1, -2, -3, -4  # glibc's malloc.h
_keeps_freed = False
"""Has `keep_freed_memory` been called?"""


def _mallopt() -> Callable[[int, int], int] | None:
    """glibc's, or None with another C library."""
    return getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None


@contextlib.contextmanager
def _own_pages() -> Iterator[None]:
    """While it lasts, glibc maps each block of 64 KiB or more by itself and unmaps it when it is freed."""
    mallopt = _mallopt()
    if mallopt is None:
        yield
        return
    settle_malloc()
    mallopt(_M_MMAP_THRESHOLD, 2**16)
    try:
        yield
    finally:
        if _keeps_freed:
            keep_freed_memory()
        else:
            settle_malloc()


def settle_malloc() -> None:
    """Put glibc's malloc where it arrives by itself once a tensor of 32 MiB was freed, and let it stay there.

    Its thresholds follow what a process frees, and stop following once one of them was set: what is timed would depend on
    what was timed, or measured, before. Nothing happens with another C library.
    """
    mallopt = _mallopt()
    if mallopt is not None:
        for knob, value in (
            (_M_MMAP_MAX, 2**16),
            (_M_MMAP_THRESHOLD, 2**25),
            (_M_TRIM_THRESHOLD, 2**26),
            (_M_TOP_PAD, 2**17),
        ):
            mallopt(knob, value)


def _status_bytes(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(f"{name}:")).split()[1]) * 1024


def keep_freed_memory() -> bool:
    """Let glibc keep what is freed instead of giving it back to the system, for this process from here on; False elsewhere.

    It gives every tensor above 32 MiB back, and the next one of that size pays a page fault for each 4 KiB: 18 % of the
    CPU time of a ViT-B encoder-only step at batch 2, whose scores take 59 MB, and 13 % of a ViT-S dual step. That belongs to
    neither the model nor the device, and jumps with the shapes.
    """
    global _keeps_freed
    mallopt = _mallopt()
    _keeps_freed = bool(
        mallopt and mallopt(_M_MMAP_MAX, 0) and mallopt(_M_TRIM_THRESHOLD, 2**31 - 1) and mallopt(_M_TOP_PAD, 2**28)
    )
    return _keeps_freed
