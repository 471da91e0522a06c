"""The report as blocks, and what turns blocks into HTML and Markdown: one content, two files."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from string import ascii_lowercase
from typing import Any, Literal

from jinja2 import Environment
from markupsafe import Markup, escape

from benchmarks.report.cells import MARKS, Cell, Code, Inline, Line, Mark, Name, line
from vmae2_ds.draw.pages import templates_of

MARKDOWN_MARKS = {"": "", "c": "ᶜ", "p": "ᵖ"}


@dataclass(frozen=True)
class Prose:
    """A paragraph."""

    text: Line
    style: Literal["plain", "note", "warning"] = "plain"
    block: str = "prose"


@dataclass(frozen=True)
class Items:
    """A list of sentences."""

    lines: tuple[Line, ...]
    block: str = "items"


@dataclass(frozen=True)
class Facts:
    """Headline figures: what, how much, and what has to be known beside it."""

    facts: tuple[tuple[Line, Line, Line], ...]
    block: str = "facts"


@dataclass(frozen=True)
class Table:
    """Rows of lines. A row that is too short says something over the rest of its width: why there are no numbers.

    A row of one line is a heading of the rows below it.
    """

    head: tuple[Line, ...]
    rows: tuple[tuple[Line, ...], ...]
    caption: Line = ()
    folded: bool = False
    """In HTML: only the caption is seen until it is clicked; printed in full."""
    block: str = "table"


@dataclass(frozen=True)
class Figure:
    """A drawing, and the numbers in it as a table."""

    svg: str
    caption: Line
    numbers: Table
    block: str = "figure"


Block = Prose | Items | Facts | Table | Figure


@dataclass(frozen=True)
class Section:
    """A heading and what stands under it."""

    title: Line
    blocks: tuple[Block, ...]
    level: int = 2
    parts: tuple[Section, ...] = field(default=())


def table(
    head: Sequence[Inline | Line], rows: Sequence[Sequence[Inline | Line]], caption: Line = (), *, folded: bool = False
) -> Table:
    """A table of inlines or lines."""
    lines = tuple(tuple(line(part) for part in row) for row in rows)
    return Table(tuple(line(part) for part in head), lines, caption, folded)


def without_empty_columns(built: Table, blank: Line) -> Table:
    """The table without columns in which every full row is `blank`; the first column stays."""
    width = len(built.head)
    full = [row for row in built.rows if len(row) == width]
    if not full:
        return built
    keep = [index for index in range(width) if index == 0 or any(row[index] != blank for row in full)]
    rows = tuple(tuple(row[index] for index in keep) if len(row) == width else row for row in built.rows)
    return Table(tuple(built.head[index] for index in keep), rows, built.caption, built.folded)


def html_page(title: str, sections: Sequence[Section]) -> str:
    """One self-contained page: no script, no other file."""
    return _environment(html_of, escaped=True).get_template("page.html").render(title=title, sections=sections)


def markdown_page(title: str, sections: Sequence[Section]) -> str:
    """The same without the drawings; their numbers stand in tables."""
    return _environment(markdown_of, escaped=False).get_template("page.md").render(title=title, sections=sections)


def _environment(text_of: Any, *, escaped: bool) -> Environment:
    options = {"trim_blocks": True, "lstrip_blocks": True, "keep_trailing_newline": True}
    jinja = templates_of("benchmarks.report", autoescape=escaped, **options)
    jinja.filters["text"] = text_of
    jinja.tests["numeric"] = is_numeric
    return jinja


def is_numeric(parts: Line) -> bool:
    """Whether a line is numbers and the signs between them: it must not be broken."""
    return any(isinstance(part, Cell) for part in parts) and all(
        isinstance(part, Cell) or (isinstance(part, str) and len(part) < 4) for part in parts
    )


def html_of(parts: Line) -> Markup:
    """A line as HTML; every cell tells where it is from."""
    return Markup("").join(_html_inline(part) for part in parts)


def _html_inline(part: Inline) -> Markup:
    if isinstance(part, Cell):
        attributes = {"value": repr(part.value), "data-unit": part.unit, "data-kind": part.kind, **_references(part)}
        opened = Markup(" ").join(Markup('{}="{}"').format(name, value) for name, value in attributes.items())
        return Markup("<data {}>{}</data>{}").format(opened, part.text, _html_inline(Mark(part.kind)))
    if isinstance(part, Mark):
        return Markup("<sup>{}</sup>").format(MARKS[part.kind]) if MARKS[part.kind] else Markup("")
    if isinstance(part, Name):
        return Markup('<span class="name">{}</span>').format(Markup("_<wbr>").join(part.text.split("_")))
    if isinstance(part, Code):
        return Markup("<code>{}</code>").format(part.text)
    assert isinstance(part, str), f"a line of lines: {part}"
    return escape(part)


def _references(part: Cell) -> dict[str, str]:
    """Attributes that say where a number is from; `title` shows it to whoever points at the number."""
    if part.formula is None:
        ((row, path),) = part.sources
        return {"data-row": row, "data-field": path, "title": f"{row}: {path}"}
    named = {letter: f"{row}#{path}" for letter, (row, path) in zip(ascii_lowercase, part.sources, strict=False)}
    explained = "; ".join([part.formula, *(f"{letter} = {reference}" for letter, reference in named.items())])
    references = {f"data-{letter}": reference for letter, reference in named.items()}
    return {"data-formula": part.formula, **references, "title": explained}


def markdown_of(parts: Line) -> str:
    """A line as Markdown, for a paragraph or a table cell."""
    return "".join(_markdown_inline(part) for part in parts)


def _markdown_inline(part: Inline) -> str:
    if isinstance(part, Cell):
        return part.text + MARKDOWN_MARKS[MARKS[part.kind]]
    if isinstance(part, Mark):
        return MARKDOWN_MARKS[MARKS[part.kind]]
    if isinstance(part, Code):
        return f"`{part.text}`"
    text = part.text if isinstance(part, Name) else part
    text = text.replace("\N{WORD JOINER}", "")
    for character in "\\|<>*_[]":
        text = text.replace(character, f"\\{character}")
    return text
