"""What a page of the report shows, and whether rows bear it out; reads HTML and rows without the report's own code."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from html.parser import HTMLParser
from typing import Any

import pytest

from benchmarks.record import Row
from benchmarks.report.book import PAPER_JSON

UNITS = {"": 1, "%": 0.01, "x": 1, "s": 1, "ms": 1e-3, "us": 1e-6, "h": 1, "G": 1e9, "B": 1, "KiB": 2**10, "MiB": 2**20,
         "GiB": 2**30, "GFLOP": 1e9, "TFLOP": 1e12, "PFLOP": 1e15, "GFLOP/s": 1e9, "TFLOP/s": 1e12,
         "GB/s": 1e9, "MB/s": 1e6, "B/s": 1, "G/s": 1e9, "M/s": 1e6, "/s": 1}  # fmt: skip
IDENTIFIER = re.compile(r"[A-Za-z_]\w*")
NUMBER = re.compile(r"[+-]?\d+(?:\.\d+)?")


@dataclass
class Number:
    """A <data> element as read."""

    attributes: Mapping[str, str]
    text: str = ""


@dataclass
class Page(HTMLParser):
    """What a page shows: numbers with their origin, names, code, and all other text."""

    numbers: list[Number] = field(default_factory=list)
    names: list[str] = field(default_factory=list)
    code: list[str] = field(default_factory=list)
    prose: list[str] = field(default_factory=list)
    inside: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        super().__init__()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        attributes = {name: value or "" for name, value in attrs}
        if tag in ("meta", "wbr"):
            return
        kind = "name" if attributes.get("class") == "name" else tag
        self.inside.append(kind)
        if tag == "data":
            self.numbers.append(Number(attributes))
        for kind_of, texts in (("name", self.names), ("code", self.code)):
            if kind == kind_of:
                texts.append("")

    def handle_endtag(self, tag: str) -> None:
        self.inside.pop()

    def handle_data(self, data: str) -> None:
        if "svg" in self.inside or "style" in self.inside:
            return
        kind = self.inside[-1] if self.inside else ""
        if kind == "data":
            self.numbers[-1].text += data
        elif kind in ("name", "code"):
            texts = self.names if kind == "name" else self.code
            texts[-1] += data
        else:
            self.prose.append(data)


def page_of(html: str) -> Page:
    page = Page()
    page.feed(html)
    assert not page.inside, f"not closed: {page.inside}"
    return page


class Origins:
    """Rows by the name that cells give them, read without the report's own code."""

    def __init__(self, rows: Iterable[Row]) -> None:
        self.rows: dict[str, Any] = {}
        for row in rows:
            name = f"{row['case']}/{row['group']}/{row['variant']}"
            place = row["machine"]["cpu"] if row["device"] == "cpu" else row["device"]
            self.rows[name] = self.rows[f"{name} @ {place}"] = row
        paper = json.loads(PAPER_JSON.read_text())
        for table in ("table1", "table2"):
            for key, quote in paper[table]["rows"].items():
                self.rows[f"paper.json/{table}/{key}"] = quote
        self.strings = set(_strings([*self.rows.values(), paper])) | {
            path for row in self.rows.values() for path in row
        }

    def value(self, name: str, path: str) -> float:
        found = self.rows[name]
        for step in path.split("."):
            found = found[int(step)] if isinstance(found, list) else found[step]
        assert isinstance(found, (int, float)), f"{name}#{path} is {found!r}"
        return found

    def expected(self, attributes: Mapping[str, str]) -> float:
        """The value that an element's origin gives."""
        if "data-formula" not in attributes:
            return self.value(attributes["data-row"], attributes["data-field"])
        operands = {name[5:]: self.value(*origin.split("#")) for name, origin in attributes.items() if len(name) == 6}
        return eval(attributes["data-formula"], {"__builtins__": {}}, operands)


def _strings(value: Any) -> Iterable[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        yield from value
        for each in value.values():
            yield from _strings(each)
    elif isinstance(value, list):
        for each in value:
            yield from _strings(each)


def check(html: str, rows: Iterable[Row]) -> int:
    """Assert that the page holds no number without an origin, and none that its origin does not give; returns how many."""
    origins, page = Origins(rows), page_of(html)
    for number in page.numbers:
        value, expected = float(number.attributes["value"]), origins.expected(number.attributes)
        assert value == pytest.approx(expected, rel=1e-12, abs=1e-15), number
        shown = NUMBER.search(number.text)
        unit = number.attributes["data-unit"]
        assert shown, number
        assert number.text.replace("\N{NO-BREAK SPACE}", "") in (shown[0], shown[0] + unit), number
        decimals = len(shown[0].partition(".")[2])
        assert abs(float(shown[0]) - value / UNITS[unit]) <= 0.5 * 10**-decimals * (1 + 1e-6), number
    for name in page.names:
        assert name in origins.strings, f"{name!r} stands in no row"
    for code in page.code:
        digits = re.search(r"\d", IDENTIFIER.sub("", code))
        assert not digits or code in origins.strings, f"{code!r} stands in no row"
    for text in page.prose:
        assert not re.search(r"\d", text), f"a number without an origin: {text!r}"
    return len(page.numbers)
