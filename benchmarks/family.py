"""Ending a process with all that came of it."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
from typing import Any

import psutil


def end_family(process: subprocess.Popen[Any]) -> None:
    """Kill a process, all of the group that it leads, and what it has started in groups of their own, and wait for it."""
    family: list[psutil.Process] = []
    with contextlib.suppress(psutil.Error):
        parent = psutil.Process(process.pid)
        family = [parent, *parent.children(recursive=True)]
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    for member in family:
        with contextlib.suppress(psutil.Error):
            member.kill()
    process.wait()
