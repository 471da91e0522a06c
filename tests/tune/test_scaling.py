"""docs/SCALING.md says what the code says now."""

from __future__ import annotations

from pathlib import Path

import pytest

from vmae2_ds.cost.hardware import get_accelerator
from vmae2_ds.tune.scaling import (
    COUNTS,
    RECIPE_OF_SIZE,
    activations_table,
    adapters_table,
    cell,
    hours_table,
    long_clips_table,
    markers,
    parts_table,
)

TEXT = (Path(__file__).parents[2] / "docs" / "SCALING.md").read_text()
HINT = "run: python -m vmae2_ds.tune.scaling docs/SCALING.md"


def between(name: str, page: str = TEXT) -> str:
    start, end = markers(name)
    assert page.count(start) == page.count(end) == 1
    return page.partition(start)[2].partition(end)[0].strip()


def test_tables_on_the_paper_are_up_to_date() -> None:
    assert between("memory") == activations_table(), HINT
    assert between("hours") == hours_table(), HINT


def test_table_of_adapters_is_up_to_date() -> None:
    assert between("adapters") == adapters_table(), HINT


def test_table_of_long_clips_is_up_to_date() -> None:
    assert between("clips") == long_clips_table(), HINT


def test_table_of_parts_of_a_model_is_up_to_date() -> None:
    page = (Path(__file__).parents[2] / "docs" / "FINETUNING.md").read_text()
    assert between("parts", page) == parts_table(), "run: python -m vmae2_ds.tune.scaling docs/FINETUNING.md"


@pytest.mark.parametrize(
    ("size", "gpu", "count"), [("B", "rtx-4090", 8), ("L", "h200", 1024), ("g", "a100-80g", 64), ("6b", "a100-40g", 8)]
)
def test_cells_of_the_table_are_up_to_date(size: str, gpu: str, count: int) -> None:
    accelerator = get_accelerator(gpu)
    table = between("tune").partition(f"### {accelerator.name}, {accelerator.memory_gb:g} GB")[2].partition("###")[0]
    row = next(line for line in table.splitlines() if line.startswith(f"| **{size}** |"))
    found = [column.strip() for column in row.strip("|").split("|")]
    assert found[1 + COUNTS.index(count)] == cell(RECIPE_OF_SIZE[size], gpu, count), HINT
