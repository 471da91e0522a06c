"""What the start-up check sends grows by a short line a rank; with the ranks of a store in memory."""

from __future__ import annotations

import json
from dataclasses import replace

from benchmarks.rank_parts import CountingStore
from tests.guard.test_rank_report import report
from vmae2_ds.guard.rank_report import RankReport, problems_of
from vmae2_ds.guard.startup import put_report, take_reports


def long_report(rank: int) -> RankReport:
    """As long as a real one: 250 files, 150 settings."""
    code = {f"vmae2_ds/some/folder/file_{number}.py": f"{number:08x}" for number in range(250)}
    settings = {f"section.setting_{number}": str(number) for number in range(150)}
    return replace(report(f"w{rank // 8}"), pid=1000 + rank, code=code, settings=settings)


def exchange(reports: list[RankReport]) -> tuple[list[RankReport], CountingStore]:
    store = CountingStore()
    for rank, one in enumerate(reports):
        put_report(store, rank, one)  # type: ignore[arg-type]
    return take_reports(store, range(len(reports))), store  # type: ignore[arg-type]


def test_reports_arrive_as_they_were_said() -> None:
    said = [long_report(rank) for rank in range(16)]
    said[9] = replace(said[9], settings={**said[9].settings, "section.setting_3": "4"}, error="no list", lists={})
    taken, _ = exchange(said)
    assert taken == said
    assert problems_of(taken) == problems_of(said)
    assert "section.setting_3 is 3 on w0, w1 (rank 8,10-15), 4 on w1 (rank 9)" in " ".join(problems_of(taken))


def test_another_rank_costs_a_short_line_and_the_same_number_of_calls() -> None:
    (_, few), (taken, many) = (exchange([long_report(rank) for rank in range(ranks)]) for ranks in (8, 520))
    assert len(json.dumps(taken[0].code)) > 10_000
    for of in ("bytes_in", "bytes_out"):
        assert (getattr(many, of) - getattr(few, of)) / 512 < 600, of
    assert (many.calls - few.calls) / 512 == 5
    assert len({id(one.code) for one in taken}) == 1, "rank 0 holds what all have alike once"
