"""The group in flight, as a file beside the rows: what a process was measuring when it died, and which variants it lost.

Ranks that wait in a collective cannot agree on anything, so a rank that fails notes why and ends. The launcher ends the
others, and whoever starts the group again leaves that variant out.
"""

from __future__ import annotations

from pathlib import Path

from pydantic import Field

from benchmarks.record import Row
from vmae2_ds.config.pretrain import StrictModel
from vmae2_ds.disk import write_whole

IN_FLIGHT = ".in_flight.json"


class Flight(StrictModel):
    """One group, from its start until its rows are written."""

    case: str
    """Its case."""
    group: str
    """Its name."""
    fingerprint: str
    """What it is measured with."""
    variant: str | None = None
    """What is being measured, where the group says so."""
    tried: str | None = None
    """What an earlier start of the same group did not get through."""
    lost: dict[str, str] = Field(default_factory=dict)
    """Variants that ended a process, and why."""

    @property
    def note(self) -> Row:
        """What its rows begin with."""
        return self.model_dump(include={"case", "group", "fingerprint"})

    def without(self, variant: str, reason: str) -> Flight:
        """The same with a variant given up; the first reason stays: the others follow from it."""
        return self.model_copy(update={"lost": {variant: reason, **self.lost}})


def read_flight(folder: Path) -> Flight | None:
    """The group in flight; None where there is none."""
    path = folder / IN_FLIGHT
    return Flight.model_validate_json(path.read_text()) if path.exists() else None


def write_flight(folder: Path, flight: Flight) -> None:
    """Write it whole; the folder is made where it is not there."""
    folder.mkdir(parents=True, exist_ok=True)
    write_whole(folder / IN_FLIGHT, flight.model_dump_json())


def begin(folder: Path, case: str, group: str, fingerprint: str) -> None:
    """A group starts; what an earlier try at the same one lost stays lost, and so does what ended two tries."""
    earlier, flight = read_flight(folder), Flight(case=case, group=group, fingerprint=fingerprint)
    if earlier is not None and earlier.note == flight.note:
        lost = dict(earlier.lost)
        if earlier.variant is not None and earlier.variant == earlier.tried:
            lost[earlier.variant] = "two starts of this command ended while it was measured"
        flight = flight.model_copy(update={"lost": lost, "tried": earlier.variant})
    write_flight(folder, flight)


def enter(folder: Path, variant: str) -> None:
    """A variant starts: a process that dies from here on died of it."""
    flight = read_flight(folder)
    assert flight is not None, "the worker began the group"
    write_flight(folder, flight.model_copy(update={"variant": variant}))


def leave(folder: Path) -> None:
    """The variant is measured: what ends the process now is not its doing."""
    flight = read_flight(folder)
    assert flight is not None, "the worker began the group"
    write_flight(folder, flight.model_copy(update={"variant": None}))


def give_up(folder: Path, variant: str, reason: str) -> None:
    """A rank failed in a variant and is about to end."""
    flight = read_flight(folder)
    if flight is not None:  # a folder that this rank's node shares with rank 0's; else the note names the variant alone
        write_flight(folder, flight.without(variant, reason))


def end(folder: Path) -> None:
    """The group is over."""
    (folder / IN_FLIGHT).unlink(missing_ok=True)
