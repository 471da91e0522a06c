"""Bad files of a run: each named once with its reason in `bad_files.jsonl`, and the share at which a run must stop."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

from vmae2_ds.contracts import ReadFailure
from vmae2_ds.disk import open_alone
from vmae2_ds.errors import TooManyBadFiles

MIN_TRIED = 20
"""Reads before the share of failures means anything: below it, one bad file of three would stop a run."""


class BadFileLedger:
    """A JSON line per bad file. Several ranks, or a resumed run, may share the file: a write locks and re-reads it."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.reasons: dict[str, str] = {}
        """Reason by path of every file named so far; current after each `record` that was given a failure."""
        self._read_to = 0
        if self.path.exists():
            self._read_new(self.path.read_bytes())

    def record(self, failures: Iterable[ReadFailure]) -> list[ReadFailure]:
        """Name those of `failures` that no line names yet: on disk, and in the list returned."""
        failures = list(failures)
        if not failures:
            return []
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with open_alone(self.path) as file:
            file.seek(self._read_to)
            text = file.read()
            self._read_new(text)
            new = list({f.path: f for f in reversed(failures) if f.path not in self.reasons}.values())[::-1]
            torn = b"\n" if text and not text.endswith(b"\n") else b""  # a line cut short by a crash ends here
            file.write(torn + b"".join(json.dumps(failure._asdict()).encode() + b"\n" for failure in new))
            self._read_to = file.tell()
        self.reasons.update(new)
        return new

    def _read_new(self, text: bytes) -> None:
        """Take in whole lines; the rest of a line torn by a crash waits for `record` to end it."""
        whole = text[: text.rfind(b"\n") + 1]
        for line in whole.splitlines():
            try:
                row = json.loads(line)
            except ValueError:
                continue  # torn: its file is named again when it next fails
            self.reasons[row["path"]] = row["reason"]
        self._read_to += len(whole)


def check_bad_share(failed: int, tried: int, limit: float) -> None:
    """Raise TooManyBadFiles when more than `limit` of the videos tried (used and failed, over all ranks) failed."""
    if tried >= MIN_TRIED and failed > limit * tried:
        raise TooManyBadFiles(
            f"{failed} of {tried} videos tried could not be used ({failed / tried:.1%}, the limit is {limit:.1%}): "
            f"see bad_files.jsonl in the run folder; fix the manifest, or raise --data.max-bad-share and start again"
        )
