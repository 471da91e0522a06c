"""Bad files of a run: each named once with its reason in `bad_files.jsonl`, and the share at which a run must stop."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import IO

from vmae2_ds.contracts import ReadFailure
from vmae2_ds.disk import open_alone
from vmae2_ds.errors import TooManyBadFiles

MIN_TRIED = 20
"""Reads before the share of failures means anything: below it, one bad file of three would stop a run."""


class BadFileLedger:
    """A JSON line per bad file. Several ranks, or a resumed run, may share the file: a write locks and re-reads it.

    What is kept in memory is a hash of each path: every rank has one for each bad file of all.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._named: set[int] = set()
        """Hashes of the paths that a line names; current after each `record` that was given a failure."""
        self._read_to = 0
        if self.path.exists():
            with self.path.open("rb") as file:
                self._read_new(file)

    def record(self, failures: Iterable[ReadFailure]) -> list[ReadFailure]:
        """Name those of `failures` that no line names yet: on disk, and in the list returned."""
        failures = list(failures)
        if not failures:
            return []
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with open_alone(self.path) as file:
            file.seek(self._read_to)
            torn = self._read_new(file)
            new = list({f.path: f for f in reversed(failures) if hash(f.path) not in self._named}.values())[::-1]
            end = b"\n" if torn else b""  # a line cut short by a crash ends here
            file.write(end + b"".join(json.dumps(failure._asdict()).encode() + b"\n" for failure in new))
            self._read_to = file.tell()
        self._named.update(hash(failure.path) for failure in new)
        return new

    def _read_new(self, file: IO[bytes]) -> bool:
        """Take in whole lines; whether one is left that a crash has torn, which waits for `record` to end it."""
        for line in file:
            if not line.endswith(b"\n"):
                return True
            self._read_to += len(line)
            with contextlib.suppress(ValueError):  # torn: its file is named again when it next fails
                self._named.add(hash(json.loads(line)["path"]))
        return False


def check_bad_share(failed: int, tried: int, limit: float) -> None:
    """Raise TooManyBadFiles when more than `limit` of the videos tried (used and failed, over all ranks) failed."""
    if tried >= MIN_TRIED and failed > limit * tried:
        raise TooManyBadFiles(
            f"{failed} of {tried} videos tried could not be used ({failed / tried:.1%}, the limit is {limit:.1%}): "
            f"see bad_files.jsonl in the run folder; fix the manifest, or raise --data.max-bad-share and start again"
        )
