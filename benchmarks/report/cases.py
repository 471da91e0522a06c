"""One section for each case that has no section of its own: what differs, times, memory, predictions, failures; and scaling."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from benchmarks.case import MATMUL
from benchmarks.report import plots
from benchmarks.report.book import PAPER_CASE, Book, Place
from benchmarks.report.cells import MISSING, Inline, Line, Name, Row, cell, derived, gain, line, spread
from benchmarks.report.dual import CASE
from benchmarks.report.page import Block, Figure, Prose, Section, Table, table, without_empty_columns
from benchmarks.report.parts import CASE as PARTS_CASE
from benchmarks.report.table1 import CASE as TABLE1_CASE
from benchmarks.report.table2 import absent

WITH_SECTIONS_OF_THEIR_OWN = {CASE, PARTS_CASE, TABLE1_CASE, PAPER_CASE}

ABOUT = {
    "peers": "The same work in transformers' VideoMAE, encoder-only, beside ours.",
    "attention": "Attention kernels alone, at the shapes of each tower.",
    "embed": "Embedding all cubes and selecting, against selecting and embedding what is visible.",
    "optimizer": "The update alone.",
    "checkpointing": "Recomputing activations: time against memory.",
    "zero": "ZeRO stages over ranks: time, memory, bytes sent, and the planner's prediction beside each.",
    "data": "Decoding, transforming and loading clips on processor cores.",
    "checkpoint": "Saving, resuming and exporting.",
    "prediction": "Step times of other sizes from rates fitted to one size, and how far they are from measured ones.",
}
"""What a case asks; cases without a line here go without."""

SAME_FOR_THE_READER = {"samples", "clip"}
RANKS = re.compile(r"\b\d+ ranks?\b,?\s*")
SCALINGS = {"weak": "a/b", "strong": "a*c/(b*d)"}
"""Kind -> efficiency: a time on the fewest ranks (c) over b time on more (d)."""


def case_sections(book: Book) -> Iterator[Section]:
    """Place by place, in the order of ABOUT; a case without rows anywhere says how to make them."""
    for place in book.places:
        for case in sorted(place.cases, key=[*ABOUT, *place.cases].index):
            if case not in WITH_SECTIONS_OF_THEIR_OWN:
                yield _section(case, place, titled=len(book.places) > 1)
    measured = {case for place in book.places for case in place.cases}
    for case in ABOUT:
        if case not in measured:
            yield Section((_title(case),), (absent(case),))


def _title(case: str) -> str:
    return "ZeRO" if case == "zero" else case.replace("_", " ").capitalize()


def _section(case: str, place: Place, *, titled: bool) -> Section:
    groups = place.groups(case)
    blocks: list[Block] = [Prose((ABOUT[case],))] if case in ABOUT else []
    blocks.append(_table(groups))
    predicted = {row.get("predicted.source"): row for rows in groups.values() for row in rows.values()}
    for source in predicted:
        if source:
            blocks.append(
                Prose(("Predictions: ", Name(source), ". Residuals are predicted over measured, minus one."), "note")
            )
    blocks += _scaling(groups, place)
    where: Line = (" on ", Name(place.name)) if titled else ()
    return Section((_title(case), *where), tuple(blocks))


def _beside(row: Row, prediction: str, quantity: str, residual: str) -> Line:
    """A prediction and, behind it, how far it is from what was measured."""
    predicted = cell(row, f"predicted.{prediction}", quantity)
    off = cell(row, f"residual.{residual}", "change")
    return (predicted,) if off == MISSING else (predicted, ", ", off)


COLUMNS: dict[str, Callable[[Row], Inline | Line]] = {
    "time": lambda row: spread(row, "time_s", "time"),
    "speed-up": lambda row: gain(row)[0],
    "FLOP ratio": lambda row: gain(row)[1],
    "MFU": lambda row: spread(row, "mfu", "share"),
    "most memory": lambda row: cell(row, "memory.peak_bytes", "bytes"),
    "predicted time, residual": lambda row: _beside(row, "time_s", "time", "time"),
    "predicted memory, residual": lambda row: _beside(row, "peak_bytes", "bytes", "memory"),
    "predicted bytes sent, residual": lambda row: _beside(row, "comm_bytes", "bytes", "comm"),
}
"""What a row may have; columns that none has are left out."""


def _table(groups: Mapping[str, Mapping[str, Row]]) -> Table:
    every = [row for rows in groups.values() for row in rows.values()]
    names = list(dict.fromkeys(name for row in every for name in row.get("values") or {}))
    lines: list[list[Inline | Line]] = []
    for group, rows in groups.items():
        lines.append([Name(group)])
        differing = _differing(list(rows.values()))
        for variant, row in rows.items():
            if row.get("error"):
                lines.append([Name(variant), ("failed: ", Name(row.get("error")))])
                continue
            values = [cell(row, f"values.{name}", quantity_of(name)) for name in names]
            columns = [column(row) for column in COLUMNS.values()]
            lines.append([Name(variant), *columns, *values, _settings(row, differing)])
    head: list[Inline | Line] = ["variant", *COLUMNS, *((Name(name),) for name in names), "what differs"]
    return without_empty_columns(table(head, lines), (MISSING,))


ENDINGS = {
    "bytes": "bytes",
    "bytes_per_s": "byte rate",
    "_per_s": "number rate",
    "_s": "time",
    "share": "share",
    "efficiency": "share",
}


def quantity_of(name: str) -> str:
    """How a number of `values` is shown, from the unit in its name."""
    return next((quantity for ending, quantity in ENDINGS.items() if name.endswith(ending)), "plain")


def _differing(rows: Sequence[Row]) -> list[str]:
    """Settings that the variants of a group do not share; the product that stands for the peak has others anyway."""
    of_case = [row for row in rows if not row.get("error") and row.get("variant") != MATMUL]
    configs: list[Mapping[str, Any]] = [row.get("config") or {} for row in of_case]
    keys = dict.fromkeys(key for config in configs for key in config if key not in SAME_FOR_THE_READER)
    return [key for key in keys if any(config.get(key) != configs[0].get(key) for config in configs)]


def _settings(row: Row, keys: Sequence[str]) -> Line:
    """`visible 160, mask dual`: numbers as cells."""
    parts: list[Inline] = []
    for key in keys:
        value = row.get(f"config.{key}")
        if value is None:
            continue
        parts += [", "] if parts else []
        parts += [Name(key), " ", *_setting(row, f"config.{key}", value)]
    return tuple(parts) or (MISSING,)


def _setting(row: Row, path: str, value: Any) -> Line:
    if isinstance(value, bool):
        return ("yes" if value else "no",)
    if isinstance(value, list):
        return tuple(
            part for number, each in enumerate(value) for part in (" ", *_setting(row, f"{path}.{number}", each))
        )[1:]
    return line(cell(row, path, "plain") if isinstance(value, (int, float)) else Name(str(value)))


def _scaling(groups: Mapping[str, Mapping[str, Row]], place: Place) -> Iterator[Block]:
    """Weak and strong scaling over ranks, efficiency over the fewest ranks measured."""
    for kind, formula in SCALINGS.items():
        series: dict[str, list[Row]] = {}
        for group, rows in groups.items():
            if group.split()[0] == kind:
                for variant, row in rows.items():
                    if not row.get("error") and row.get("time_s"):
                        name = f"{RANKS.sub('', group)} {RANKS.sub('', variant)}".strip()
                        series.setdefault(name, []).append(row)
        series = {
            name: sorted(rows, key=lambda row: row.get("ranks"))
            for name, rows in series.items()
            if len(_ranks(rows)) > 1
        }
        if series:
            yield _scaling_figure(kind, formula, series, place)


def _ranks(rows: Sequence[Row]) -> set[int]:
    return {row.get("ranks") for row in rows}


def _scaling_figure(kind: str, formula: str, series: Mapping[str, Sequence[Row]], place: Place) -> Figure:
    lines: list[list[Inline | Line]] = []
    drawn: list[plots.Series] = []
    for name, rows in series.items():
        points = []
        for row in rows:
            one = rows[0]
            sources = [(one, "time_s.median"), (row, "time_s.median"), (one, "ranks"), (row, "ranks")]
            efficiency = derived(formula, sources[: 2 if kind == "weak" else 4], "share")
            lines.append(
                [
                    Name(str(row.get("group"))),
                    Name(str(row.get("variant"))),
                    cell(row, "ranks", "plain"),
                    spread(row, "time_s", "time"),
                    efficiency,
                ]
            )
            points.append(plots.Point(row.get("ranks"), 100 * getattr(efficiency, "value", 0.0)))
        drawn.append(plots.Series(name, tuple(points)))
    about = {
        "weak": "Weak scaling: every rank has the same work, so the ideal is the same time.",
        "strong": "Strong scaling: the same work over more ranks, so the ideal is time falling with their number.",
    }[kind]
    svg = plots.curves(f"{kind} scaling, {place.name}", drawn, "ranks", "efficiency (%)", level=(100, "ideal"))
    caption: Line = (about, " Efficiency is over the fewest ranks measured.")
    return Figure(svg, caption, table(("group", "variant", "ranks", "step", "efficiency"), lines, ("The numbers",)))
