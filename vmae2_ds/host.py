"""A process on its host: the cores and memory that a container or a queue leaves it, what it finds there, and its end with its
parent. No torch.

The number of cores that the system tells (os.cpu_count) and its free memory are the machine's; a cgroup may allow less, and
a queue may bind the process to some cores.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import resource
import shutil
import signal
import socket
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import FrameType
from typing import NamedTuple

PR_SET_PDEATHSIG = 1
"""Number of this option of prctl in <linux/prctl.h>."""
PROC, CGROUPS = Path("/proc"), Path("/sys/fs/cgroup")


class Cores(NamedTuple):
    """How many cores there are, by who says so."""

    machine: int
    bound: int
    """Those that the process may run on: its affinity."""
    quota: float | None
    """CPU time a second that its cgroups allow; None where they set no limit."""

    @property
    def usable(self) -> int:
        """Whole ones that it can keep busy, at least 1."""
        return max(1, int(min(self.machine, self.bound, self.quota or self.machine)))


class HostMemory(NamedTuple):
    """Bytes."""

    total: int
    available: int
    """What can be taken before the system swaps or kills."""
    limit: int | None
    """What the tightest cgroup allows; None where none does."""
    left: int
    """What this process and others in its cgroups can still take."""


def cores(proc: Path = PROC, cgroups: Path = CGROUPS) -> Cores:
    """Cores of this host and of this process."""
    machine = os.cpu_count() or 1
    bound = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else machine
    quotas = [quota for folder in _folders("cpu", proc, cgroups) if (quota := _quota(folder)) is not None]
    return Cores(machine, bound, min(quotas, default=None))


class Compiler(NamedTuple):
    """Where a C++ compiler was looked for."""

    names: tuple[str, ...]
    path: str | None
    """The first of them that is there."""


def cxx_compiler(env: Mapping[str, str] = os.environ) -> Compiler:
    """The C++ compiler that torch and DeepSpeed would take: CXX, where it is set, and no other."""
    names = (env["CXX"],) if env.get("CXX") else ("c++", "g++", "clang++")
    found = (shutil.which(name, path=env.get("PATH")) for name in names)
    return Compiler(names, next((path for path in found if path), None))


def free_port() -> int:
    """A port of 127.0.0.1 that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@contextlib.contextmanager
def signals_handled(handler: Callable[[int, FrameType | None], None], *numbers: signal.Signals) -> Iterator[None]:
    """Give these signals to the handler, and put back what they did before. Only in the main thread."""
    before = {number: signal.signal(number, handler) for number in numbers}
    try:
        yield
    finally:
        for number, earlier in before.items():
            signal.signal(number, earlier)


def memory(proc: Path = PROC, cgroups: Path = CGROUPS) -> HostMemory | None:
    """Memory of this host and what is left for this process; None where the system does not tell (not Linux)."""
    text = _text(proc / "meminfo")
    found = {name: 1024 * int(rest.split()[0]) for name, _, rest in (line.partition(":") for line in text.splitlines())}
    if "MemTotal" not in found:
        return None
    total = found["MemTotal"]
    available = found.get("MemAvailable", found.get("MemFree", total))
    limit, left = None, available
    for folder in _folders("memory", proc, cgroups):
        allowed = _number(folder / "memory.max", folder / "memory.limit_in_bytes")
        if allowed is None or allowed >= total:
            continue
        used = _number(folder / "memory.current", folder / "memory.usage_in_bytes") or 0
        limit = allowed if limit is None else min(limit, allowed)
        left = min(left, max(0, allowed - used + _file_cache(folder)))
    return HostMemory(total, available, limit, left)


def allow_open_files(count: int) -> int:
    """Let this process open `count` files and sockets at once where its hard limit allows it; returns how many it may open.

    Systems commonly start a process with 1,024, and leave it to the process to ask for more (`man 2 setrlimit`).
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = sys.maxsize if hard == resource.RLIM_INFINITY else hard
    if soft != resource.RLIM_INFINITY and soft < min(count, most):
        soft = min(count, most)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    return sys.maxsize if soft == resource.RLIM_INFINITY else soft


def die_with(parent: int) -> None:
    """Ask Linux for a SIGKILL when the parent, process number `parent`, ends: a process that hangs would never see it go."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:
            sys.exit()  # it ended before we asked


def _folders(controller: str, proc: Path, cgroups: Path) -> Iterator[Path]:
    """The process's cgroups that have this controller, the innermost first: version 2, then version 1.

    Inside a container the path may be that on the host, where nothing of it can be seen: the root is then the container's.
    """
    for line in _text(proc / "self" / "cgroup").splitlines():
        _, names, path = line.split(":", 2)
        if names == "":
            roots = [cgroups, cgroups / "unified"]
        elif controller in names.split(","):
            roots = [cgroups / names, cgroups / controller]
        else:
            continue
        root = next((root for root in roots if root.is_dir()), None)
        if root is None:
            continue
        inner = root / path.lstrip("/")
        while True:
            if inner.is_dir():
                yield inner
            if inner == root or root not in inner.parents:
                break
            inner = inner.parent


def _quota(folder: Path) -> float | None:
    """Seconds of CPU time a second."""
    quota, _, period = _text(folder / "cpu.max").strip().partition(" ")
    if not quota:
        quota, period = _text(folder / "cpu.cfs_quota_us").strip(), _text(folder / "cpu.cfs_period_us").strip()
    return int(quota) / int(period) if quota.isdigit() and period.isdigit() and int(period) else None


def _file_cache(folder: Path) -> int:
    """Bytes of files that the kernel holds for the cgroup and gives back when it needs them."""
    stat = dict(line.split()[:2] for line in _text(folder / "memory.stat").splitlines() if " " in line)
    return int(stat.get("total_inactive_file", stat.get("inactive_file", 0)))


def _number(*files: Path) -> int | None:
    """What the first file of them that holds a number says."""
    said = (_text(file).strip() for file in files)
    return next((int(text) for text in said if text.isdigit()), None)


def _text(file: Path) -> str:
    try:
        return file.read_text()
    except (OSError, UnicodeDecodeError):
        return ""
