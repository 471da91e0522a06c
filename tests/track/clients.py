"""Trackers for tests, opened in a tracker's own process as `tests.track.clients:NAME`."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NoReturn

from vmae2_ds.disk import write_whole
from vmae2_ds.track.tracker import About, State


class Notes:
    """Keeps what it is given."""

    place = "in a list"

    def __init__(self, last_step: int = -1) -> None:
        self.last_step = last_step
        self.rows: list[dict[str, Any]] = []
        self.pictures: list[tuple[str, int]] = []
        self.state: State | None = None

    def row(self, row: Mapping[str, Any]) -> None:
        self.rows.append(dict(row))
        self.last_step = row["step"]

    def picture(self, path: Path, name: str, step: int) -> None:
        assert path.is_file()
        self.pictures.append((name, step))

    def close(self, state: State) -> None:
        self.state = state


def open_hanging(about: About) -> NoReturn:
    """A server that never answers."""
    (about.run / "hangs").touch()
    while True:
        time.sleep(60)


class Writer(Notes):
    """Writes down what it has got, once it is closed."""

    def __init__(self, about: About) -> None:
        super().__init__()
        self._file = about.run / "got.json"

    def close(self, state: State) -> None:
        """Whole at once."""
        write_whole(self._file, json.dumps([state, [row["step"] for row in self.rows]]))


def open_writer(about: About) -> Writer:
    return Writer(about)


def open_refusing(about: About) -> NoReturn:
    raise ConnectionError("no route to host")


def open_crashing(about: About) -> NoReturn:
    os._exit(3)
