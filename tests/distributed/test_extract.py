"""`vmae2 extract` killed in the middle of a file and started again on other ranks: the files are the same, bit for bit."""

from __future__ import annotations

import os
import shutil
import signal
import time
from pathlib import Path

import pytest

from tests.distributed.ranks import rank_environment
from tests.distributed.zygote import Rank, Zygote
from tests.downstream.features.made_source import SIZE, WINDOW, write_encoder, write_list, write_video
from vmae2_ds.host import free_port


def files_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name != ".extract.lock"}


def finished(folder: Path) -> set[str]:
    return {path.stem for path in folder.glob("*.json")} - {"features"}


class Job:
    """Eight videos, and ranks that extract their features."""

    def __init__(self, zygote: Zygote, folder: Path) -> None:
        self.zygote, self.folder = zygote, folder
        self.source = write_encoder(folder / "encoder.safetensors")
        for name, frames in (("one", 50), ("two", 31)):
            write_video(folder / f"{name}.mp4", frames)
        for number in range(6):
            shutil.copy(folder / "one.mp4", folder / f"copy{number}.mp4")
        self.names = {"one", "two", *(f"copy{number}" for number in range(6))}
        self.manifest = write_list(folder / "list.csv", [f"{name}.mp4" for name in sorted(self.names)])

    def start(self, out: Path, ranks: int, module: str = "vmae2_ds", **env: str) -> list[Rank]:
        words = f"extract {self.source} --manifest {self.manifest} --out {out} --window {WINDOW} --size {SIZE}".split()
        words += ["--precision", "fp32", "--batch", "3", "--workers", "1"]
        port = free_port()
        return [
            self.zygote.start(words, rank_environment(rank, ranks, port) | env, self.log(out, ranks, rank), module)
            for rank in range(ranks)
        ]

    def log(self, out: Path, ranks: int, rank: int) -> Path:
        return self.folder / f"{out.name}.{ranks}.{rank}.log"


TROUBLE = "tests.downstream.features.slow_extract"


@pytest.mark.parametrize("killed_on", [1, 2])
def test_killed_and_started_again_on_other_ranks_the_files_are_the_same(
    zygote: Zygote, tmp_path: Path, killed_on: int
) -> None:
    job, out, whole = Job(zygote, tmp_path), tmp_path / "out", tmp_path / "whole"
    slow = job.start(out, killed_on, TROUBLE)
    limit = time.monotonic() + 240
    while not (is_half_way := bool(finished(out) and list(out.glob(".*.part")))) and time.monotonic() < limit:
        time.sleep(0.02)
    for rank in slow:
        os.kill(rank.pid, signal.SIGKILL)
        rank.wait()
    assert is_half_way, "some videos are done, and another one's file is half there"
    assert 0 < len(finished(out)) < len(job.names)
    for folder, ranks in ((out, 3 - killed_on), (whole, 1)):
        assert [rank.wait() for rank in job.start(folder, ranks)] == [0] * ranks
    assert files_of(out) == files_of(whole)
    assert finished(out) == job.names


def test_what_stops_one_rank_is_told_to_the_other(zygote: Zygote, tmp_path: Path) -> None:
    job, out = Job(zygote, tmp_path), tmp_path / "out"
    ranks = job.start(out, 2, TROUBLE, FULL_DISK="1")
    assert [rank.wait(120) for rank in ranks] == [2, 2]
    said = job.log(out, 2, 0).read_text().splitlines()[-1]
    assert said.startswith("vmae2: stopped with rank 1: ")
    assert "No space left on device" in said
    assert len(finished(out)) == 6, "rank 0's four, and two of rank 1's"
    assert not list(out.glob(".*.part"))
