"""What the host gives: cores, memory, /dev/shm, and the limits of a process."""

from __future__ import annotations

import resource
from pathlib import Path

from vmae2_ds import host
from vmae2_ds.doctor.finding import Finding, gib, green, red, yellow
from vmae2_ds.doctor.needs import Needs

NCCL_SHM = 1 << 30
"""What NVIDIA's guide to NCCL has a container started with for ranks that share a host (Troubleshooting, Docker)."""
INFINIBAND = Path("/sys/class/infiniband")


def look_at_cores(needs: Needs) -> list[Finding]:
    """Cores that may be used, against one for each rank and for each of its loader workers."""
    found = host.cores()
    usable, wanted = found.usable, needs.ranks * (needs.workers + 1)
    told = [f"{found.bound} by affinity"] if found.bound < found.machine else []
    told += [f"{found.quota:g} by a cgroup"] if found.quota is not None and found.quota < found.machine else []
    value = f"{usable} of {found.machine} ({', '.join(told)})" if told else f"{usable}"
    figures = found._asdict() | {"usable": usable, "wanted": wanted}
    if usable >= wanted:
        return [green("cores", value, **figures)]
    workers = max(1, usable // needs.ranks - 1)
    value += f"; {needs.ranks} x {needs.workers} loader workers and the ranks want {wanted}"
    if workers >= needs.workers:
        return [yellow("cores", value, "give the job more cores (--cpus-per-task, docker --cpus)", **figures)]
    return [yellow("cores", value, f"--data.workers {workers}, or more cores for the job", **figures)]


def look_at_memory(needs: Needs) -> list[Finding]:
    """Memory that is left, against what the ranks and their loaders take."""
    found = host.memory()
    if found is None:
        return [yellow("memory", "not told by this system", f"see that {gib(needs.memory_bytes)} are free")]
    limit = "" if found.limit is None else f", a cgroup allows {gib(found.limit)}"
    value = f"{gib(found.left)} of {gib(found.total)} left{limit}; the recipe takes {gib(needs.memory_bytes)}"
    figures = {f"{name}_bytes": size for name, size in (found._asdict() | {"needed": needs.memory_bytes}).items()}
    if found.left < needs.memory_bytes:
        remedy = f"more memory for the job, {_less_ahead(needs)}"
        return [red("memory", value, remedy, **figures)]
    return [green("memory", value, **figures)]


def look_at_shm(needs: Needs, folder: Path | None = None) -> list[Finding]:
    """/dev/shm against what the loaders' workers put there, and NCCL's own where several ranks share the host."""
    from vmae2_ds.data.feed.shared_memory import SHM, room_in  # numpy, which may be broken, comes with it

    folder = folder or SHM
    wanted = needs.shm_bytes + (NCCL_SHM if needs.ranks > 1 else 0)
    room = room_in(folder)
    figures = {"needed_bytes": wanted, "loader_bytes": needs.shm_bytes}
    if room is None:
        return [yellow("shm", f"no {folder}", "--data.workers 0, or a system that has it", **figures)]
    value = (
        f"{gib(room.free)} of {gib(room.total)} free; the loaders of {needs.ranks} ranks take {gib(needs.shm_bytes)}"
    )
    value = value.replace("1 ranks take", "1 rank take")
    figures |= {"free_bytes": room.free, "total_bytes": room.total}
    if room.free < wanted:
        size = -(-wanted * 5 // 4 // 2**30)  # a quarter more, in whole GiB
        remedy = f"docker run --shm-size={size}g (or --ipc=host; mount -o remount,size={size}G {folder}), {_less_ahead(needs)}"
        return [red("shm", value, remedy, **figures)]
    return [green("shm", value, **figures)]


def _less_ahead(needs: Needs) -> str:
    """A setting that holds fewer micro batches ready."""
    return f"or --data.workers {max(1, needs.workers // 4)} --data.prefetch 1"


def look_at_limits(needs: Needs) -> list[Finding]:
    """Open files; memory that may be locked, which InfiniBand needs."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    may = "no limit" if soft == resource.RLIM_INFINITY else f"{soft} (hard {hard})"
    figures = {"soft": soft, "hard": hard, "needed": needs.open_files}
    if soft != resource.RLIM_INFINITY and soft < needs.open_files:
        remedy = f"ulimit -n {max(65536, needs.open_files)}"
        files = red("open_files", f"{may}; the recipe opens up to {needs.open_files}", remedy, **figures)
    else:
        files = green("open_files", may, **figures)
    locked, _ = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    infiniband = sorted(path.name for path in INFINIBAND.glob("*"))
    value = "no limit" if locked == resource.RLIM_INFINITY else gib(locked)
    about = {"locked_bytes": locked, "infiniband": infiniband}
    value += f"; InfiniBand: {', '.join(infiniband) or 'none'}"
    if infiniband and locked != resource.RLIM_INFINITY:
        return [
            files,
            yellow("locked_memory", value, "ulimit -l unlimited (docker run --ulimit memlock=-1)", **about),
        ]
    return [files, green("locked_memory", value, **about)]
