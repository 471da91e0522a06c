"""The parent's end of the process that measures: it is asked line by line, and ended with all that it has started."""

from __future__ import annotations

import contextlib
import json
import os
import select
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from benchmarks.family import end_family
from benchmarks.run import how_it_ended
from vmae2_ds.errors import Vmae2Error

WORKER = "benchmarks.visit.worker"
"""The module that runs there."""


class TookTooLong(Vmae2Error):
    """No answer within the limit; the process was ended."""


class HasDied(Vmae2Error):
    """The process ended instead of answering."""


class Hired:
    """A worker, started when it is first asked something, and again after it died."""

    def __init__(self, environment: dict[str, str], log: Path) -> None:
        self._environment, self._log = environment, log
        self._process: subprocess.Popen[bytes] | None = None
        self._answers = -1
        """Where it answers: a pipe of its own, for packages print to standard output, some of them while they are imported."""

    @property
    def runs(self) -> bool:
        """Whether it was started and has not been ended since."""
        return self._process is not None

    def start(self) -> None:
        """Let it begin to import, if it does not run: it is asked later."""
        if self._process is None:
            self._answers, theirs = os.pipe()
            command = [sys.executable, "-m", WORKER, str(os.getpid()), str(theirs)]
            with self._log.open("ab") as log:
                self._process = subprocess.Popen(
                    command, stdin=subprocess.PIPE, stdout=log, stderr=log, env=self._environment, pass_fds=[theirs],
                    start_new_session=True,
                )  # fmt: skip
            os.close(theirs)

    def ask(self, limit_s: float, **question: Any) -> Any:
        """Its answer.

        Raises:
            TookTooLong: there was none within the limit.
            HasDied: it ended instead.
            Vmae2Error: it says that the question cannot be answered.
        """
        self.start()
        assert self._process is not None, "it was started"
        assert self._process.stdin is not None, "it has a pipe"
        try:
            self._process.stdin.write(json.dumps(question).encode() + b"\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            raise HasDied(self._how()) from None
        answer = json.loads(self._read(limit_s))
        if "error" in answer:
            raise Vmae2Error(answer["error"])
        return answer["answer"]

    def _read(self, limit_s: float) -> bytes:
        end, line, pipe = time.monotonic() + limit_s, b"", self._answers
        while not line.endswith(b"\n"):
            ready, _, _ = select.select([pipe], [], [], max(0.0, end - time.monotonic()))
            if not ready:
                self.end()
                raise TookTooLong(f"ended: no answer after {limit_s:.0f} s")
            piece = os.read(pipe, 2**16)
            if not piece:
                raise HasDied(self._how())
            line += piece
        return line

    def _how(self) -> str:
        assert self._process is not None, "it was started"
        try:
            code = self._process.wait(5)
        except subprocess.TimeoutExpired:  # its pipe is closed, it still runs
            code = 1
        self.end()
        return how_it_ended(code)

    def end(self) -> None:
        """End it, its process group and what it has started in groups of their own."""
        if self._process is None:
            return
        end_family(self._process)
        os.close(self._answers)
        if self._process.stdin is not None:
            with contextlib.suppress(BrokenPipeError):
                self._process.stdin.close()
        self._process = None
