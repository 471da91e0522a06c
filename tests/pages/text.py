"""Markdown that the generated pages are made of."""

from __future__ import annotations

import inspect
import re
import textwrap
from collections.abc import Iterable

from tests.pages.options import Option, escaped

WIDTH = 120
COMMAND = "python -m tests.pages"
"""What writes both pages."""


def head(title: str, about: str) -> list[str]:
    """The beginning of a page."""
    told = f"Made by `{COMMAND}`; `tests/test_docs_names.py` holds it to the code. Do not edit it by hand."
    source = f"<!-- figures: made by {COMMAND}: settings, and figures of the docstrings -->"
    return [f"# {title}", source, filled(told), filled(about)]


def filled(text: str, indent: str = "") -> str:
    """A paragraph whose lines end at the pages' width; `indent` before all lines but the first."""
    return textwrap.fill(
        " ".join(text.split()), WIDTH, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False
    )


def paragraphs(text: str) -> list[str]:
    """A docstring as paragraphs."""
    return [part for each in inspect.cleandoc(text).split("\n\n") if (part := filled(escaped(each)))]


def table(heading: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """A table."""
    titles = list(heading)
    lines = [titles, ["---"] * len(titles), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def options_table(options: Iterable[Option]) -> str:
    """Options of a verb."""
    rows = [(f"`{each.name}`", each.takes, each.default, each.help) for each in options]
    return table(("option", "takes", "default", "what it does"), rows)


def code(lines: Iterable[str], language: str = "") -> str:
    """A block of commands; long ones go on after a backslash, an option and its value together."""
    return "\n".join([f"```{language}", *("\n".join(broken(line)) for line in lines), "```"])


def broken(line: str) -> list[str]:
    """A command as lines that are short enough."""
    lines = [""]
    for part in re.split(r" (?=--|\[)", line):
        room = WIDTH - len(" \\") - 1 - len(part)
        lines = [*lines[:-1], f"{lines[-1]} {part}".lstrip(" ")] if len(lines[-1]) <= room else [*lines, part]
    return [
        f"{'    ' if number else ''}{each}{'' if number == len(lines) - 1 else ' ' + chr(92)}"
        for number, each in enumerate(lines)
    ]


def page_of(parts: Iterable[str]) -> str:
    """The parts of a page, with an empty line between them but under a heading."""
    text = ""
    for part in parts:
        above = text.rstrip("\n").rpartition("\n")[2]
        text += f"{part}\n" if not text or above.startswith(("#", "<!--")) else f"\n{part}\n"
    return text
