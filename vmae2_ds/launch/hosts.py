"""`vmae2 launch hosts`: the exact command lines that start a run on the hosts of a hostfile, for each way to reach them."""

from __future__ import annotations

import os
import re
import shlex
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal, NamedTuple, NoReturn

from pydantic import Field

from vmae2_ds.config.pretrain import StrictModel
from vmae2_ds.config.run import RunConfig
from vmae2_ds.disk import write_whole
from vmae2_ds.dist import DEFAULT_PORT
from vmae2_ds.errors import ConfigError
from vmae2_ds.launch.hostfile import read_hostfile
from vmae2_ds.launch.preflight import bash_words, check_run, check_words, environment_of, refuse_unless

ENV_FILE = ".deepspeed_env"
"""File that `deepspeed` takes the remote ranks' environment from, in the folder it is started in."""
_PLAIN = r"[\w@%+=:,./-]+"
"""What means itself to every shell: DeepSpeed writes the folder and the interpreter into pdsh's command as they are."""


class HostsArguments(StrictModel):
    """Print or run the commands that start a recipe on the hosts of a hostfile; options of the recipe may follow.

    `vmae2 pretrain --help`, finetune and distil list the recipes, `vmae2 pretrain RECIPE --help` their options.

    Example: vmae2 launch hosts vit_g_pretrain_hybrid --hostfile hostfiles/two_2x8 --data.manifest /data/all.csv
    """

    hostfile: Path
    """File of hosts and their ranks, one per line: `node1 slots=8`."""
    launcher: Literal["pdsh", "openmpi", "ssh", "torchrun"] = "pdsh"
    """How the hosts are reached. pdsh and openmpi start all hosts from this one; ssh and torchrun print one command per
    host."""
    master_addr: str | None = None
    """Name or address under which all hosts reach the first one; default: its name in the hostfile."""
    master_port: int = Field(DEFAULT_PORT, ge=1, lt=2**16)
    """Port on the first host that all others can reach."""
    interface: str | None = None
    """Network interface for OpenMPI, the same name on every host; without it DeepSpeed uses eth0."""
    bin: Path = Path(sys.executable).parent
    """Folder that holds deepspeed, torchrun and python on every host."""
    env: tuple[str, ...] = ()
    """Environment variables for all ranks, as NAME=VALUE ..."""
    run: bool = False
    """Run the command instead of printing it; for pdsh and openmpi."""


class LaunchLines(NamedTuple):
    """What to type where."""

    env_file: dict[str, str]
    """Content of `.deepspeed_env`."""
    commands: list[tuple[str, list[str]]]
    """(host, command as words); one of host "" for all where a launcher reaches them."""


def launch_hosts(arguments: HostsArguments, config: RunConfig, words: Sequence[str]) -> str:
    """Check, then return the lines to print; with `run`, turn this process into the one that reaches all hosts.

    Args:
        words: the verb, the recipe and its options, as they follow `vmae2`.

    Raises ConfigError or DataError where the run cannot start on those hosts, or a word would not reach them as it is.
    """
    hosts = read_hostfile(arguments.hostfile)
    about = check_run(config, sum(hosts.values()))
    lines = command_lines(arguments, hosts, words)
    if arguments.run:
        _become(arguments, lines)
    shown = [f"# {line}" for line in about]
    if lines.env_file:
        shown += [f"# {ENV_FILE}, in the folder this is started from:"]
        shown += [f"#   {name}={value}" for name, value in lines.env_file.items()]
    for host, command in lines.commands:
        here = f"cd {bash_words([str(Path.cwd())])} && " if host else ""
        shown += [f"# on {host}:" if host else "# on this host, in this folder:", here + bash_words(command)]
    return "\n".join(shown)


def command_lines(arguments: HostsArguments, hosts: dict[str, int], words: Sequence[str]) -> LaunchLines:
    """The commands for these hosts; raises ConfigError for words that a launcher would not carry as they are."""
    refuse_unless(r"[\w.:-]+", "--master-addr", arguments.master_addr, "a host name or an address")
    refuse_unless(r"[\w.:-]+", "--interface", arguments.interface, "the name of a network interface")
    check_words([*words, str(arguments.hostfile), str(arguments.bin)])
    return COMMANDS_OF[arguments.launcher](arguments, hosts, words)


def _pdsh(arguments: HostsArguments, hosts: dict[str, int], words: Sequence[str]) -> LaunchLines:
    if len(hosts) == 1:  # DeepSpeed starts that without pdsh, and with no shell between; it would still try ssh
        command = [*_env(arguments), *_deepspeed(arguments, hosts), "--no_ssh_check"]
        return LaunchLines({}, [("", [*command, "--module", "vmae2_ds", *words])])
    variables = _env_file(arguments)
    for what, value in (("this folder", str(Path.cwd())), ("--bin", str(arguments.bin))):
        refuse_unless(
            _PLAIN, what, value, "a path that DeepSpeed could hand to pdsh: letters, digits and @ % + = : , . / - _"
        )
    command = [*_deepspeed(arguments, hosts), "--module", "vmae2_ds", *map(pdsh_word, words)]
    return LaunchLines(variables, [("", command)])


def _openmpi(arguments: HostsArguments, hosts: dict[str, int], words: Sequence[str]) -> LaunchLines:
    options = ["-x", f"MASTER_ADDR={_address(arguments, hosts)}", "-x", f"MASTER_PORT={arguments.master_port}"]
    options += ["--bind-to", "none"]  # mpirun binds a rank to one core, and its loader workers with it
    if arguments.interface:
        options += [f"--mca {layer}_tcp_if_include {arguments.interface}" for layer in ("btl", "oob")]
    command = [*_deepspeed(arguments, hosts), "--launcher", "openmpi", "--launcher_args", " ".join(options)]
    return LaunchLines(_env_file(arguments), [("", [*command, "--module", "vmae2_ds", *words])])


def _ssh(arguments: HostsArguments, hosts: dict[str, int], words: Sequence[str]) -> LaunchLines:
    """`--no_ssh`: each host starts its own part; no host needs to reach another but by the ranks' ports."""
    return LaunchLines(
        {},
        [
            (host, [*_env(arguments), *_deepspeed(arguments, hosts), "--no_ssh", "--node_rank", str(number),
                    "--module", "vmae2_ds", *words])
            for number, host in enumerate(hosts)
        ],
    )  # fmt: skip


def _torchrun(arguments: HostsArguments, hosts: dict[str, int], words: Sequence[str]) -> LaunchLines:
    where = ["--master_addr", _address(arguments, hosts), "--master_port", str(arguments.master_port)]
    return LaunchLines(
        {},
        [
            (host, [*_env(arguments), str(arguments.bin / "torchrun"), "--nnodes", str(len(hosts)), "--nproc_per_node",
                    str(slots), "--node_rank", str(number), *where, "-m", "vmae2_ds", *words])
            for number, (host, slots) in enumerate(hosts.items())
        ],
    )  # fmt: skip


COMMANDS_OF: dict[str, Callable[[HostsArguments, dict[str, int], Sequence[str]], LaunchLines]] = {
    "pdsh": _pdsh,
    "openmpi": _openmpi,
    "ssh": _ssh,
    "torchrun": _torchrun,
}


def pdsh_word(word: str) -> str:
    """The word as `deepspeed` has to be given it so that it comes through pdsh, ssh and the remote shell unchanged.

    The runner joins its words for a remote shell and quotes only those with a space, in double quotes in which it masks
    double quotes alone (DeepSpeed 0.19, PDSHRunner.parse_user_args); pdsh replaces %h, %n and %u.
    """
    quoted = re.sub(r"([\\$`])", r"\\\1", word) if " " in word else shlex.quote(word)
    return quoted.replace("%", "%%")


def _deepspeed(arguments: HostsArguments, hosts: dict[str, int]) -> list[str]:
    command = [str(arguments.bin / "deepspeed"), "--hostfile", str(arguments.hostfile.absolute())]
    return [*command, "--master_addr", _address(arguments, hosts), "--master_port", str(arguments.master_port)]


def _address(arguments: HostsArguments, hosts: dict[str, int]) -> str:
    return arguments.master_addr or next(iter(hosts)).rpartition("@")[2]


def _env(arguments: HostsArguments) -> list[str]:
    pairs = [f"{name}={value}" for name, value in environment_of(arguments.env).items()]
    return ["/usr/bin/env", *pairs] if pairs else []


def _env_file(arguments: HostsArguments) -> dict[str, str]:
    """The variables, none of which the remote shell may read as more than text: DeepSpeed masks nothing in them."""
    variables = environment_of(arguments.env)
    for name, value in variables.items():
        refuse_unless(
            r"[\w@+=:,./ -]*", f"--env {name}", value, f"a value that {ENV_FILE} can carry; use --launcher ssh"
        )
    return variables


def _become(arguments: HostsArguments, lines: LaunchLines) -> NoReturn:
    """Replace this process, so that signals and the exit code are the launcher's."""
    host, command = lines.commands[0]
    if host:
        raise ConfigError(
            f"--launcher {arguments.launcher} has a line for each host: start each on its host, without --run"
        )
    text = "".join(f"{name}={value}\n" for name, value in lines.env_file.items())
    file = Path(ENV_FILE)
    if text and file.exists() and file.read_text() != text:
        raise ConfigError(f"{file.absolute()} is there with other content; remove it, or leave out --env")
    if text:
        write_whole(file, text)
    try:
        os.execv(command[0], command)
    except OSError as error:
        raise ConfigError(f"{command[0]}: {error.strerror}; say with --bin where deepspeed is") from None
