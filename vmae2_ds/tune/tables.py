"""How the calculators print: plain tables, the same in a log file and in a pipe; lists where a terminal is narrow."""

from __future__ import annotations

import io
import textwrap
from collections.abc import Iterable, Iterator, Sequence

from rich import box
from rich.console import Console
from rich.table import Table

from vmae2_ds.console.terminal import columns


def table(title: str, header: Sequence[str], rows: Iterable[Sequence[object]], left: int = 1) -> str:
    """A table as text: the first `left` columns flush left, numbers flush right.

    On a terminal that is narrower than it, a list instead: each row's first cell, and below it name and value of the others.
    """
    cells, width = [[str(cell) for cell in row] for row in rows], columns()
    text = _drawn(title, header, cells, left)
    if width is None or max(map(len, text.splitlines())) <= width:
        return text
    return "\n".join(textwrap.fill(line, width, subsequent_indent="    ") for line in _listed(title, header, cells))


def _listed(title: str, header: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[str]:
    yield title
    for first, *others in rows:
        yield f"{header[0]}: {first}"
        yield from (f"  {name}: {cell}" for name, cell in zip(header[1:], others, strict=True) if cell)


def _drawn(title: str, header: Sequence[str], rows: Sequence[Sequence[str]], left: int) -> str:
    drawn = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for number, name in enumerate(header):
        drawn.add_column(name, justify="left" if number < left else "right", overflow="fold")
    for row in rows:
        drawn.add_row(*row)
    console = Console(file=io.StringIO(), width=250, color_system=None)
    console.print(drawn)
    assert isinstance(console.file, io.StringIO), "given above"
    lines = [title, *(line.rstrip() for line in console.file.getvalue().splitlines() if line.strip())]
    return "\n".join(line for line in lines if line)


def markdown(header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A table in Markdown."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(str(cell) for cell in line) + " |" for line in lines)


def duration(seconds: float) -> str:
    """A time as people say it: 0.8 ms, 3.2 s, 41 min, 15.9 h, 50 days."""
    for unit, size, below in (("ms", 1e-3, 1), ("s", 1, 120), ("min", 60, 7200), ("h", 3600, 1000 * 3600)):
        if seconds < below:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds / 86400:.3g} days"


def hours(value: float) -> str:
    """Hours that are paid for: whole ones, and parts of a few."""
    return f"{value:,.0f}" if value >= 10 else f"{value:.2g}"


def scaled(value: float, unit: str = "") -> str:
    """A number with its decimal prefix: 263.9 G."""
    for prefix, size in (("E", 1e18), ("P", 1e15), ("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if abs(value) >= size:
            return f"{value / size:.4g} {prefix}{unit}"
    return f"{value:.4g} {unit}".rstrip()
