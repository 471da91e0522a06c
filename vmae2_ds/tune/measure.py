"""Measure settings for real: each in child processes under the deepspeed launcher, so that one that dies costs only itself."""

from __future__ import annotations

import json
import os
import signal
import statistics
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from vmae2_ds.cost.assumptions import Assumptions, Range
from vmae2_ds.host import free_port
from vmae2_ds.tune.candidates import Candidate
from vmae2_ds.tune.setting_cost import GIB, Setting

NUM_STEPS = 4
"""Optimizer steps of a trial; the first two warm up and are dropped."""
NUM_WARMUP = 2


class Measured(NamedTuple):
    """Result of running a setting."""

    step_s: float | None
    """Median of the counted steps; None where the trial failed."""
    peak_gib: float | None
    """All memory of the fullest rank."""
    outside_gib: float | None
    """The part of peak_gib outside torch's allocator: context and workspaces; None on a CPU, where nobody counts it."""
    unused_share: float | None
    """Share of the allocator's memory that no tensor used; None on a CPU."""
    error: str | None


def measure(
    setting: Setting, ds_config_path: Path, num_ranks: int, folder: Path, *, hostfile: Path | None, timeout_s: float
) -> Measured:
    """Run a few steps of `setting` on `num_ranks` ranks. Files of the trial stay in `folder`, log included."""
    folder.mkdir(parents=True, exist_ok=True)
    config = setting.config.changed(train={"ds_config": str(ds_config_path), "init": None})
    config_path, out, log_path = folder / "run.json", folder / "measured.json", folder / "log.txt"
    config_path.write_text(config.model_dump_json(indent=1))
    out.unlink(missing_ok=True)
    where = ["--hostfile", str(hostfile)] if hostfile else ["--num_accelerators", str(num_ranks)]
    command = [sys.executable, "-m", "deepspeed.launcher.runner", *where, "--master_port", str(free_port())]
    command += ["--module", "vmae2_ds.tune.trial", str(config_path), str(NUM_STEPS), str(out)]
    with log_path.open("w") as log:
        launcher = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)
        try:
            code = launcher.wait(timeout_s)
        except (subprocess.TimeoutExpired, KeyboardInterrupt) as stopped:
            os.killpg(launcher.pid, signal.SIGTERM)  # its own session: nothing but this trial
            try:
                launcher.wait(45)
            except subprocess.TimeoutExpired:
                os.killpg(launcher.pid, signal.SIGKILL)
            if isinstance(stopped, KeyboardInterrupt):
                raise
            return Measured(None, None, None, None, f"no result within {timeout_s:g} s; see {log_path}")
    if code or not out.is_file():
        return Measured(None, None, None, None, f"{_why(log_path)} (exit code {code}; see {log_path})")
    return _read(json.loads(out.read_text()))


def _read(result: dict[str, Any]) -> Measured:
    on_cpu = result["device"] == "cpu"
    return Measured(
        step_s=statistics.median(result["step_times_s"][NUM_WARMUP:]),
        peak_gib=result["peak_bytes"] / GIB,
        outside_gib=None if on_cpu else (result["peak_bytes"] - result["reserved_bytes"]) / GIB,
        unused_share=None if on_cpu else 1 - result["allocated_bytes"] / result["reserved_bytes"],
        error=None,
    )


def _why(log_path: Path) -> str:
    """The line of a failed trial's log that says most."""
    lines = [line.strip() for line in log_path.read_text(errors="replace").splitlines() if line.strip()]
    for sign in ("OutOfMemoryError", "vmae2:", "Error"):
        for line in lines:
            if sign in line and "raise " not in line:  # the source line in a traceback comes before what was raised
                return line[-300:]
    return lines[-1][-300:] if lines else "no output"


class Trial(NamedTuple):
    """A measured setting beside its prediction on the ranks that it was measured with."""

    asked: Candidate
    """On the machines that were asked for."""
    candidate: Candidate
    """On the ranks at hand."""
    measured: Measured


def refit(assumptions: Assumptions, trials: Sequence[Trial], source: str) -> tuple[Assumptions, list[str]]:
    """Assumptions that explain the trials, and the names of those that changed.

    Efficiencies and launch time are scaled by measured over predicted compute time. Context and fragmentation are read off
    where torch counts its memory; on a CPU the context is what was measured beyond the predicted tensors. What the
    trials do not show (links, data supply, host) stays as it was.
    """
    done = [trial for trial in trials if trial.measured.error is None]
    if not done:
        return assumptions, []
    slower = [_slowdown(trial) for trial in done]
    changed: dict[str, Any] = {
        "source": source,
        "matmul_efficiency": _around([assumptions.matmul_efficiency.value / times for times in slower], 0.1),
        "memory_efficiency": _around([assumptions.memory_efficiency.value / times for times in slower], 0.1),
        "launch_s": _around([assumptions.launch_s.value * times for times in slower], 0.1),
        "zero3_module_s": _around([assumptions.zero3_module_s.value * times for times in slower], 0.1),
        "context_gib": _around([_context_gib(trial) for trial in done], 0.05),
        "workspace_gib": Range(low=0, value=0, high=0),  # is in what was measured as context
    }
    # of a model of a few MiB most stays unused, which says nothing about large ones
    unused = [min(trial.measured.unused_share, 0.5) for trial in done if trial.measured.unused_share is not None]
    changed["fragmentation"] = _around(unused, 0.2) if unused else Range(low=0, value=0, high=0.1)
    return assumptions.model_copy(update=changed), [name for name in changed if name != "source"]


def _slowdown(trial: Trial) -> float:
    """Measured over predicted compute time; network and optimizer are taken as predicted, up to 80 % of the step."""
    assert trial.measured.step_s is not None, "of the trials that ended well"
    time = trial.candidate.time
    others_s = time.network_s + time.optimizer_s
    return max(trial.measured.step_s - others_s, 0.2 * trial.measured.step_s) / time.compute_s


def _context_gib(trial: Trial) -> float:
    measured = trial.measured
    if measured.outside_gib is not None:
        return measured.outside_gib
    assert measured.peak_gib is not None, "of the trials that ended well"
    return max(0.0, measured.peak_gib - trial.candidate.memory.tensors / GIB)


def _around(values: Sequence[float], slack: float) -> Range:
    """Median, and the extremes widened by `slack`."""
    return Range(low=min(values) * (1 - slack), value=statistics.median(values), high=max(values) * (1 + slack))
