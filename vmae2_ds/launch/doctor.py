"""`vmae2 launch doctor`: `vmae2 doctor` on every host at once, one table of all, and what differs between them."""

from __future__ import annotations

import contextlib
import json
import os
import re
import subprocess
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import tyro
from pydantic import Field

from vmae2_ds.config.pretrain import StrictModel
from vmae2_ds.doctor.ask import ask
from vmae2_ds.doctor.clock import SKEW_S
from vmae2_ds.doctor.examine import LIMIT_S
from vmae2_ds.doctor.finding import ORDER, Light
from vmae2_ds.errors import ConfigError
from vmae2_ds.launch.hostfile import read_hostfile
from vmae2_ds.launch.preflight import bash_words, check_words, environment_of

SCHEMA = 1
"""Number of the JSON's form, as in doctor/page.py."""
NAMED = 4
"""Hosts that a line names before it counts the rest."""
FORWARDED = ("PYTHONPATH", "LD_LIBRARY_PATH", "TORCH_EXTENSIONS_DIR", "DS_ACCELERATOR")
"""Variables of this process that the hosts get with ssh, which passes none on; srun passes all."""


class HostDoctorsArguments(StrictModel):
    """Run `vmae2 doctor` on every host at once, and compare them; options of the recipe may follow.

    Exit code 0 where every host answers without a red line, else 2.

    Example: vmae2 launch doctor --hostfile hostfiles/two_2x8 --recipe vit_g_pretrain_hybrid
    """

    hostfile: Path | None = None
    """File of hosts and their ranks, one per line: `node1 slots=8`. Default with --launcher srun: the hosts of this job."""
    recipe: str = "vit_b_pretrain_hybrid"
    """Recipe whose shapes, loaders and checkpoints the hosts are compared with."""
    launcher: Literal["ssh", "srun"] = "ssh"
    """How the hosts are reached: ssh without a password, or srun inside a SLURM job."""
    bin: Path = Path(sys.executable).parent
    """Folder that holds python on every host."""
    env: tuple[str, ...] = ()
    """Environment variables for all hosts, as NAME=VALUE ..."""
    limit_s: float = Field(LIMIT_S, ge=1, le=3600)
    """Seconds that a look on a host may take; a host that says nothing for this long and 20 s more is told as such."""
    at_once: int = Field(64, ge=1, le=1024)
    """Number of hosts that are asked at the same time."""
    json_: Annotated[bool, tyro.conf.arg(name="json")] = False
    """Print one JSON object instead of the table."""


GRACE_S = 20.0
"""A host's time for the connection, its interpreter, and the last looks."""


class HostAnswer(NamedTuple):
    """What one host said."""

    host: str
    report: dict[str, Any] | None
    """The JSON of its doctor."""
    error: str | None
    """Why there is none."""
    clock_s: tuple[float, float]
    """How far the host's clock is ahead of this one's: at least the first and at most the second."""

    @property
    def light(self) -> Light:
        """Red without an answer."""
        return "red" if self.report is None else self.report["light"]

    def figure(self, path: str) -> str:
        """A value of its report by names with dots between, as text; empty where there is none."""
        at: Any = self.report or {}
        for name in path.split("."):
            at = at.get(name) if isinstance(at, dict) else None
        return "" if at is None else at if isinstance(at, str) else json.dumps(at)


def ask_hosts(arguments: HostDoctorsArguments, words: Sequence[str]) -> list[HostAnswer]:
    """The answers of all hosts, in the hostfile's order. Raises ConfigError for hosts and words that cannot be.

    Args:
        words: options of the recipe.
    """
    hosts = _hosts(arguments)
    check_words([*words, str(arguments.bin)])
    command = REACH[arguments.launcher]
    with ThreadPoolExecutor(min(arguments.at_once, len(hosts))) as pool:
        asked = [pool.submit(_ask_host, host, command(host, arguments, slots, words), arguments.limit_s + GRACE_S)
                 for host, slots in hosts.items()]  # fmt: skip
        return [one.result() for one in asked]


def _hosts(arguments: HostDoctorsArguments) -> dict[str, int | None]:
    """Ranks by host; None where its GPUs say."""
    if arguments.hostfile is not None:
        return {**read_hostfile(arguments.hostfile)}
    if arguments.launcher == "ssh":
        raise ConfigError("which hosts? give --hostfile FILE, or inside a SLURM job --launcher srun")
    nodes = os.environ.get("SLURM_JOB_NODELIST")
    if not nodes:
        raise ConfigError(
            "--launcher srun: SLURM_JOB_NODELIST is not set; call it inside a job (salloc), or give --hostfile"
        )
    try:
        told = subprocess.run(["scontrol", "show", "hostnames", nodes], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError) as error:
        raise ConfigError(f"scontrol show hostnames {nodes}: {error}; give --hostfile") from None
    return dict.fromkeys(told.stdout.split())


def _doctor(arguments: HostDoctorsArguments, slots: int | None, words: Sequence[str]) -> list[str]:
    command = [str(arguments.bin / "python"), "-m", "vmae2_ds", "doctor", "--json", "--recipe", arguments.recipe]
    command += ["--limit-s", f"{arguments.limit_s:g}", *(["--ranks", str(slots)] if slots else []), *words]
    return command


def _ssh(host: str, arguments: HostDoctorsArguments, slots: int | None, words: Sequence[str]) -> list[str]:
    here = {name: os.environ[name] for name in FORWARDED if os.environ.get(name)}
    pairs = [f"{name}={value}" for name, value in (here | environment_of(arguments.env)).items()]
    line = f"cd {bash_words([str(Path.cwd())])} && {bash_words(['env', *pairs, *_doctor(arguments, slots, words)])}"
    return ["ssh", "-o", "BatchMode=yes", "-o", "ConnectTimeout=10", host, line]


def _srun(host: str, arguments: HostDoctorsArguments, slots: int | None, words: Sequence[str]) -> list[str]:
    pairs = [f"{name}={value}" for name, value in environment_of(arguments.env).items()]
    reach = ["srun", "--overlap", "--nodes=1", "--ntasks=1", f"--nodelist={host}"]
    return [*reach, *(["env", *pairs] if pairs else []), *_doctor(arguments, slots, words)]


REACH: dict[str, Callable[[str, HostDoctorsArguments, int | None, Sequence[str]], list[str]]] = {
    "ssh": _ssh,
    "srun": _srun,
}


def _ask_host(host: str, command: Sequence[str], limit_s: float) -> HostAnswer:
    began = time.time()
    answer = ask(command, limit_s)
    ended = time.time()
    if answer is None:
        return HostAnswer(host, None, f"{command[0]} is not here", (0.0, 0.0))
    report = _report_in(answer.out)
    if report is not None:
        first = report["unix_s"]
        return HostAnswer(host, report, None, (first + report["seconds"] - ended, first - began))
    why = f"no answer within {limit_s:g} s" if answer.code is None else answer.last_words or f"exit code {answer.code}"
    return HostAnswer(host, None, why, (0.0, 0.0))


def _report_in(text: str) -> dict[str, Any] | None:
    """The JSON in what a host printed: a login shell may have its own words before it."""
    for line in re.finditer(r"^\{$", text, re.MULTILINE):
        with contextlib.suppress(ValueError):
            found = json.JSONDecoder().raw_decode(text[line.start() :])[0]
            return found if isinstance(found, dict) and "findings" in found else None
    return None


COMPARED = {
    "driver": "findings.driver.figures.version",
    "torch": "findings.torch.figures.version",
    "CUDA": "findings.torch.figures.cuda",
    "cuDNN": "findings.cudnn.figures.version",
    "NCCL": "findings.nccl.figures.version",
    "DeepSpeed": "findings.deepspeed.figures.version",
    "vmae2_ds": "findings.vmae2_ds.figures.version",
    "commit": "findings.vmae2_ds.figures.commit",
    "Python": "findings.vmae2_ds.figures.python",
    "av": "findings.av.figures.version",
    "decord": "findings.decord.figures.version",
    "sdpa": "findings.sdpa.figures.kernels",
    "cores": "findings.cores.figures.usable",
}
"""What hosts should have alike -> where a report has it."""


def differences(answers: Sequence[HostAnswer]) -> dict[str, str]:
    """Host -> how it differs from most of them, and from this host's clock, in one line; only those that do."""
    there = [answer for answer in answers if answer.report is not None]
    lines: dict[str, list[str]] = defaultdict(list)
    for name, value_of in _values().items():
        values = {answer.host: value_of(answer) for answer in there}
        usual, number = Counter(values.values()).most_common(1)[0] if values else ("", 0)
        for host, value in values.items():
            if value != usual:
                lines[host].append(f"{name} {value or 'none'} ({number} of {len(there)} have {usual or 'none'})")
    for answer in there:
        if (off := skew(answer)) is not None:
            lines[answer.host].append(f"clock {abs(off):.0f} s {'ahead of' if off > 0 else 'behind'} this host's")
    return {answer.host: "; ".join(lines[answer.host]) for answer in there if lines[answer.host]}


def _values() -> Mapping[str, Callable[[HostAnswer], str]]:
    by_path = {name: (lambda answer, path=path: answer.figure(path)) for name, path in COMPARED.items()}
    return {"GPUs": gpus, **by_path}


def gpus(answer: HostAnswer) -> str:
    """`8 x NVIDIA H200`; cpu where it has none."""
    figures = ((answer.report or {}).get("findings", {}).get("device", {})).get("figures", {})
    names = Counter(gpu["name"] for gpu in figures.get("gpus", []))
    return " / ".join(f"{number} x {name}" for name, number in names.items()) or str(figures.get("kind", ""))


def skew(answer: HostAnswer) -> float | None:
    """Seconds by which a host's clock is certainly off, ahead positive; None within the tolerance."""
    least, most = answer.clock_s
    if least > SKEW_S:
        return least
    return most if most < -SKEW_S else None


def describe_hosts(answers: Sequence[HostAnswer]) -> str:
    """The table of hosts, what differs, and the red and yellow lines of all, each once with its hosts."""
    return "\n".join(_told(answers))


def _told(answers: Sequence[HostAnswer]) -> Iterator[str]:
    columns = ("driver", "torch", "NCCL", "DeepSpeed")
    rows = [["host", "light", "GPUs", *columns, "clock"]]
    for answer in answers:
        if answer.report is None:
            rows.append([answer.host, answer.light, f"no answer: {answer.error}"])
        else:
            cells = [answer.figure(COMPARED[name]) or "none" for name in columns]
            rows.append(
                [answer.host, answer.light, gpus(answer), *cells, "{:+.1f} to {:+.1f} s".format(*answer.clock_s)]
            )
    whole = [row for row in rows if len(row) == len(rows[0])]
    widths = [max(len(row[at]) for row in (rows if at < 2 else whole)) for at in range(len(rows[0]))]
    for row in rows:
        yield "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=False)).rstrip()
    for host, line in differences(answers).items():
        yield f"{host} differs: {line}"
    for light in reversed(ORDER[1:]):
        for (name, remedy), (where, value) in _lines_of(answers, light).items():
            hosts = ", ".join(where[:NAMED]) + (f" and {len(where) - NAMED} more" if len(where) > NAMED else "")
            yield f"{light} {name} on {hosts}: {value}"
            yield f"    --> {remedy}"


def _lines_of(answers: Sequence[HostAnswer], light: Light) -> dict[tuple[str, str], tuple[list[str], str]]:
    """(name, remedy) -> its hosts, and what the first of them has."""
    found: dict[tuple[str, str], tuple[list[str], str]] = {}
    for answer in answers:
        for name, finding in (answer.report or {}).get("findings", {}).items():
            if finding["light"] == light:
                found.setdefault((name, finding["remedy"]), ([], finding["value"]))[0].append(answer.host)
    return found


def hosts_json(answers: Sequence[HostAnswer]) -> dict[str, Any]:
    """One JSON object: every host's report, and how it differs."""
    differ = differences(answers)
    about = {
        answer.host: {
            "light": answer.light, "error": answer.error, "clock_s": [round(bound, 3) for bound in answer.clock_s],
            "differs": differ.get(answer.host), "report": answer.report,
        }
        for answer in answers
    }  # fmt: skip
    light = max((answer.light for answer in answers), key=ORDER.index)
    return {"schema": SCHEMA, "light": light, "hosts": about}
