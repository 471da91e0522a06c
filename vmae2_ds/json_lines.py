"""Rows in a file, a line of JSON each: a kill tears no more than the last one, which is then left out and never mixed up."""

from __future__ import annotations

import contextlib
import json
import math
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any


def rows_of(file: Path) -> Iterator[Any]:
    """The rows of a file in order, without torn ones; none where there is no file."""
    if file.is_file():
        with file.open("rb") as lines:
            for line in lines:
                with contextlib.suppress(ValueError):
                    yield json.loads(line)


def finite_or_none(value: Any) -> Any:
    """None for a float that is not finite, which JSON cannot hold; all else as it is."""
    return None if isinstance(value, float) and not math.isfinite(value) else value


@contextlib.contextmanager
def adding_rows(file: Path) -> Iterator[Callable[..., None]]:
    """`add(*rows)`, after which the system has those rows as lines of their own, also behind a torn one."""
    with file.open("a+b") as lines:
        if lines.seek(0, os.SEEK_END):
            lines.seek(-1, os.SEEK_END)
            if lines.read() != b"\n":
                lines.write(b"\n")

        def add(*rows: Any) -> None:
            lines.write(b"".join(json.dumps(row).encode() + b"\n" for row in rows))
            lines.flush()

        yield add
