"""One of several processes that do a job of the data tools together: which it is, what each says of itself, who still lives.

No process group and no port: a launcher's variables or `--part i/N` say who is who, and small files in the folder the rest.
A process writes and locks a file of its own in place; the first makes the files of all. So on a network file system, where a
new name may be seen late and what an opened file holds is not, nobody overlooks that another has ended.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import socket
import time
from pathlib import Path
from typing import IO, Literal, NamedTuple

from vmae2_ds.disk import is_held
from vmae2_ds.dist import LOCAL_SIZES, Ranks, find_ranks
from vmae2_ds.errors import ConfigError
from vmae2_ds.host import cores

MOST_PARTS = 10_000
STATUS_BYTES = 4096
LONGEST_REASON = 300
BEAT_S = 10.0
"""Between two signs of life."""
SILENT_S = 180.0
"""A process of another host that gives no sign of life for so long is gone: file servers may show a change a minute late."""


class JobPart(NamedTuple):
    """Which of the processes this is."""

    number: int = 0
    """From 0 on."""
    of: int = 1
    kind: Literal["rank", "part"] = "part"
    """rank: a launcher started all of them at once; part: of an array job, which may run at any time."""

    def named(self, number: int) -> str:
        """One of them in words: rank 0, or part 1/3."""
        return f"rank {number}" if self.kind == "rank" else f"part {number + 1}/{self.of}"

    def __str__(self) -> str:
        return self.named(self.number)


def part_here(asked: str | None) -> JobPart:
    """Which part of the work is this process's: that of `--part i/N`, of its rank, or all of it.

    Raises ConfigError for a part that cannot be, and as `find_ranks`.
    """
    if asked is None:
        try:
            ranks = find_ranks({**os.environ}, "do all of the work")
        except ConfigError as error:
            raise ConfigError(f"{error}; or give --part 1/1 to do all of it in this process") from None
        return JobPart() if ranks.size == 1 else JobPart(ranks.rank, ranks.size, "rank")
    found = re.fullmatch(r"(\d{1,6})/(\d{1,6})", asked)
    if found is None:
        raise ConfigError(f"--part {asked!r} is no part; write i/N, such as 3/8 for the third of eight")
    number, of = int(found[1]), int(found[2])
    if not 1 <= of <= MOST_PARTS or not 1 <= number <= of:
        raise ConfigError(
            f"--part {asked}: parts are numbered from 1 to N, and there are at most {MOST_PARTS}; write 1/N to N/N"
        )
    if (ranks := _ranks_if_any()).size > 1:
        raise ConfigError(
            f"--part {asked} is for one process of an array job, and {ranks.launcher} started {ranks.size} ranks, which share "
            "the work by themselves; leave --part out, or start one process a part"
        )
    return JobPart(number - 1, of)


def at_once_here(asked: int | None) -> int:
    """How many things this process does at the same time: as asked, or as many as its share of this host's cores."""
    if asked is not None:
        return asked
    there = cores()
    several = int(os.environ.get(LOCAL_SIZES.get(_ranks_if_any().launcher, ""), "1"))
    return there.usable if there.bound < there.machine else max(1, there.usable // several)  # a bound one has its own


def _ranks_if_any() -> Ranks:
    """A part knows its place: what a batch system says of tasks that nobody started is of no concern."""
    try:
        return find_ranks({**os.environ})
    except ConfigError:
        return Ranks()


class Status(NamedTuple):
    """What a part says of itself."""

    state: Literal["new", "working", "done", "stopped"] = "new"
    host: str = ""
    pid: int = 0
    done: int = 0
    """Number of its files that are finished by now, earlier ones included."""
    total: int = 0
    written: int = 0
    """Those finished by this start."""
    why: str = ""
    """What ended it."""

    @property
    def so_far(self) -> str:
        """Where it was and how far it came."""
        return f"on {self.host}: {self.done} of its {self.total} files are done, {self.total - self.done} are missing"


def here() -> Status:
    """The status of this process at its start."""
    return Status("working", socket.gethostname(), os.getpid())


def read_status(file: Path) -> Status:
    """What a part has last said; that of a file in which it is just writing is read again."""
    for _ in range(10):
        text = file.read_bytes().strip()
        if not text:
            return Status()
        with contextlib.suppress(ValueError, TypeError):
            return Status(*json.loads(text))
        time.sleep(0.01)
    return Status("stopped", why="its file is damaged")


def write_status(held: IO[str], status: Status, *, flushed: bool = True) -> None:
    """Write into the file that `hold` has opened, in place; `flushed`: have a file server know of it at once."""
    told = json.dumps(status._replace(why=status.why[:LONGEST_REASON]))
    os.pwrite(held.fileno(), told.ljust(STATUS_BYTES).encode(), 0)
    if flushed:
        os.fsync(held.fileno())


def is_alive(file: Path, status: Status, now: float) -> bool:
    """Whether the process that wrote a status is still there; `now`: the file system's time (`time_of`).

    A lock says so on this host, and signs of life for other hosts, whose locks not every file system shows.
    """
    if status.state == "new":
        return False
    held = is_held(file)
    if held:
        return True
    if status.host != socket.gethostname():
        return status.state == "working" and now - file.stat().st_mtime < SILENT_S
    return held is None and status.state == "working" and _runs(status.pid)


def time_of(held: IO[str]) -> float:
    """The time by the clock of the file system, which stamps all files alike."""
    os.utime(held.fileno())
    return os.fstat(held.fileno()).st_mtime


def _runs(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True  # of somebody else
    return True
