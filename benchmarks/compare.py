"""What changed between two sets of rows, beyond what the rounds of either scatter: the verdicts of `compare`.

A change of a median counts where the quartiles are apart and the medians differ by more than a tolerance. What is counted,
not timed (bytes, FLOP ratios), counts beyond 2 %. Rows of other machines or devices are compared in ratios and bytes alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from rich.console import Group
from rich.table import Table
from rich.text import Text

from benchmarks.record import Key, Row, current, key_of

Verdict = Literal["regression", "improvement", "same", "vanished", "new", "not compared"]
TOLD: tuple[Verdict, ...] = ("regression", "improvement", "vanished", "new")
"""Verdicts that get a line of their own; the others are summed up."""
COUNTED_TOLERANCE = 0.02
RESIDENT = "VmHWM"
"""How the source of a CPU's memory begins: one sample of whole pages, which scatters more than what is counted."""
RESIDENT_TOLERANCE, RESIDENT_SLACK = 0.03, 4 * 2**20
UNSTEADY = {"left_bytes"}
"""Values in bytes that are an allocator's leavings."""
OTHER_MACHINE = "times are not compared: the rows come from different machines or devices"


@dataclass(frozen=True)
class Range:
    """A median and the quartiles around it; three times the same for what is counted."""

    low: float
    median: float
    high: float


@dataclass(frozen=True)
class Quantity:
    """Something of a row that can be compared."""

    name: str
    path: tuple[str, ...]
    counted: bool = False
    """A plain number without spread."""
    less_is_better: bool = True
    same_machine: bool = False
    """Says nothing about rows of two machines."""
    same_field: tuple[str, ...] = ()
    """What both rows must agree in: what a ratio is over, how memory was counted."""

    def of(self, row: Row) -> Range | None:
        """The row's value, None where it has none."""
        found = _value(row, self.path)
        if found is None:
            return None
        return Range(found, found, found) if self.counted else Range(found["low"], found["median"], found["high"])


QUANTITIES = (
    Quantity("time", ("time_s",), same_machine=True),
    Quantity("speed-up", ("speedup",), less_is_better=False, same_field=("speedup", "against")),
    Quantity("FLOP ratio", ("flop_ratio",), counted=True, less_is_better=False, same_field=("speedup", "against")),
    Quantity("memory", ("memory", "peak_bytes"), counted=True, same_field=("memory", "source")),
)


@dataclass(frozen=True)
class Change:
    """One quantity of one variant, before and after. Of a variant that is on one side alone there is no quantity."""

    key: Key
    quantity: str
    verdict: Verdict
    before: Range | None = None
    after: Range | None = None
    note: str = ""


def compare(before: list[Row], after: list[Row], tolerance: float) -> list[Change]:
    """One change for each quantity of each variant, from the rows of both that count; `tolerance` is a share of a median."""
    old, new = ({key_of(row): row for row in current(rows)} for rows in (before, after))
    changes: list[Change] = []
    for key in dict.fromkeys([*old, *new]):
        if key in old and key in new:
            changes += _of_variant(key, old[key], new[key], tolerance)
        elif (failed := (old | new)[key]["error"]) is not None:
            verdict: Verdict = "improvement" if key in old else "regression"
            changes.append(Change(key, "error", verdict, note=failed if key in new else f"no longer: {failed}"))
        else:
            changes.append(Change(key, "", "vanished" if key in old else "new"))
    return changes


def _of_variant(key: Key, before: Row, after: Row, tolerance: float) -> Iterator[Change]:
    if before["error"] or after["error"]:
        verdict: Verdict = "same" if before["error"] and after["error"] else "regression"
        verdict = verdict if after["error"] else "improvement"
        yield Change(key, "error", verdict, note=after["error"] or f"no longer: {before['error']}")
        return
    for quantity in (*QUANTITIES, *_byte_counts(before, after)):
        one, other = quantity.of(before), quantity.of(after)
        if one is None and other is None:
            continue
        if one is None or other is None:
            yield Change(key, quantity.name, "new" if one is None else "vanished", one, other)
        elif quantity.same_machine and _machine(before) != _machine(after):
            yield Change(key, quantity.name, "not compared", one, other, OTHER_MACHINE)
        elif _value(before, quantity.same_field) != _value(after, quantity.same_field):
            field = ".".join(quantity.same_field)
            yield Change(
                key, quantity.name, "not compared", one, other, f"{quantity.name} is not compared: {field} differs"
            )
        else:
            allowed = _allowed(quantity, before, one, other, tolerance)
            yield Change(key, quantity.name, _verdict(quantity, one, other, allowed), one, other)


def _byte_counts(before: Row, after: Row) -> list[Quantity]:
    """`values` in bytes: what is sent, held or written."""
    names = dict.fromkeys([*(before.get("values") or {}), *(after.get("values") or {})])
    return [
        Quantity(name, ("values", name), counted=True)
        for name in names
        if name.endswith("bytes") and name not in UNSTEADY
    ]


def _machine(row: Row) -> tuple[str, str]:
    return row["device"], row["machine"]["cpu"]


def _value(row: Row, path: Sequence[str]) -> Any:
    """What stands at a path, None where nothing does; an empty path is None."""
    value: Any = row if path else None
    for name in path:
        value = value.get(name) if isinstance(value, Mapping) else None
    return value


def _allowed(quantity: Quantity, row: Row, before: Range, after: Range, tolerance: float) -> float:
    """Difference that is no change, over the smaller of the two: swapping the sides mirrors the verdict."""
    small = min(before.median, after.median)
    if str(_value(row, ("memory", "source"))).startswith(RESIDENT) and quantity.path[0] == "memory":
        return max(RESIDENT_TOLERANCE * small, RESIDENT_SLACK)
    return (COUNTED_TOLERANCE if quantity.counted else tolerance) * small


def _verdict(quantity: Quantity, before: Range, after: Range, allowed: float) -> Verdict:
    small, large = sorted((before.median, after.median))
    apart = after.low > before.high or after.high < before.low
    if not apart or large - small <= allowed:
        return "same"
    return "regression" if (after.median > before.median) == quantity.less_is_better else "improvement"


def table(changes: Sequence[Change]) -> Group:
    """What changed, for a terminal; below it what did not, in a line, and what could not be compared."""
    told = sorted((change for change in changes if change.verdict in TOLD), key=lambda each: TOLD.index(each.verdict))
    if not told:
        return Group(*_summary(changes))
    shown = Table(title="Changes beyond the spread")
    for heading in ("verdict", "case", "group", "variant", "quantity", "before", "after", "change"):
        shown.add_column(heading, justify="right" if heading in ("before", "after", "change") else "left")
    for change in told:
        style = {"regression": "red", "improvement": "green"}.get(change.verdict)
        shown.add_row(*map(Text, (change.verdict, *change.key, change.quantity, *_figures(change))), style=style)
    return Group(shown, *_summary(changes))


def _figures(change: Change) -> tuple[str, str, str]:
    if change.note:
        return "", "", change.note
    before, after = (_text(each) for each in (change.before, change.after))
    if change.before is None or change.after is None or not change.before.median:
        return before, after, ""
    return before, after, f"{change.after.median / change.before.median - 1:+.1%}"


def _text(value: Range | None) -> str:
    if value is None:
        return ""
    return f"{value.median:.4g}" + f" ({value.low:.4g}-{value.high:.4g})" * (value.low < value.high)


def _summary(changes: Sequence[Change]) -> Iterator[str]:
    changed = {change.key for change in changes if change.verdict in TOLD}
    quiet = {change.key for change in changes if change.verdict == "same"} - changed
    yield f"no change beyond the spread in {len(quiet)} variant" + "s" * (len(quiet) != 1)
    yield from dict.fromkeys(change.note for change in changes if change.verdict == "not compared")
