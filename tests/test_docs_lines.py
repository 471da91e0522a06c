"""Lines of the pages end at 120 characters, so that they can be read and compared in a terminal."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.docs_figures import ROOT
from tests.docs_names import PAGES

WIDTH = 120
READ = [*PAGES, ROOT / "CHANGELOG.md"]
WHOLE = re.compile(r"`[^`]*`|\]\([^)]*\)|\S")
"""What a line is not broken in: code between back-ticks, and the target of a link."""


def long_lines(page: str) -> Iterator[str]:
    """Lines that are too long: of prose and of commands; tables, messages and pictures are as wide as they are.

    Prose passes where it could not be broken: where what stands before its first blank, code and links' targets taken as
    whole, is already too long.
    """
    language: str | None = None
    for number, line in enumerate(page.splitlines(), start=1):
        if line.lstrip().startswith("```"):
            language = line.strip().strip("`") if language is None else None
        elif len(line) > WIDTH and not line.startswith("|") and (can_be_broken(line) if language is None else language):
            yield f"{number}: {line[:60]}"


def can_be_broken(line: str) -> bool:
    """Whether a line of prose has a blank, outside code and links' targets, at which it could end in time."""
    text = line.lstrip().removeprefix("- ")
    plain = WHOLE.sub(lambda found: "x" * len(found[0]), text)
    return " " in plain[: WIDTH - (len(line) - len(text))]


@pytest.mark.parametrize("page", READ, ids=lambda path: str(path.relative_to(ROOT)))
def test_lines_of_a_page_are_short(page: Path) -> None:
    assert list(long_lines(page.read_text())) == [], f"{page.name}: end these lines earlier (commands: a backslash)"


def test_a_long_line_is_found_and_one_that_cannot_be_shorter_is_not() -> None:
    long = "word " * 30
    page = f'{long}\n| {long} |\n```\n{long}\n```\n```bash\nvmae2 {long}\n```\n- `{long}`\n{"x" * 130}\nsee [a](b "{long}")'
    assert [line.split(":")[0] for line in long_lines(page)] == ["1", "7", "11"]
