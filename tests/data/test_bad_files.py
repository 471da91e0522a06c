"""The ledger of bad files, over ranks, crashes and resumes; and the share at which a run stops."""

from __future__ import annotations

import gc
import json
import multiprocessing
import tracemalloc
from pathlib import Path

import pytest

from vmae2_ds.contracts import ReadFailure
from vmae2_ds.data.bad_files import MIN_TRIED, BadFileLedger, check_bad_share
from vmae2_ds.errors import TooManyBadFiles

A, B, C = (ReadFailure(f"{name}.mp4", f"reason {name}") for name in "abc")


def named(path: Path) -> list[str]:
    return [json.loads(line)["path"] for line in path.read_text().splitlines()]


def test_each_file_is_named_once_over_ranks_and_resumes(tmp_path: Path) -> None:
    path = tmp_path / "run" / "bad_files.jsonl"
    first, second = BadFileLedger(path), BadFileLedger(path)
    assert first.record([]) == []
    assert not path.exists()
    assert first.record([A, A, B]) == [A, B]
    assert second.record([B, C]) == [C]  # it had not read A and B yet
    assert first.record([C, A]) == []
    assert BadFileLedger(path).record([A, B, C]) == []
    assert named(path) == ["a.mp4", "b.mp4", "c.mp4"]
    assert [json.loads(line)["reason"] for line in path.read_text().splitlines()] == [
        "reason a",
        "reason b",
        "reason c",
    ]


def test_a_line_torn_by_a_crash_is_survived(tmp_path: Path) -> None:
    path = tmp_path / "bad_files.jsonl"
    path.write_text(json.dumps(A._asdict()) + '\n{"path": "b.m')
    ledger = BadFileLedger(path)
    assert ledger.record([A, B]) == [B]
    assert ledger.record([C]) == [C]
    assert BadFileLedger(path).record([A, B, C]) == []
    whole = [line for line in path.read_text().splitlines() if line.endswith("}")]
    assert [json.loads(line)["path"] for line in whole] == ["a.mp4", "b.mp4", "c.mp4"]


def test_a_rank_keeps_less_than_200_bytes_of_each_bad_file(tmp_path: Path) -> None:
    """However long names and reasons are: each of thousands of ranks has all of them."""
    path, files = tmp_path / "bad_files.jsonl", 20_000
    rows = ({"path": f"{'folder/' * 20}{number}.mp4", "reason": "no " * 30} for number in range(files))
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    gc.collect()
    tracemalloc.start()
    ledger = BadFileLedger(path)
    held, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert ledger.record([ReadFailure(f"{'folder/' * 20}7.mp4", "")]) == []
    assert held <= peak < 200 * files


def record_many(path: Path) -> None:
    ledger = BadFileLedger(path)
    for number in range(100):
        ledger.record([ReadFailure(f"{number}.mp4", "bad")])


def test_writers_at_the_same_time(tmp_path: Path) -> None:
    path = tmp_path / "bad_files.jsonl"
    ranks = [multiprocessing.get_context("forkserver").Process(target=record_many, args=(path,)) for _ in range(4)]
    for rank in ranks:
        rank.start()
    for rank in ranks:
        rank.join(timeout=30)
        assert rank.exitcode == 0
    assert sorted(named(path)) == sorted(f"{number}.mp4" for number in range(100))


def test_share() -> None:
    check_bad_share(failed=MIN_TRIED - 1, tried=MIN_TRIED - 1, limit=0.1)  # too few to mean anything
    check_bad_share(failed=10, tried=100, limit=0.1)
    check_bad_share(failed=0, tried=100, limit=0.0)
    check_bad_share(failed=100, tried=100, limit=1.0)
    with pytest.raises(TooManyBadFiles, match=r"11 of 100 videos .*11\.0%, the limit is 10\.0%.*bad_files.jsonl"):
        check_bad_share(failed=11, tried=100, limit=0.1)
