"""Run cases, each in processes of its own: what is measured stays, what is done is not done again, what dies is a row."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from benchmarks import flight
from benchmarks.case import Options
from benchmarks.cases import CASES
from benchmarks.record import Row, append_rows, read_rows
from benchmarks.worker import Job, failed_group, row_origin, work

TIME_TO_STOP_S = 30


def run_cases(
    names: Sequence[str],
    options: Options,
    out: Path,
    command: str,
    *,
    fresh: bool,
    show: Callable[[str, list[Row]], None],
) -> int:
    """Measure the cases into OUT/CASE.jsonl; returns how many rows of this run tell of an error.

    A group whose rows are there, measured with the same settings by the same code on the same machine, is left alone unless
    `fresh`. A group whose process dies, for memory or by a fault, leaves a row that says so, and the others go on. Under a
    launcher (`deepspeed --hostfile ... --module benchmarks run zero`) this process is one of its ranks.
    """
    since, failed = time.time(), 0
    for name in names:
        job = Job(case=name, options=options, out=out.resolve(), command=command, since=since, fresh=fresh)
        if "WORLD_SIZE" in os.environ:
            work(job)
        else:
            job = job.model_copy(update={"parent": os.getpid()})
            for launcher in _launchers(name, options):
                _work_in_child(job, launcher)
        rows = [row for row in read_rows(out) if row["case"] == name and row["unix_time"] >= since]
        for group in dict.fromkeys(row["group"] for row in rows if os.environ.get("RANK", "0") == "0"):
            show(f"{name}: {group}", [row for row in rows if row["group"] == group])
        failed += sum(bool(row["error"]) for row in rows)
    return failed


def _launchers(name: str, options: Options) -> list[list[str]]:
    """Command lines up to the job's file, one for each world size."""
    worker = "benchmarks.worker"
    if not CASES[name].launched:
        return [[sys.executable, "-m", worker]]
    return [
        [sys.executable, "-m", "deepspeed.launcher.runner", "--num_accelerators", str(number),
         "--master_port", str(_free_port()), "--no_local_rank", "--module", worker]
        for number in options.ranks
    ]  # fmt: skip


def _work_in_child(job: Job, launcher: list[str]) -> None:
    """Children until every group has rows: what ends its process, a variant where the group says which, costs itself alone."""
    flight.end(job.out)
    while True:
        code = _run(job, launcher)
        died = flight.read_flight(job.out)
        if died is None:
            if code:  # before the first group: nothing to go on with
                raise SystemExit(code if code > 0 else 1)
            return
        if died.variant is not None:
            flight.write_flight(job.out, died.without(died.variant, _how_it_ended(code)))
            continue
        row = failed_group(_how_it_ended(code))
        append_rows(job.out / f"{job.case}.jsonl", [{**row, **died.note, "device": "?", **row_origin(job.command)}])
        flight.end(job.out)


def _how_it_ended(code: int) -> str:
    if code > 192:  # the launcher's own exit code for a rank that was ended by a signal: minus its number, in 8 bits
        code -= 256
    if code >= 0:
        return f"the process ended with exit code {code}; its output says why"
    name = signal.Signals(-code).name
    return f"the process was ended by {name}" + "; the machine may be out of memory" * (name == "SIGKILL")


def _run(job: Job, launcher: list[str]) -> int:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "job.json"
        path.write_text(job.model_dump_json())
        child = subprocess.Popen([*launcher, str(path)], env=_environment(job.options))
        try:
            return child.wait()
        except BaseException:
            child.terminate()
            try:
                child.wait(TIME_TO_STOP_S)
            except subprocess.TimeoutExpired:
                child.kill()
            raise


def _environment(options: Options) -> dict[str, str]:
    """One thread to a process, and DeepSpeed on the device that was asked for."""
    on_cpu = {"DS_ACCELERATOR": "cpu"} if options.device == "cpu" else {}
    return {**os.environ, "OMP_NUM_THREADS": "1", **on_cpu}


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
