"""The rows of a run as they come into its files, for whoever follows: all of a step together, each step once, in order."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any


class NewRows:
    """Rows that a file has got since it was last asked, from the start again where it was written anew."""

    def __init__(self, path: Path) -> None:
        self._path, self._file, self._at = path, -1, 0

    def take(self) -> list[dict[str, Any]]:
        """The new rows, without one that is still being written and without torn ones."""
        try:
            with self._path.open("rb") as file:
                now = os.fstat(file.fileno())
                if now.st_ino != self._file or now.st_size < self._at:
                    self._file, self._at = now.st_ino, 0
                file.seek(self._at)
                lines = file.read().splitlines(keepends=True)
        except FileNotFoundError:
            return []
        rows = []
        for line in lines:
            if line.endswith(b"\n"):
                self._at += len(line)
                with contextlib.suppress(ValueError):
                    rows.append(json.loads(line))
        return rows


class Steps:
    """The figures of steps after `last`, which moves on as they are handed out.

    A step's validation is written before its row of metrics, so a step is whole once there is a row of metrics as late. Steps
    that a rollback or a resume does again come into the files a second time, and are passed over.
    """

    def __init__(self, run: Path, last: int) -> None:
        self.last = last
        self._metrics, self._validation = NewRows(run / "metrics.jsonl"), NewRows(run / "validation.jsonl")
        self._rows: dict[int, dict[str, Any]] = {}
        self._whole = -1

    def take(self, *, is_over: bool = False) -> Iterator[dict[str, Any]]:
        """The steps that are whole, in order; all of them where the run `is_over`. A step counts once the next is asked for."""
        metrics = self._metrics.take()  # before the validations, so that none of their steps is missed
        for row in [*self._validation.take(), *metrics]:
            self._rows[row["step"]] = {**self._rows.get(row["step"], {}), **row}
        self._whole = max([self._whole, *(row["step"] for row in metrics)])
        for step in sorted(self._rows):
            if step <= self._whole or is_over:
                if step > self.last:
                    yield self._rows[step]
                    self.last = step
                del self._rows[step]
