"""Rows in order: by machine, case, group and variant; and the published numbers of paper.json beside them."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from benchmarks.record import Row as Measured
from benchmarks.record import current, read_rows
from benchmarks.report.cells import Code, Name, Row
from vmae2_ds.cost.traffic import ATTENTION_KINDS

PAPER_JSON = Path(__file__).parents[1] / "paper.json"
PAPER_CASE = "paper"
"""The case whose rows are closed forms and counts: the same on every machine."""

SIZES = {"tiny": "ViT-Ti", "small": "ViT-S", "base": "ViT-B", "large": "ViT-L", "huge": "ViT-H", "giant": "ViT-g"}
MASKS = {"encoder_only": "encoder-only", "dual": "dual", "dual_disjoint": "dual, disjoint"}
PRECISIONS = ("bf16", "fp16", "fp32")
ATTENTIONS = tuple(ATTENTION_KINDS)

Groups = dict[str, dict[str, Row]]
"""Rows by group and variant, in the order they were measured."""


@dataclass(frozen=True)
class Place:
    """What was measured on one device."""

    name: str
    """The GPU's, or the processor's where it was the device."""
    rows: tuple[Row, ...]

    def groups(self, case: str) -> Groups:
        """The rows of a case."""
        groups: Groups = {}
        for row in self.rows:
            if row.get("case") == case:
                groups.setdefault(row.get("group"), {})[row.get("variant")] = row
        return groups

    def find(self, case: str, group: str, variant: str) -> Row | None:
        """One row, None where it was not measured or failed."""
        row = self.groups(case).get(group, {}).get(variant)
        return None if row is None or row.get("error") else row

    @cached_property
    def cases(self) -> tuple[str, ...]:
        """Cases with rows, in the order of the files."""
        return tuple(dict.fromkeys(row.get("case") for row in self.rows))


@dataclass(frozen=True)
class Paper:
    """paper.json: a row for each line of the paper's tables."""

    data: Mapping[str, Any]

    def rows(self, table: str) -> dict[str, Row]:
        """Lines of `table1` or `table2` by their key there."""
        lines = self.data[table]["rows"]
        return {key: Row(f"paper.json/{table}/{key}", {**row, "kind": "quoted"}) for key, row in lines.items()}

    def title(self, table: str) -> Name:
        """What the paper calls it."""
        return Name(self.data[table]["title"])


class Book:
    """Everything a report is made of."""

    def __init__(self, rows: Iterable[Measured], paper: Mapping[str, Any]) -> None:
        by_place: dict[str, list[Measured]] = {}
        for row in _with_device(list(rows)):
            by_place.setdefault(_place_of(row), []).append(row)
        several = len(by_place) > 1
        places = [
            Place(name, tuple(Row(_id_of(row, name if several else ""), row) for row in current(found)))
            for name, found in by_place.items()
        ]
        self.paper = Paper(paper)
        self.computed = Place(PAPER_CASE, tuple(row for place in places for row in place.rows if _is_computed(row)))
        """Rows of the case `paper`, wherever they were computed."""
        self.places = [
            Place(place.name, measured)
            for place in places
            if (measured := tuple(row for row in place.rows if not _is_computed(row)))
        ]

    @classmethod
    def of(cls, folders: Sequence[Path]) -> Book:
        """All rows of the folders, with the paper's numbers."""
        return cls((row for folder in folders for row in read_rows(folder)), json.loads(PAPER_JSON.read_text()))

    @property
    def rows(self) -> Iterator[Row]:
        """Every row that the report may show."""
        yield from self.computed.rows
        for place in self.places:
            yield from place.rows


def _with_device(rows: list[Measured]) -> list[Measured]:
    """A group that ended its process could not say where it ran: where the rows of its machine did."""
    device_of = {row["machine"]["cpu"]: row["device"] for row in rows if row["device"] != "?"}
    return [
        row if row["device"] != "?" else {**row, "device": device_of.get(row["machine"]["cpu"], "cpu")} for row in rows
    ]


def _place_of(row: Measured) -> str:
    return row["machine"]["cpu"] if row["device"] == "cpu" else row["device"]


def _id_of(row: Measured, place: str) -> str:
    name = f"{row['case']}/{row['group']}/{row['variant']}"
    return f"{name} @ {place}" if place else name


def _is_computed(row: Row) -> bool:
    return row.get("case") == PAPER_CASE


def settings_key(row: Row) -> tuple[int, ...]:
    """Sorts rows by size, precision, attention, batch and allocator, each in its usual order."""
    config = row.get("config") or {}
    orders = (("size", tuple(SIZES)), ("precision", PRECISIONS), ("attention_decoder", ATTENTIONS))
    places = [order.index(config[key]) if config.get(key) in order else len(order) for key, order in orders]
    return (*places, config.get("batch_size") or 0, int(is_kept(row)))


def is_kept(row: Row) -> bool:
    """Whether malloc kept freed memory while the row was measured."""
    return str(row.get("group")).endswith(" kept")


def command_for(case: str) -> Code:
    """What makes the rows of a case that has none."""
    return Code(f"python -m benchmarks run {case}")
