"""Two hosts on one machine: w1 and w2, each with its own network, host name and processes, and an sshd of its own.

A host is a set of namespaces that lives as long as its first process: killing that one takes everything on it away, and a
`pkill` on a host, which DeepSpeed's launcher runs, sees this host's processes alone. They share the disk.
"""

from __future__ import annotations

import contextlib
import getpass
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import psutil

REPOSITORY = Path(__file__).parents[2]
BIN = Path(sys.executable).parent
PROGRAMS = {"ip": "iproute2", "pdsh": "pdsh", "ssh": "openssh-client", "ssh-keygen": "openssh-client"}
PROGRAMS |= {"sshd": "openssh-server", "pkill": "procps"}
PROGRAMS |= dict.fromkeys(("unshare", "nsenter", "setpriv"), "util-linux")
"""Program -> Debian's package of it."""
SEARCHED = os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/sbin"])
PORT = 2222
FIRST_PROCESS = """
hostname {name} && mount -t tmpfs none /run && mkdir /run/sshd && ip link set lo up && echo up || exit 1
while :; do sleep 3600 & wait $!; done
"""
"""It adopts, and bash reaps, whatever outlives its parent."""
SSHD = """\
Port {port}
ListenAddress {address}
HostKey {folder}/host
AuthorizedKeysFile {folder}/id.pub
PidFile none
PasswordAuthentication no
StrictModes no
UsePAM no
"""
SSH = """\
Host w1
  HostName 10.77.0.1
Host w2
  HostName 10.77.0.2
Host *
  Port {port}
  User {user}
  IdentityFile {folder}/id
  IdentitiesOnly yes
  StrictHostKeyChecking no
  UserKnownHostsFile /dev/null
  LogLevel ERROR
"""


def why_not() -> str | None:
    """Why two hosts cannot be made here, and how to get them; None where they can."""
    if lacking := {package for program, package in PROGRAMS.items() if not shutil.which(program, path=SEARCHED)}:
        return f"two hosts need Debian's {' '.join(sorted(lacking))}: apt-get install them, as root"
    tried = subprocess.run(
        ["unshare", "--net", "--uts", "--mount", "--pid", "--fork", "true"], capture_output=True, text=True
    )
    if tried.returncode:
        return f"two hosts need root and network namespaces (docker run --privileged): {tried.stderr.strip()}"
    return None


class Host:
    """One of them."""

    def __init__(self, name: str, address: str, folder: Path) -> None:
        self.name, self.address, self._folder = name, address, folder
        spaces = ["--net", "--uts", "--mount", "--pid", "--fork", "--mount-proc", "--kill-child=KILL"]
        script = FIRST_PROCESS.format(name=name)
        until_we_die = ["setpriv", "--pdeathsig", "KILL"]  # a test process that is killed closes nothing
        command = [*until_we_die, "unshare", *spaces, "bash", "-c", script]
        self._outer = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert self._outer.stdout is not None
        assert self._outer.stdout.readline() == "up\n", f"{name} did not start"
        self.pid = psutil.Process(self._outer.pid).children()[0].pid

    def serve_ssh(self) -> None:
        """Start its sshd."""
        config = self._folder / f"sshd_{self.name}"
        config.write_text(SSHD.format(port=PORT, address=self.address, folder=self._folder))
        sshd = shutil.which("sshd", path=SEARCHED) or "sshd"
        self.run([sshd, "-f", str(config), "-E", f"{config}.log"], inside=True).wait(10)

    def run(
        self, command: Sequence[str], *, inside: bool, log: Path | None = None, env: dict[str, str] | None = None
    ) -> subprocess.Popen[bytes]:
        """Start a command with this host's network and name; `inside` it also belongs to it, and ends with it.

        What is not inside keeps its process number: signals to the returned process reach the command itself.
        """
        spaces = ["--net", "--uts", *(["--mount", "--pid"] if inside else [])]
        enter = ["nsenter", "--target", str(self.pid), *spaces, "--", *command]
        with contextlib.ExitStack() as stack:
            out = stack.enter_context(log.open("ab")) if log else subprocess.DEVNULL
            return subprocess.Popen(
                enter, cwd=self._folder, env=env, stdin=subprocess.DEVNULL, stdout=out, stderr=subprocess.STDOUT
            )

    def processes(self, *words: str) -> list[psutil.Process]:
        """What runs on it and has all these words in its command line."""
        here = os.readlink(f"/proc/{self.pid}/ns/pid")
        found = []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error, OSError):
                if os.readlink(f"/proc/{process.pid}/ns/pid") == here and set(words) <= set(process.cmdline()):
                    found.append(process)
        return found

    def ranks(self) -> list[psutil.Process]:
        """The ranks that run on it, without their loader workers."""
        ranks = self.processes("vmae2_ds", "pretrain")
        ranks = [rank for rank in ranks if "deepspeed.launcher.launch" not in rank.cmdline()]
        workers = {child.pid for rank in ranks for child in rank.children(recursive=True)}
        return [rank for rank in ranks if rank.pid not in workers]

    def close(self) -> None:
        """End it with everything on it."""
        self._outer.kill()
        self._outer.wait()


class TwoHosts:
    """Both, joined by a cable, and a folder with keys, a hostfile and an `ssh` that knows them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        for key in ("host", "id"):
            subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(folder / key)], check=True)
        (folder / "ssh_config").write_text(SSH.format(port=PORT, user=getpass.getuser(), folder=folder))
        (folder / "bin").mkdir()
        ssh = shutil.which("ssh")
        (folder / "bin" / "ssh").write_text(f'#!/bin/sh\nexec {ssh} -F {folder}/ssh_config "$@"\n')  # ssh ignores $HOME
        (folder / "bin" / "ssh").chmod(0o755)
        self.hostfile = folder / "hostfile"
        self.hostfile.write_text("w1 slots=1\nw2 slots=1\n")
        self.hosts: list[Host] = []
        try:
            self.hosts += [Host(f"w{number}", f"10.77.0.{number}", folder) for number in (1, 2)]
            first, second = self.hosts
            self._ip(
                "link", "add", "eth0", "netns", str(first.pid), "type", "veth", "peer", "eth0", "netns", str(second.pid)
            )
            for host in self.hosts:
                self._ip("addr", "add", f"{host.address}/24", "dev", "eth0", on=host)
                self._ip("link", "set", "eth0", "up", on=host)
                host.serve_ssh()
            for host in self.hosts:
                self._wait_for_sshd(host)
        except BaseException:
            self.close()
            raise

    @property
    def environment(self) -> dict[str, str]:
        """For a launcher on w1: finds our ssh, deepspeed, and this checkout."""
        path = os.pathsep.join([str(self.folder / "bin"), str(BIN), os.environ["PATH"]])
        return {**os.environ, **self.variables, "PATH": path, "PYTHONPATH": str(REPOSITORY)}

    @property
    def variables(self) -> dict[str, str]:
        """For ranks on either: the same name of the interface on both hosts is all that gloo asks for."""
        return {"DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "eth0"}

    def cut(self) -> None:
        """Pull the cable."""
        self._ip("link", "set", "eth0", "down", on=self.hosts[1])

    def join(self) -> None:
        """Put it back."""
        self._ip("link", "set", "eth0", "up", on=self.hosts[1])

    def close(self) -> None:
        """Take both away."""
        for host in self.hosts:
            host.close()

    def _ip(self, *words: str, on: Host | None = None) -> None:
        enter = ["nsenter", "--target", str(on.pid), "--net", "--"] if on else []
        subprocess.run([*enter, "ip", *words], check=True, env={**os.environ, "PATH": SEARCHED})

    def _wait_for_sshd(self, host: Host) -> None:
        until = time.monotonic() + 20
        probe = ["ssh", "-F", str(self.folder / "ssh_config"), host.name, "hostname"]
        while True:
            said = subprocess.run(
                ["nsenter", "--target", str(self.hosts[0].pid), "--net", "--", *probe], capture_output=True, text=True
            )
            if said.stdout.strip() == host.name:
                return
            assert time.monotonic() < until, f"no ssh to {host.name}: {said.stderr}"
            time.sleep(0.1)


@contextlib.contextmanager
def two_hosts(folder: Path) -> Iterator[TwoHosts]:
    """Two hosts for as long as the block runs."""
    made = TwoHosts(folder)
    try:
        yield made
    finally:
        made.close()
