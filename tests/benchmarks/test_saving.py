"""README's table and picture of dual masking are those of the rows and of paper.json."""

from __future__ import annotations

import json
import re

import pytest

from benchmarks.record import read_rows
from benchmarks.report.book import PAPER_JSON, Book
from benchmarks.report.saving import END, PAGE, PICTURE, ROWS, START, page_with, picture_of, savings, table_of

HINT = "run: python -m benchmarks.report.saving"


def texts(svg: str) -> list[str]:
    """Everything that is written in a drawing, in order."""
    return re.findall(r"<text[^>]*>([^<]+)</text>", svg)


def test_the_table_of_the_readme_is_that_of_the_rows() -> None:
    page = PAGE.read_text()
    assert page.count(START) == page.count(END) == 1
    assert page_with(page, table_of(savings(Book.of([ROWS])))) == page, HINT


def test_the_committed_picture_says_what_the_rows_say() -> None:
    """Another matplotlib draws other curves; what is written stays."""
    pytest.importorskip("matplotlib")
    assert texts(PICTURE.read_text()) == texts(picture_of(savings(Book.of([ROWS])))), HINT


def test_ratios_are_encoder_only_over_dual() -> None:
    """By hand from the rows themselves, not by way of the report's cells."""
    rows = {
        row["variant"]: row
        for row in map(json.loads, (ROWS / "dual_masking.jsonl").read_text().splitlines())
        if row["group"] == "base bf16 math kept"
    }
    first, dual = rows["encoder_only"], rows["dual"]
    shown = next(each for each in savings(Book.of([ROWS])) if "ViT-B, plain" in each.name)
    assert shown.memory.value == pytest.approx(first["memory"]["peak_bytes"] / dual["memory"]["peak_bytes"])
    assert shown.flops.value == pytest.approx(first["flops"] / dual["flops"])
    assert shown.time is not None
    assert shown.time.value == dual["speedup"]["median"]
    assert shown.between == (dual["speedup"]["low"], dual["speedup"]["high"])


def test_another_row_is_another_table_and_a_missing_one_is_named() -> None:
    rows = [row for row in read_rows(ROWS) if row["case"] in ("dual_masking", "paper")]
    paper = json.loads(PAPER_JSON.read_text())
    for row in rows:
        if row["group"] == "base bf16 sdpa kept" and row["variant"] == "dual":
            row["speedup"] = {**row["speedup"], "median": 9.87}
    assert "**9.87x**" in table_of(savings(Book(rows, paper)))
    without = [row for row in rows if not (row["group"] == "small bf16 math kept" and row["variant"] == "dual")]
    with pytest.raises(AssertionError, match="no row of small math"):
        savings(Book(without, paper))


def test_a_line_without_a_time_has_no_mark_for_it() -> None:
    pytest.importorskip("matplotlib")
    found = savings(Book.of([ROWS]))
    assert [each.time is None for each in found] == [False] * (len(found) - 1) + [True]
    numbers = [text for text in texts(picture_of(found)) if re.fullmatch(r"\d\.\d\d", text)]
    assert len(numbers) == 3 * len(found) - 1
    with_time = [*found[:-1], found[-1]._replace(time=found[0].time)]
    assert len([text for text in texts(picture_of(with_time)) if re.fullmatch(r"\d\.\d\d", text)]) == 3 * len(found)
