"""The columns of metrics.jsonl: those that a real run writes, and W&B has, are those that docs/TRAINING.md lists, in order."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import get_type_hints

import pytest

from tests.distributed.ranks import tiny_pretraining
from tests.track.wandb_rows import rows_of_wandb
from vmae2_ds.cli.main import main
from vmae2_ds.data.tools.synthetic import SynthArguments, write_synthetic_set
from vmae2_ds.train.row import VALIDATION, Row, validation_column

PAGE = Path(__file__).parents[2] / "docs" / "TRAINING.md"


def listed(table: str = "column") -> list[list[str]]:
    """Cells of a table under "Metrics": column, unit, meaning."""
    section = PAGE.read_text().partition(f"\n| {table} | unit | ")[2].partition("\n\n")[0]
    rows = [line.strip("|").split("|") for line in section.splitlines() if line.startswith("| `")]
    return [[cell.strip() for cell in row] for row in rows]


@pytest.mark.slow
def test_a_run_writes_the_columns_that_the_docs_list(tmp_path: Path) -> None:
    """Of a run on one source, whose name stands where the docs have NAME."""
    clips = write_synthetic_set(
        SynthArguments(folder=tmp_path / "clips", train_videos=4, val_videos=1, size=48, frames=8)
    )
    run = tmp_path / "run"
    words = [*tiny_pretraining(clips.train, run, 1), "--data.workers", "0", "--train.peak-flops", "1e12"]
    words += ["--track.to", "wandb", "--track.mode", "offline"]
    with pytest.raises(SystemExit) as stop:
        main(words)
    assert not stop.value.code
    (row,) = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    written = [key if "/" not in key else f"{key.partition('/')[0]}/NAME" for key in row]
    assert written == [column.strip("`") for column, _, _ in listed()]
    assert None not in row.values(), "every column has something to say"
    assert rows_of_wandb(run / "trackers") == {1: row}


def test_the_docs_list_what_stages_write_of_a_validation_and_nothing_else() -> None:
    """By the keys in the code; a run asserts that its own are known."""
    assert listed("column of a validation") == [
        [f"`{name}`", column.unit, column.meaning] for name, column in VALIDATION.items()
    ]
    package = Path(__file__).parents[2] / "vmae2_ds"
    stages = [*(package / "train").glob("*.py"), *package.glob("downstream/*/stage.py")]
    keys = re.compile(r'f?"((?:val|seen)_\w+)(?:\{tiou:\.2f\})?": (?!Column|")')
    written = {name for path in stages for name in keys.findall(path.read_text())}
    assert {"step", "epoch", *(name.replace("val_map_", "val_map_TIOU") for name in written)} == set(VALIDATION)
    assert validation_column("val_map_0.50") == VALIDATION["val_map_TIOU"]
    assert validation_column("val_mood") is None


def test_the_docs_tell_units_and_meanings_as_the_code_does() -> None:
    told = [annotation.__metadata__[0] for annotation in get_type_hints(Row, include_extras=True).values()]
    assert [(unit, meaning) for _, unit, meaning in listed()] == [(column.unit, column.meaning) for column in told]
