"""A visit of cases that cost nothing.

python -m tests.benchmarks.made_visit OUT MINUTES is the visit, and ... PARENT FD is its worker.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from benchmarks import worker
from benchmarks.case import Bench, Case, Group, Options, timed
from benchmarks.harness import Variant
from benchmarks.record import Row
from benchmarks.visit import budget, going, hired, predict
from benchmarks.visit import worker as visit_worker
from benchmarks.visit.parts import Asked, Part
from tests.benchmarks.made_cases import MADE

CHILD = "MADE_VISIT_CHILD"
"""A file into which the group that hangs writes the number of a process that it has started, in a group of its own."""
LIMIT_S = 4.0
"""Of the group that hangs."""


def _hang() -> None:
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], start_new_session=True)
    Path(os.environ[CHILD]).write_text(str(child.pid))
    time.sleep(600)


def _lack() -> None:
    raise ModuleNotFoundError("No module named 'nowhere'")


def _one(before: Callable[[], None]) -> Case:
    def measure(bench: Bench) -> list[Row]:
        before()
        return timed([Variant("a", lambda: lambda: None)], bench, memory=False)

    def groups(bench: Bench) -> Iterator[Group]:
        yield Group("only", partial(measure, bench))

    return Case(groups, "made")


MADE_HERE = {
    **MADE,
    "hanging": _one(_hang),
    "lengthy": _one(lambda: None),
    "last": _one(lambda: None),
    "lacking": _one(_lack),
}
PREDICTED_S = {"lengthy": 1e6, "hanging": 0.1, "last": 0.1, "steady": 0.1, "deadly": 0.1, "held": 0.1, "lacking": 0.1}
FOUND = {
    "driver": {"light": "green", "value": "there"},
    "shm": {"light": "red", "value": "too little", "remedy": "more"},
}
ORDER = os.environ.get("MADE_VISIT", "lengthy steady hanging deadly last").split()


def use_made_visit() -> None:
    """Let this process visit, or work for a visit, with them."""
    worker.CASES = visit_worker.CASES = MADE_HERE
    predict.OTHERS_S.update(PREDICTED_S)
    hired.WORKER = "tests.benchmarks.made_visit"
    budget.LEAST_LIMIT_S = budget.WORST = LIMIT_S
    going.DOCTOR_COMMAND = (sys.executable, "-c", f"print({json.dumps({'findings': FOUND})!r})")
    going.parts_of = lambda asked, device: [
        Part(name, name, Options(device="cpu", rounds=asked.rounds or 2, warmup=0)) for name in ORDER
    ]


if __name__ == "__main__":
    print("as packages do, some of them while they are imported")
    use_made_visit()
    if sys.argv[1].isdigit():
        visit_worker.main(*map(int, sys.argv[1:]))
    else:
        out, minutes = sys.argv[1:]
        sys.exit(going.visit(Asked(device="cpu", minutes=float(minutes), out=Path(out)), "made"))
