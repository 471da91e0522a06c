"""What a tracker is told at its start, and what it can do."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

from vmae2_ds.config.trackers import TrackConfig

State = Literal["finished", "stopped", "failed"]
"""How a run ended: at its last step; before it, saved, by a signal or as its settings say; any other way."""
DEFAULT_PROJECT = "vmae2_ds"


@dataclass(frozen=True)
class About:
    """A run as its tracker is told of it."""

    run: Path
    """The run folder."""
    track: TrackConfig
    id: str
    """What the run is known by there from its first start on: 32 letters of hexadecimal."""
    is_new: bool
    """Whether it was never opened there before."""
    pid: int
    """The process that trains."""

    @property
    def folder(self) -> Path:
        """Where the tracker keeps what it keeps on this machine."""
        return (self.track.folder or self.run / "trackers").absolute()

    @property
    def name(self) -> str:
        """What people know the run by."""
        return self.track.name or f"{self.run.parent.name}/{self.run.name}"

    def project(self, variable: str) -> str:
        """The project; `variable`: the environment variable that the tracker has for it."""
        return self.track.project or os.environ.get(variable) or DEFAULT_PROJECT

    def settings(self) -> dict[str, Any]:
        """run.json, with ds.json as `ds`, and as `env` what of env.json is of this start and short."""
        env = _read(self.run / "env.json")
        short = {key: value for key, value in env.items() if key not in ("earlier", "hosts")}
        return {**_read(self.run / "run.json"), "ds": _read(self.run / "ds.json"), "env": short}

    def files(self) -> list[Path]:
        """The files that tell what the run is."""
        return [path for name in ("run.json", "ds.json", "env.json") if (path := self.run / name).is_file()]


class Tracker(Protocol):
    """A run of a tracker, open. Its methods may raise whatever the tracker's client raises, and are called again later."""

    place: str
    """Where its figures are to be seen, or how they get there, in words."""
    last_step: int
    """The last step of which the tracker holds a row, or will without being told of it again; -1 where there is none."""

    def row(self, row: Mapping[str, Any]) -> None:
        """Take all figures of one step, each step once and in order; a value that is None has nothing to say."""

    def picture(self, path: Path, name: str, step: int) -> None:
        """Take a picture of the weights after `step`."""

    def close(self, state: State) -> None:
        """Let go of all that was taken, and note how the run ended."""


def flat(settings: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, Any]]:
    """Settings in one level: (`data.size`, 224), ..."""
    for key, value in settings.items():
        if isinstance(value, Mapping) and value:
            yield from flat(value, f"{above}{key}.")
        else:
            yield f"{above}{key}", value


def figures(row: Mapping[str, Any]) -> dict[str, float]:
    """The numbers of a row, without those that are None, for trackers that can hold nothing else."""
    return {key: float(value) for key, value in row.items() if isinstance(value, (int, float))}


def _read(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(path.read_text()) if path.is_file() else {}
    return found
