"""Cores and memory that a cgroup allows, of version 1 and 2, in containers and outside: files as the kernel writes them."""

from __future__ import annotations

import os
import resource
from pathlib import Path

import psutil
import pytest

from vmae2_ds import host

GIB = 2**30


def write(folder: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text + "\n")
    return folder


def meminfo(total_gib: float, available_gib: float) -> str:
    return f"MemTotal: {int(total_gib * 2**20)} kB\nMemFree: 1 kB\nMemAvailable: {int(available_gib * 2**20)} kB"


V2 = {"cgroup.controllers": "cpu memory"}
TREES = {
    "v2, the outer one is tighter": (
        "0::/job/step",
        V2
        | {
            "job/cpu.max": "200000 100000",
            "job/step/cpu.max": "max 100000",
            "job/memory.max": str(6 * GIB),
            "job/memory.current": str(2 * GIB),
            "job/memory.stat": f"anon 5\ninactive_file {GIB}",
            "job/step/memory.max": "max",
        },
    ),
    "v2, a container that sees its own root": ("0::/", V2 | {"cpu.max": "200000 100000", "memory.max": str(6 * GIB),
        "memory.current": str(2 * GIB), "memory.stat": f"inactive_file {GIB}"}),
    "v1, by controller": (
        "4:memory:/box\n2:cpu,cpuacct:/box\n0::/",
        {
            "cpu,cpuacct/box/cpu.cfs_quota_us": "200000",
            "cpu,cpuacct/box/cpu.cfs_period_us": "100000",
            "cpu,cpuacct/cpu.cfs_quota_us": "-1",
            "memory/box/memory.limit_in_bytes": str(6 * GIB),
            "memory/box/memory.usage_in_bytes": str(2 * GIB),
            "memory/box/memory.stat": f"inactive_file 1\ntotal_inactive_file {GIB}",
            "memory/memory.limit_in_bytes": str(2**63 - 4096),
        },
    ),
    "v1, the path is the host's": (
        "4:memory:/docker/0123\n1:cpu:/docker/0123",
        {
            "cpu/cpu.cfs_quota_us": "200000",
            "cpu/cpu.cfs_period_us": "100000",
            "memory/memory.limit_in_bytes": str(6 * GIB),
            "memory/memory.usage_in_bytes": str(2 * GIB),
            "memory/memory.stat": f"total_inactive_file {GIB}",
        },
    ),
}  # fmt: skip


@pytest.mark.parametrize("tree", TREES)
def test_the_tightest_cgroup_counts(tree: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """2 cores; 6 GiB of which 2 are used, 1 of those by files that the kernel gives back: 5 left."""
    own, files = TREES[tree]
    proc = write(tmp_path / "proc", {"self/cgroup": own, "meminfo": meminfo(64, 50)})
    groups = write(tmp_path / "cgroup", files)
    monkeypatch.setattr(host.os, "cpu_count", lambda: 64)
    monkeypatch.setattr(host.os, "sched_getaffinity", lambda process: set(range(16)))
    found = host.cores(proc, groups)
    assert (found.machine, found.bound, found.quota, found.usable) == (64, 16, 2.0, 2)
    memory = host.memory(proc, groups)
    assert memory == host.HostMemory(64 * GIB, 50 * GIB, 6 * GIB, 5 * GIB)


def test_half_a_core_is_one_and_no_limit_is_the_affinity(tmp_path: Path) -> None:
    write(tmp_path, {"self/cgroup": "0::/", "cpu.max": "50000 100000"})
    assert host.cores(tmp_path, tmp_path).usable == 1
    (tmp_path / "cpu.max").write_text("max 100000\n")
    assert host.cores(tmp_path, tmp_path).usable == len(os.sched_getaffinity(0))


def test_what_is_not_there_is_no_limit(tmp_path: Path) -> None:
    assert host.cores(tmp_path, tmp_path).quota is None
    assert host.memory(tmp_path, tmp_path) is None


def test_this_host_has_the_memory_that_psutil_reads() -> None:
    found = host.memory()
    assert found is not None
    assert found.total == psutil.virtual_memory().total
    assert 0 < found.left <= found.available <= found.total


def test_a_process_may_open_more_files_up_to_its_hard_limit() -> None:
    kept = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (512, kept[1]))
        assert host.allow_open_files(300) == 512, "never less"
        assert host.allow_open_files(900) == 900
        assert resource.getrlimit(resource.RLIMIT_NOFILE)[0] == 900
        if kept[1] != resource.RLIM_INFINITY:
            assert host.allow_open_files(kept[1] + 1) == kept[1]
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, kept)
