"""Hostfiles are read strictly, and every word of a command reaches the ranks as it was typed."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.launch.test_slurm import HOSTILE
from vmae2_ds.cli.main import main
from vmae2_ds.errors import ConfigError
from vmae2_ds.launch.hostfile import read_hostfile
from vmae2_ds.launch.hosts import HostsArguments, command_lines, pdsh_word

HOSTFILES = Path(__file__).parents[2] / "hostfiles"
TWO = {"w1": 1, "w2": 3}


def lines(launcher: str, words: list[str], hosts: dict[str, int], **more: object) -> list[tuple[str, list[str]]]:
    arguments = HostsArguments.model_validate({"hostfile": "h", "launcher": launcher, "bin": "/venv/bin", **more})
    return command_lines(arguments, hosts, words).commands


@pytest.mark.parametrize(
    "path", [path for path in HOSTFILES.iterdir() if path.suffix != ".md"], ids=lambda path: path.name
)
def test_the_examples_are_hostfiles(path: Path) -> None:
    hosts = read_hostfile(path)
    assert set(hosts.values()) == {8}


def test_comments_and_blank_lines_are_left_out(tmp_path: Path) -> None:
    (tmp_path / "h").write_text("# two\n\nnode1   slots=8  # first\n  me@node2.site slots=4\n")
    assert read_hostfile(tmp_path / "h") == {"node1": 8, "me@node2.site": 4}


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("node1\n", [":1:", "node1 slots=8"]),
        ("node1 slots=8\nnode2 8\n", [":2:", "'node2 8'"]),
        ("node1 slots=8 max_slots=9\n", [":1:"]),
        ("node1 slots=-1\n", [":1:"]),
        ("node1 slots=8\nnode1 slots=8\n", [":2:", "twice"]),
        ("node1 slots=0\n", ["slots=0"]),
        ("$(id) slots=8\n", [":1:"]),
        ("-oProxyCommand=id slots=8\n", [":1:"]),
        ("node1;id slots=8\n", [":1:"]),
        ("# nobody\n", ["no host"]),
        ("localhost slots=8\nnode2 slots=8\n", ["localhost", "another machine"]),
        ("node1 slots=8\n127.0.0.1 slots=8\n", ["127.0.0.1"]),
    ],
)
def test_other_hostfiles_are_refused_with_the_line(text: str, parts: list[str], tmp_path: Path) -> None:
    (tmp_path / "h").write_text(text)
    with pytest.raises(ConfigError) as told:
        read_hostfile(tmp_path / "h")
    for part in parts:
        assert part in str(told.value)


def test_a_hostfile_that_is_not_there_is_refused() -> None:
    with pytest.raises(ConfigError, match="nowhere"):
        read_hostfile(Path("nowhere"))


def test_pdsh_gets_one_line() -> None:
    ((host, command),) = lines("pdsh", ["pretrain", "r"], TWO, master_port=7)
    assert host == ""
    where = ["--hostfile", str(Path("h").absolute()), "--master_addr", "w1", "--master_port", "7"]
    assert command == ["/venv/bin/deepspeed", *where, "--module", "vmae2_ds", "pretrain", "r"]


def test_plain_ssh_gets_a_line_a_host() -> None:
    commands = lines("ssh", ["pretrain", "r"], TWO, env=["A=b c"])
    assert [host for host, _ in commands] == ["w1", "w2"]
    for number, (_, command) in enumerate(commands):
        assert command[:3] == ["/usr/bin/env", "A=b c", "/venv/bin/deepspeed"]
        at = command.index("--no_ssh")
        assert command[at : at + 3] == ["--no_ssh", "--node_rank", str(number)]
        assert command[command.index("--master_addr") + 1] == "w1"


def test_torchrun_gets_a_line_a_host() -> None:
    commands = lines("torchrun", ["pretrain", "r"], TWO)
    said = [dict(zip(command[1:11:2], command[2:12:2], strict=True)) for _, command in commands]
    assert [row["--nproc_per_node"] for row in said] == ["1", "3"]
    assert [row["--node_rank"] for row in said] == ["0", "1"]
    assert {(row["--nnodes"], row["--master_addr"], row["--master_port"]) for row in said} == {("2", "w1", "29500")}


def test_openmpi_is_told_rank_0_s_address_and_the_interface() -> None:
    ((_, command),) = lines("openmpi", ["pretrain", "r"], TWO, interface="ib0", master_addr="10.0.0.1")
    options = shlex.split(command[command.index("--launcher_args") + 1])
    assert options[:4] == ["-x", "MASTER_ADDR=10.0.0.1", "-x", "MASTER_PORT=29500"]
    assert [options[at + 1] for at, word in enumerate(options) if word == "--mca"] == [
        "btl_tcp_if_include",
        "oob_tcp_if_include",
    ]


@pytest.mark.parametrize("launcher", ["pdsh", "openmpi", "ssh", "torchrun"])
def test_the_user_of_a_host_is_no_part_of_its_address(launcher: str) -> None:
    for _, command in lines(launcher, ["pretrain", "r"], {"me@w1": 1, "me@w2": 1}):
        assert "me@" not in " ".join(command)
        assert "w1" in " ".join(command)


@pytest.mark.parametrize(
    ("more", "part"),
    [
        ({"master_addr": "$(id)"}, "--master-addr"),
        ({"interface": "eth0 -x A=b"}, "--interface"),
        ({"bin": "/my programs"}, "--bin"),
        ({"env": ["A=$(id)"]}, "--env A"),
        ({"env": ['A="b']}, "--env A"),
        ({"env": ["A=b\nC=d"]}, "--env A"),
        ({"env": ["A;id=b"]}, "NAME=VALUE"),
    ],
)
def test_what_a_remote_shell_would_read_otherwise_is_refused(more: dict[str, object], part: str) -> None:
    with pytest.raises(ConfigError, match=part):
        lines("pdsh", ["pretrain", "r"], TWO, **more)


def test_a_folder_that_deepspeed_cannot_change_to_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a b").mkdir()
    monkeypatch.chdir(tmp_path / "a b")
    with pytest.raises(ConfigError, match="this folder"):
        lines("pdsh", ["pretrain", "r"], TWO)


FAKE_SSH = """#!/bin/sh
while [ "$1" != h1 ] && [ "$1" != h2 ]; do shift; done
host=$1; shift
exec env HOST_IS=$host sh -c "$*"
"""
FAKE_PYTHON = """#!/bin/sh
printf '%s\\0' "$@" >"$RECORD/$HOST_IS"
"""


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("pdsh") is None, reason="pdsh is not here: Debian's pdsh")
def test_words_come_through_deepspeed_and_pdsh_as_they_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """DeepSpeed's own runner builds the command, the real pdsh carries it, a shell takes the place of ssh and sshd."""
    from deepspeed.launcher import multinode_runner, runner

    words = [*HOSTILE, *(f"{word} and more" for word in HOSTILE), 'a \\" b', "plain", "--x=%n", "\\"]
    for name, text in (("ssh", FAKE_SSH), ("python", FAKE_PYTHON)):
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    asked = runner.parse_args(["--master_addr", "h1", "--module", "vmae2_ds", *map(pdsh_word, words)])
    pdsh = multinode_runner.PDSHRunner(asked, runner.encode_world_info({"h1": [0], "h2": [0]}))
    pdsh.add_export("PYTHONPATH", str(tmp_path))  # as runner.main always does
    command, _, env = pdsh.get_cmd({**os.environ}, {"h1": [0], "h2": [0]})
    env |= {"PATH": f"{tmp_path}:{os.environ['PATH']}", "RECORD": str(tmp_path)}
    subprocess.run(command, env=env, check=True, timeout=60)
    for number, host in enumerate(("h1", "h2")):
        given = (tmp_path / host).read_text().split("\0")[:-1]
        assert f"--node_rank={number}" in given
        assert given[given.index("vmae2_ds") + 1 :] == words
    assert not (tmp_path / "pwned").exists()


def as_a_host_gets_it(words: list[str], host: str, number: int) -> list[str]:
    """What a program is started with, by the rules of all that lies between, written again: no pdsh, no DeepSpeed.

    DeepSpeed 0.19 (launcher/multinode_runner.py, PDSHRunner.parse_user_args) puts words with a space into double quotes, masks
    double quotes in those, and leaves all others bare. pdsh joins its words with spaces and replaces %h, %u, %n and %% (pdsh's
    manual, rcmd/exec and ssh). sshd gives the line to the user's shell.
    """
    masked = ['"{}"'.format(word.replace('"', '\\"')) if " " in word else word for word in words]
    told = {"%h": host, "%u": "me", "%n": str(number), "%%": "%"}
    line = re.sub("%[hun%]", lambda found: told[found[0]], " ".join(masked))
    script = f'given() {{ printf "%s\\0" "$@"; }}; given {line}'
    done = subprocess.run(["sh", "-c", script], capture_output=True, text=True, check=True)
    return done.stdout.split("\0")[:-1]


@pytest.mark.parametrize("number", [0, 11])
def test_words_come_through_pdsh_s_percent_signs_and_a_remote_shell(
    number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    percents = ["%n", "%h of %u", "100%", "100 %", "%%", "%% %n", "%s %d", "a%%nb", "%%%h"]
    dollars = [
        "$HOME",
        "$HOME is",
        "${HOME}",
        "$$",
        "$(id) x",
        "`id`",
        "`id` x",
        "\\$HOME",
        "\\\\ $HOME",
        'a \\" b',
        "'%n' $1",
    ]
    words = [
        *HOSTILE,
        *(f"{word} and more" for word in HOSTILE),
        *percents,
        *dollars,
        "plain",
        "",
        "\\",
        "~",
        "~ x",
        "a\tb",
    ]
    assert as_a_host_gets_it([pdsh_word(word) for word in words], "h1", number) == words
    assert not list(tmp_path.iterdir())
    assert as_a_host_gets_it(["%n", "%h", "$((1 + 1))"], "h1", number)[:2] == [str(number), "h1"], "unmasked it is read"


def run(capsys: pytest.CaptureFixture[str], *args: str) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as stop:
        main(["launch", "hosts", "vit_ti_pretrain_desk", "--data.manifest", "all.csv", *args])
    out = capsys.readouterr()
    return int(stop.value.code or 0), out.out, out.err


def test_lines_can_be_pasted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """bash runs what is printed, with a deepspeed that writes down what it is given."""
    (tmp_path / "deepspeed").write_text("#!/bin/sh\nprintf '%s\\0' \"$@\" >>given\n")
    (tmp_path / "deepspeed").chmod(0o755)
    (tmp_path / "h").write_text("w1 slots=1\nw2 slots=1\n")
    monkeypatch.chdir(tmp_path)
    word = "$(touch pwned)\n'a b'"
    more = ["--hostfile", "h", "--bin", str(tmp_path), "--launcher", "ssh", "--env", f"A={word}"]
    code, printed, _ = run(capsys, *more, "--train.run", word)
    assert code == 0
    subprocess.run(["bash", "-e"], input=printed, text=True, check=True, cwd=tmp_path)
    given = (tmp_path / "given").read_text().split("\0")
    assert given.count(word) == 2
    assert not (tmp_path / "pwned").exists()


def test_running_becomes_the_launcher(tmp_path: Path) -> None:
    script = '#!/bin/sh\nprintf "%s\\0" "$@" >"$0.given"; cat .deepspeed_env >>"$0.given"; exit 78\n'
    (tmp_path / "deepspeed").write_text(script)
    (tmp_path / "deepspeed").chmod(0o755)
    (tmp_path / "h").write_text("w1 slots=1\nw2 slots=1\n")
    words = [
        "launch",
        "hosts",
        "vit_ti_pretrain_desk",
        "--data.manifest",
        "all.csv",
        "--hostfile",
        "h",
        "--run",
        "--env",
        "A=b",
        "--bin",
    ]
    command = [sys.executable, "-m", "vmae2_ds", *words, str(tmp_path)]
    env = {**os.environ, "PYTHONPATH": str(HOSTFILES.parent)}
    for _ in range(2):  # the second time .deepspeed_env is there already
        assert subprocess.run(command, cwd=tmp_path, env=env).returncode == 78
    given = (tmp_path / "deepspeed.given").read_text()
    assert "vmae2_ds\0pretrain\0vit_ti_pretrain_desk\0" in given
    assert given.endswith("A=b\n")
    (tmp_path / ".deepspeed_env").write_text("A=c\n")
    failed = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True)
    assert failed.returncode == 2
    assert "other content" in failed.stderr


@pytest.mark.parametrize(
    ("text", "args", "parts"),
    [
        ("w1 slots=3\n", [], ["--train.global-batch 32", "3 ranks"]),
        ("w1 slots=1\nw2 slots=1\n", ["--launcher", "ssh", "--run"], ["--launcher ssh", "each on its host"]),
        ("w1 slots=1\nw2 slots=1\n", ["--launcher", "telnet"], ["telnet", "pdsh"]),
        ("w1 slots=1\nw2 slots=1\n", ["--run", "--bin", "/nonexistent"], ["/nonexistent/deepspeed", "--bin"]),
    ],
)
def test_what_cannot_start_is_one_line(
    text: str, args: list[str], parts: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "h").write_text(text)
    code, _, err = run(capsys, "--hostfile", str(tmp_path / "h"), *args)
    assert code == 2
    line = err.strip().splitlines()[-1]
    for part in parts:
        assert part in line
