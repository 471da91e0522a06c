"""Run cases, each in processes of its own: what is measured stays, what is done is not done again, what dies is a row."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from benchmarks import flight
from benchmarks.case import Options
from benchmarks.cases import CASES
from benchmarks.devices import find_device
from benchmarks.record import NO_START, Row, append_rows, read_rows
from benchmarks.worker import Job, failed_group, row_origin, work
from vmae2_ds.dist import map_rank_variables
from vmae2_ds.errors import ConfigError
from vmae2_ds.host import cores, free_port

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

    Raises:
        ConfigError: a device that is not there; a case for one process under a launcher.
    """
    if options.device == "cpu":
        os.environ["DS_ACCELERATOR"] = "cpu"
    find_device(options.device)
    ranks = map_rank_variables(dict(os.environ))
    single = [name for name in names if not CASES[name].launched]
    if ranks.size > 1 and single:
        raise ConfigError(
            f"{', '.join(single)}: one process measures these: run them without a launcher ({ranks.launcher})"
        )
    since, failed = time.time(), 0
    for name in names:
        job = Job(case=name, options=options, out=out.resolve(), command=command, since=since, fresh=fresh)
        if ranks.launcher != "none":
            work(job)
        else:
            job = job.model_copy(update={"parent": os.getpid()})
            for launcher in _launchers(name, options):
                _work_in_child(job, launcher)
        rows = [row for row in read_rows(out) if row["case"] == name and row["unix_time"] >= since]
        for group in dict.fromkeys(row["group"] for row in rows if ranks.rank == 0):
            show(f"{name}: {group}", [row for row in rows if row["group"] == group])
        failed += sum(bool(row["error"]) for row in rows)
    return failed


def _launchers(name: str, options: Options) -> list[list[str]]:
    """Command lines up to the job's file, one for each number of ranks."""
    worker = "benchmarks.worker"
    if not CASES[name].launched:
        return [[sys.executable, "-m", worker]]
    device = find_device(options.device)
    most = torch.cuda.device_count() if device.type == "cuda" else max(options.ranks)
    if left_out := [number for number in options.ranks if number > most]:
        print(f"{name}: {most} GPU(s) here: left out --ranks {' '.join(map(str, left_out))}", file=sys.stderr)
    return [
        [sys.executable, "-m", "deepspeed.launcher.runner", "--num_accelerators", str(number),
         "--master_port", str(free_port()), "--no_local_rank", "--module", worker]
        for number in options.ranks
        if number <= most
    ]  # fmt: skip


def _work_in_child(job: Job, launcher: list[str]) -> None:
    """Children until every group has rows: what ends its process, a variant where the group says which, costs itself alone."""
    flight.end(job.out)
    while True:
        code = _run(job, launcher)
        died = flight.read_flight(job.out)
        if died is None:
            if code:  # before the first group: nothing to go on with
                died = flight.Flight(case=job.case, group=NO_START, fingerprint="")
                record_death(job, died, how_it_ended(code))
            return
        if died.variant is not None:
            flight.write_flight(job.out, died.without(died.variant, how_it_ended(code)))
            continue
        record_death(job, died, how_it_ended(code))
        flight.end(job.out)


def record_death(job: Job, died: flight.Flight, reason: str) -> None:
    """A row for a group whose process could not write one."""
    row = {"device": "?", **row_origin(job), **failed_group(reason), **died.note}
    append_rows(job.out / f"{job.case}.jsonl", [row])


def how_it_ended(code: int) -> str:
    """In words, from a return code or the launcher's exit code."""
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
        child = subprocess.Popen([*launcher, str(path)], env=_environment(job))
        try:
            return child.wait()
        except BaseException:
            child.terminate()
            try:
                child.wait(TIME_TO_STOP_S)
            except subprocess.TimeoutExpired:
                child.kill()
            raise


def _environment(job: Job) -> dict[str, str]:
    device = find_device(job.options.device).type
    launched = CASES[job.case].launched and device == "cuda"
    return environment_for(device, min(max(job.options.ranks), torch.cuda.device_count()) if launched else 1)


def environment_for(device: str, processes: int = 1) -> dict[str, str]:
    """One thread to a process that measures a CPU; where a GPU is measured, each process's share of the host's cores.

    Offloaded optimizers run on them, and whatever else the host does beside a GPU.
    """
    threads = 1 if device == "cpu" else max(1, cores().usable // processes)
    return {**os.environ, "OMP_NUM_THREADS": str(threads)}
