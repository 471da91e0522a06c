"""Laws of what grows with the number of ranks, as counts: bytes, calls, files, connections."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from benchmarks.case import Bench, Options
from benchmarks.cases.ranks import growth, held_bytes, measure
from benchmarks.rank_parts import PARTS

FEW, MANY = 8, 72


def counts(name: str, folder: Path, of: int) -> dict[str, float]:
    own = folder / f"{name} {of}"
    own.mkdir()
    return PARTS[name](of, own).counts


PER_RANK = {
    ("start-up check of rank 0", "calls_of_rank_0"): 0,
    ("peers watched by rank 0", "connections_of_rank_0"): 1,
    ("peers watched by rank 0", "connections_of_another"): 0,
    ("peers watched by rank 0", "threads"): 0,
    ("agreement of a step", "bytes_added_up"): 8,
    ("index of a checkpoint", "files"): 2,
    ("index of a checkpoint", "files_looked_at"): 0,
    ("conversion of 6b at stage 1", "files"): 1,
    ("launch", "command_lines"): 1 / 8,
}
"""What another rank adds to a count, of rank 0 or of each rank."""


def test_what_another_rank_adds_is_known(tmp_path: Path) -> None:
    names = dict.fromkeys(name for name, _ in PER_RANK)
    few, many = ({name: counts(name, tmp_path, of) for name in names} for of in (FEW, MANY))
    added = {(name, key): (many[name][key] - few[name][key]) / (MANY - FEW) for name, key in PER_RANK}
    assert added == PER_RANK


def test_new_ranks_together_open_each_shard_a_few_times_not_all_of_them_each(tmp_path: Path) -> None:
    """At stage 1 a shard holds a run of parameters, and each of these is asked for by one rank."""
    found = counts("conversion of 6b at stage 1", tmp_path, 300)
    assert found["opened_in_all"] < 10 * found["files"] < 300 * found["files"] / 10


def test_a_billion_rows_take_no_memory_on_any_number_of_ranks(tmp_path: Path) -> None:
    held = []
    for ranks in (64, 4096):
        (tmp_path / str(ranks)).mkdir()
        held.append(held_bytes(PARTS["order of a billion rows"](ranks, tmp_path / str(ranks)).work))
    assert max(held) < 2**20
    assert held[1] == pytest.approx(held[0], rel=0.2)


def test_rows_have_counts_and_their_power_of_the_ranks() -> None:
    rows: list[dict[str, Any]] = measure(Bench(Options(device="cpu", rounds=1, warmup=0)), PARTS["launch"], (64, 256))
    assert [row["config"]["ranks"] for row in rows] == [64, 256]
    assert rows[1]["growth"]["command_lines"] == pytest.approx(1)
    assert rows[1]["values"]["cpu_s"] == rows[1]["time_s"]["median"]
    assert growth({"a": 2.0, "b": 0.0, "c": 1.0}, {"a": 32.0, "b": 1.0, "c": 1.0}, 4) == pytest.approx({"a": 2, "c": 0})
