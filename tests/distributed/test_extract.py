"""`vmae2 extract` killed in the middle of a file and started again on other ranks: the files are the same, bit for bit."""

from __future__ import annotations

import os
import shutil
import signal
import time
from pathlib import Path

import pytest

from tests.distributed.ranks import free_port, rank_environment
from tests.distributed.zygote import Rank, Zygote
from tests.downstream.features.made_source import SIZE, WINDOW, write_encoder, write_list, write_video


def files_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name != ".extract.lock"}


def finished(folder: Path) -> set[str]:
    return {path.stem for path in folder.glob("*.json")} - {"features"}


@pytest.mark.parametrize("killed_on", [1, 2])
def test_killed_and_started_again_on_other_ranks_the_files_are_the_same(
    zygote: Zygote, tmp_path: Path, killed_on: int
) -> None:
    source = write_encoder(tmp_path / "encoder.safetensors")
    for name, frames in (("one", 50), ("two", 31)):
        write_video(tmp_path / f"{name}.mp4", frames)
    for number in range(6):
        shutil.copy(tmp_path / "one.mp4", tmp_path / f"copy{number}.mp4")
    names = ["one", "two", *(f"copy{number}" for number in range(6))]
    manifest = write_list(tmp_path / "list.csv", [f"{name}.mp4" for name in names])

    def start(out: Path, ranks: int, module: str = "vmae2_ds") -> list[Rank]:
        words = f"extract {source} --manifest {manifest} --out {out} --window {WINDOW} --size {SIZE}".split()
        words += ["--precision", "fp32", "--batch", "3", "--workers", "1"]
        port, logs = free_port(), [tmp_path / f"{out.name}.{ranks}.{rank}.log" for rank in range(ranks)]
        return [zygote.start(words, rank_environment(rank, ranks, port), log, module) for rank, log in enumerate(logs)]

    out, whole = tmp_path / "out", tmp_path / "whole"
    slow = start(out, killed_on, "tests.downstream.features.slow_extract")
    limit = time.monotonic() + 240
    while not (is_half_way := bool(finished(out) and list(out.glob(".*.part")))) and time.monotonic() < limit:
        time.sleep(0.02)
    for rank in slow:
        os.kill(rank.pid, signal.SIGKILL)
        rank.wait()
    assert is_half_way, "some videos are done, and another one's file is half there"
    assert 0 < len(finished(out)) < len(names)
    for folder, ranks in ((out, 3 - killed_on), (whole, 1)):
        assert [rank.wait() for rank in start(folder, ranks)] == [0] * ranks
    assert files_of(out) == files_of(whole)
    assert finished(out) == set(names)
