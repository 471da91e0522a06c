"""Cases that cost nothing, for tests of the runner.

python -m tests.benchmarks.made_cases JOB.json is a worker that knows them, and ... run OUT CASE a whole run of one.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from benchmarks import run, worker
from benchmarks.case import Bench, Case, Group, Options, timed
from benchmarks.cases import CASES
from benchmarks.harness import Variant
from benchmarks.record import Row
from vmae2_ds.errors import ConfigError

HOLD = "MADE_CASES_HOLD"
"""A file; while it exists the second group of `held` does not end."""


def _measure(bench: Bench, before: Callable[[], None]) -> list[Row]:
    before()
    return timed([Variant(name, lambda: lambda: None) for name in ("a", "b")], bench, "a", memory=False)


def _hold() -> None:
    while Path(os.environ[HOLD]).exists():
        time.sleep(0.05)


def _refuse() -> None:
    raise ConfigError("no such thing here")


def made(second: Callable[[], None]) -> Case:
    """Three groups, of which the second first calls `second`."""

    def groups(bench: Bench) -> Iterator[Group]:
        for name, before in (("first", lambda: None), ("second", second), ("third", lambda: None)):
            yield Group(name, partial(_measure, bench, before))

    return Case(groups, "made")


MADE = {
    "steady": made(lambda: None),
    "deadly": made(lambda: os.kill(os.getpid(), signal.SIGKILL)),
    "refusing": made(_refuse),
    "held": made(_hold),
}
OPTIONS = Options(device="cpu", rounds=2, warmup=0)


def use_made_cases() -> None:
    """Let this process run and work on them."""
    run.CASES = worker.CASES = CASES | MADE
    run._launchers = lambda *_: [[sys.executable, "-m", "tests.benchmarks.made_cases"]]  # type: ignore[assignment]


if __name__ == "__main__":
    use_made_cases()
    if sys.argv[1] == "run":
        out, name = sys.argv[2:]
        sys.exit(run.run_cases([name], OPTIONS, Path(out), "made", fresh=False, show=lambda *_: None))
    worker.main(sys.argv[1:])
