"""The place of a part in a folder that several fill: who the parts are, the file of each, and who is at work or gone.

Beside what `work_folder` keeps there is `.parts`, until the result is whole: what the parts are (DIVISION), a file of each
part that it holds and says in how far it is, and one of the rows that it has found. Whoever changes anything for all holds
the folder's lock for that while.
"""

from __future__ import annotations

import contextlib
import json
import logging
import secrets
import shutil
import threading
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO, Any, NamedTuple

from vmae2_ds.console.progress import counted
from vmae2_ds.contracts import ReadFailure
from vmae2_ds.data.bad_files import BadFileLedger
from vmae2_ds.data.tools import parts
from vmae2_ds.data.tools.parts import JobPart, Status, here, is_alive, read_status, time_of, write_status
from vmae2_ds.data.tools.work_folder import LOCK, check_settings
from vmae2_ds.disk import hold, is_held, write_whole
from vmae2_ds.errors import ConfigError, RankLost
from vmae2_ds.json_lines import adding_rows, rows_of

log = logging.getLogger(__name__)

PARTS, DIVISION, SIZES, WHOLE = ".parts", "of.json", "sizes.npy", ".whole.json"
LOOK_S = 0.2
"""Between two looks at what others do, where one waits for them."""
COME_S = 600.0
"""What the ranks of a launcher may take to start, one after another."""
PROBED_S = 1.0
"""A file that is held for longer is held by a part, not by another's question whether it is (`is_held`)."""
SHOWN = 8
"""Parts that are named."""
BAD_FILES, BAD = "bad_files.jsonl", "reason"
"""The file of what is of no use, and the key of a row that says why a file is; other rows are results."""


def is_bad(row: Any) -> bool:
    """Whether a row of a part says why a file is of no use."""
    return isinstance(row, dict) and BAD in row


def ended_in_words(name: str, status: Status) -> str:
    """A part that ended without being done, where it was, and what it left."""
    how = f"stopped ({status.why})" if status.state == "stopped" else "is gone"
    return f"{name} {how} {status.so_far}"


class _Taken(NamedTuple):
    """Why a part cannot begin."""

    why: str
    patience_s: float
    """For how long it may yet turn out otherwise."""


class JobPlace:
    """This part's place among those of the folder, and what it sees of the others."""

    def __init__(self, folder: Path, job: str, results: str, part: JobPart, option: str) -> None:
        self.folder, self.part, self._job, self._option = folder, part, job, option
        self.results, self.inner = folder / results, folder / PARTS
        self.status, self.files = here(), 0
        self.held: IO[str] | None = None
        self.token = ""
        self.was_whole = False
        self.told_lost: set[int] = set()
        self.stops = threading.Event()

    @property
    def is_other_rank(self) -> bool:
        """Whether this is a rank that rank 0 waits for."""
        return self.part.kind == "rank" and self.part.number > 0

    @property
    def watches(self) -> bool:
        """Whether this is rank 0, which waits for the others."""
        return self.part.kind == "rank" and self.part.number == 0

    def all_said(self) -> dict[int, Status]:
        """What each part says."""
        own = self.part.number
        return {n: self.status if n == own else read_status(self.file_of(n)) for n in range(self.part.of)}

    def gone(self, all_: dict[int, Status]) -> dict[int, Status]:
        """Those of the others that ended without being done."""
        assert self.held is not None, "a part holds its file while it lives"
        now = time_of(self.held)
        others = {n: status for n, status in all_.items() if n != self.part.number}
        return {
            n: status
            for n, status in others.items()
            if status.state == "stopped" or (status.state == "working" and not is_alive(self.file_of(n), status, now))
        }

    def lost(self, number: int, status: Status) -> str:
        """A part that is gone, in words."""
        return ended_in_words(self.part.named(number), status)

    def file_of(self, number: int) -> Path:
        """The file that a part holds, and says in how far it is."""
        return self.inner / f"{number + 1:05d}"

    def log_of(self, number: int) -> Path:
        """What a part has found."""
        return self.inner / f"{number + 1:05d}.jsonl"

    def logs(self) -> list[Path]:
        """What all parts have found."""
        return sorted(self.inner.glob("*.jsonl"))

    def say(self, state: Any, why: str = "") -> None:
        """Tell the others how this part stands."""
        self.status = self.status._replace(state=state, why=why)
        if self.held is not None:
            write_status(self.held, self.status)

    @contextlib.contextmanager
    def alone(self, *, patient: bool) -> Iterator[float]:
        """Hold the folder's lock; yields the time by the file system's clock. Raises ConfigError where another has it."""
        self.folder.mkdir(parents=True, exist_ok=True)
        began = time.monotonic()
        told = False
        while (lock := hold(self.folder / LOCK)) is None:
            if not patient:
                raise ConfigError(
                    f"{self.folder} is held by another vmae2 data {self._job}; wait for it or name another {self._option}"
                )
            if not told and time.monotonic() - began > parts.BEAT_S:
                told = True
                log.info("%s: waiting for another part, which has the folder for itself", self.folder)
            time.sleep(LOOK_S)
        with lock:
            yield time_of(lock)

    def begin(self, settings: dict[str, Any], alike: dict[str, Any]) -> None:
        """Take this part's place. Raises ConfigError where the folder is another job's, or this place is taken.

        Args:
            settings: What the whole folder is made with.
            alike: What has to be the same for all parts that make a result together.
        """
        file = self.folder / f"{self._job}.json"
        settings, alike = json.loads(json.dumps([settings, alike]))
        check_settings(file, self.folder, settings, self._option)  # before a lock is left in a folder of something else
        if self.is_other_rank:
            self._await_first()
        began = time.monotonic()
        while True:
            with self.alone(patient=self.part.of > 1) as now:
                check_settings(file, self.folder, settings, self._option)
                if not file.is_file():
                    write_whole(file, json.dumps(settings, indent=1))
                taken = self._take_place(alike, now)
            if taken is None:
                return
            if time.monotonic() - began > taken.patience_s:
                raise ConfigError(taken.why)
            time.sleep(LOOK_S)

    def _take_place(self, alike: dict[str, Any], now: float) -> _Taken | None:
        """None, or why this part cannot begin."""
        about = self.division()
        differs = about is not None and (about["parts"], about["alike"]) != (self.part.of, alike)
        if about is not None and (differs or self.watches):  # the ranks of a start begin anew, rank 0 before the others
            if (refusal := self._end_earlier(about, alike, now)) is not None:
                return refusal
            about = None
        if about is None:
            about = self._divide(alike)
        self.token, self.was_whole = about["token"], about["whole"]
        place = self.file_of(self.part.number)
        before = read_status(place)
        held = hold(place, "r+")
        if held is None:
            why = f"{self.folder}: {self.part} is at work {before.so_far}; wait for it, or name another {self._option}"
            return _Taken(why, PROBED_S)
        self.held = held
        if before.state in ("working", "stopped"):
            log.warning("%s: in an earlier start %s", self.folder, ended_in_words(str(self.part), before))
        self.say("working")
        return None

    def _await_first(self) -> None:
        """Wait until rank 0 of this start has begun: by its lock, or by a sign of life, which the dead do not give."""
        first, began = self.file_of(0), time.monotonic()
        seen: set[float] = set()
        while time.monotonic() - began < COME_S:
            with contextlib.suppress(FileNotFoundError):
                seen.add(first.stat().st_mtime)
                if is_held(first) or (len(seen) > 1 and read_status(first).state == "working"):
                    return
            time.sleep(LOOK_S)
        raise RankLost(f"{self.folder}: rank 0 has not come within {COME_S:.0f} s; start the same command again")

    def division(self) -> dict[str, Any] | None:
        """What the parts are now; None where there are none."""
        try:
            return dict(json.loads((self.inner / DIVISION).read_text()))
        except FileNotFoundError:
            return None
        except ValueError:
            raise ConfigError(f"{self.inner / DIVISION} is damaged; remove that file, and start again") from None

    def _divide(self, alike: dict[str, Any]) -> dict[str, Any]:
        whole = self.folder / WHOLE
        is_whole = whole.is_file() and whole.read_text() == json.dumps(alike)
        token = secrets.token_hex(8)
        about = {"parts": self.part.of, "kind": self.part.kind, "alike": alike, "whole": is_whole, "token": token}
        sizes = self.inner / SIZES
        for left in self.inner.glob("*") if self.inner.is_dir() else ():
            if left != sizes:
                left.unlink()
        self.inner.mkdir(exist_ok=True)
        for number in range(self.part.of):
            self.file_of(number).touch()
        write_whole(self.inner / DIVISION, json.dumps(about))
        return about

    def _end_earlier(self, about: dict[str, Any], alike: dict[str, Any], now: float) -> _Taken | None:
        """End a division that is another one than this part's; returns why that cannot be."""
        earlier = JobPart(0, int(about["parts"]), about["kind"])
        said = {n: read_status(self.file_of(n)) for n in range(earlier.of) if self.file_of(n).is_file()}
        names = [name for name in alike if about["alike"].get(name) != alike[name]]
        other = "; ".join(f"{name}: was {about['alike'].get(name)}, now {alike[name]}" for name in names)
        other = f"with other settings ({other})" if names else f"in {counted(earlier.of, earlier.kind)}"
        alive = [n for n, status in said.items() if is_alive(self.file_of(n), status, now)]
        if alive:
            one = alive[0]
            why = (
                f"{self.folder} is being worked on {other}: {earlier.named(one)} is at work {said[one].so_far}; this is "
                f"{self.part} of {self.part.of}: wait for the others, or start it as one of them"
            )
            is_sure = self.is_other_rank or any(is_held(self.file_of(n)) for n in alive)
            return _Taken(why, PROBED_S if is_sure else parts.SILENT_S + parts.BEAT_S)
        begun = any(status.state != "new" for status in said.values())
        if self.part.kind == "part" and earlier.of == self.part.of > 1 and begun:
            why = f"{self.folder} was begun {other}; give all parts the same, or start without --part, which does the rest"
            return _Taken(why, 0)
        for number, status in said.items():
            if status.state in ("working", "stopped"):
                log.warning("%s: in an earlier start %s", self.folder, ended_in_words(earlier.named(number), status))
        self._keep_rows()
        (self.inner / DIVISION).unlink()
        return None

    def _keep_rows(self) -> None:
        """Add what parts have found to what was found before them."""
        ledger = BadFileLedger(self.folder / BAD_FILES)
        with adding_rows(self.results) as add:
            for file in self.logs():
                for row in rows_of(file):
                    if is_bad(row):
                        ledger.record([ReadFailure(row["path"], row[BAD])])
                    else:
                        add(row)

    def end_division(self, alike: dict[str, Any]) -> None:
        """The result is whole: nothing more is known of parts."""
        write_whole(self.folder / WHOLE, json.dumps(alike))
        self.forget()

    def forget(self) -> None:
        """Take away all that is known of parts."""
        (self.inner / DIVISION).unlink()
        self.let_go()
        shutil.rmtree(self.inner, ignore_errors=True)  # what others still have open goes with them

    def let_go(self) -> None:
        """Leave this part's place."""
        if self.held is not None:
            self.held.close()
            self.held = None


def some_of(said: Iterable[str]) -> str:
    """The first few of what is said of parts."""
    told = list(said)
    more = f", and {len(told) - SHOWN} more" if len(told) > SHOWN else ""
    return "; ".join(told[:SHOWN]) + more
