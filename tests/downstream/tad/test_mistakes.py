"""The kinds of mistakes on segments placed by hand, and what each costs against scores of files without them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from tests.cli.lines import answer
from tests.downstream.tad.test_score import THUMOS14, random_set
from tests.golden_data import GOLDEN
from vmae2_ds.downstream.detection_map import all_points
from vmae2_ds.downstream.tad.annotations import AnnotatedVideo, Annotations, Segment
from vmae2_ds.downstream.tad.detections import Detections, make_detections
from vmae2_ds.downstream.tad.mistakes import DETECTION_KINDS, FALSE_KINDS, TRUTH_KINDS, Mistakes, find_mistakes
from vmae2_ds.downstream.tad.score import TadScores, score_detections

TIOU = 0.5


def look(
    segments: list[Segment], rows: list[tuple[int, int, float, float, float]]
) -> tuple[list[str], list[str], Mistakes]:
    """Kinds of detections of one video by row, and of truths, at tIoU 0.5."""
    video = AnnotatedVideo("v", "t", 100.0, None, None, tuple(segments))
    annotations = Annotations(Path("made.json"), ("a", "b"), (0, 1), {"v": video})
    scores = score_detections(annotations, make_detections(["v"], ["a", "b"], rows), subset="t", tious=[TIOU])
    found = find_mistakes(annotations, scores)
    detected = scores.matches.tables.detections.row.tolist()
    by_row = dict(zip(detected, (DETECTION_KINDS[code] for code in found.kind_TN[0]), strict=True))
    return [by_row[row] for row in range(len(rows))], [TRUTH_KINDS[code] for code in found.missed_TG[0]], found


def test_each_kind_of_mistake_is_what_it_says() -> None:
    segments = [Segment(10, 20, 0), Segment(40, 50, 1), Segment(60, 70, 0), Segment(80, 90, 1)]
    kinds, missed, _ = look(
        segments,
        [
            (0, 0, 10, 20, 0.9),  # correct
            (0, 0, 11, 20, 0.8),  # on the same truth
            (0, 0, 40, 49, 0.7),  # on a truth of label b
            (0, 0, 14, 30, 0.6),  # 6 of 20 s in common
            (0, 0, 47, 57, 0.5),  # 3 of 17 s with label b, nothing with its own
            (0, 0, 69.5, 79.5, 0.4),  # 0.5 of 19.5 s in common
            (0, 0, 30, 35, 0.3),
            (0, 1, 80, 92, 0.2),
        ],
    )
    assert kinds == [
        *("correct", "double", "wrong label", "localisation", "background", "background", "background", "correct")
    ]
    assert missed == ["correct", "wrong label", "nothing near", "correct"]


def test_where_labels_share_a_segment_a_detection_is_judged_by_its_own() -> None:
    """All of THUMOS14's CliffDiving is Diving too."""
    kinds, missed, _ = look(
        [Segment(10, 20, 0), Segment(10, 20, 1)], [(0, 0, 10, 20, 0.9), (0, 0, 10, 19, 0.8), (0, 0, 17, 27, 0.7)]
    )
    assert kinds == ["correct", "double", "localisation"]
    assert missed == ["correct", "wrong label"]


def test_a_truth_is_missed_for_what_is_near_it() -> None:
    segments = [Segment(10, 20, 0), Segment(11, 20, 0), Segment(40, 50, 0), Segment(60, 70, 1), Segment(80, 90, 1)]
    rows = [(0, 0, 10, 20, 0.9), (0, 0, 46, 56, 0.8), (0, 0, 66, 76, 0.7), (0, 1, 1, 2, 0.1)]
    assert look(segments, rows)[1] == ["correct", "taken", "localisation", "nothing near", "nothing near"]


def some(detections: Detections, kept: np.ndarray) -> Detections:
    columns = (getattr(detections, name)[kept] for name in ("video_N", "label_N", "start_N", "end_N", "score_N"))
    return Detections(detections.videos, detections.labels, *columns)


def scored(annotations: Annotations, detections: Detections) -> TadScores:
    return score_detections(annotations, detections, subset="t", tious=[TIOU])


def test_what_a_kind_costs_is_what_a_file_without_it_scores_more() -> None:
    annotations, detections = random_set(3)
    scores = scored(annotations, detections)
    found = find_mistakes(annotations, scores)
    row_N = scores.matches.tables.detections.row
    for kind in FALSE_KINDS:
        is_kind_N = found.kind_TN[0] == DETECTION_KINDS.index(kind)
        assert is_kind_N.any()
        without = scored(annotations, some(detections, np.sort(row_N[~is_kind_N])))
        assert found.gain_of[kind][0] == pytest.approx(without.average_map - scores.average_map, abs=1e-12)
        assert found.gain_of[kind][0] >= 0


def test_what_missed_truths_cost_is_what_annotations_without_them_score_more() -> None:
    annotations, detections = random_set(5)
    detections = some(detections, np.arange(len(detections)) % 8 == 0)  # few, so that something is missed
    scores = scored(annotations, detections)
    found = find_mistakes(annotations, scores)
    names = list(annotations.videos)
    tables, seen = scores.matches.tables, set()
    for code, kind in enumerate(TRUTH_KINDS[1:], 1):
        is_kind_G = found.missed_TG[0] == code
        seen |= {kind} if is_kind_G.any() else set()
        left = {name: [] for name in names}
        for g in np.flatnonzero(~is_kind_G):
            segment = Segment(tables.truths.start_s[g], tables.truths.end_s[g], int(tables.truths.klass[g]))
            left[names[tables.truths.video[g]]].append(segment)
        videos = {name: AnnotatedVideo(name, "t", 30.0, None, None, tuple(left[name])) for name in names}
        without = scored(Annotations(annotations.file, annotations.labels, annotations.label_ids, videos), detections)
        assert found.missed_gain_of[kind][0] == pytest.approx(without.average_map - scores.average_map, abs=1e-12)
    assert {"localisation", "wrong label"} <= seen


def test_fifths_by_length_hold_every_truth_and_their_shares_found_make_up_the_whole() -> None:
    annotations, detections = random_set(4, videos=10)
    scores = scored(annotations, detections)
    found = find_mistakes(annotations, scores)
    assert found.share is not None
    for sizes in (found.seconds, found.share):
        assert list(sizes.truths) == ["XS", "S", "M", "L", "XL"]
        assert set(sizes.truths.values()) == {24}  # 120 truths of different lengths
        hits = sum(sizes.truths[size] * sizes.found[size][0] for size in sizes.truths)
        assert hits == pytest.approx((scores.matches.truth_TN[0] >= 0).sum())
        lows, highs = zip(*sizes.bounds.values(), strict=True)
        assert list(lows[1:]) > list(highs[:-1])
    assert found.seconds.bounds["XL"][1] == pytest.approx(30 * found.share.bounds["XL"][1])


def test_the_normalised_precision_is_that_of_as_many_truths() -> None:
    """Hoiem et al.: precision from the recall and a fixed number of truths; written out for one hit among two errors."""
    is_hit_TN = np.array([[False, True, False]])
    assert all_points(is_hit_TN, 2, as_if=10)[0] == pytest.approx(0.5 * (0.5 * 10) / (0.5 * 10 + 1))
    assert all_points(is_hit_TN, 2, as_if=2)[0] == pytest.approx(all_points(is_hit_TN, 2)[0])


def test_the_verb_tells_the_kinds_and_their_costs(capsys: pytest.CaptureFixture[str]) -> None:
    files = [str(GOLDEN / "tad" / f"protocols_{name}.json") for name in ("gt", "pred")]
    line = ["tad", "score", "--gt", files[0], "--pred", files[1], "--subset", "Test", "--drop-unknown", "--mistakes"]
    for protocol in ("opentad", "thumos14"):
        code, text, _ = answer([*line, "--protocol", protocol, "--json"], capsys)
        assert code == 0
        found = json.loads(text)
        told = found["mistakes"]
        assert told["tiou"] == [0.3, 0.4, 0.5, 0.6, 0.7]
        for t in range(5):
            assert sum(counts[t] for counts in told["detections"].values()) == found["detections_counted"]
            assert sum(counts[t] for counts in told["truths"].values()) == found["instances"]
            assert told["detections"]["correct"][t] == told["truths"]["correct"][t]
        assert (sum(told["detections"]["not counted"]) > 0) == (protocol == "thumos14")  # on Ambiguous segments
        assert set(told["length_s"]) == {"XS", "S", "M", "L", "XL"}
    code, page, _ = answer([*line, "--protocol", "opentad"], capsys)
    assert code == 0
    for words in (
        "points of mAP gained if there were no false positives of a kind",
        "  double: on a true",
        "nothing near",
    ):
        assert words in page
    assert THUMOS14[0] in page
