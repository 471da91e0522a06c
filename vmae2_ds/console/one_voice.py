"""Which rank of a job says what went wrong: the ranks of a host that would say the same line say it once."""

from __future__ import annotations

import contextlib
import hashlib
import os
import platform
import tempfile
import time
from pathlib import Path

from vmae2_ds.dist import map_rank_variables
from vmae2_ds.errors import ConfigError

FIRST_WORD_S = 1.0
"""Other ranks let rank 0 speak first; nothing depends on whether it does."""
OLD_S = 3600.0
LAUNCH_S = 600.0
"""Ranks start within so long of their launcher, one after another on a busy machine. An older parent is a shell, in which
somebody may type them again."""
_SAID = "vmae2_said_"
_JOB = (
    "MASTER_ADDR",
    "MASTER_PORT",
    "SLURM_JOB_ID",
    "SLURM_STEP_ID",
    "SLURM_RESTART_COUNT",
    "TORCHELASTIC_RESTART_COUNT",
)


def rank_here() -> int | None:
    """Rank of this process as its launcher says; None where there is no launcher, or its variables make no sense."""
    try:
        ranks = map_rank_variables({**os.environ})
    except ConfigError:
        said = os.environ.get("RANK", "")
        return int(said) if said.isdigit() else None
    return ranks.rank if ranks.size > 1 else None


def may_say(line: str, rank: int | None) -> bool:
    """Is it this process that says `line`? True for one of the ranks of a job on this host: the first that asks.

    Ranks that one launcher started on a host share a file name made of the launcher's process, the job and the line; the
    one that creates the file speaks. No rank waits for another, and a line that only one rank has is always said.
    """
    parent = _started(os.getppid())
    if rank is None or parent is None:
        return True
    if rank:
        time.sleep(FIRST_WORD_S)
    folder = Path(tempfile.gettempdir())
    file = folder / f"{_SAID}{_key(line, parent)}"
    try:
        _forget_old(folder)
        if time.clock_gettime(time.CLOCK_BOOTTIME) - parent > LAUNCH_S:
            _forget(file, _wall_time(_started(os.getpid()) or 0.0))  # of an earlier try
        file.touch(exist_ok=False)
    except FileExistsError:
        return False
    except OSError:
        return True  # no place to agree in: better twice than never
    return True


def _key(line: str, parent: float) -> str:
    job = [platform.node(), str(os.getppid()), str(parent), *(os.environ.get(name, "") for name in _JOB), line]
    return hashlib.sha256("\0".join(job).encode("utf-8", "surrogateescape")).hexdigest()[:32]


def _started(process: int) -> float | None:
    """When a process started, in seconds since the machine did: with its number, who it is. None without /proc."""
    try:
        fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return int(fields[19]) / os.sysconf("SC_CLK_TCK")


def _wall_time(since_start_s: float) -> float:
    return time.time() - time.clock_gettime(time.CLOCK_BOOTTIME) + since_start_s


def _forget(file: Path, before: float) -> None:
    with contextlib.suppress(FileNotFoundError):
        if file.stat().st_mtime < before:
            file.unlink()


def _forget_old(folder: Path) -> None:
    """Remove the files of jobs of long ago."""
    for file in folder.glob(f"{_SAID}*"):
        _forget(file, time.time() - OLD_S)
