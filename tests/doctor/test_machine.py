"""Cores, memory, /dev/shm, limits, disk and clock, with numbers that are too small put in their place."""

from __future__ import annotations

import ctypes
import os
import resource
import time
from dataclasses import replace
from pathlib import Path

import pytest

from vmae2_ds import host
from vmae2_ds.data.feed import shared_memory
from vmae2_ds.data.feed.shared_memory import Room, loader_bytes
from vmae2_ds.doctor import clock, disk, machine
from vmae2_ds.doctor.needs import Needs
from vmae2_ds.doctor.recipe_needs import needs_of
from vmae2_ds.recipes.pretrain import RECIPES

MIB, GIB = 2**20, 2**30


def test_a_container_s_64_mb_are_red_with_the_size_that_would_do(needs: Needs, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shared_memory, "room_in", lambda folder: Room(64 * MIB, 64 * MIB))
    (found,) = machine.look_at_shm(needs)
    assert (found.name, found.light) == ("shm", "red")
    assert "64 MiB of 64 MiB free; the loaders of 1 rank take 1.0 GiB" in found.value
    assert found.remedy is not None
    assert "--shm-size=2g" in found.remedy
    assert found.figures["needed_bytes"] == GIB
    monkeypatch.setattr(shared_memory, "room_in", lambda folder: Room(2 * GIB, GIB))
    assert machine.look_at_shm(needs)[0].light == "green"
    assert machine.look_at_shm(replace(needs, ranks=2))[0].light == "red", "NCCL takes some too"


def test_without_dev_shm_the_loader_has_to_do_without_workers(needs: Needs, tmp_path: Path) -> None:
    (found,) = machine.look_at_shm(needs, tmp_path / "nowhere")
    assert found.light == "yellow"
    assert "--data.workers 0" in str(found.remedy)


@pytest.mark.parametrize(
    ("quota", "ranks", "remedy"),
    [(None, 1, None), (4.0, 1, "--data.workers 3"), (4.0, 8, "--data.workers 1"), (9.0, 1, None)],
)
def test_cores_that_a_cgroup_takes_away_are_missed(
    quota: float | None, ranks: int, remedy: str | None, needs: Needs, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machine.host, "cores", lambda: host.Cores(64, 64, quota))
    (found,) = machine.look_at_cores(replace(needs, ranks=ranks))
    assert found.light == ("green" if remedy is None else "yellow")
    assert (found.remedy or "").startswith(remedy or "")
    if quota:
        assert "by a cgroup" in found.value


def test_memory_that_a_cgroup_leaves_is_what_counts(needs: Needs, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine.host, "memory", lambda: host.HostMemory(64 * GIB, 50 * GIB, 2 * GIB, GIB))
    (found,) = machine.look_at_memory(needs)
    assert found.light == "red"
    assert "1.0 GiB of 64.0 GiB left, a cgroup allows 2.0 GiB; the recipe takes 2.0 GiB" in found.value


def test_open_files_and_locked_memory(needs: Needs, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    limits = {resource.RLIMIT_NOFILE: (128, 4096), resource.RLIMIT_MEMLOCK: (64 * 1024, 64 * 1024)}
    monkeypatch.setattr(machine.resource, "getrlimit", limits.__getitem__)
    monkeypatch.setattr(machine, "INFINIBAND", tmp_path)
    files, locked = machine.look_at_limits(needs)
    assert (files.light, locked.light) == ("red", "green")
    assert str(files.remedy).startswith("ulimit -n ")
    (tmp_path / "mlx5_0").touch()
    assert machine.look_at_limits(needs)[1].light == "yellow"


def test_a_recipe_s_needs_grow_with_its_ranks() -> None:
    config = RECIPES["vit_g_pretrain_hybrid"]()
    one, eight = needs_of(config, 1), needs_of(config, 8)
    assert (one.shm_bytes, eight.shm_bytes) == (loader_bytes(config), 8 * loader_bytes(config))
    assert eight.memory_bytes == 8 * one.memory_bytes
    assert one.shapes == {"encoder": (128, 208, 16, 88), "decoder": (128, 1232, 8, 64)}
    assert one.checkpoint_bytes == pytest.approx(14.4e9, rel=0.02)  # measured: docs/RELIABILITY.md
    assert Needs.of_json(eight.to_json()) == eight


# --- disk ---


def test_a_disk_that_holds_no_checkpoint_is_red(needs: Needs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    needs = replace(needs, runs=str(tmp_path / "not" / "yet"))
    for free, light in ((GIB, "red"), (5 * GIB // 2, "yellow"), (3 * GIB, "green")):
        monkeypatch.setattr(disk.shutil, "disk_usage", lambda folder, free=free: Room(10 * GIB, free))
        (found,) = disk.look_at_runs(needs)
        assert (found.light, found.figures["folder"]) == (light, str(tmp_path))
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_written_is_red(needs: Needs, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def refuse(**where: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(disk.tempfile, "mkstemp", refuse)
    (found,) = disk.look_at_runs(replace(needs, runs=str(tmp_path), checkpoint_bytes=0))
    assert found.light == "red"
    assert "Permission denied" in found.value


def test_a_file_server_whose_clock_is_off_is_told(
    needs: Needs, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    now = time.time()
    monkeypatch.setattr(disk.time, "time", lambda: now - 60)
    (found,) = disk.look_at_runs(replace(needs, runs=str(tmp_path), checkpoint_bytes=0))
    assert (found.light, "+60 s off" in found.value) == ("yellow", True)


# --- clock ---


@pytest.mark.parametrize(
    ("now", "kernel", "light"),
    [
        (2e9, (True, 0.01), "green"),
        (2e9, (False, 16.0), "yellow"),
        (2e9, None, "green"),
        (0.0, (True, 0.01), "red"),
        (2.4e9, (True, 0.01), "red"),
    ],
)
def test_a_clock_is_judged(now: float, kernel: tuple[bool, float] | None, light: str) -> None:
    assert clock.judge_clock(now, 1.99e9, kernel).light == light


class Timex(ctypes.Structure):
    """adjtimex(2), as the manual has it: the fields up to the status."""

    _fields_ = [
        ("modes", ctypes.c_uint),
        *((name, ctypes.c_long) for name in ("offset", "freq", "maxerror", "esterror")),
        ("status", ctypes.c_int),
        ("rest", ctypes.c_char * 256),
    ]


@pytest.mark.skipif(os.uname().sysname != "Linux", reason="adjtimex is Linux's")
def test_the_kernel_is_read_at_the_right_place() -> None:
    seen = Timex()
    ctypes.CDLL(None).adjtimex(ctypes.byref(seen))
    found = clock.kernel_clock()
    assert found is not None
    assert found == (not seen.status & 0x40, pytest.approx(seen.maxerror / 1e6, abs=1))
