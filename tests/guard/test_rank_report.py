"""What differs between ranks is told by host, briefly, with a way out."""

from __future__ import annotations

import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

import vmae2_ds
from vmae2_ds.guard.rank_report import (
    RankReport,
    code_digests,
    describe_host,
    host_table,
    name_ranks,
    problems_of,
    warnings_of,
)


def report(host: str, **changes: object) -> RankReport:
    same = RankReport(
        host=host, pid=1, device="H100", free_gib=78.0, sees_folder=True, code={"cli.py": "aa", "dist.py": "bb"},
        versions={"torch": "2.6", "python": "3.11"}, settings={"train.seed": "0"}, lists={"a.csv": "3 videos"},
    )  # fmt: skip
    return replace(same, **changes)  # type: ignore[arg-type]


def cluster(hosts: int = 3, ranks: int = 2) -> list[RankReport]:
    return [report(f"w{number // ranks + 1}") for number in range(hosts * ranks)]


def test_equal_ranks_have_no_problem_and_no_warning() -> None:
    assert problems_of(cluster()) == []
    assert warnings_of(cluster(), [0.0] * 6) == []


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"code": {"cli.py": "aa", "dist.py": "cc"}}, "dist.py is bb on w1, w2, cc on w3"),
        ({"code": {"cli.py": "aa"}}, "dist.py is bb on w1, w2, missing on w3"),
        ({"versions": {"torch": "2.7", "python": "3.11"}}, "torch is 2.6 on w1, w2, 2.7 on w3"),
        ({"settings": {"train.seed": "1"}}, "train.seed is 0 on w1, w2, 1 on w3"),
        ({"lists": {"a.csv": "2 videos"}}, "a.csv is 3 videos on w1, w2, 2 videos on w3"),
        ({"sees_folder": False}, "w3 cannot see what w1 (rank 0) writes"),
        ({"error": "a.csv: no such file", "lists": {}}, "on w3: a.csv: no such file"),
    ],
)
def test_a_host_that_differs_is_named(changes: dict[str, object], said: str) -> None:
    ranks = [replace(r, **changes) if r.host == "w3" else r for r in cluster()]  # type: ignore[arg-type]
    (problem,) = problems_of(ranks)
    assert said in problem
    assert ";" in problem or "error" in changes  # a way out follows


def test_what_all_cannot_do_is_said_as_it_is() -> None:
    assert problems_of([replace(r, error="no list", lists={}) for r in cluster()]) == ["no list"]


def test_one_rank_of_a_host_is_named_with_its_number() -> None:
    ranks = cluster(2, 4)
    assert name_ranks(ranks, [4, 5, 6, 7]) == "w2"
    assert name_ranks(ranks, [0, 5, 6, 7]) == "w1 (rank 0), w2 (rank 5-7)"
    assert name_ranks(cluster(1, 4), [0, 1, 3]) == "w1 (rank 0-1,3)"
    assert name_ranks(cluster(100, 8), range(800)).endswith("w4 and 96 more hosts")


def test_a_thousand_differences_stay_one_short_line() -> None:
    ranks = [report(f"w{rank}", code={f"{name}.py": f"{rank}" for name in range(100)}) for rank in range(1000)]
    (problem,) = problems_of(ranks)
    assert len(problem) < 1000
    assert "and 96 more" in problem
    assert "\n" not in problem


def test_warnings_name_clock_memory_device_and_versions() -> None:
    ranks = cluster()
    ranks[4:] = [
        replace(r, free_gib=40.0, device="A100", versions={"torch": "2.6", "python": "3.12"}) for r in ranks[4:]
    ]
    assert problems_of(ranks) == []
    clock, memory, device, version = warnings_of(ranks, [0.0, 0.1, 0.1, 0.1, -90.0, 0.1])
    assert "the clock of w3 (rank 4) is off by up to -90 s from w1" in clock
    assert "w3 has 40.0 GiB free where others have 78.0" in memory
    assert "device is H100 on w1, w2, A100 on w3" in device
    assert "python is 3.11 on w1, w2, 3.12 on w3" in version


def test_the_table_has_a_row_a_host() -> None:
    table = host_table(cluster(), [0.0, 0.0, 0.0, -2.0, 0.5, 0.0])
    assert [(row["host"], row["ranks"], row["clock_s"]) for row in table] == [
        ("w1", [0, 1], 0.0),
        ("w2", [2, 3], -2.0),
        ("w3", [4, 5], 0.5),
    ]
    assert describe_host(table[1]) == "host w2: ranks 2-3, 2 x H100, 78.0 GiB free, clock -2.00 s"


def test_the_code_s_digest_is_that_of_the_files_on_disk() -> None:
    here = Path(vmae2_ds.__file__).parent
    digests = code_digests()
    assert {"dist.py", "guard/startup.py", "mixtures/unlabeled_hybrid.toml"} <= set(digests)
    said = subprocess.run(["sha256sum", str(here / "dist.py")], capture_output=True, text=True, check=True).stdout
    assert said.startswith(digests["dist.py"])
