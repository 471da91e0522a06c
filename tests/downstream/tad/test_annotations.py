"""Annotations as the field's files hold them, what is refused of them, and what training leaves out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from vmae2_ds.downstream.tad.annotations import check_same_set, read_annotations, videos_to_train_on
from vmae2_ds.errors import DataError


def video(*rows: dict[str, Any], **about: Any) -> dict[str, Any]:
    return {"subset": "test", "duration": 100.0, "annotations": list(rows)} | about


def row(start: Any, end: Any, label: Any = "Diving", **more: Any) -> dict[str, Any]:
    return {"segment": [start, end], "label": label} | more


def written(folder: Path, database: Any, name: str = "gt.json") -> Path:
    file = folder / name
    file.write_text(json.dumps({"database": database}))
    return file


def refusal(file: Path, **options: Any) -> str:
    with pytest.raises(DataError) as refused:
        read_annotations(file, **options)
    assert "\n" not in str(refused.value)
    return str(refused.value)


def test_every_published_form_is_read(tmp_path: Path) -> None:
    database = {
        "activitynet": video(row(1, 2.5), duration="80.5"),
        "thumos14": {"subset": "test", "annotations": [row("18.6", "24.8", "HighJump")]},
        "opentad": video(row(0.5, 4), frame=1500, duration=50.0),
        "actionformer": {
            **{"subset": "Validation", "duration": 20.0, "fps": 25},
            "annotations": [{"segment(frames)": [50, "75.0"], "label": "Diving"}],
        },
        "anet": {"subset": "test", "duration_second": 14.07, "duration_frame": 418},
    }
    found = read_annotations(written(tmp_path, database))
    assert found.labels == ("Diving", "HighJump")
    assert found.subsets == ("Validation", "test")
    videos = found.videos
    assert (videos["activitynet"].duration_s, videos["activitynet"].segments) == (80.5, ((1.0, 2.5, 0),))
    assert (videos["thumos14"].duration_s, videos["thumos14"].fps) == (None, None)
    assert videos["thumos14"].segments == ((18.6, 24.8, 1),)
    assert (videos["opentad"].frames, videos["opentad"].fps) == (1500, 30.0)
    assert videos["actionformer"].segments == ((2.0, 3.0, 0),)
    assert (videos["anet"].duration_s, videos["anet"].frames, videos["anet"].segments) == (14.07, 418, ())
    assert [video.name for video in found.of_subset("Validation")] == ["actionformer"]
    assert len(found.of_subset(["Validation", "test"])) == 5


def test_classes_are_ordered_by_their_list_or_their_numbers_and_ambiguous_comes_last(tmp_path: Path) -> None:
    rows = [row(0, 1, "C", label_id=3), row(0, 1, "Ambiguous", label_id=0), row(0, 1, "A", label_id="7")]
    found = read_annotations(written(tmp_path, {"v": video(*rows)}))
    assert (found.labels, found.label_ids) == (("C", "A", "Ambiguous"), (3, 7, 0))
    assert found.class_names == ("C", "A")
    assert (found.label_of["7"], found.label_of["A"]) == (1, 1)
    classes = tmp_path / "category_idx.txt"
    classes.write_text("B\nA\n\nC\n")
    without_ids = read_annotations(written(tmp_path, {"v": video(row(0, 1, "C"), row(0, 1, "Ambiguous"))}), classes)
    assert (without_ids.labels, without_ids.label_ids) == (("B", "A", "C", "Ambiguous"), (0, 1, 2, 3))
    assert without_ids.videos["v"].segments[0].label == 2
    classes.write_text("A\nB\nA\n")
    assert "the class 'A' comes twice" in refusal(written(tmp_path, {"v": video()}), classes=classes)


REFUSED = {
    "reversed": ({"v": video(row(1, 2), row(5, 4.5))}, "'v', annotation 2 ends at 4.5 s, before it starts at 5 s"),
    "no number": ({"v": video(row("1.0", "x"))}, "'v', annotation 1: 'x' is no number"),
    "too large": ({"v": video(row(0, 10**400))}, "'v', annotation 1: 1000"),
    "nan": ({"v": video(row(float("nan"), 1))}, "'v', annotation 1: nan is no number"),
    "one end": ({"v": video({"segment": [1], "label": "A"})}, "annotation 1 has no segment of a start and an end"),
    "no label": ({"v": video({"segment": [1, 2]})}, "annotation 1 has no label"),
    "no length": ({"v": video(duration=0)}, "'v' has duration 0; it must be above 0"),
    "two numbers": ({"v": video(row(1, 2, label_id=1), row(1, 2, label_id=2))}, "label_id 2 for 'Diving', which is 1"),
    "one number": (
        {"v": video(row(1, 2, label_id=1), row(1, 2, "A", label_id=1))},
        "label_id 1 stands for 'Diving' and",
    ),
    "no videos": ({}, 'its "database" has no video'),
    "a list": ([], 'has no "database"'),
    "no rows": ({"v": {"annotations": 3}}, "'v' has no list of \"annotations\""),
}


@pytest.mark.parametrize("name", sorted(REFUSED))
def test_what_cannot_be_meant_is_refused_in_one_line_with_its_place(name: str, tmp_path: Path) -> None:
    database, said = REFUSED[name]
    file = written(tmp_path, database)
    assert said in refusal(file)
    assert str(file) in refusal(file)


def test_a_file_that_is_missing_or_no_json_is_refused(tmp_path: Path) -> None:
    assert refusal(tmp_path / "gone.json").endswith("gone.json: there is no such file")
    (tmp_path / "torn.json").write_text('{"database": {"v": ')
    assert "torn.json is no JSON: Expecting value: line 1 column 20" in refusal(tmp_path / "torn.json")
    (tmp_path / "deep.json").write_text("[" * 100_000)
    assert "deep.json is no JSON" in refusal(tmp_path / "deep.json")
    (tmp_path / "bytes.json").write_bytes(b"\xff\xfe\x00\x81")
    assert "bytes.json is no JSON" in refusal(tmp_path / "bytes.json")
    classes = tmp_path / "classes.txt"
    classes.write_text("Diving\n")
    said = refusal(written(tmp_path, {"v": video(row(1, 2), row(1, 2, "Juggling"))}), classes=classes)
    assert "annotation 2 has the label 'Juggling', which the list of classes does not have" in said


def test_a_subset_that_is_not_there_is_refused_by_the_names_of_those_that_are(tmp_path: Path) -> None:
    found = read_annotations(written(tmp_path, {"a": video(), "b": video(subset="validation")}))
    for asked in ("Test", ["test", "Test"]):
        with pytest.raises(DataError, match="has no video of subset 'Test'; it has 'test', 'validation'"):
            found.of_subset(asked)
    with pytest.raises(DataError, match="the subsets 'test', 'validation'; name the one that is meant"):
        found.of_subset(None)
    assert [v.name for v in read_annotations(written(tmp_path, {"a": video()})).of_subset(None)] == ["a"]


def test_training_leaves_out_what_it_cannot_learn_and_says_how_much(tmp_path: Path) -> None:
    fine = [row(i, i + 0.5) for i in range(30)]
    spoiled = [
        *(row(50, 50), row(200, 210)),  # without length, outside
        *(row(95, 120), row(-2, 0.4)),  # cut
        *(row(3.0005, 3.5005), row(3, 3.5, "GolfSwing"), row(3.002, 3.5)),  # a copy, another label, apart
        row(60, 70, "Ambiguous"),
    ]
    found = read_annotations(written(tmp_path, {"v": video(*fine, *spoiled)}))
    (kept,), told = videos_to_train_on(found, "test")
    assert len(kept.segments) == 34
    assert kept.segments[30:] == ((95, 100, 0), (0, 0.4, 0), (3, 3.5, 1), (3.002, 3.5, 0))
    assert all(found.labels[segment.label] in found.class_names for segment in kept.segments)
    file = found.file
    assert told == [
        f"{file}: 1 segment without length left out, the first of v at 50 to 50 s",
        f"{file}: 1 segment outside of the video left out, the first of v at 200 to 210 s",
        f"{file}: 2 segments cut to the length of the video, the first of v at 95 to 120 s",
        f"{file}: 1 segment left out as a copy of another, the first of v at 3.0005 to 3.5005 s",
        f"{file}: 1 segment of label Ambiguous left out, the first of v at 60 to 70 s",
    ]


def test_times_that_are_not_those_of_the_videos_stop_training(tmp_path: Path) -> None:
    in_frames = read_annotations(written(tmp_path, {"v": video(row(1, 2), row(300, 360), row(500, 700))}))
    with pytest.raises(
        DataError, match=r"2 of 3 segments have no length or lie outside .* v at 300 to 360 s; are the times"
    ):
        videos_to_train_on(in_frames, "test")
    nothing = read_annotations(written(tmp_path, {"v": video(row(1, 2, "Ambiguous"))}))
    with pytest.raises(DataError, match="no segment of the subset can be learnt from"):
        videos_to_train_on(nothing, "test")


def test_annotations_of_another_set_are_refused(tmp_path: Path) -> None:
    found = read_annotations(written(tmp_path, {"video_test_1": video()}))
    check_same_set(found, ["other", "video_test_1"], "the features")
    with pytest.raises(DataError, match=r"no video in common .*'video_test_1', ... and 'other'"):
        check_same_set(found, ["other"], "the features")
