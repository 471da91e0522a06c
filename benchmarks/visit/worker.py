"""The process of a visit that measures: imports once, keeps a model from group to group, and answers line by line.

python -m benchmarks.visit.worker PARENT FD: each line on standard input is a question, each line on file descriptor FD the
answer to it. It leads its own process group, so that whoever started it can end it with
all that it has started; it ends itself, in the same way, when its parent has gone.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from functools import cache
from typing import Any

import torch

from benchmarks.cases import CASES
from benchmarks.cases.ceilings import copy_step
from benchmarks.ceiling import product_step
from benchmarks.devices import Step, describe, find_device, timer_of
from benchmarks.filling import free_bytes
from benchmarks.harness import reason_of
from benchmarks.record import read_rows
from benchmarks.steps import let_workbench_go
from benchmarks.visit.predict import predicted_s, rates_at
from benchmarks.worker import Job, bench_of, end_with, is_done, mark_of, measure_group
from vmae2_ds.cost.compute_time import DeviceRates
from vmae2_ds.dist import Ranks
from vmae2_ds.errors import Vmae2Error

Answer = dict[str, Any]
PRODUCT_EDGE, COPIED_MIB = {"cpu": 768, "cuda": 8192}, {"cpu": 64, "cuda": 1024}
WITH_WORKBENCH = ("dual_masking", "decoder_masking", "step_parts", "checkpointing", "peers")
"""Cases whose steps share the kept model: what the others want the memory for is something else."""
LAUNCH_S = {"cpu": 23e-6, "cuda": 6e-6}
"""Seconds to start an operation: the planner's priors (vmae2_ds/tune/this_cpu.py, vmae2_ds/cost/assumptions.py)."""


def look(device: str) -> Answer:
    """What the device is called, and of which type."""
    found = find_device(device)  # type: ignore[arg-type]
    return {"device": describe(found), "type": found.type}


def groups_of(job: Job) -> list[Answer]:
    """The groups of a case: name, fingerprint, whether its rows are there, and predicted seconds."""
    bench = bench_of(job, Ranks())
    room = free_bytes(bench.device) if bench.device.type == "cuda" else None
    rates, rows = measured_rates(bench.device), read_rows(job.out)
    return [
        {
            "name": group.name,
            "mark": (mark := mark_of(job, group, bench)),
            "done": is_done(job, group.name, mark),
            "tried": any(row["fingerprint"] == mark for row in rows),
            "predicted_s": predicted_s(job.case, group.name, job.options, rates, free_bytes=room),
        }
        for group in CASES[job.case].groups(bench)
    ]


def measure(job: Job, name: str) -> Answer:
    """Measure one group: its rows are on disk when this returns."""
    bench = bench_of(job, Ranks())
    if job.case not in WITH_WORKBENCH:
        let_workbench_go()  # another case wants the device's memory for something else
    group = next(group for group in CASES[job.case].groups(bench) if group.name == name)
    start = time.perf_counter()
    measure_group(job, group, bench, mark_of(job, group, bench))
    return {"took_s": time.perf_counter() - start}


@cache
def measured_rates(device: torch.device) -> DeviceRates:
    """A bf16 product and a copy, timed for a moment."""
    edge, mib = PRODUCT_EDGE[device.type], COPIED_MIB[device.type]
    _, timer = timer_of(device)

    def best_s(step: Step) -> float:
        return min([timer(step) for _ in range(4)][1:])

    product_s, copy_s = best_s(product_step("bf16", edge, 1, device)), best_s(copy_step(mib, device))
    return rates_at(2.0 * edge**3 / product_s, 2.0 * mib * 2**20 / copy_s, LAUNCH_S[device.type])


def answer(question: Answer) -> Any:
    """To `look`, `groups` or `measure`."""
    if question["ask"] == "look":
        return look(question["device"])
    job = Job.model_validate(question["job"])
    return groups_of(job) if question["ask"] == "groups" else measure(job, question["group"])


def main(parent: int, answers: int) -> None:
    """Answer until standard input ends."""
    replies = os.fdopen(answers, "w")
    end_with(parent, end=lambda: os.killpg(0, signal.SIGKILL))
    for line in sys.stdin:
        try:
            told = {"answer": answer(json.loads(line))}
        except Vmae2Error as error:  # anything else ends the process, which is an answer too
            told = {"error": reason_of(error)}
        print(json.dumps(told), file=replies, flush=True)


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
