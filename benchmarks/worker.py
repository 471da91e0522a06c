"""One process of a run: measure the groups of a case one after another, and write each group's rows as soon as it ends.

python -m benchmarks.worker JOB.json, also as ranks: deepspeed --num_accelerators N --module benchmarks.worker JOB.json
"""

from __future__ import annotations

import os
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable
from functools import partial
from pathlib import Path

import psutil
import torch

from benchmarks import flight
from benchmarks.case import Bench, Group, Options
from benchmarks.cases import CASES
from benchmarks.devices import describe, settle_malloc
from benchmarks.harness import FAILURES, has_failed, is_device_broken, reason_of
from benchmarks.record import WHOLE_GROUP, Row, append_rows, current, fingerprint, provenance, read_rows
from vmae2_ds.config.pretrain import StrictModel
from vmae2_ds.dist import Ranks
from vmae2_ds.engine.ranks import start_ranks, stop_ranks

LOOK_EVERY_S = 2.0


class Job(StrictModel):
    """What a worker is asked for."""

    case: str
    """Its name."""
    options: Options
    """As resolved."""
    out: Path
    """Folder of the rows."""
    command: str
    """What was typed, for the rows."""
    since: float
    """Unix time at which the run began: groups that failed before are tried again."""
    fresh: bool = False
    """Rows from before the run do not count as done."""
    parent: int | None = None
    """Process whose end is also the worker's."""


def work(job: Job) -> None:
    """Measure what is not there yet. Called on every rank where a launcher started several; rank 0 writes."""
    case = CASES[job.case]
    ranks = start_ranks() if case.launched else Ranks()
    bench = bench_of(job, ranks)
    groups = list(case.groups(bench))
    for number, group in enumerate(groups):
        mark = mark_of(job, group, bench)
        if ranks.from_first(partial(is_done, job, group.name, mark)):
            _say(ranks, f"{job.case}: {group.name}: done before")
            continue
        _say(ranks, f"{job.case}: {group.name} ({number + 1} of {len(groups)})")
        measure_group(job, group, bench, mark)
    if case.launched:
        stop_ranks(ranks)


def bench_of(job: Job, ranks: Ranks) -> Bench:
    """What the groups of a job measure with; on a CPU with one thread, for a GPU the host has those of the environment."""
    bench = Bench(job.options, _progress if ranks.rank == 0 else lambda _: None, ranks, job.out, num_nodes(ranks))
    if bench.device.type == "cpu":
        torch.set_num_threads(1)
    settle_malloc()
    return bench


def mark_of(job: Job, group: Group, bench: Bench) -> str:
    """The fingerprint of a group: everything that a figure of it depends on."""
    options = job.options
    asked = {"rounds": options.rounds, "warmup": options.warmup, "quick": options.quick, "settings": group.settings}
    where = {"device": describe(bench.device), "world": bench.ranks.size, "nodes": bench.nodes}
    return fingerprint(case=job.case, group=group.name, **asked, **where)


def num_nodes(ranks: Ranks) -> int:
    """Hosts of the ranks; every rank calls this."""
    names = [socket.gethostname()] * ranks.size
    if ranks.size > 1:
        torch.distributed.all_gather_object(names, names[0])
    return len(set(names))


def is_done(job: Job, group: str, mark: str) -> bool:
    """Measured in this run, or before it, unless `fresh` or something of it failed then.

    A package that is not there is no failure to try again: once it is installed the group's fingerprint is another.
    """
    rows = [
        row for row in read_rows(job.out) if (row["case"], row["group"], row["fingerprint"]) == (job.case, group, mark)
    ]
    mine = [row for row in rows if row["unix_time"] >= job.since]
    return bool(mine or (rows and not job.fresh and not any(has_failed(row) for row in current(rows))))


def measure_group(job: Job, group: Group, bench: Bench, mark: str) -> None:
    """Measure a group and append its rows; one that fails leaves a row that says why."""
    note = {"case": job.case, "group": group.name, "fingerprint": mark}
    if bench.ranks.rank == 0:
        flight.begin(job.out, **note)
    start = time.perf_counter()
    try:
        rows = group.measure()
    except FAILURES as error:
        if is_device_broken(error):
            raise
        if bench.ranks.size > 1:  # the others wait in a collective, so this one must not: the launcher ends them all
            traceback.print_exc()
            sys.stderr.flush()
            os._exit(1)
        rows = [failed_group(reason_of(error))]
    if bench.ranks.rank == 0:
        shared = {"device": describe(bench.device), "ranks": bench.ranks.size, "nodes": bench.nodes}
        shared |= {"group_s": time.perf_counter() - start, **row_origin(job)}
        append_rows(job.out / f"{job.case}.jsonl", [{**shared, **row, **note} for row in rows])
        flight.end(job.out)


def failed_group(reason: str) -> Row:
    """The row of a group that came to nothing."""
    return {"variant": WHOLE_GROUP, "config": {}, "error": reason, "samples_s": []}


def row_origin(job: Job) -> Row:
    """Provenance with what a person typed and told, and the second at which the row was written."""
    known = provenance()
    known["machine"] |= {"interconnect": job.options.interconnect} if job.options.interconnect else {}
    return {**known, "command": job.command, "unix_time": time.time()}


def _say(ranks: Ranks, line: str) -> None:
    if ranks.rank == 0:
        clear = "\r\x1b[K" if sys.stderr.isatty() else ""
        print(f"{clear}{line}", file=sys.stderr, flush=True)


def _progress(line: str) -> None:
    """Inside a group: on a terminal only, over itself."""
    if sys.stderr.isatty():
        print(f"\r\x1b[K  {line}", end="", file=sys.stderr, flush=True)


def end_with(
    parent: int, exists: Callable[[int], bool] = psutil.pid_exists, end: Callable[[], None] = lambda: os._exit(1)
) -> None:
    """End this process when `parent` has: a run that was killed must not go on measuring beside the next one."""

    def watch() -> None:
        while exists(parent):
            time.sleep(LOOK_EVERY_S)
        end()

    threading.Thread(target=watch, daemon=True).start()


def main(args: list[str]) -> None:
    """Do the job in the file that the first argument names."""
    asked = Job.model_validate_json(Path(next(arg for arg in args if not arg.startswith("--"))).read_text())
    if asked.parent is not None:
        end_with(asked.parent)
    work(asked)


if __name__ == "__main__":
    main(sys.argv[1:])
