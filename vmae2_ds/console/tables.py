"""Plain tables, the same in a log file and in a pipe; lists where a terminal is narrow."""

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
