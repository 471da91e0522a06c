"""A folder that the parts of a job fill together: rows are kept as they come, and the last to end puts the result together."""

from __future__ import annotations

import contextlib
import json
import logging
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from vmae2_ds.console.progress import Ticker, counted, heard
from vmae2_ds.data.tools import parts
from vmae2_ds.data.tools.division import kept_look, look
from vmae2_ds.data.tools.parts import JobPart, Status, write_status
from vmae2_ds.data.tools.places import BAD_FILES, COME_S, LOOK_S, SIZES, JobPlace, some_of
from vmae2_ds.data.tools.work_folder import full_disk_is_told
from vmae2_ds.disk import whole_file
from vmae2_ds.errors import Preempted, RankLost
from vmae2_ds.host import signals_handled
from vmae2_ds.json_lines import adding_rows, rows_of

log = logging.getLogger(__name__)

T = TypeVar("T")


class PartDone(NamedTuple):
    """What a part says that does not put the result together."""

    part: JobPart
    status: Status
    others: str
    """What is known of the others."""
    kind: str = "of them"
    """What this start has written; empty where it had nothing to do."""

    def __str__(self) -> str:
        if self.kind == "":
            return f"{self.part} has nothing to do: {self.others}"
        own = f"{self.part} is done: {counted(self.status.done, 'file')}, {self.status.written} {self.kind} now"
        return f"{own}; {self.others}"


class JobFolder(JobPlace):
    """The folder as one of its parts sees it: its work, its rows, and the end."""

    @property
    def speaks(self) -> bool:
        """Whether this process says how the work goes: of the ranks of a launcher one does."""
        return self.part.kind == "part" or self.part.number == 0

    def look(self, paths: Callable[[int], str], count: int) -> NDArray[np.void]:
        """What the file system says of `count` files (`division.SEEN`): asked once for all parts, which divide by it."""
        if self.part.of == 1:
            return look(paths, count)
        with self.alone(patient=True):
            return kept_look(self.inner / SIZES, paths, count)

    @property
    def written(self) -> int:
        """Files finished by this start of the job, by all of its parts."""
        return sum(status.written for status in self.all_said().values())

    def rows(self, *, of_all: bool = False) -> Iterator[Any]:
        """Rows found earlier, by whatever part and start, the newest last; `of_all`: by the others of this start too."""
        yield from rows_of(self.folder / BAD_FILES)
        yield from rows_of(self.results)
        for file in self.logs() if of_all else [self.log_of(self.part.number)]:
            yield from rows_of(file)

    @contextlib.contextmanager
    def working(self, what: str, done: int, total: int, files: int) -> Iterator[Callable[..., None]]:
        """Around the work: yields `add(*rows, files=1)`, which keeps rows and counts their files as done, for any thread.

        Args:
            what: What is counted, with its verb: "videos prepared".
            done: Those of this part that were done before.
            total: All of this part.
            files: All of the job.
        """
        self.status = self.status._replace(done=done, total=total)
        self.files = files
        before, adds = None if self.watches else total, threading.Lock()
        with (
            adding_rows(self.log_of(self.part.number)) as add_row,
            heard(Ticker(log, what, before, done, speaks=self.speaks)) as ticker,
            self._beating(ticker),
        ):
            self._ticker = ticker

            def add(*rows: Any, files: int = 1, written: bool = True) -> None:
                with adds:
                    add_row(*rows)
                    done, before = self.status.done + files, self.status.written
                    self.status = self.status._replace(done=done, written=before + int(written))
                    if self.held is not None:
                        write_status(self.held, self.status, flushed=False)
                    if not self.watches:
                        ticker.tell(done)

            yield add
            self.say("done")
            if self.watches:
                self._wait(ticker)

    def under_way(self, files: int) -> None:
        """So many files more are behind this process, and count as done when what they are part of is."""
        if not self.watches:
            self._ticker.tell(self.status.done + files)

    def finish(self, gather: Callable[[], T]) -> T | PartDone:
        """Put the result together, where no part is left to do it; else say who is."""
        if self.is_other_rank:
            return PartDone(self.part, self.status, self._left_to_first())
        with self.alone(patient=True):
            about = self.division()
            if about is None or about["token"] != self.token:
                return PartDone(self.part, self.status, f"the result is whole, in {self.folder}")
            others = self._unfinished()
            if others is not None:
                return PartDone(self.part, self.status, others)
            result = gather()
            self.end_division(about["alike"])
            return result

    def _look(self, ticker: Ticker) -> dict[int, Status]:
        """See how far all are, and name a rank that is gone as soon as it is."""
        all_ = self.all_said()
        for number, status in self.gone(all_).items():
            if number not in self.told_lost:
                self.told_lost.add(number)
                log.warning("%s; the others go on", self.lost(number, status))
        if all(status.state != "new" for status in all_.values()):
            ticker.tell(sum(status.done for status in all_.values()), self.files)
        return all_

    def _wait(self, ticker: Ticker) -> None:
        """Rank 0 ends after all others. Raises RankLost for those that ended without being done, or never came."""
        began = time.monotonic()
        while True:
            all_ = self._look(ticker)
            lost = self.gone(all_)
            waits = [n for n, status in all_.items() if status.state in ("new", "working") and n not in lost]
            late = [n for n in waits if all_[n].state == "new" and time.monotonic() - began > COME_S]
            if not set(waits) - set(late):
                break
            time.sleep(LOOK_S + self.part.of / 1000)
        said = [self.lost(n, status) for n, status in lost.items()]
        said += [f"{self.part.named(n)} has not come within {COME_S:.0f} s" for n in late]
        if said:
            raise RankLost(
                f"{self.folder}: {some_of(said)}; what is finished stays, and the same command goes on, on any number of ranks"
            )

    def _unfinished(self) -> str | None:
        """Who is not done yet, in words; None where all are, so that the result is this part's to put together."""
        all_ = self.all_said()
        gone = self.gone(all_)
        told = []
        for number, status in all_.items():
            if status.state == "done" or (status.state == "new" and self.was_whole):
                continue
            name = self.part.named(number)
            if number in gone:
                told.append(f"{self.lost(number, status)}: start --part {number + 1}/{self.part.of} again")
            else:
                told.append(f"{name} has not begun" if status.state == "new" else f"{name} is at work {status.so_far}")
        if not told:
            return None
        return (
            f"not finished: {some_of(told)}. The last part puts the result together; the same command without --part does "
            "what is left, and puts it together"
        )

    def _left_to_first(self) -> str:
        """Another rank ends before rank 0 does. Raises RankLost where that one is gone."""
        with contextlib.suppress(FileNotFoundError):  # the result is whole
            if (first := self.gone(self.all_said()).get(0)) is not None:
                raise RankLost(
                    f"{self.folder}: {self.lost(0, first)}; what is finished stays, and the same command goes on, on any "
                    "number of ranks"
                )
        return "rank 0 puts the result together"

    @contextlib.contextmanager
    def _beating(self, ticker: Ticker) -> Iterator[None]:
        """Say from time to time, in a thread, that this part lives; rank 0 looks at the others."""

        def beat() -> None:
            while not self.stops.wait(parts.BEAT_S):
                with contextlib.suppress(OSError):  # a disk that is full for a while
                    if self.held is not None and self.status.state == "working":
                        write_status(self.held, self.status)
                    if self.watches:
                        self._look(ticker)

        self.say("working")
        thread = threading.Thread(target=beat, daemon=True)
        thread.start()
        try:
            yield
        finally:
            self.stops.set()
            thread.join()

    def ended(self, error: BaseException | None) -> None:
        """Leave the folder, with a word for the others where this part failed."""
        with contextlib.suppress(OSError):  # a full disk, or a folder that is gone: the first error is the one to tell
            if error is not None and self.held is not None and self.status.state == "working":
                self.say("stopped", str(error) or type(error).__name__)
                if self.part.of == 1 and not self.logs():
                    self.forget()  # refused before the work: the folder stays as it was
        self.let_go()

    def also_gone(self) -> str:
        """Which ranks are gone as well, for the last words of rank 0 when its launcher ends all for one."""
        if not self.watches or self.held is None:
            return ""
        lost = [self.lost(number, status) for number, status in self.gone(self.all_said()).items()]
        return f"{some_of(lost)}; " if lost else ""


def write_lines(file: Path, lines: Iterable[bytes]) -> None:
    """Write rows, as JSON each, in one go."""
    with whole_file(file) as unfinished, unfinished.open("wb") as written:
        written.writelines(line + b"\n" for line in lines)


def write_bad_files(folder: Path, rows: Iterable[dict[str, str]]) -> None:
    """bad_files.jsonl with what is of no use now; none where all is."""
    file = folder / BAD_FILES
    write_lines(file, (json.dumps(row).encode() for row in rows))
    if not file.stat().st_size:
        file.unlink()


@contextlib.contextmanager
def job_folder(
    folder: Path,
    job: str,
    settings: dict[str, Any],
    part: JobPart,
    *,
    alike: dict[str, Any],
    results: str,
    option: str = "--out",
) -> Iterator[JobFolder]:
    """Make or go on with `folder` as one of the parts of a job; `check_work_folder` was asked first.

    A full disk inside the block becomes a DataError, and a signal to stop Preempted. Raises ConfigError where the folder is of
    another job or other settings, or the place of this part is taken.
    """
    with full_disk_is_told(folder):
        mine = JobFolder(folder, job, results, part, option)
        try:
            with _stopping():
                mine.begin(settings, alike)
                yield mine
        except Preempted as error:
            said = mine.also_gone()
            mine.ended(error)
            raise Preempted(f"{folder}: {said}{error}") from None
        except BaseException as error:
            mine.ended(error)
            raise
        mine.ended(None)


@contextlib.contextmanager
def _stopping() -> Iterator[None]:
    """SIGTERM and SIGUSR1, by which queues and launchers end a job, raise Preempted."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(number: int, frame: FrameType | None) -> None:
        raise Preempted(
            f"stopped by {signal.Signals(number).name}; what is finished stays, and the same command goes on"
        )

    with signals_handled(stop, signal.SIGTERM, signal.SIGUSR1):
        yield
