"""A switch that ends this process when it is not reset in time, without Python: the stacks go to a file, the exit code is 78.

A process that hangs in C may hold the interpreter's lock, and then no Python thread runs. So the alarms are POSIX timers of
the kernel: one raises SIGUSR2, on which faulthandler writes the stacks of all threads from its C handler; the next two have
the C library call `warnx(line)` and `_exit(78)` in threads of its own.
"""

from __future__ import annotations

import contextlib
import ctypes
import faulthandler
import logging
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import IO, Any

from vmae2_ds.dist import Ranks
from vmae2_ds.errors import EXIT_HUNG, Vmae2Error

log = logging.getLogger(__name__)

STACKS = "stacks"
"""Folder in the run folder, with a file a rank; what a rank wrote at an earlier start has its time in the name."""
SAY_AFTER_S, EXIT_AFTER_S = 5.0, 10.0
"""After the alarm: the other ranks, stuck in a collective with this one, get as long to write their own stacks."""
LAST_S = 60.0
"""What the end of a rank may take that others wait for, or wait with: a process group can hang as it is taken down."""

_CLOCK_MONOTONIC, _SIGEV_SIGNAL, _SIGEV_THREAD = 1, 0, 2  # <time.h>, <signal.h> of Linux


class _Event(ctypes.Structure):
    """struct sigevent of Linux on 64 bits, in glibc and musl."""

    _fields_ = (
        ("value", ctypes.c_void_p),
        ("signal", ctypes.c_int),
        ("notify", ctypes.c_int),
        ("function", ctypes.c_void_p),
        ("attributes", ctypes.c_void_p),
        ("padding", ctypes.c_byte * 32),
    )


class _TimerSpec(ctypes.Structure):
    """struct itimerspec."""

    _fields_ = (
        ("every_s", ctypes.c_long),
        ("every_ns", ctypes.c_long),
        ("in_s", ctypes.c_long),
        ("in_ns", ctypes.c_long),
    )


class HangSwitch:
    """Ends this process `step_s` seconds after the last finished step, and tells where its stacks are.

    Works on Linux alone, where DeepSpeed trains; elsewhere it warns and does nothing.

    Args:
        folder: the run folder.
        ranks: this process among all.
        step_s: seconds that a step may take; 0: no limit, for steps and everything else.
        slow_s: seconds that what is no step may take, the start among it.
    """

    def __init__(self, folder: Path, ranks: Ranks, step_s: float, slow_s: float) -> None:
        self._rank, self._ranks = ranks.rank, ranks.size
        self._step_s, self._slow_s, self._last_step = step_s, slow_s, 0
        self._timers: list[ctypes.c_void_p] = []
        """Timers of the stacks, the line and the exit; none without `_libc`."""
        self._is_ending = False
        self._line = ctypes.create_string_buffer(1024)
        self._folder = folder / STACKS
        self._libc = _with_timers()
        if self._libc is None:
            log.warning("this system has no POSIX timers: a run that hangs is not noticed")
            return
        self._file = _open_stacks(self._folder, self._rank)
        faulthandler.register(signal.SIGUSR2, file=self._file, all_threads=True)
        line = ctypes.cast(self._line, ctypes.c_void_p).value
        for event in (
            _Event(signal=signal.SIGUSR2, notify=_SIGEV_SIGNAL),
            _Event(value=line, notify=_SIGEV_THREAD, function=_address(self._libc.warnx)),
            _Event(value=EXIT_HUNG, notify=_SIGEV_THREAD, function=_address(self._libc._exit)),
        ):
            timer = ctypes.c_void_p()
            if self._libc.timer_create(_CLOCK_MONOTONIC, ctypes.byref(event), ctypes.byref(timer)):
                raise OSError(ctypes.get_errno(), "timer_create")
            self._timers.append(timer)
        self.slow_from_here("the start")

    def step(self, number: int) -> None:
        """Step `number` is finished: the time of the next one begins."""
        self._last_step = number
        if self._step_s:
            self._arm(self._step_s, f"no step was finished within {self._step_s:g} s after step {number}")

    @contextlib.contextmanager
    def slow(self, what: str) -> Iterator[None]:
        """Around what is no step: a save, a validation."""
        self.slow_from_here(what)
        yield
        self.step(self._last_step)

    def slow_from_here(self, what: str) -> None:
        """Take everything from here on for slow work, without an end."""
        if self._step_s:
            self._arm(self._slow_s, f"{what} took longer than {self._slow_s:g} s after step {self._last_step}")

    def end_in(self, seconds: float, why: str) -> None:
        """End this process with EXIT_HUNG in so many seconds unless it has ended by then, whatever it does; no stacks."""
        self._is_ending = True
        self._set(f"{why}; exit code {EXIT_HUNG}", 0, seconds, seconds + 1)

    def __enter__(self) -> HangSwitch:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self._libc is None:
            return
        if self._ranks > 1 and error is not None and not isinstance(error, Vmae2Error):
            _kept.append(self)
            self.end_in(LAST_S, f"{type(error).__name__}, and this process did not end within {LAST_S:g} s")
            return
        while self._timers:
            self._libc.timer_delete(self._timers.pop())
        faulthandler.unregister(signal.SIGUSR2)
        if self._file is not sys.stderr:
            self._file.close()
            _set_aside(self._folder / _name(self._rank))
        with contextlib.suppress(OSError):  # another rank's file is in it
            self._folder.rmdir()

    def _arm(self, seconds: float, why: str) -> None:
        if not self._is_ending:
            line = f"{why}; what every rank was doing is in {self._folder}; exit code {EXIT_HUNG}"
            self._set(line, seconds, seconds + SAY_AFTER_S, seconds + EXIT_AFTER_S)

    def _set(self, line: str, *alarms_s: float) -> None:
        """Seconds until the stacks, the line and the exit; 0: never."""
        line = f"vmae2: rank {self._rank}: {line}".replace("%", "%%")  # warnx takes it for a format
        self._line.value = line.encode()[: len(self._line) - 1]
        for timer, seconds in zip(self._timers, alarms_s, strict=False):
            whole, part = divmod(seconds, 1)
            setting = _TimerSpec(in_s=int(whole), in_ns=int(part * 1e9))
            self._libc.timer_settime(timer, 0, ctypes.byref(setting), None)  # type: ignore[union-attr]  # there are timers


_kept: list[HangSwitch] = []
"""What still has a line to say."""


def _with_timers() -> ctypes.CDLL | None:
    """The C library, or None where it lacks what is needed."""
    for name in (None, "librt.so.1"):  # a library of its own in glibc before 2.34
        try:
            library = ctypes.CDLL(name, use_errno=True)
            _ = library.timer_create, library.timer_settime, library.timer_delete, library.warnx, library._exit
        except (OSError, AttributeError):
            continue
        return library
    return None


def _address(function: Any) -> int | None:
    return ctypes.cast(function, ctypes.c_void_p).value


def _open_stacks(folder: Path, rank: int) -> IO[str]:
    """A new file of this rank; standard error where the run folder cannot be written, which others tell.

    Nobody lists the folder: with a file for each rank, all of them doing so would read ranks x ranks entries.
    """
    path = folder / _name(rank)
    try:
        folder.mkdir(exist_ok=True)
        _set_aside(path)
        return path.open("a")
    except OSError as error:
        log.warning("%s cannot be written (%s): stacks of a hang go to standard error", folder, error.strerror)
        return sys.stderr


def _name(rank: int) -> str:
    return f"rank{rank}.txt"


def _set_aside(path: Path) -> None:
    """Give the stacks of a hang a name with their time; remove a file that a start without one has left empty."""
    with contextlib.suppress(FileNotFoundError):
        about = path.stat()
        if about.st_size:
            path.rename(
                path.with_name(f"{path.stem}_{time.strftime('%Y%m%d-%H%M%S', time.localtime(about.st_mtime))}.txt")
            )
        else:
            path.unlink()
