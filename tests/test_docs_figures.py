"""Figures in the docs say where they are from, and those of rows are what the rows say; docs_figures.py: how to write one."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.docs_figures import (
    KINDS,
    LINK,
    PAGES,
    ROOT,
    Block,
    agrees,
    blocks_of,
    rows_of,
    unsourced,
    value_of,
    without_a_row,
)


def test_every_figure_names_a_row_a_test_or_what_else_it_is(page: Path) -> None:
    wanting = {
        f"{page.name}:{block.line}": found for block in blocks_of(page.read_text()) if (found := unsourced(block))
    }
    assert not wanting, "link the row, name the test, or say above it what the figures are (tests/docs_figures.py)"


def test_figures_of_rows_are_what_the_rows_say(page: Path) -> None:
    for shown, file, title in LINK.findall(page.read_text()):
        value = value_of(rows_of(page.parent / file), title)
        assert agrees(shown, value), f"{page.name} shows {shown}, {file} has {value:g} ({title})"


def test_accuracies_of_the_desk_are_those_of_its_rows(page: Path) -> None:
    blocks = [block for block in blocks_of(page.read_text()) if block.about_section.startswith("rows ")]
    wrong = {f"{page.name}:{block.line}": found for block in blocks if (found := without_a_row(block, page))}
    assert not wrong


@pytest.fixture(params=PAGES, ids=lambda path: path.name)
def page(request: pytest.FixtureRequest) -> Path:
    """Each page of the docs in turn."""
    path: Path = request.param
    return path


# --- that the checks themselves can fail ---------------------------------------------------------------------------

ROWS = [
    {
        "case": "a",
        "variant": "x",
        "config": {"size": "base"},
        "time_s": {"median": 0.0123},
        "residual": {"time": -0.07},
    },
    {"case": "a", "variant": "y", "config": {"size": "base"}, "time_s": {"median": 0.5}, "residual": {"time": 0.03}},
]


@pytest.mark.parametrize(
    ("title", "value"),
    [
        ("time_s.median in ms where variant=x", 12.3),
        ("largest residual.time in % where config.size=base", 7.0),
        ("least residual.time in %", -7.0),
        ("count residual.time", 2),
    ],
)
def test_a_title_is_looked_up(title: str, value: float) -> None:
    assert value_of(ROWS, title) == pytest.approx(value)


def test_a_title_that_means_no_row_or_several_is_refused() -> None:
    with pytest.raises(ValueError, match="no row"):
        value_of(ROWS, "time_s.median where variant=z")
    with pytest.raises(ValueError, match="say which"):
        value_of(ROWS, "time_s.median where config.size=base")


@pytest.mark.parametrize(
    ("shown", "value", "is_right"), [("7.0 %", 7.04, True), ("7.0 %", 7.06, False), ("-41", -41.4, True)]
)
def test_a_figure_agrees_to_the_digits_it_shows(shown: str, value: float, is_right: bool) -> None:
    assert agrees(shown, value) is is_right


def test_a_figure_without_a_source_is_found_and_one_with_is_not() -> None:
    blocks = ["# A", "It takes 12 ms.", "", "It takes 12 ms (`tests/test_cli.py`).", ""]
    blocks += ["<!-- figures: settings -->", "After 30 s.", "", "    12 ms of code", "", "## B", "After 5 s."]
    found = [(block.line, unsourced(block)) for block in blocks_of("\n".join(blocks))]
    assert found == [(2, ["12 ms"]), (4, []), (7, []), (12, ["5 s"])]
    assert unsourced(Block(1, '[12 ms](a.jsonl "time_s.median in ms")', "")) == []
    assert all(unsourced(Block(1, "12 ms", kind)) == [] for kind in KINDS)


def test_an_accuracy_that_no_row_has_is_found() -> None:
    about, page = "rows ../benchmarks/desk/rows.jsonl", ROOT / "docs" / "LOG.md"
    assert without_a_row(Block(1, "| 47.0 (39.8 to 54.2; 3) | and 74.0 % |", about), page) == []
    assert without_a_row(Block(1, "| 47.1 (39.8 to 54.2; 3) | 47.0 (39.8 to 54.2; 2) | and 74.9 %", about), page) == [
        "47.1",
        "47.0",
        "74.9",
    ]
