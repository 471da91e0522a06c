"""The case of people's actions: its files are those of a set, both ways find one frame mAP, and another one is an error."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from benchmarks.case import Bench, Options
from benchmarks.cases import ava_score
from vmae2_ds.downstream.ava.label_map import read_label_map
from vmae2_ds.downstream.ava.rows import read_detections, read_truth
from vmae2_ds.downstream.ava.score import score_frames

ONCE = Bench(Options(device="cpu", rounds=1, warmup=0))
SOME, MORE = 1200, 1800


@pytest.fixture(autouse=True)
def small_set(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"KEY_FRAMES": {SOME: 9, MORE: 12}, "PUBLISHED_ROWS": SOME, "CLASSES": 12}.items():
        monkeypatch.setattr(ava_score, name, value)


def test_the_made_set_has_the_numbers_that_its_rows_say(tmp_path: Path) -> None:
    """And no two equal scores, by which both ways might differ."""
    files = ava_score.make_files(tmp_path, SOME)
    truth, found = read_truth(files.truth), read_detections(files.found)
    assert len(found) == SOME == len(set(found.score_N.tolist()))
    assert len(found.keys) == len(truth.keys) == 9
    assert len(read_label_map(files.label_map)) == 12


def test_the_published_way_finds_what_our_scorer_finds(tmp_path: Path) -> None:
    """A second reader and a second matching; more rows a key frame than the cap, so that it counts too."""
    files = ava_score.make_files(tmp_path, SOME)
    truth, found, names = read_truth(files.truth), read_detections(files.found), read_label_map(files.label_map)
    capped, uncapped = (
        score_frames(truth, found, names, protocol=name).frame_map for name in ("activitynet", "legacy")
    )
    assert 0.05 < capped < 0.95
    assert abs(capped - uncapped) > 1e-6
    assert ava_score.plain_map(files) == pytest.approx(capped, abs=1e-9)


def test_rows_tell_microseconds_rates_and_the_published_ratio() -> None:
    rows = {row["variant"]: row for row in ava_score.measure(ONCE, SOME)}
    assert set(rows) == {"ours", ava_score.BASE}
    ours = rows["ours"]
    assert not ours["error"]
    assert ours["values"]["us_a_row"] * SOME == pytest.approx(ours["time_s"]["median"] * 1e6)
    assert ours["values"]["rows_per_s"] * ours["time_s"]["median"] == pytest.approx(SOME)
    assert ours["values"]["official_published_ratio"] * ours["values"]["us_a_row"] == pytest.approx(12.8e6 / SOME)
    assert ours["speedup"]["against"] == ava_score.BASE


def test_more_rows_are_scored_by_ours_alone() -> None:
    """The published way would take a quarter of an hour."""
    assert [row["variant"] for row in ava_score.measure(ONCE, MORE)] == ["ours"]


def test_a_scorer_that_finds_another_map_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def off_by_little(*args: object, **settings: object) -> object:
        scores = score_frames(*args, **settings)  # type: ignore[arg-type]
        return dataclasses.replace(scores, frame_map=scores.frame_map + 1e-6)

    monkeypatch.setattr(ava_score, "score_frames", off_by_little)
    rows = {row["variant"]: row for row in ava_score.measure(ONCE, SOME)}
    assert "as by the published way" in rows["ours"]["error"]
    assert not rows[ava_score.BASE]["error"]
