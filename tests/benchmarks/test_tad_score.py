"""The scorer's case: both files are those of a set, all ways find one average mAP, and another one is an error in its row."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from benchmarks.case import Bench, Options
from benchmarks.cases import tad_score
from vmae2_ds.downstream.tad.annotations import read_annotations
from vmae2_ds.downstream.tad.detections import read_detections
from vmae2_ds.downstream.tad.protocols import ProtocolName
from vmae2_ds.downstream.tad.score import score_detections

ONCE = Bench(Options(device="cpu", rounds=1, warmup=0))


@pytest.fixture(autouse=True)
def small_set(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"VIDEOS": 12, "TRUTHS": 80, "CLASSES": 5, "ROWS": (900, 2000)}.items():
        monkeypatch.setattr(tad_score, name, value)


def test_the_made_set_has_the_numbers_that_its_rows_say(tmp_path: Path) -> None:
    files = tad_score.make_files(tmp_path, 905)
    videos = read_annotations(files.truth).of_subset(tad_score.SUBSET)
    assert (len(videos), sum(len(video.segments) for video in videos)) == (12, 80)
    assert len(read_detections(files.found)) == 905


@pytest.mark.parametrize("protocol", ["activitynet", "opentad", "actionformer"])
def test_plain_loops_over_the_files_find_what_our_scorer_finds(protocol: ProtocolName, tmp_path: Path) -> None:
    """A second reader and a second matching; the made set has none of what the three protocols part over."""
    files = tad_score.make_files(tmp_path, 900)
    found = score_detections(
        read_annotations(files.truth), read_detections(files.found), subset="test", protocol=protocol
    )
    assert 0.1 < found.average_map < 0.9
    assert tad_score.plain_map(files) == pytest.approx(found.average_map, abs=1e-9)


def test_rows_tell_microseconds_and_the_published_ratio() -> None:
    rows = {row["variant"]: row for row in tad_score.measure(ONCE, 900)}
    assert set(rows) == {"ours", tad_score.BASE, tad_score.ACTIONFORMER}
    ours = rows["ours"]
    assert not ours["error"]
    assert ours["values"]["us_a_row"] * 900 == pytest.approx(ours["time_s"]["median"] * 1e6)
    assert ours["values"]["opentad_published_ratio"] * ours["values"]["us_a_row"] == pytest.approx(372)
    assert ours["speedup"]["against"] == tad_score.BASE


def test_a_scorer_that_finds_another_map_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def off_by_little(*args: object, **settings: object) -> object:
        scores = score_detections(*args, **settings)  # type: ignore[arg-type]
        return dataclasses.replace(scores, average_map=scores.average_map + 1e-6)

    monkeypatch.setattr(tad_score, "score_detections", off_by_little)
    rows = {row["variant"]: row for row in tad_score.measure(ONCE, 2000)}
    assert set(rows) == {"ours", tad_score.BASE}, "the peer takes minutes for many"
    assert "as by plain loops" in rows["ours"]["error"]
    assert not rows[tad_score.BASE]["error"]
