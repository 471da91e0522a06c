"""A program asked with a limit: its answer, or none in time. What hangs in the kernel is left behind, never waited for."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from typing import NamedTuple


class Said(NamedTuple):
    """What a program said."""

    code: int | None
    """The exit code, negative where a signal ended it; None where the limit did."""
    out: str
    err: str

    @property
    def last_words(self) -> str:
        """The last line of its standard error: of a traceback, the error."""
        return (self.err.strip().splitlines() or [""])[-1].strip()


def ask(command: Sequence[str], limit_s: float, text: str = "", env: Mapping[str, str] | None = None) -> Said | None:
    """Run a command, give it `text`, and wait for its answer; None where there is no such program.

    After `limit_s` it and all that it started are killed, and whatever survives that (a process that waits for a dead disk or
    driver) is left alone.
    """
    until = time.monotonic() + limit_s
    try:
        process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=env,
            start_new_session=True,
        )
    except OSError:
        return None
    try:
        out, err = process.communicate(text.encode(), timeout=max(0.1, until - time.monotonic()))
    except subprocess.TimeoutExpired as late:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
        return Said(None, _text(late.stdout), _text(late.stderr))
    return Said(process.returncode, _text(out), _text(err))


def _text(raw: bytes | str | None) -> str:
    return raw if isinstance(raw, str) else (raw or b"").decode(errors="replace")
