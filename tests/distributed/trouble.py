"""`python -m tests.distributed.trouble`: the command line, but something happens to one rank at one step.

VMAE2_TEST_TROUBLE is a list of WHAT:RANK:STEP, for what is done to the rank in the loss of its first micro step after it has
taken that many steps. VMAE2_TEST_LEAVE_OUT is a window of samples that all ranks leave out.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import signal
import sys
import time
from collections.abc import Callable

from vmae2_ds.cli.main import main
from vmae2_ds.contracts import LossOutput
from vmae2_ds.data.feed import loader
from vmae2_ds.objectives import Reconstruct


def sleep(out: LossOutput) -> LossOutput:
    """Hang in Python's sleep."""
    time.sleep(600)
    return out


def hold_the_lock(out: LossOutput) -> LossOutput:
    """Hang in C with the interpreter's lock held: no Python thread of this process runs any more."""
    mutex = ctypes.create_string_buffer(64)
    libc = ctypes.PyDLL(None)
    libc.pthread_mutex_lock(mutex)
    libc.pthread_mutex_lock(mutex)  # waits for itself, and no signal ends that
    return out


def die(out: LossOutput) -> LossOutput:
    """As the kernel kills what takes too much memory."""
    os.kill(os.getpid(), signal.SIGKILL)
    return out


def spike(out: LossOutput) -> LossOutput:
    """A loss, and gradients, far above the rest."""
    return out._replace(loss=30 * out.loss)


def nan(out: LossOutput) -> LossOutput:
    """A loss and gradients that are no number."""
    return out._replace(loss=float("nan") * out.loss)


def remove(out: LossOutput) -> LossOutput:
    """Somebody tidies up: the run folder is gone while the run goes on."""
    shutil.rmtree(sys.argv[sys.argv.index("--train.run") + 1])
    return out


TROUBLES: dict[str, Callable[[LossOutput], LossOutput]] = {
    "sleep": sleep,
    "hold_the_lock": hold_the_lock,
    "die": die,
    "spike": spike,
    "nan": nan,
    "remove": remove,
}


def troubled(objective: type, mine: dict[int, str]) -> None:
    """Put the trouble into an objective's forward pass: the step -> what happens in it."""
    forward = objective.forward  # type: ignore[attr-defined]
    accumulation, calls = int(os.environ.get("VMAE2_TEST_ACCUMULATION", "2")), 0

    def wrapped(self: object, batch: object) -> LossOutput:
        nonlocal calls
        out = forward(self, batch)
        step, micro_step = divmod(calls, accumulation)
        calls += 1
        return TROUBLES[mine[step]](out) if micro_step == 0 and step in mine else out

    objective.forward = wrapped  # type: ignore[attr-defined]


def leave_out(gap: int) -> None:
    """Steps read windows 0, 1, ... without `gap`: what a rollback must amount to."""
    loader.window_of = lambda step, skipped: step if step < gap else step + 1  # type: ignore[attr-defined]


if __name__ == "__main__":
    asked = [word.split(":") for word in os.environ.get("VMAE2_TEST_TROUBLE", "").split(",") if word]
    troubled(Reconstruct, {int(step): what for what, rank, step in asked if rank == os.environ["RANK"]})
    if "VMAE2_TEST_LEAVE_OUT" in os.environ:
        leave_out(int(os.environ["VMAE2_TEST_LEAVE_OUT"]))
    main()
