"""What timelines show of truth and predictions: which bars, of which kind, with which words; by hand and by brute force."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.downstream.tad.show_files import HAND_MADE_KINDS, PREDICTIONS, write_files
from vmae2_ds.downstream.tad.annotations import AnnotatedVideo, Annotations, Segment
from vmae2_ds.downstream.tad.detections import make_detections
from vmae2_ds.downstream.tad.mistakes import NOT_COUNTED
from vmae2_ds.downstream.tad.shown_set import Files, ShownSet, read_files
from vmae2_ds.downstream.tad.timelines import Drawn, Prediction, ShownVideo, Truth, number_text, timeline_of
from vmae2_ds.draw.looks import KINDS
from vmae2_ds.errors import DataError

TIOUS = (0.3, 0.5)
ALL = Drawn(min_score=0.0, most=100, tiou=0.5)


@pytest.fixture
def files(tmp_path: Path) -> Files:
    written = write_files(tmp_path)
    return read_files(written.gt, written.pred, None)


@pytest.fixture
def shown(files: Files) -> ShownSet:
    return files.shown(None, TIOUS, 0.5)


def test_every_prediction_is_what_it_is_by_hand(shown: ShownSet) -> None:
    video = shown.videos["two words"]
    assert [one.kind for one in video.predictions] == HAND_MADE_KINDS
    assert [one.score for one in video.predictions] == [row[3] for row in PREDICTIONS["two words"]]
    assert [(one.label, one.found_at) for one in video.truth] == [
        ("jump", 0.9),
        ("run", 0.7),
        ("jump", None),
        ("run", 0.05),
    ]
    assert shown.subsets == ("validation",)  # which has predictions
    assert list(shown.videos) == ["two words", "good", "идти <b>"]


def test_the_bars_of_a_timeline_by_hand(shown: ShownSet) -> None:
    line = timeline_of(shown.videos["two words"], ALL, 100)
    assert [row.name for row in line.rows] == ["jump", "run"]
    drawn = [[(bar.start_s, bar.end_s, bar.kind, bar.text) for bar in bars] for row in line.rows for bars in row[1:]]
    assert drawn == [
        [(10, 20, "truth found", ""), (60, 70, "truth missed", "")],
        [
            (10, 20, "correct", "0.90 · 1.00"), (11, 20, "double", "0.80 · 0.90"),
            (30, 50, "wrong label", "0.60 · 1.00"), (65, 80, "localisation", "0.50 · 0.25"),
        ],
        [(30, 50, "truth found", ""), (80, 90, "truth found", "")],
        [(31, 49, "correct", "0.70 · 0.90"), (95, 99, "background", "0.40 · 0"), (80, 90, "correct", "0.05 · 1.00")],
    ]  # fmt: skip
    about = line.rows[0].predictions[2].about
    assert about == "jump, 30.00 to 50.00 s, score 0.6: wrong label, tIoU 1 with run, 30.00 to 50.00 s"
    assert line.notes[0] == "100 s; 1 of 4 truths missed; 7 predictions, 4 of them wrong."


def test_truth_that_is_found_by_a_low_score_alone_is_missed_and_says_so(shown: ShownSet) -> None:
    line = timeline_of(shown.videos["two words"], Drawn(0.1, 3, 0.5), 100)
    last = line.rows[1].truth[1]
    assert (last.kind, last.text) == ("truth missed", "at 0.05")
    assert last.about == "run, 80.00 to 90.00 s: truth missed, found at 0.05 only"
    assert sum(len(row.predictions) for row in line.rows) == 3
    assert line.notes[0] == (
        "100 s; 2 of 4 truths missed; 6 of 7 predictions with a score of at least 0.10, 4 of them wrong; "
        "the 3 with the highest scores drawn."
    )


def test_the_default_score_has_the_largest_f1_of_all(shown: ShownSet) -> None:
    predictions = [one for video in shown.videos.values() for one in video.predictions]
    truths = 6  # Ambiguous is none

    def f1(least: float) -> float:
        above = [one for one in predictions if one.score >= least]
        right = sum(one.kind == "correct" for one in above)
        precision, recall = right / len(above), right / truths
        return 2 * precision * recall / (precision + recall)

    best = max((one.score for one in predictions), key=f1)
    assert shown.balanced_score == best == 0.7


def test_equal_scores_are_taken_together_for_the_default_score() -> None:
    rows = [Prediction(0, 1, "x", 0.5, kind) for kind in ("correct", "background", "background", "background")]
    video = ShownVideo(
        "v", 9.0, (Truth(0, 1, "x", 0.5), Truth(2, 3, "x", 0.4)), (*rows, Prediction(2, 3, "x", 0.4, "correct"))
    )
    assert ShownSet({"v": video}).balanced_score == 0.4  # 2 of 5 at 0.4; at 0.5 no cut is 1 of 1
    wrong = video._replace(predictions=(Prediction(0, 1, "x", 0.5, "double"), Prediction(0, 1, "x", 0.2, "double")))
    assert ShownSet({"v": wrong}).balanced_score == 0.2  # none is right: all are drawn


def test_videos_with_more_mistakes_come_first(shown: ShownSet) -> None:
    assert [(video.name, video.badness(0.7)[0]) for video in shown.worst(0.7)] == [
        ("two words", 3),
        ("идти <b>", 1),
        ("good", 0),
    ]
    assert shown.videos["two words"].badness(0.0) == (5, pytest.approx(0.8 + 0.6 + 0.5 + 0.4))


def test_ambiguous_truth_is_drawn_and_never_missed(shown: ShownSet) -> None:
    video = shown.videos["идти <b>"]
    assert [one.label for one in video.missed(0)] == ["jump"]
    line = timeline_of(video, ALL, 60)
    assert [(row.name, row.truth[0].kind) for row in line.rows] == [("jump", "truth missed"), ("Ambiguous", "truth")]


def test_one_of_both_files_is_enough_for_bars_that_nothing_is_said_of(files: Files) -> None:
    truth = Files(files.annotations, None, None).shown(None, TIOUS, 0.5).videos["two words"]
    line = timeline_of(truth, ALL, 100)
    assert {bar.kind for bar in line.bars()} == {"truth"}
    assert line.notes == ("100 s; 4 truths.",)
    predicted = Files(None, files.detections, Path("p.json")).shown(None, TIOUS, 0.5).videos["two words"]
    line = timeline_of(predicted, ALL, 100)
    assert {bar.kind for bar in line.bars()} == {"prediction"}
    assert [bar.text for bar in line.rows[0].predictions] == ["0.90", "0.80", "0.60", "0.50"]
    assert line.notes == ("100 s; 7 predictions.", "Beside a prediction: its score.")


def test_labels_without_truth_are_drawn_and_not_counted() -> None:
    known = Annotations(
        Path("gt"), ("a",), (0,), {"v": AnnotatedVideo("v", "x", 10.0, None, None, (Segment(1, 2, 0),))}
    )
    found = make_detections(
        ["v", "unknown video"], ["new", "0"], [(0, 0, 1, 2, 0.9), (0, 1, 1, 2, 0.8), (1, 1, 1, 2, 0.7)]
    )
    shown = Files(known, found, Path("pred")).shown(None, TIOUS, 0.5)
    assert [(one.label, one.kind) for one in shown.videos["v"].predictions] == [("new", NOT_COUNTED), ("a", "correct")]
    assert [one.kind for one in shown.videos["unknown video"].predictions] == ["background"]
    assert shown.videos["v"].badness(0.0) == (0, 0.0)


def brute_force(truth: list[Segment], rows: list[tuple[int, float, float, float]], tiou: float) -> list[str]:
    """The kinds of one video's predictions (label, start, end, score), one after the other."""

    def overlap(start: float, end: float, one: Segment) -> float:
        shared = max(0.0, min(end, one.end_s) - max(start, one.start_s))
        return shared / (end - start + one.end_s - one.start_s - shared)

    kinds, taken = [""] * len(rows), set()
    for place in sorted(range(len(rows)), key=lambda place: -rows[place][3]):
        label, start, end, _ = rows[place]
        same = {at: overlap(start, end, one) for at, one in enumerate(truth) if one.label == label}
        other = [overlap(start, end, one) for one in truth if one.label != label]
        free = {at: value for at, value in same.items() if value >= tiou and at not in taken}
        if free:
            taken.add(max(free, key=lambda at: free[at]))
            kinds[place] = "correct"
        elif max(same.values(), default=0) >= tiou:
            kinds[place] = "double"
        elif max(other, default=0) >= tiou:
            kinds[place] = "wrong label"
        else:
            kinds[place] = "localisation" if max(same.values(), default=0) >= 0.1 else "background"
    return kinds


@pytest.mark.parametrize("tiou", [0.3, 0.5, 0.75])
def test_kinds_of_random_predictions_are_those_found_one_by_one(tiou: float) -> None:
    rng = np.random.default_rng(3)
    truth = {
        f"v{number}": [
            Segment(start, start + length, int(rng.integers(3)))
            for start, length in zip(rng.uniform(0, 90, 6), rng.uniform(2, 20, 6), strict=True)
        ]
        for number in range(4)
    }
    rows = [
        (int(video), int(rng.integers(3)), start, start + length, score)
        for video, start, length, score in zip(
            rng.integers(0, 4, 300),
            rng.uniform(0, 90, 300),
            rng.uniform(2, 20, 300),
            rng.permutation(300) / 300,
            strict=True,
        )
    ]
    videos = {name: AnnotatedVideo(name, "x", 120.0, None, None, tuple(segments)) for name, segments in truth.items()}
    known = Annotations(Path("gt"), ("a", "b", "c"), (0, 1, 2), videos)
    shown = Files(known, make_detections(list(truth), ["a", "b", "c"], rows), Path("pred")).shown(["x"], TIOUS, tiou)
    for number, name in enumerate(truth):
        mine = sorted((row[1:] for row in rows if row[0] == number), key=lambda row: -row[3])
        found = [one.kind for one in shown.videos[name].predictions]
        assert found == brute_force(truth[name], mine, tiou)
        assert set(found) <= set(KINDS)
        hit = [one for one in shown.videos[name].truth if one.found_at is not None]
        assert len(hit) == found.count("correct")


@pytest.mark.parametrize(
    ("video", "name"),
    [("good", "good"), ("videos/good.mp4", "good"), ("v_good.webm", "good"), ("two words", "two words")],
)
def test_a_video_is_found_by_its_name_or_by_its_file(files: Files, video: str, name: str) -> None:
    assert files.find(video) == name


def test_a_video_of_neither_file_is_one_line_with_what_may_be_meant(files: Files) -> None:
    with pytest.raises(
        DataError,
        match=r"goood.*no video 'goood' in .*gt.json and .*pred.json; did you mean 'good'\? there are 4: two words, good, ",
    ):
        files.find("goood")


def test_segments_beyond_the_end_are_told(shown: ShownSet) -> None:
    assert "3 segments beyond the end of the video" in timeline_of(shown.videos["two words"], ALL, 89.0).notes[0]


@pytest.mark.parametrize(
    ("value", "text"), [(0.9, "0.90"), (1, "1.00"), (0.0995, "0.10"), (0.0123, "0.012"), (3e-5, "3e-05"), (0, "0")]
)
def test_scores_keep_their_first_digits(value: float, text: str) -> None:
    assert number_text(value) == text
