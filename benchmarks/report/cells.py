"""Cells: each number of the report with the row and field it stands in, or the formula over them, so that it can be checked."""

from __future__ import annotations

import ast
import math
import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from string import ascii_lowercase
from typing import Any, Literal, NamedTuple

Kind = Literal["measured", "computed", "quoted"]

MARKS: dict[Kind, str] = {"measured": "", "computed": "c", "quoted": "p"}
"""What stands behind a number that was not measured; told apart without colour."""

COMPUTED_FIELDS = {"flops", "flops_counted", "flop_ratio", "predicted", "residual", "segment_flops"}
"""Fields of a measured row that no clock or counter of this machine gave."""

MISSING = "\N{EN DASH}"
"""Shown where a row has no such number."""
TO = "\N{EN DASH}\N{WORD JOINER}"
"""Between quartiles, which stay on one line."""
UNVERIFIED = "unverified"
"""Shown for a published number that we know only from memory."""


@dataclass(frozen=True)
class Row:
    """One row of a result file or of paper.json, and the name by which cells refer to it."""

    id: str
    data: Mapping[str, Any] = field(repr=False, hash=False)

    def get(self, path: str) -> Any:
        """The value at a dotted path (`speedup.median`, `config.clip.0`), None where there is none."""
        value: Any = self.data
        for step in path.split("."):
            if isinstance(value, Mapping):
                value = value.get(step)
            elif isinstance(value, list) and step.isdecimal() and int(step) < len(value):
                value = value[int(step)]
            else:
                return None
        return value

    def kind_of(self, path: str) -> Kind:
        """`values` of a row may be `modelled` or `counted`, as its `kind` says; what is not in COMPUTED_FIELDS was measured."""
        said, column = self.data.get("kind"), path.split(".")[0]
        if said == "quoted":
            return "quoted"
        return "computed" if column in COMPUTED_FIELDS or (column == "values" and said != "measured") else "measured"


Source = tuple[Row | None, str]
"""A row and the path of a field in it."""


@dataclass(frozen=True)
class Cell:
    """A number as shown. `formula` is over a, b, c ...: the fields of `sources` in order; None: the one source itself."""

    value: float
    text: str
    unit: str
    kind: Kind
    sources: tuple[tuple[str, str], ...]
    formula: str | None = None


class Name(NamedTuple):
    """A string that stands in a row or in paper.json as it is: names of groups, machines, versions, reasons of failure."""

    text: str


class Code(NamedTuple):
    """A command or an identifier."""

    text: str


class Mark(NamedTuple):
    """The mark of a kind of numbers, alone: for the legend."""

    kind: Kind


Inline = str | Cell | Name | Code | Mark
Line = tuple[Inline, ...]


class Quantity(NamedTuple):
    """How numbers of one sort are shown."""

    units: tuple[tuple[str, float], ...]
    """From large to small; the first one that the number reaches is taken, or the last."""
    text: Callable[[float], str]


def _significant(value: float) -> str:
    """Three significant digits, never an exponent: 1234 -> 1234, 12.34 -> 12.3, 0.01234 -> 0.0123."""
    if not value or not math.isfinite(value):
        return f"{value:g}"
    return f"{value:.{max(0, 2 - math.floor(math.log10(abs(value))))}f}"


def _signed(percent: float) -> str:
    """More decimals the smaller it is: residuals reach from thousandths of a percent to factors."""
    size = abs(percent)
    return f"{percent:+.{3 if size < 0.1 else 2 if size < 1 else 1 if size < 100 else 0}f}"


QUANTITIES: dict[str, Quantity] = {
    "time": Quantity((("s", 0.1), ("ms", 1e-4), ("us", 0)), _significant),
    "hours": Quantity((("h", 0),), lambda value: f"{value:.1f}" if value < 100 else f"{value:.0f}"),
    "bytes": Quantity((("GiB", 10 * 2**30), ("MiB", 2**19), ("KiB", 2**9), ("B", 0)), _significant),
    "macs": Quantity((("G", 0),), lambda value: f"{value:.2f}"),
    "flops": Quantity((("PFLOP", 1e15), ("TFLOP", 1e12), ("GFLOP", 0)), _significant),
    "rate": Quantity((("TFLOP/s", 1e12), ("GFLOP/s", 0)), _significant),
    "byte rate": Quantity((("GB/s", 1e9), ("MB/s", 1e5), ("B/s", 0)), _significant),
    "number rate": Quantity((("G/s", 1e9), ("M/s", 1e6), ("/s", 0)), _significant),
    "ratio": Quantity((("x", 0),), lambda value: f"{value:.2f}"),
    "share": Quantity((("%", 0),), lambda value: f"{round(value, 1) + 0.0:.1f}"),
    "residual": Quantity((("%", 0),), _signed),
    "change": Quantity((("%", 0),), lambda value: f"{round(value, 1) + 0.0:+.1f}"),
    "points": Quantity((("", 0),), lambda value: f"{round(value, 1) + 0.0:+.1f}"),
    "percent": Quantity((("", 0),), lambda value: f"{value:.2f}"),
    "plain": Quantity((("", 0),), lambda value: f"{value:.0f}" if float(value).is_integer() else _significant(value)),
}

UNITS: dict[str, float] = {
    "s": 1, "ms": 1e-3, "us": 1e-6, "h": 1, "GiB": 2**30, "MiB": 2**20, "KiB": 2**10, "B": 1, "G": 1e9, "PFLOP": 1e15,
    "TFLOP": 1e12, "GFLOP": 1e9, "TFLOP/s": 1e12, "GFLOP/s": 1e9, "GB/s": 1e9, "MB/s": 1e6, "B/s": 1,
    "G/s": 1e9, "M/s": 1e6, "/s": 1, "x": 1, "%": 0.01, "": 1,
}  # fmt: skip
TIGHT = ("x", "%", "")
"""Units that follow their number without a space."""


def cell(row: Row | None, path: str, quantity: str, *, like: Inline | None = None) -> Inline:
    """One field of a row as a cell; MISSING where there is no row or no number in it.

    `like`: show the bare number in that cell's unit, for quartiles behind their median.
    """
    return _cell([(row, path)], None, quantity, like)


def derived(formula: str, sources: Sequence[Source], quantity: str, *, like: Inline | None = None) -> Inline:
    """A formula over fields, which it calls a, b, c ... in order; MISSING where one of them is, or would divide by zero."""
    return _cell(sources, formula, quantity, like)


def quoted(row: Row | None, column: str, quantity: str) -> Inline:
    """A published number; UNVERIFIED where we have no document for it, MISSING where the paper has none."""
    if row is not None and row.get(column) is not None and row.get(f"{column}.value") is None:
        return UNVERIFIED
    return cell(row, f"{column}.value", quantity)


def _cell(sources: Sequence[Source], formula: str | None, quantity: str, like: Inline | None) -> Inline:
    values = [row.get(path) for row, path in sources if row is not None]
    numbers = [value for value in values if isinstance(value, (int, float)) and not isinstance(value, bool)]
    if len(numbers) < len(sources):
        return MISSING
    try:
        value = evaluate(formula, dict(zip(ascii_lowercase, numbers, strict=False))) if formula else numbers[0]
    except ZeroDivisionError:
        return MISSING
    unit, text = shown(value, quantity, like.unit if isinstance(like, Cell) else None)
    if like is None:
        text = text + unit if unit in TIGHT else f"{text}\N{NO-BREAK SPACE}{unit}"
    references = tuple((row.id, path) for row, path in sources if row is not None)
    return Cell(value, text, unit, _kind_of(sources), references, formula)


def _kind_of(sources: Sequence[Source]) -> Kind:
    """Of equal kinds that kind; mixed ones are computed."""
    kinds: set[Kind] = set()
    for row, path in sources:
        assert row is not None, "MISSING was returned before"
        kinds.add(row.kind_of(path))
    return kinds.pop() if len(kinds) == 1 else "computed"


def shown(value: float, quantity: str, unit: str | None = None) -> tuple[str, str]:
    """(unit, number in it) as text; `unit` forces one."""
    units, text = QUANTITIES[quantity]
    if unit is None:
        unit = next((name for name, least in units if abs(value) >= least), units[-1][0])
    return unit, text(value / UNITS[unit])


OPERATORS = {ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Div: operator.truediv}


def evaluate(formula: str, operands: Mapping[str, float]) -> float:
    """Sums, differences, products and quotients of operands and numbers: all that the report computes by itself."""

    def value_of(node: ast.expr) -> float:
        if isinstance(node, ast.BinOp):
            return OPERATORS[type(node.op)](value_of(node.left), value_of(node.right))
        if isinstance(node, ast.Name):
            return operands[node.id]
        assert isinstance(node, ast.Constant), f"{formula!r}: {ast.dump(node)}"
        assert isinstance(node.value, int), f"{formula!r}: {node.value!r}"
        return node.value

    return value_of(ast.parse(formula, mode="eval").body)


def spread(row: Row | None, path: str, quantity: str) -> Line:
    """Median and, in brackets, quartiles of a field: 1.63x (1.55-1.67); MISSING where there is none."""
    return with_range(cell(row, f"{path}.median", quantity), row, (f"{path}.low", f"{path}.high"), quantity)


def with_range(middle: Inline, row: Row | None, ends: tuple[str, str], quantity: str) -> Line:
    """A cell and, in brackets, the fields that it lies between, in its unit."""
    low, high = (cell(row, end, quantity, like=middle) for end in ends)
    return (middle,) if MISSING in (middle, low, high) else (middle, " (", low, TO, high, ")")


def gain(row: Row) -> tuple[Line, Inline]:
    """Speed-up with quartiles, and FLOP ratio; MISSING for what they are over."""
    if row.get("speedup.against") == row.get("variant"):
        return (MISSING,), MISSING
    return spread(row, "speedup", "ratio"), cell(row, "flop_ratio", "ratio")


def host(row: Row) -> Line:
    """Seconds until the last launch of a step has returned, with a word where the device waited for that."""
    return (cell(row, "host_s", "time"), *[", host-bound"] * bool(row.get("host_bound")))


def clips(row: Row) -> Line:
    """An automatic batch, and what was planned where that did not fit; MISSING for one that was asked for."""
    found, planned = cell(row, "batch.clips", "plain"), cell(row, "batch.planned", "plain")
    return (found, " of ", planned) if row.get("batch.out_of_memory_at") else (found,)


def say(template: str, *parts: Inline | Line) -> Line:
    """A sentence whose `{}` are filled in order; empty where one of the parts is missing: no sentence about nothing.

    White space of the template is single spaces in the sentence.
    """
    pieces = " ".join(template.split()).split("{}")
    assert len(pieces) == len(parts) + 1, f"{len(parts)} parts for {template!r}"
    inlines: list[Inline] = [pieces[0]]
    for part, piece in zip(parts, pieces[1:], strict=True):
        filling = line(part)
        if not filling or MISSING in filling:
            return ()
        inlines += [*filling, piece]
    return tuple(inlines)


def line(part: Inline | Line) -> Line:
    """A single inline as a line; lines as they are."""
    return part if isinstance(part, tuple) and not isinstance(part, (Name, Code, Mark)) else (part,)
