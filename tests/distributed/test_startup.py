"""The start-up check with real ranks: what differs between hosts ends all of them, at once, with one line that names it."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.distributed.ranks import REPOSITORY, rank_environment, tiny_pretraining
from tests.distributed.zygote import Zygote
from vmae2_ds.errors import EXIT_HUNG, EXIT_USER_ERROR
from vmae2_ds.host import free_port

pytestmark = pytest.mark.slow


class Hosts:
    """Two ranks that believe to be on w1 and w2, each started in a folder of its own with the same list of videos."""

    def __init__(self, zygote: Zygote, manifest: Path, folder: Path) -> None:
        self._zygote = zygote
        self.folders = [folder / "w1", folder / "w2"]
        for here in self.folders:
            here.mkdir()
            videos = [line.replace("train/", f"{manifest.parent}/train/") for line in manifest.read_text().splitlines()]
            (here / "list.csv").write_text("\n".join(videos) + "\n")
        self.logs = [folder / "w1.log", folder / "w2.log"]
        self.run = folder / "run"

    def words(self, *more: str) -> list[str]:
        return [*tiny_pretraining(Path("list.csv"), self.run, 2), "--train.collective-timeout-s", "60", *more]

    def start(self, words: list[list[str]]) -> list[int]:
        """Exit codes of the ranks, started with these words each."""
        port = free_port()
        ranks = [
            self._zygote.start(
                [f"w{rank + 1}", str(self.folders[rank]), *words[rank]],
                rank_environment(rank, 2, port),
                self.logs[rank],
                module="tests.distributed.on_host",
            )
            for rank in range(len(words))
        ]
        return [rank.wait(120) for rank in ranks]

    def told(self) -> list[str]:
        """The one line of each rank's log that says why it ended."""
        lines = []
        for log in self.logs:
            (line,) = [line for line in log.read_text().splitlines() if line.startswith("vmae2: ")]
            lines.append(line.removeprefix("vmae2: ").removeprefix("rank 1: "))
        return lines


@pytest.fixture
def hosts(zygote: Zygote, manifest: Path, tmp_path: Path) -> Hosts:
    return Hosts(zygote, manifest, tmp_path)


def other_list(hosts: Hosts) -> list[list[str]]:
    listed = hosts.folders[1] / "list.csv"
    listed.write_text("\n".join(listed.read_text().splitlines()[:-1]) + "\n")
    return [hosts.words(), hosts.words()]


def no_list(hosts: Hosts) -> list[list[str]]:
    (hosts.folders[1] / "list.csv").unlink()
    return [hosts.words(), hosts.words()]


def other_setting(hosts: Hosts) -> list[list[str]]:
    return [hosts.words(), hosts.words("--train.seed", "7", "--data.views", "1")]


def other_run_folder(hosts: Hosts) -> list[list[str]]:
    return [hosts.words("--train.run", "here/run"), hosts.words("--train.run", "here/run")]


@pytest.mark.parametrize(
    ("differ", "parts"),
    [
        (other_list, ["lists differ", "list.csv is 8 videos", "on w1, 7 videos", "on w2", "same files"]),
        (no_list, ["on w2: ", "list.csv"]),
        (other_setting, ["settings differ", "train.seed is 0 on w1, 7 on w2", "data.views is 2 on w1, 1 on w2"]),
        (other_run_folder, ["w2 cannot see what w1 (rank 0) writes", "train.run"]),
    ],
)
def test_a_difference_ends_all_ranks_before_the_first_step(
    differ: Callable[[Hosts], list[list[str]]], parts: list[str], hosts: Hosts
) -> None:
    assert hosts.start(differ(hosts)) == [EXIT_USER_ERROR] * 2
    first, second = hosts.told()
    assert first == second
    for part in parts:
        assert part in first
    assert not hosts.run.exists()
    assert not list(hosts.folders[0].glob(".start-*"))


def test_another_version_of_the_code_is_named_by_file(hosts: Hosts, tmp_path: Path) -> None:
    copy = tmp_path / "installed" / "vmae2_ds"
    shutil.copytree(REPOSITORY / "vmae2_ds", copy, ignore=shutil.ignore_patterns("__pycache__"))
    with (copy / "masking.py").open("a") as file:
        file.write("# another version\n")
    port = free_port()
    begin = ["w1", str(hosts.folders[0])], ["w2", str(hosts.folders[1])]
    module = "tests.distributed.on_host"
    first = hosts._zygote.start([*begin[0], *hosts.words()], rank_environment(0, 2, port), hosts.logs[0], module)
    env = {**rank_environment(1, 2, port), "PYTHONPATH": f"{copy.parent}{os.pathsep}{REPOSITORY}"}
    with hosts.logs[1].open("w") as log:
        command = [sys.executable, "-m", module, *begin[1], *hosts.words()]
        second = subprocess.run(command, env=env, cwd=tmp_path, stdout=log, stderr=log, timeout=120, check=False)
    assert (first.wait(), second.returncode) == (EXIT_USER_ERROR, EXIT_USER_ERROR)
    for line in hosts.told():
        assert "files differ between ranks: masking.py is" in line
        assert line.count("masking.py") == 1
        assert "on w1" in line
        assert "on w2" in line


def test_a_rank_that_does_not_come_is_waited_for_so_long_and_no_longer(hosts: Hosts) -> None:
    assert hosts.start([hosts.words("--train.collective-timeout-s", "2")]) == [EXIT_HUNG]
    (line,) = [line for line in hosts.logs[0].read_text().splitlines() if line.startswith("vmae2: ")]
    assert "rank 0 of 2" in line
    assert "within 2 s" in line


def test_equal_ranks_train_and_leave_a_table_of_hosts(hosts: Hosts) -> None:
    assert hosts.start([hosts.words(), hosts.words()]) == [0, 0]
    table = json.loads((hosts.run / "env.json").read_text())["hosts"]
    assert [(row["host"], row["ranks"]) for row in table] == [("w1", [0]), ("w2", [1])]
    log = hosts.logs[0].read_text()
    assert all(f"host w{number}: rank {number - 1}, 1 x CPU" in log for number in (1, 2))
    assert not list(hosts.run.parent.rglob(".start-*"))
