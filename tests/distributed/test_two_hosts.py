"""A run on two hosts, each with its own network, sshd and processes: the same losses, and what happens when one is lost.

Each disturbance is a row of the fault table in docs/RELIABILITY.md; `-s` prints what was measured for it.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.distributed.ranks import rank_environment, tiny_pretraining
from tests.distributed.two_hosts import BIN, REPOSITORY, Host, TwoHosts, two_hosts, why_not
from tests.distributed.zygote import Zygote
from vmae2_ds.checkpoint.whole import find_newest_whole
from vmae2_ds.host import free_port
from vmae2_ds.launch.hostfile import read_hostfile
from vmae2_ds.launch.hosts import HostsArguments, command_lines

pytestmark = pytest.mark.slow
STEPS = 30
GIVE_UP_S = 300
"""Far above everything measured; a wait that is not bounded at all ends here and fails."""


@pytest.fixture(scope="module")
def hosts(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TwoHosts]:
    if reason := why_not():
        pytest.skip(reason)
    with two_hosts(tmp_path_factory.mktemp("hosts")) as made:
        yield made


def words(manifest: Path, run: Path, *more: str) -> list[str]:
    return [*tiny_pretraining(manifest, run, STEPS), "--train.save-every", "5", *more]


def losses(run: Path) -> dict[int, float]:
    """By step; a row that is being written does not count."""
    metrics = run / "metrics.jsonl"
    lines = metrics.read_text().splitlines(keepends=True) if metrics.exists() else []
    rows = [json.loads(line) for line in lines if line.endswith("\n")]
    return {row["step"]: row["loss"] for row in rows}


def train_here(zygote: Zygote, arguments: list[str], folder: Path) -> None:
    """Two ranks on this host, to the end."""
    port = free_port()
    log = folder / "here.log"
    ranks = [zygote.start(arguments, rank_environment(rank, 2, port), log) for rank in (0, 1)]
    codes = [rank.wait(GIVE_UP_S) for rank in ranks]
    assert codes == [0, 0], log.read_text()[-3000:]


@pytest.fixture(scope="module")
def undisturbed(zygote: Zygote, manifest: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[int, float]:
    """Losses of the same run on one host."""
    folder = tmp_path_factory.mktemp("undisturbed")
    train_here(zygote, words(manifest, folder / "run"), folder)
    return losses(folder / "run")


class Launch:
    """A run started by the lines that `vmae2 launch hosts` gives, each on its host."""

    def __init__(self, hosts: TwoHosts, launcher: str, arguments: list[str], log: Path) -> None:
        asked = HostsArguments.model_validate(
            {
                "hostfile": hosts.hostfile,
                "launcher": launcher,
                "master_addr": hosts.hosts[0].address,
                "master_port": free_port(),
                "env": [f"{name}={value}" for name, value in hosts.variables.items()],
            }
        )
        folder = hosts.folder
        here = Path.cwd()
        os.chdir(folder)  # where the lines are to be started
        try:
            lines = command_lines(asked, read_hostfile(hosts.hostfile), arguments)
        finally:
            os.chdir(here)
        (folder / ".deepspeed_env").write_text("".join(f"{key}={value}\n" for key, value in lines.env_file.items()))
        by_name = {host.name: host for host in hosts.hosts}
        self.log = log
        self.processes = [
            # what starts a host's own part belongs to it; what reaches both is on w1's network alone
            by_name[name or "w1"].run(command, inside=bool(name), log=log, env=hosts.environment)
            for name, command in lines.commands
        ]

    def wait(self) -> list[int]:
        return [process.wait(GIVE_UP_S) for process in self.processes]


def wait_for(done: Callable[[], object], launched: Launch | None = None) -> None:
    until = time.monotonic() + GIVE_UP_S
    while not done():
        log = "" if launched is None else launched.log.read_text()[-3000:]
        assert time.monotonic() < until, f"it did not come to that within {GIVE_UP_S} s\n{log}"
        if launched is not None:
            assert any(process.poll() is None for process in launched.processes), f"ended before\n{log}"
        time.sleep(0.02)


def nobody_left(hosts: TwoHosts) -> bool:
    left = [process for host in hosts.hosts for process in host.processes("vmae2_ds")]
    return not any(process.is_running() and process.status() != psutil.STATUS_ZOMBIE for process in left)


def goes_on_as_undisturbed(run: Path, undisturbed: dict[int, float], zygote: Zygote, arguments: list[str]) -> None:
    """Go on with the run on this host, past all that it had, and compare the losses of all its steps: the same bits."""
    before = losses(run)
    last = min(max(before) + 2, STEPS)
    train_here(zygote, [*arguments, "--train.stop-after-steps", str(last)], run.parent)
    assert before == {step: undisturbed[step] for step in before}
    assert losses(run) == {step: undisturbed[step] for step in range(1, last + 1)}


def report(capsys: pytest.CaptureFixture[str], fault: str, said: str) -> None:
    with capsys.disabled():
        print(f"\n{fault}: {said}", end=" ")


def test_plain_ssh_lines_train_the_same_bits_as_one_host(
    hosts: TwoHosts, manifest: Path, tmp_path: Path, undisturbed: dict[int, float]
) -> None:
    run = tmp_path / "run"
    launched = Launch(hosts, "ssh", words(manifest, run, "--train.stop-after-steps", "8"), tmp_path / "log")
    assert launched.wait() == [0, 0], launched.log.read_text()[-3000:]
    assert losses(run) == {step: undisturbed[step] for step in range(1, 9)}
    environment = json.loads((run / "env.json").read_text())
    assert environment["ranks"] == 2
    assert [(row["host"], row["ranks"]) for row in environment["hosts"]] == [("w1", [0]), ("w2", [1])]


def test_a_worker_killed_on_the_far_host_ends_all_and_costs_the_steps_since_the_save(
    hosts: TwoHosts, manifest: Path, tmp_path: Path, undisturbed: dict[int, float], zygote: Zygote,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    run, arguments = tmp_path / "run", words(manifest, tmp_path / "run")
    launched = Launch(hosts, "pdsh", arguments, tmp_path / "log")
    wait_for(lambda: max(losses(run), default=0) >= 7, launched)
    (far,) = hosts.hosts[1].ranks()
    far.send_signal(signal.SIGKILL)
    began = time.monotonic()
    (code,) = launched.wait()
    wait_for(lambda: nobody_left(hosts))
    ended_s = time.monotonic() - began
    assert code != 0
    newest = find_newest_whole(run / "ckpt")
    assert newest is not None
    lost = max(losses(run)) - int(newest.name.removeprefix("step"))
    assert 0 <= lost <= 5
    report(capsys, "worker SIGKILL on the far host", f"code {code}, all ended after {ended_s:.1f} s, {lost} steps lost")
    goes_on_as_undisturbed(run, undisturbed, zygote, arguments)


def test_a_terminated_launcher_leaves_a_save(
    hosts: TwoHosts, manifest: Path, tmp_path: Path, undisturbed: dict[int, float], zygote: Zygote,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    run, arguments = tmp_path / "run", words(manifest, tmp_path / "run", "--train.save-every", "1000")
    launched = Launch(hosts, "pdsh", arguments, tmp_path / "log")
    wait_for(lambda: max(losses(run), default=0) >= 3, launched)
    launched.processes[0].send_signal(signal.SIGTERM)
    began = time.monotonic()
    (code,) = launched.wait()
    launcher_s = time.monotonic() - began
    wait_for(lambda: nobody_left(hosts))
    ended_s = time.monotonic() - began
    newest = find_newest_whole(run / "ckpt")
    assert newest is not None, launched.log.read_text()[-3000:]
    lost = max(losses(run)) - int(newest.name.removeprefix("step"))
    assert lost == 0
    report(
        capsys,
        "launcher SIGTERM",
        f"code {code} after {launcher_s:.1f} s, ranks after {ended_s:.1f} s, {lost} steps lost",
    )
    goes_on_as_undisturbed(run, undisturbed, zygote, arguments)


def rank_on(
    host: Host, number: int, port: int, hosts: TwoHosts, arguments: list[str], log: Path
) -> subprocess.Popen[bytes]:
    env = rank_environment(number, 2, port) | hosts.variables
    env |= {"LOCAL_RANK": "0", "MASTER_ADDR": hosts.hosts[0].address, "PYTHONPATH": str(REPOSITORY)}
    return host.run([str(BIN / "python"), "-m", "vmae2_ds", *arguments], inside=True, log=log, env=env)


def test_a_cut_cable_is_noticed_within_the_collective_timeout(
    hosts: TwoHosts, manifest: Path, tmp_path: Path, undisturbed: dict[int, float], zygote: Zygote,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    """Nothing tells a rank that packets no longer arrive; DeepSpeed's own groups would wait for 30 minutes."""
    run, log, port = tmp_path / "run", tmp_path / "log", free_port()
    arguments = words(manifest, run, "--train.collective-timeout-s", "10")
    ranks = [rank_on(host, number, port, hosts, arguments, log) for number, host in enumerate(hosts.hosts)]
    wait_for(lambda: max(losses(run), default=0) >= 7 or any(rank.poll() is not None for rank in ranks))
    assert [rank.poll() for rank in ranks] == [None, None], log.read_text()[-3000:]
    hosts.cut()
    began = time.monotonic()
    try:
        codes, after_s = [], []
        for rank in ranks:
            codes.append(rank.wait(GIVE_UP_S))
            after_s.append(time.monotonic() - began)
    finally:
        hosts.join()
        for rank in ranks:
            rank.kill()
    assert 0 not in codes
    newest = find_newest_whole(run / "ckpt")
    assert newest is not None
    lost = max(losses(run)) - int(newest.name.removeprefix("step"))
    report(
        capsys,
        "link cut",
        f"codes {codes}, ended after {max(after_s):.1f} s with a time-out of 10 s, {lost} steps lost",
    )
    goes_on_as_undisturbed(run, undisturbed, zygote, arguments)


def test_the_doctor_looks_at_both_hosts_and_names_one_that_is_cut_off(hosts: TwoHosts, tmp_path: Path) -> None:
    """From w1, over the real ssh and sshd; it sees itself the same way."""

    def looked(log: Path) -> dict[str, Any]:
        command = [sys.executable, "-m", "vmae2_ds", "launch", "doctor", "--hostfile", str(hosts.hostfile), "--json"]
        process = hosts.hosts[0].run([*command, "--limit-s", "120"], inside=False, log=log, env=hosts.environment)
        process.wait(GIVE_UP_S)
        text = log.read_text()
        told: dict[str, Any] = json.loads(text[text.index("{\n") :])
        return told["hosts"]

    both = looked(tmp_path / "both.log")
    assert {name: host["report"]["host"] for name, host in both.items()} == {"w1": "w1", "w2": "w2"}
    assert all(host["clock_s"][0] <= 0 <= host["clock_s"][1] for host in both.values())
    hosts.cut()
    try:
        one = looked(tmp_path / "one.log")
    finally:
        hosts.join()
    assert one["w1"]["report"] is not None
    assert one["w2"]["report"] is None
    assert "10.77.0.2" in one["w2"]["error"]
