"""What became of each group of a visit: measured, failed, or left out for lack of time, with predicted and taken seconds."""

from __future__ import annotations

from benchmarks.report import words
from benchmarks.report.book import Place
from benchmarks.report.cells import Inline, Line, Name, Row, cell
from benchmarks.report.page import Block, Prose, Section, table, without_empty_columns

CASE = "visit"
DONE = ("measured", "measured before")


def visit(place: Place) -> Section | None:
    """The section of a place that was visited; None for another."""
    groups = place.groups(CASE)
    rows = [row for group in groups.values() for row in group.values()]
    if not rows:
        return None
    without = [row for row in rows if row.get("state") not in DONE]
    blocks: list[Block] = [Prose((words.VISIT,))]
    if without:
        blocks.append(_table(without, ("What has no figures here, and why",)))
    else:
        blocks.append(Prose(("Everything that was planned was measured.",)))
    done = [row for row in rows if row.get("state") in DONE]
    blocks.append(_table(done, ("What was measured, with predicted and taken time",), folded=True))
    return Section(("The visit to ", Name(place.name)), tuple(blocks))


def _table(rows: list[Row], caption: Line, *, folded: bool = False) -> Block:
    lines: list[list[Inline | Line]] = []
    for row in rows:
        times = [cell(row, f"values.{name}", "time") for name in ("predicted_s", "expected_s", "took_s")]
        texts = [Name(str(row.get(name))) if row.get(name) else "" for name in ("state", "reason")]
        lines.append([(Name(str(row.get("group"))), ": ", Name(str(row.get("variant")))), *texts, *times])
    head = ("what", "state", "reason", "predicted", "expected after what was measured before it", "took")
    return without_empty_columns(table(head, lines, caption, folded=folded), ("",))
