"""`python -m tests.distributed.trouble`: the command line, but something happens to one rank at one step.

VMAE2_TEST_TROUBLE is WHAT:RANK:STEP, for what is done to the rank in the loss of its first micro step after that many steps.
"""

from __future__ import annotations

import ctypes
import os
import signal
import time
from collections.abc import Callable

from vmae2_ds.cli import main
from vmae2_ds.contracts import LossOutput
from vmae2_ds.train.engine import Engine


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


TROUBLES: dict[str, Callable[[LossOutput], LossOutput]] = {
    "sleep": sleep,
    "hold_the_lock": hold_the_lock,
    "die": die,
}


def troubled(micro_step: Callable[..., LossOutput]) -> Callable[..., LossOutput]:
    """Engine.micro_step with the trouble in it."""
    what, rank, step = os.environ["VMAE2_TEST_TROUBLE"].split(":")
    calls = 0

    def wrapped(engine: Engine, batch: object) -> LossOutput:
        nonlocal calls
        out = micro_step(engine, batch)
        is_there = calls == int(step) * engine.deepspeed.gradient_accumulation_steps()
        calls += 1
        return TROUBLES[what](out) if is_there and os.environ["RANK"] == rank else out

    return wrapped


if __name__ == "__main__":
    Engine.micro_step = troubled(Engine.micro_step)  # type: ignore[method-assign]
    main()
