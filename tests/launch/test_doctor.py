"""Every host's doctor at once: reached by a script that takes the place of ssh, answered by one in the place of python."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import pytest

from tests.cli.lines import answer
from vmae2_ds.launch.doctor import HostAnswer, HostDoctorsArguments, ask_hosts, differences, hosts_json, skew

SSH = """#!/bin/sh
while [ "$1" = -o ]; do shift 2; done
host=$1; shift
case $host in
    dead) echo "ssh: connect to host dead port 22: No route to host" >&2; exit 255 ;;
    slow) exec sleep 1000 ;;
esac
echo "Welcome to $host {"
exec env HOST_IS="$host" sh -c "$*"
"""
PYTHON = """#!{python} -S
import json, os, pathlib, sys, time
folder = pathlib.Path(__file__).parent
host = os.environ["HOST_IS"]
(folder / (host + ".given")).write_text(json.dumps([sys.argv[1:], os.getcwd(), os.environ.get("A")]))
report = json.loads((folder / (host + ".json")).read_text())
report["unix_s"] = time.time() + report.pop("ahead")
print(json.dumps(report, indent=2))
sys.exit(2 if report["light"] == "red" else 0)
"""


def line(value: str, **figures: object) -> dict[str, object]:
    return {"light": "green", "value": value, "remedy": None, "figures": figures}


def report(torch: str = "2.11.0", gpus: int = 8, ahead: float = 0.0, has_room: bool = True) -> dict[str, object]:
    shm = {"light": "red", "value": "64 MiB free", "remedy": "docker run --shm-size=50g", "figures": {}}
    findings = {
        "torch": line(torch, version=torch, cuda="13.0"),
        "driver": line("570.86", version="570.86"),
        "device": line("", kind="cuda", gpus=[{"name": "NVIDIA H200"}] * gpus),
        "shm": line("plenty") if has_room else shm,
    }
    light = "green" if has_room else "red"
    return {"schema": 1, "light": light, "seconds": 0.0, "ahead": ahead, "findings": findings}


@pytest.fixture
def hosts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Four hosts that answer, one of which is another in three ways, and one that nobody reaches."""
    for name, text in (("ssh", SSH), ("python", PYTHON.format(python=sys.executable))):
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    reports = {"n1": report(), "n3": report(torch="2.10.1", gpus=7, ahead=-100)}
    reports |= dict.fromkeys(("n2", "n4"), report(has_room=False))
    for name, said in reports.items():
        (tmp_path / f"{name}.json").write_text(json.dumps(said))
    (tmp_path / "hosts").write_text("".join(f"{name} slots=8\n" for name in (*sorted(reports), "dead")))
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_one_table_names_what_differs_and_each_remedy_once(hosts: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = answer(["launch", "doctor", "--hostfile", "hosts", "--bin", str(hosts)], capsys)
    lines = out.splitlines()
    assert code == 2
    assert [line.split()[:2] for line in lines[:6]] == [
        ["host", "light"], ["n1", "green"], ["n2", "red"], ["n3", "green"], ["n4", "red"], ["dead", "red"],
    ]  # fmt: skip
    assert lines[5].endswith("no answer: ssh: connect to host dead port 22: No route to host")
    (differs,) = [line for line in lines if "differs" in line]
    assert differs.startswith(
        "n3 differs: GPUs 7 x NVIDIA H200 (3 of 4 have 8 x NVIDIA H200); torch 2.10.1 (3 of 4 have 2.11.0)"
    )
    assert "clock " in differs
    assert differs.endswith(" s behind this host's")
    assert lines[-2:] == ["red shm on n2, n4: 64 MiB free", "    --> docker run --shm-size=50g"]


def test_words_and_variables_reach_the_hosts_as_they_are(hosts: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (hosts / "hosts").write_text("n1 slots=4\n")
    word = "$(touch pwned) 'a b'"
    options = ["--recipe", "vit_g_pretrain_hybrid", "--bin", str(hosts), "--env", f"A={word}", "--json"]
    code, out, _ = answer(["launch", "doctor", "--hostfile", "hosts", *options, "--train.runs", word], capsys)
    given, folder, variable = json.loads((hosts / "n1.given").read_text())
    assert (code, json.loads(out)["light"], variable, folder) == (0, "green", word, str(hosts))
    assert given[:6] == ["-m", "vmae2_ds", "doctor", "--json", "--recipe", "vit_g_pretrain_hybrid"]
    assert given[given.index("--ranks") + 1] == "4"
    assert given[-2:] == ["--train.runs", word]
    assert not (hosts / "pwned").exists()


def test_a_host_that_hangs_is_told_and_the_others_are_there(hosts: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vmae2_ds.launch.doctor.GRACE_S", 1.0)
    (hosts / "hosts").write_text("n1 slots=8\nslow slots=8\n")
    asked = HostDoctorsArguments(hostfile=hosts / "hosts", bin=hosts, limit_s=1)
    one, slow = ask_hosts(asked, [])
    assert one.report is not None
    assert slow.error == "no answer within 2 s"
    assert hosts_json([one, slow])["light"] == "red"


@pytest.mark.parametrize(
    ("bounds", "off"),
    [((-0.2, 3.0), None), ((-4.0, 9.0), None), ((6.0, 9.0), 6.0), ((-90.0, -80.0), -80.0), ((-9.0, 7.0), None)],
)
def test_a_clock_is_off_where_it_certainly_is(bounds: tuple[float, float], off: float | None) -> None:
    """The answer was written after the question was sent and before it was read: two bounds, however slow the way."""
    assert skew(HostAnswer("n", {}, None, bounds)) == off


def test_hosts_that_do_not_answer_are_not_compared() -> None:
    said = report()
    answers = [
        HostAnswer("a", said, None, (0, 1)),
        HostAnswer("b", None, "gone", (0, 0)),
        HostAnswer("c", said, None, (0, 1)),
    ]
    assert differences(answers) == {}
    assert differences(answers[1:2]) == {}


@pytest.mark.parametrize(
    ("options", "part"),
    [
        ([], "which hosts? give --hostfile FILE"),
        (["--launcher", "srun"], "SLURM_JOB_NODELIST is not set"),
        (["--hostfile", "nowhere"], "nowhere"),
        (["--hostfile", "hosts", "--recipe", "vit_z"], "no recipe 'vit_z'"),
    ],
)
def test_what_cannot_be_asked_is_one_line(
    options: list[str], part: str, hosts: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("SLURM_JOB_NODELIST", raising=False)
    code, _, err = answer(["launch", "doctor", *options], capsys)
    assert (code, part in err) == (2, True), err


def test_srun_asks_the_hosts_of_its_job(
    hosts: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (hosts / "scontrol").write_text('#!/bin/sh\n[ "$3" = "n[1-2]" ] && printf "n1\\nn2\\n"\n')
    (hosts / "srun").write_text(
        "#!/bin/sh\nfor word; do case $word in --nodelist=*) export HOST_IS=${word#--nodelist=};; esac; done\n"
        'while [ "${1#--}" != "$1" ]; do shift; done\nexec "$@"\n'
    )
    for name in ("scontrol", "srun"):
        (hosts / name).chmod(0o755)
    monkeypatch.setenv("SLURM_JOB_NODELIST", "n[1-2]")
    code, out, _ = answer(["launch", "doctor", "--launcher", "srun", "--bin", str(hosts)], capsys)
    assert (code, [line.split()[0] for line in out.splitlines()[1:3]]) == (2, ["n1", "n2"])
    assert "--ranks" not in json.loads((hosts / "n1.given").read_text())[0]
