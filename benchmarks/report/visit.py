"""The visit to a machine on one page: its headline figures side by side, and what became of each group that was planned."""

from __future__ import annotations

from benchmarks.report import words
from benchmarks.report.book import SIZES, Book, Place
from benchmarks.report.cells import MISSING, Inline, Line, Name, Row, cell, derived, quoted, say, spread
from benchmarks.report.dual import fastest
from benchmarks.report.page import Block, Prose, Section, table, without_empty_columns
from benchmarks.report.table2 import pairs_of

CASE, PLANNER, RUN = "visit", "planner", "real_run"
DONE = ("measured", "measured before")
MACHINE = ("doctor", "missing")
"""Groups of rows that tell of the machine and not of what was planned."""


def visit(book: Book, place: Place) -> Section | None:
    """The section of a place that was visited; None for another."""
    rows = [row for group in place.groups(CASE).values() for row in group.values()]
    if not rows:
        return None
    machine = [row for row in rows if row.get("group") in MACHINE and row.get("state") != "measured"]
    planned = [row for row in rows if row.get("group") not in MACHINE]
    without = [row for row in planned if row.get("state") not in DONE]
    done = [row for row in planned if row.get("state") in DONE]
    blocks: list[Block] = [Prose(say(words.VISIT)), _headline(book, place)]
    if machine:
        blocks.append(_table(machine, ("What this machine lacks, and what its doctor says",)))
    if without:
        blocks.append(_table(without, ("What has no figures here, and why",)))
    else:
        blocks.append(Prose(("Everything that was planned was measured.",)))
    blocks.append(_table(done, ("What was measured, with predicted and taken time",), folded=True))
    return Section(("The visit to ", Name(place.name)), tuple(blocks))


def _headline(book: Book, place: Place) -> Block:
    """The fastest group of each size beside its FLOP ratio and the paper's speed-up; none of a step that waits for its host."""
    firsts = {group: first for group, first, _ in pairs_of(place)}
    lines: list[list[Inline | Line]] = []
    for group, dual in fastest(place, "size").items():
        size = str(dual.get("config.size"))
        paper = book.paper.rows("table2").get(f"{size} dual")
        duals = [rows["dual"] for rows in place.groups(PLANNER).values() if "dual" in rows]
        planned = next((row for row in duals if row.get("config.size") == size and not row.get("error")), None)
        both = [(firsts[group], "memory.peak_bytes"), (dual, "memory.peak_bytes")]
        lines.append(
            [
                (SIZES.get(size, size), ", ", Name(group)),
                cell(dual, "config.batch_size", "plain"),
                spread(dual, "time_s", "time"),
                spread(dual, "speedup", "ratio"),
                cell(dual, "flop_ratio", "ratio"),
                quoted(paper, "speedup", "ratio") if paper else MISSING,
                cell(dual, "memory.peak_bytes", "bytes"),
                derived("a/b", both, "ratio"),
                spread(dual, "mfu", "share"),
                spread(dual, "mfu_measured", "share"),
                cell(planned, "residual.time", "residual"),
                cell(planned, "residual.memory", "residual"),
                cell(place.find(RUN, f"{size} zero1", "from the start"), "values.data_wait_share", "share"),
            ]
        )
    if not lines:
        return Prose(("No group of dual masking has figures that do not wait for the host.",), "note")
    head = (
        "fastest group",
        "clips",
        "dual step",
        "speed-up",
        "FLOP ratio",
        "paper's speed-up",
        "memory of the dual step",
    )
    head += ("memory, encoder-only over dual", "MFU", "of a measured product", "planner's time", "planner's memory")
    head += ("data wait of a real run",)
    return without_empty_columns(table(head, lines), (MISSING,))


def _table(rows: list[Row], caption: Line, *, folded: bool = False) -> Block:
    lines: list[list[Inline | Line]] = []
    for row in rows:
        times = [cell(row, f"values.{name}", "time") for name in ("predicted_s", "expected_s", "took_s")]
        texts = [Name(str(row.get(name))) if row.get(name) else "" for name in ("state", "reason")]
        lines.append([(Name(str(row.get("group"))), ": ", Name(str(row.get("variant")))), *texts, *times])
    head = ("what", "state", "reason", "predicted", "expected after what was measured before it", "took")
    return without_empty_columns(without_empty_columns(table(head, lines, caption, folded=folded), ("",)), (MISSING,))
