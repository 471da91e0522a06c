"""The report's section of the grid: every number from a row, its verdicts, and what it says where rows are missing."""

from __future__ import annotations

from pathlib import Path

from benchmarks.report import write_report
from tests.benchmarks.checked_page import check
from tests.benchmarks.made_rows import write_rows
from tests.benchmarks.test_science import made_grid, summarised


def test_the_section_is_made_of_rows(tmp_path: Path) -> None:
    rows = summarised(tmp_path / "runs", made_grid())
    html, markdown = write_report([write_rows(tmp_path / "rows", rows)], tmp_path / "page")
    assert check(html.read_text(), rows) > 50
    said = markdown.read_text()
    assert "The papers' claims at desk size" in said
    line = next(line for line in said.splitlines() if line.startswith("| Running cells that mask half of the decoder"))
    assert "| +1.1ᶜ (+0.9ᶜ" in line.replace("\N{WORD JOINER}", "")
    assert line.rstrip(" |").endswith("supports")
    assert "8.3%" in said, "what a single frame tells"
    assert html.read_text().count("<svg") >= 2


def test_runs_without_a_summary_are_not_a_page_of_nothing(tmp_path: Path) -> None:
    _, markdown = write_report([write_rows(tmp_path / "rows", made_grid(1))], tmp_path / "page")
    assert "no summary yet" in markdown.read_text()


def test_a_failed_run_is_named(tmp_path: Path) -> None:
    rows = made_grid()
    rows[1] |= {"error": "TrainingFailed: none", "values": {}}
    _, markdown = write_report([write_rows(tmp_path / "rows", summarised(tmp_path / "runs", rows))], tmp_path / "page")
    assert "seed 0: none failed: TrainingFailed: none" in markdown.read_text()
