"""The table of probes, and how they are run: all at once, each within a limit, those that import packages in processes."""

from __future__ import annotations

import json
import os
import queue
import sys
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from vmae2_ds.doctor import clock, compilers, deepspeed_ops, disk, driver, machine, network, packages, torch_stack
from vmae2_ds.doctor.ask import ask
from vmae2_ds.doctor.finding import Finding, Light, red, yellow
from vmae2_ds.doctor.needs import Needs
from vmae2_ds.provenance import is_found

LIMIT_S = 12.0
"""What a probe may take: the whole page is then there in 15 s."""
CHILD = "import sys; sys.path.append(sys.argv[1]); from vmae2_ds.doctor.child import main; main(*sys.argv[2:])"


@dataclass(frozen=True)
class Probe:
    """One look at the machine."""

    section: str
    """The heading that its lines stand below."""
    look: Callable[[Needs], Iterable[Finding]]
    """For a process of its own: a function of a module, or a partial of one with words before the needs."""
    names: tuple[str, ...]
    """Names of what it finds, in order; where one of them fails the later ones may be missing."""
    alone: bool = False
    """It runs in a process of its own: it may hang or crash."""
    package: str | None = None
    """The package that it imports."""
    absent: Callable[[Needs], Iterable[Finding]] | None = None
    """What is found where that package is not installed, without a process."""
    no_answer: Light = "yellow"
    """What it means that it does not answer."""


def _package(name: str) -> Probe:
    look = partial(packages.look_at_package, name)
    return Probe("Packages", look, (name,), alone=True, package=name, absent=look)


def _kernel(name: str, package: str) -> Probe:
    def absent(needs: Needs) -> list[Finding]:
        return [torch_stack.kernel_missing(name, f"{package} is not installed", needs)]

    look = partial(torch_stack.look_at_kernel, name)
    return Probe("Device", look, (name,), alone=True, package=package, absent=absent)


_TORCH = ("torch", "device", "cudnn", "nccl", "sdpa", "attention", "allocator")
PROBES: dict[str, Probe] = {
    "code": Probe("Software", packages.look_at_code, ("vmae2_ds",)),
    "requirements": Probe("Software", packages.look_at_requirements, ("requirements",)),
    "driver": Probe("Device", driver.look_at_driver, ("driver",)),
    "torch": Probe("Device", torch_stack.look_at_torch, _TORCH, alone=True, package="torch", no_answer="red"),
    "flash": _kernel("flash", "flash_attn"),
    "flash3": _kernel("flash3", "flash_attn_interface"),
    "flash4": _kernel("flash4", "flash_attn"),
    "deepspeed": Probe(
        "Software",
        deepspeed_ops.look_at_deepspeed,
        ("deepspeed", "deepspeed_ops"),
        alone=True,
        package="deepspeed",
        no_answer="red",
    ),
    "compiler": Probe("Software", compilers.look_at_compiler, ("compiler",)),
    "nvcc": Probe("Software", compilers.look_at_nvcc, ("nvcc",)),
    **{name: _package(name) for name in ("numpy", "av", "decord", "torchcodec", "cv2", "transformers")},
    "cores": Probe("Host", machine.look_at_cores, ("cores",)),
    "memory": Probe("Host", machine.look_at_memory, ("memory",)),
    "shm": Probe("Host", machine.look_at_shm, ("shm",)),
    "limits": Probe("Host", machine.look_at_limits, ("open_files", "locked_memory")),
    "runs": Probe("Host", disk.look_at_runs, ("runs_folder",), alone=True, no_answer="red"),  # a dead server holds it
    "clock": Probe("Host", clock.look_at_clock, ("clock",)),
    "port": Probe("Network", network.look_at_port, ("port",)),
    "loopback": Probe("Network", network.look_at_loopback, ("loopback",)),
    "host_name": Probe("Network", network.look_at_host_name, ("host_name",)),
    "variables": Probe("Network", network.look_at_variables, ("variables",)),
}
"""Every probe by its name."""
SECTIONS = ("Device", "Software", "Packages", "Host", "Network")


def examine(needs: Needs, limit_s: float = LIMIT_S, probes: Mapping[str, Probe] = PROBES) -> dict[str, Finding]:
    """Run all probes at once; every name of every probe is in the result, whatever became of the probe."""
    until = time.monotonic() + limit_s
    answers: queue.Queue[tuple[str, list[Finding]]] = queue.Queue()
    waiting = set(probes)
    for name in probes:
        threading.Thread(target=_run, args=(name, probes[name], needs, until, answers), daemon=True).start()
    found: dict[str, list[Finding]] = {}
    while waiting and (left := until + 1 - time.monotonic()) > 0:  # a killed process has a second to be told of
        try:
            name, findings = answers.get(timeout=left)
        except queue.Empty:
            break
        found[name] = findings
        waiting.discard(name)
    for name in waiting:
        found[name] = _no_answer(probes[name], [], f"no answer within {limit_s:g} s", _again(limit_s))
    return {finding.name: finding for name, probe in probes.items() for finding in _whole(probe, found[name])}


def _run(name: str, probe: Probe, needs: Needs, until: float, answers: queue.Queue[tuple[str, list[Finding]]]) -> None:
    """One probe, in a thread of its own."""
    try:
        if probe.absent is not None and probe.package is not None and not is_found(probe.package):
            found = list(probe.absent(needs))
        else:
            found = _in_a_process(probe, needs, until) if probe.alone else list(probe.look(needs))
    except Exception as error:  # a machine that is broken in a way that nobody thought of: the other lines still come
        found = _no_answer(probe, [], f"could not be looked at: {packages.describe(error)}", "vmae2 doctor --debug")
    answers.put((name, found))


def _in_a_process(probe: Probe, needs: Needs, until: float) -> list[Finding]:
    """What came of it before it was done, or crashed, or had to be killed counts."""
    limit_s = until - time.monotonic()
    whole = probe.look if isinstance(probe.look, partial) else partial(probe.look)
    look = f"{whole.func.__module__}:{whole.func.__qualname__}"
    command = [sys.executable, "-c", CHILD, str(Path(__file__).parents[2]), str(os.getpid()), look, *whole.args]
    said = ask(command, limit_s, needs.to_json())
    if said is None:
        return _no_answer(probe, [], f"{sys.executable} cannot be started", "a Python that can be started")
    found = [Finding(**json.loads(line)) for line in said.out.splitlines(keepends=True) if line.endswith("\n")]
    if said.code == 0:
        return found
    if said.code is None:
        return _no_answer(probe, found, f"not done within {limit_s:.0f} s", _again(limit_s))
    why = f"signal {-said.code}" if said.code < 0 else said.last_words or f"exit code {said.code}"
    by_hand = f'python -X faulthandler -c "import {probe.package}"' if probe.package else "vmae2 doctor --debug"
    return _no_answer(probe, found, f"its process ended: {why[:200]}", by_hand)


def _again(limit_s: float) -> str:
    return f"vmae2 doctor --limit-s {4 * max(1, round(limit_s))}"


def _no_answer(probe: Probe, found: list[Finding], why: str, remedy: str) -> list[Finding]:
    """What was found, and of the first name that was not, why not."""
    missing = [name for name in probe.names if name not in {finding.name for finding in found}]
    tell = red if probe.no_answer == "red" else yellow
    return [*found, *(tell(name, why, remedy) for name in missing[:1])]


def _whole(probe: Probe, found: list[Finding]) -> list[Finding]:
    """The findings in the order of the probe's names; those that are missing are not known, for the last one's reason."""
    by_name, last = {finding.name: finding for finding in found}, found[-1]
    lost = f"not known, as {last.name} did not answer"
    return [by_name.get(name) or yellow(name, lost, last.remedy or "vmae2 doctor --debug") for name in probe.names]
