"""The committed rows keep to the rules that docs/BENCHMARKS.md has for others' rows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from vmae2_ds.json_lines import rows_of

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
FILES = sorted([*BENCHMARKS.glob("results/*/*.jsonl"), *BENCHMARKS.glob("desk/*.jsonl")])
LEAST_ROUNDS = {"checkpoint": 3, "loader": 1}
"""Of cases whose rounds are long; a start of a loader is one round each time."""


def rounds_of(row: dict[str, Any]) -> float:
    """Rounds behind a timed row; what was counted, or failed, has none."""
    return row.get("rounds") or float("inf")


@pytest.mark.parametrize("file", FILES, ids=lambda path: path.relative_to(BENCHMARKS).as_posix())
def test_rows_are_of_clean_commits_and_of_enough_rounds(file: Path) -> None:
    rows = list(rows_of(file))
    assert rows
    for row in rows:
        assert row["commit"], row
        assert not row["commit"].endswith("+"), f"{row['command']} at {row['commit']}: measure it anew, or drop it"
        assert row["command"].startswith("python -m benchmarks")
        assert "--quick" not in row["command"].split()
        assert rounds_of(row) >= LEAST_ROUNDS.get(row.get("case", ""), 5), (
            f"{row['case']} {row['group']}: too few rounds"
        )
