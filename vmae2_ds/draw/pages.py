"""Web pages that need no other file and no script: base.html has their head and the one stylesheet, tables.html figures and
tables below it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from vmae2_ds.draw.charts import BLUE

if TYPE_CHECKING:
    from jinja2 import Environment


class Figure(NamedTuple):
    """One figure of the set."""

    name: str
    value: str
    note: str


class TableRow(NamedTuple):
    """A line of a table, with a bar."""

    name: str
    values: Sequence[str]
    share: float
    """Length of the bar."""
    about: str = ""
    """What the name means."""
    colour: str = BLUE
    icon: str = ""
    """An SVG element."""


class PageTable(NamedTuple):
    """A table of the page."""

    title: str
    note: str
    columns: Sequence[str]
    rows: Sequence[TableRow]

    @property
    def is_explained(self) -> bool:
        """Whether its lines say what their names mean."""
        return any(row.about for row in self.rows)


def templates_of(package: str, **options: Any) -> Environment:
    """The templates that lie beside a package's code, which may extend `base.html`; `options` are jinja2's."""
    from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined

    loader = ChoiceLoader([PackageLoader(package, "."), PackageLoader("vmae2_ds.draw", ".")])
    return Environment(**{"loader": loader, "autoescape": True, "undefined": StrictUndefined, **options})


def is_page_of(path: Path, mark: str) -> bool:
    """Whether a file is a page with that mark in its head."""
    with open(path, "rb") as file:
        head = file.read(1 << 13)
    return head.startswith(b"<!doctype html>") and mark.encode() in head
