"""Files of tubes: the sets' pickles, AVA csv, found boxes and tubes, and what is said of those that are none."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.downstream.ava.made_tubes import as_list, golden_set, tubes_of, write_pickle
from vmae2_ds.downstream.ava.label_map import LabelMap
from vmae2_ds.downstream.ava.tube_files import (
    Clock,
    TubeSet,
    read_found,
    read_found_tubes,
    read_tube_csv,
    read_tube_pickle,
    write_found_tubes,
)
from vmae2_ds.errors import DataError

LABELS = LabelMap(Path("labels.pbtxt"), (7, 3), ("sit", "run"))


def annotations(file: Path, **changed: Any) -> Path:
    return write_pickle(golden_set()[0] | changed, file)


def truth_csv(file: Path, *rows: str) -> Path:
    file.write_text("".join(f"{row}\n" for row in rows))
    return file


def test_a_sets_pickle_is_read_with_all_that_it_has(tmp_path: Path) -> None:
    file = annotations(tmp_path / "gt.pkl")
    found, data = read_tube_pickle(file), golden_set()[0]
    assert found.truth.videos == tuple(data["test_videos"][0])
    assert found.labels == LabelMap(file, (1, 2, 3, 4), ("run", "jump", "basketball save", "wave"))
    assert found.frames_V.tolist() == [data["nframes"][video] for video in found.truth.videos]
    assert found.size_V2 is not None
    assert found.size_V2.tolist() == [[160, 120]] * 3  # height comes first in the file
    number = 0
    for place, video in enumerate(found.truth.videos):
        for klass, tubes in data["gttubes"][video].items():
            for tube in tubes:
                mine = as_list(found.truth)[number]
                assert mine[:4] == (place, klass, 1.0, int(tube[0, 0]))
                np.testing.assert_array_equal(mine[4], tube[:, 1:])
                number += 1
    assert number == len(found.truth)
    assert read_tube_pickle(file, "train").truth.videos == tuple(data["train_videos"][0])


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"gttubes": {}}, "gttubes lacks 3 of the 3 test videos, 'sport/v0' first"),
        ({"nframes": {"sport/v0": 9}}, "nframes lacks 2 of the 3 test videos, 'sport/v1' first"),
        ({"test_videos": []}, "there is no split 1 of test videos; it has 0"),
        ({"test_videos": 3}, "test_videos is an int, and should be a list"),
        ({"labels": 3}, "labels is an int, and should be a list"),
        ({"resolution": {f"sport/v{n}": (0, 9) for n in range(4)}}, "'sport/v0' has a resolution without pixels"),
        ({"resolution": {f"sport/v{n}": "big" for n in range(4)}}, "resolution of 'sport/v0' is no height and width"),
        ({"labels": ["run"]}, "has a tube of class 1; its 1 labels count from 0"),
        ({"gttubes": {f"sport/v{n}": {0: [np.zeros((3, 4))]} for n in range(4)}}, "has the shape (3, 4); it is a row for each"),
        ({"gttubes": {f"sport/v{n}": {0: [np.zeros((0, 5))]} for n in range(4)}}, "has the shape (0, 5)"),
        ({"gttubes": {f"sport/v{n}": {0: ["box"]} for n in range(4)}}, "a tube of 'sport/v0' is no array of numbers"),
        ({"gttubes": {f"sport/v{n}": {0: [np.full((1, 5), np.nan)]} for n in range(4)}}, "has a number that is not finite"),
        ({"gttubes": {f"sport/v{n}": {0: [np.full((1, 5), 1.5)]} for n in range(4)}}, "or a frame that is no whole number"),
        ({"gttubes": {f"sport/v{n}": {0: [2 * np.eye(5)[:2]]} for n in range(4)}}, "has no box between frames 0 and 2"),
        ({"gttubes": {f"sport/v{n}": [1] for n in range(4)}}, "gttubes of 'sport/v0' is a list, and should be a dict"),
    ],
)  # fmt: skip
def test_a_pickle_with_something_wrong_is_refused_in_a_line(tmp_path: Path, changed: dict[str, Any], said: str) -> None:
    with pytest.raises(DataError) as refused:
        read_tube_pickle(annotations(tmp_path / "gt.pkl", **changed))
    assert said in str(refused.value)
    assert str(refused.value).startswith(str(tmp_path / "gt.pkl"))
    assert "\n" not in str(refused.value)


class Runs:
    def __reduce__(self) -> tuple[Any, ...]:
        return (exec, ("raise SystemExit('ran')",))


@pytest.mark.parametrize("content", [Runs(), {"labels": Runs()}, [1, 2], b"", {"labels": []}])
def test_a_pickle_that_wants_to_run_code_or_is_another_is_refused_in_a_line(tmp_path: Path, content: Any) -> None:
    file = tmp_path / "gt.pkl"
    file.write_bytes(content if isinstance(content, bytes) else pickle.dumps(content))
    truth = read_tube_pickle(annotations(tmp_path / "good.pkl"))
    for read in (read_tube_pickle, lambda f: read_found(f, truth, Clock(25)), lambda f: read_found_tubes(f, truth)):
        with pytest.raises(DataError) as refused:
            read(file)
        assert str(file) in str(refused.value)
        assert "\n" not in str(refused.value)


def test_boxes_of_one_person_and_action_in_successive_key_frames_are_a_tube(tmp_path: Path) -> None:
    """At 5 key frames a second: person 1 sits, rests for one key frame, and sits again; 2 runs and sits at once."""
    rows = [f"v,{900 + t / 5:g},0.1,0.1,0.2,{0.2 + t / 100},7,1" for t in (0, 1, 2, 4, 5)]
    rows += [f"v,{900 + t / 5:g},0.5,0.1,0.6,0.9,{action},2" for t in (1, 2) for action in (3, 7)]
    rows += ["w,0901,0,0,1,1,99,1", "w,0902"]
    found = read_tube_csv(truth_csv(tmp_path / "gt.csv", *reversed(rows)), LABELS, Clock(5, 0))
    tubes = [(found.truth.videos[v], k, first, len(boxes)) for v, k, _, first, boxes in as_list(found.truth)]
    assert sorted(tubes) == [("v", 0, 4500, 3), ("v", 0, 4501, 2), ("v", 0, 4504, 2), ("v", 1, 4501, 2)]
    assert set(found.truth.videos) == {"v", "w"}
    assert found.num_unknown == 1
    first = next(tube for tube in as_list(found.truth) if tube[3] == 4500)
    np.testing.assert_allclose(first[4][:, 3], [0.2, 0.21, 0.22])


@pytest.mark.parametrize(
    ("rows", "fps", "said"),
    [
        (["v,1,0,0,1,1,7"], 1, "1 of 1 rows have no person id, the first in 'v' at 1 s; tubes are a person's boxes"),
        (["v,1,0,0,1,1,7,1", "v,2,0,0,1,1,7,1"], 25, "no person has an action in two key frames that follow each other at 25"),
        (["v,1.02,0,0,1,1,7,1"], 25, "1 time between frames at 25 a second, first 1.020 s (nearest frame 1.040 s); give --fps"),
        (["v,9e10,0,0,1,1,7,1"], 1, "a time of 9e+10 s is beyond all videos; times are seconds"),
        (["v,1,0,0,1,1,5,1"], 1, "none of its 1 rows has an action of labels.pbtxt"),
        (["v,1"], 1, "none of its 0 rows has an action of labels.pbtxt"),
        (["v,1,0,0,1,1,7,1", "v,1,0,0,1,1,7,1"], 1, "in 'v' that begins at frame 2 has two boxes in frame 2"),
    ],
)  # fmt: skip
def test_a_csv_without_tubes_says_what_is_missing(tmp_path: Path, rows: list[str], fps: float, said: str) -> None:
    with pytest.raises(DataError) as refused:
        read_tube_csv(truth_csv(tmp_path / "gt.csv", *rows), LABELS, Clock(fps))
    assert said in str(refused.value)


@pytest.mark.parametrize("fps", [1, 5, 24, 25, 30000 / 1001, 29.97, 30, 59.94, 60, 120])
def test_frames_come_back_from_times_in_milliseconds(fps: float) -> None:
    """Written by `seconds_of` and read again, for an hour of frames; the number of the first may be chosen."""
    for first in (0, 1):
        clock = Clock(fps, first)
        frames = np.arange(first, int(3600 * fps), 7)
        times = np.array([clock.time_ms(int(frame)) for frame in frames])
        np.testing.assert_array_equal(clock.frames(times, "x"), frames)


def the_set(tmp_path: Path) -> TubeSet:
    return read_tube_pickle(annotations(tmp_path / "gt.pkl"))


def test_boxes_are_the_same_from_csv_and_from_a_pickle(tmp_path: Path) -> None:
    """Rows of unknown videos and classes are counted and left out; a list of rows is taken for an array."""
    rows = np.array(
        [
            [0, 3, 1, 0.5, 16, 12, 80, 60],
            [2, 9, 3, 0.25, 0, 0, 160, 120],
            [7, 1, 1, 0.5, 0, 0, 9, 9],
            [1, 1, 9, 0.5, 0, 0, 9, 9],
        ]
    )
    csv = truth_csv(
        tmp_path / "det.csv", "sport/v0,0.08,0.1,0.1,0.5,0.5,2,0.5", "sport/v2,0.32,0,0,1,1,4,0.25", "other,0,0,0,1,1,2,0.5",
        "sport/v1,0,0,0,1,1,10,0.5",
    )  # fmt: skip
    truth = the_set(tmp_path)
    for file in (csv, write_pickle(rows, tmp_path / "det.pkl"), write_pickle(list(rows), tmp_path / "list.pkl")):
        found = read_found(file, truth, Clock(25))
        assert (found.num_elsewhere, found.num_unknown) == (1, 1)
        assert found.boxes.video_N.tolist() == [0, 2]
        assert found.boxes.frame_N.tolist() == [3, 9]
        assert found.boxes.class_N.tolist() == [1, 3]
        assert found.boxes.score_N.tolist() == [0.5, 0.25]
        np.testing.assert_allclose(found.boxes.box_N4, [[16, 12, 80, 60], [0, 0, 160, 120]], atol=1e-12)


def test_no_boxes_at_all_are_no_error(tmp_path: Path) -> None:
    truth = the_set(tmp_path)
    for file in (
        truth_csv(tmp_path / "d.csv"),
        write_pickle(np.zeros((0, 8)), tmp_path / "d.pkl"),
        write_pickle([], tmp_path / "e.pkl"),
    ):
        assert len(read_found(file, truth, Clock(25)).boxes.score_N) == 0


def test_pixels_do_not_meet_shares_of_a_frame(tmp_path: Path) -> None:
    truth = read_tube_csv(truth_csv(tmp_path / "gt.csv", "v,1,0,0,1,1,7,1", "v,2,0,0,1,1,7,1"), LABELS, Clock(1))
    with pytest.raises(DataError, match=r"has boxes in pixels and .*gt.csv in shares of a frame; give both as AVA csv"):
        read_found(write_pickle(np.ones((1, 8)), tmp_path / "d.pkl"), truth, Clock(1))


def test_found_tubes_come_back_as_written(tmp_path: Path) -> None:
    truth = the_set(tmp_path)
    boxes = np.random.default_rng(0).random((7, 4))
    tubes = tubes_of([(2, 3, 0.5, 4, boxes[:5]), (0, 0, 0.25, 9, boxes[5:])], truth.truth.videos)
    write_found_tubes(tubes, 4, tmp_path / "tubes.pkl")
    again, elsewhere = read_found_tubes(tmp_path / "tubes.pkl", truth)
    assert elsewhere == 0
    assert sorted(tube[:4] for tube in as_list(again)) == sorted(tube[:4] for tube in as_list(tubes))
    np.testing.assert_array_equal(sorted(again.box_F4.tolist()), sorted(tubes.box_F4.tolist()))


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (np.zeros((3, 8)), "are a dict of class -> list of (video, score, boxes), this is an array of shape (3, 8)"),
        ({9: []}, "class 9; the 4 labels of"),
        ({"run": []}, "class 'run'; the 4 labels of"),
        ({0: [("sport/v0", 0.5)]}, "a tube of class 0 is not (video, score, boxes)"),
        ({0: [("sport/v0", 0.5, np.zeros((2, 3)))]}, "a tube of class 0 in 'sport/v0' has the shape (2, 3)"),
        ({0: [("sport/v0", float("nan"), np.ones((1, 5)))]}, "a tube of class 0 has the score nan"),
    ],
)  # fmt: skip
def test_tubes_of_another_form_are_named(tmp_path: Path, content: Any, said: str) -> None:
    with pytest.raises(DataError) as refused:
        read_found_tubes(write_pickle(content, tmp_path / "t.pkl"), the_set(tmp_path))
    assert said in str(refused.value)
