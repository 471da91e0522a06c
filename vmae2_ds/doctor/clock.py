"""Is the clock right? Logs of several hosts are read side by side, certificates and checkpoints have dates."""

from __future__ import annotations

import ctypes
import struct
import time
from pathlib import Path

import vmae2_ds
from vmae2_ds.doctor.finding import Finding, green, red, yellow
from vmae2_ds.doctor.needs import Needs

TIMEX = struct.Struct("@Iqqqqi")
"""The beginning of struct timex (adjtimex(2)) on a 64-bit Linux: modes, offset, freq, maxerror and esterror (microseconds),
status."""
STA_UNSYNC = 0x0040
SKEW_S = 5.0
"""Clocks that differ by more are told."""
FAR_S = 10 * 365 * 86400


def look_at_clock(needs: Needs) -> list[Finding]:
    """Wall time against the age of this code, and what the kernel says of its synchronisation."""
    del needs
    now = time.time()
    return [judge_clock(now, Path(vmae2_ds.__file__).stat().st_mtime, kernel_clock())]


def kernel_clock() -> tuple[bool, float] | None:
    """(synchronised, largest error in seconds) as the kernel has it; None where it does not tell."""
    held = ctypes.create_string_buffer(512)
    try:
        adjtimex = ctypes.CDLL(None, use_errno=True).adjtimex  # modes = 0: it only reads
    except (OSError, AttributeError):
        return None
    if adjtimex(held) < 0 or struct.calcsize("q") != struct.calcsize("l"):
        return None
    status, error_us = TIMEX.unpack_from(held)[5], TIMEX.unpack_from(held)[3]
    return not status & STA_UNSYNC, error_us / 1e6


def judge_clock(now: float, code_from: float, kernel: tuple[bool, float] | None) -> Finding:
    """The line of a clock that says `now`, where this code was written or copied at `code_from`."""
    shown = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(now))
    figures = {"utc": shown, "synchronised": None if kernel is None else kernel[0]}
    remedy = "timedatectl set-ntp true, on the host (not in a container)"
    if not code_from - 86400 < now < code_from + FAR_S:
        return red("clock", f"{shown}: not a time at which this code is run", remedy, **figures)
    if kernel is None:
        return green("clock", f"{shown}; the system does not say whether it is synchronised", **figures)
    if not kernel[0]:
        return yellow("clock", f"{shown}, not synchronised by NTP", remedy, **figures)
    return green("clock", f"{shown}, synchronised within {kernel[1]:.2g} s", **figures, error_s=kernel[1])
