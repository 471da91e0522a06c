"""Detections as files hold them, written for the published scorers and read from their files."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from vmae2_ds.downstream.tad.annotations import (
    AnnotatedVideo,
    Annotations,
    Segment,
    read_annotations,
    write_annotations,
)
from vmae2_ds.downstream.tad.detections import (
    make_detections,
    read_detections,
    read_video_scores,
    write_detections,
    write_for_actionformer,
)
from vmae2_ds.errors import DataError

ROWS = [(0, 0, 1.5, 4.0, 0.9), (0, 1, 2.0, 3.0, 0.5), (2, 0, 7.0, 6.0, 1e-3)]


def written(folder: Path, content: Any) -> Path:
    file = folder / "pred.json"
    file.write_text(json.dumps(content))
    return file


def test_what_is_written_is_what_the_published_scorers_read_and_is_read_back(tmp_path: Path) -> None:
    made = make_detections(["v1", "v2", "v3"], ["Diving", "GolfSwing"], ROWS)
    write_detections(made, tmp_path / "out.json", made_by="a test")
    content = json.loads((tmp_path / "out.json").read_text())
    assert set(content) == {
        "version",
        "results",
        "external_data",
        "made_by",
    }  # ActivityNet's script asks for the first three
    assert content["results"]["v2"] == []
    assert content["results"]["v1"][1] == {"segment": [2.0, 3.0], "label": "GolfSwing", "score": 0.5}
    again = read_detections(tmp_path / "out.json")
    assert (again.videos, again.labels) == (made.videos, made.labels)
    for name in ("video_N", "label_N", "start_N", "end_N", "score_N"):
        np.testing.assert_array_equal(getattr(again, name), getattr(made, name))


def test_actionformers_form_is_read_as_it_is_written_with_the_numbers_of_the_annotations(tmp_path: Path) -> None:
    segments = (Segment(0, 1, 1),)
    truth = {
        "v1": AnnotatedVideo("v1", "Test", 20.0, 30.0, 600, segments),
        "v3": AnnotatedVideo("v3", "", None, None, None, ()),
    }
    annotations = Annotations(Path("made.json"), ("GolfSwing", "Diving"), (9, 7), truth)
    write_annotations(annotations, tmp_path / "gt.json")
    assert json.loads((tmp_path / "gt.json").read_text())["database"]["v1"] == {
        **{"subset": "Test", "duration": 20.0, "fps": 30.0, "frame": 600},
        "annotations": [{"segment": [0, 1], "label": "Diving", "label_id": 7}],
    }
    assert read_annotations(tmp_path / "gt.json").videos == {
        "v1": replace(truth["v1"], segments=(Segment(0, 1, 0),)),  # GolfSwing has no segment and is not in the file
        "v3": truth["v3"],
    }
    made = make_detections(["v1", "v2"], ["Diving", "GolfSwing", "Juggling"], [*ROWS[:2], (1, 2, 1, 2, 0.1)])
    write_for_actionformer(made, annotations, tmp_path / "out.json")
    database = json.loads((tmp_path / "out.json").read_text())["database"]
    assert database["v1"][0] == {"segment": [1.5, 4.0], "label_id": 7, "scores": 0.9}
    assert [row["label_id"] for rows in database.values() for row in rows] == [7, 9, 10]
    again = read_detections(tmp_path / "out.json")
    assert again.labels == ("7", "9", "10")
    np.testing.assert_array_equal(again.score_N, made.score_N)


def test_actionformers_columns_and_numbers_as_text_are_read(tmp_path: Path) -> None:
    columns = {"video-id": ["a", "b", "a"], "t-start": [1, 2, 3], "t-end": [2, 3.5, 4], "label": [7, 0, 7]}
    found = read_detections(written(tmp_path, columns | {"score": [0.9, 0.8, 0.7]}))
    assert (found.videos, found.labels) == (("a", "b"), ("7", "0"))
    assert found.video_N.tolist() == [0, 1, 0]
    assert found.end_N.tolist() == [2, 3.5, 4]
    text = read_detections(
        written(tmp_path, {"results": {"a": [{"segment": ["1.5", "2"], "label": "x", "score": "0.25"}]}})
    )
    assert (text.start_N[0], text.end_N[0], text.score_N[0]) == (1.5, 2.0, 0.25)
    assert len(read_detections(written(tmp_path, {"results": {"a": [], "b": []}}))) == 0


def detected(**fields: Any) -> dict[str, Any]:
    good = {"segment": [1, 2], "label": "x", "score": 0.5}
    return {"results": {"a": [good, {key: value for key, value in (good | fields).items() if value is not None}]}}


REFUSED = {
    "no results": ({"database": {}}, 'has no "results" by video, and no columns'),
    "no list": ({"results": {"a": 3}}, "the detections of video 'a' are no list"),
    "no score": (detected(score=None), "video 'a', detection 2 has no 'score'"),
    "nan score": (detected(score=float("nan")), "video 'a' has a detection from 1.0 to 2.0 s with score nan"),
    "infinite": (detected(segment=[1, float("inf")]), "a detection from 1.0 to inf s"),
    "three ends": (detected(segment=[1, 2, 3]), "video 'a', detection 2 is not a segment of two numbers"),
    "text": (detected(segment="12"), "video 'a', detection 2 is not a segment of two numbers"),
    "word": (detected(segment=[1, "x"]), "video 'a', detection 2 is not a segment"),
    "too large": (detected(segment=[1, 10**400]), "video 'a', detection 2 is not a segment of two numbers"),
    "no label": (detected(label=[1]), "[] is no label"),
    "uneven": (
        {"video-id": ["a"], "t-start": [1], "t-end": [2], "label": ["x"], "score": []},
        "its columns are not of one length",
    ),
}


@pytest.mark.parametrize("name", sorted(REFUSED))
def test_what_is_no_detection_is_refused_in_one_line(name: str, tmp_path: Path) -> None:
    content, said = REFUSED[name]
    with pytest.raises(DataError) as refused:
        read_detections(written(tmp_path, content))
    assert said in str(refused.value)
    assert "\n" not in str(refused.value)


def test_scores_of_whole_videos_are_read_in_every_form(tmp_path: Path) -> None:
    found = read_video_scores(written(tmp_path, {"results": {"a": [0.1, 0.9], "b": [[0.5, 0.5]]}, "class": ["x", "y"]}))
    assert found.classes == ("x", "y")
    assert {video: scores.tolist() for video, scores in found.score_of.items()} == {"a": [0.1, 0.9], "b": [0.5, 0.5]}
    assert read_video_scores(written(tmp_path, {"a": [0.1, 0.9]})).classes is None
    rows = {"a": [{"label": "y", "score": 0.9}, {"label": "x", "score": 0.1}], "b": [{"label": "z", "score": 0.5}]}
    by_label = read_video_scores(written(tmp_path, {"results": rows}))
    assert by_label.classes == ("x", "y", "z")
    assert {video: scores.tolist() for video, scores in by_label.score_of.items()} == {
        "a": [0.1, 0.9, 0],
        "b": [0, 0, 0.5],
    }
    for content, said in (
        ({"results": {"a": [{"label": "x"}]}}, "video 'a' has no list of scores"),
        ({"a": [0.1, 0.9], "b": [1.0]}, "video 'b' has 1 scores, where 2 classes have one each"),
        ({"a": [0.1, "x"]}, "video 'a' has no list of scores"),
        ([], "no scores by video"),
    ):
        with pytest.raises(DataError, match=said):
            read_video_scores(written(tmp_path, content))
