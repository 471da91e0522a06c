"""The work of data tools beside decoding, measured with made-up parts: each part of it really does its work."""

from __future__ import annotations

from pathlib import Path

from benchmarks.data_parts import BAD, WORK, make_set


def test_every_part_of_the_work_finds_all_that_was_made_up(tmp_path: Path) -> None:
    videos, parts = 2 * BAD, 4
    found = {}
    for number, (name, work) in enumerate(WORK.items()):
        (tmp_path / str(number)).mkdir()
        found[name] = work(make_set(tmp_path / str(number), videos, parts))()
    assert found["index"] == found["the look"] == found["join of check"] == videos
    assert found["join of prepare"] == videos - videos // BAD
    assert found["a part's start"] == found["a part goes on"]
    assert abs(found["a part's start"] - videos // parts) < 5, "videos of like cost in all, not of like number"
    assert found["rank 0's look"] == parts
