"""The verbs `vmae2 ava score-tubes` and `vmae2 ava convert`, from files to what they print."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.cli.lines import answer, refusal
from tests.downstream.ava.made_tubes import GOLDEN, golden_set, write_pickle
from tests.golden_data import golden_json
from vmae2_ds.downstream.ava.label_map import read_label_map
from vmae2_ds.downstream.ava.rows import make_rows, read_truth, write_detections
from vmae2_ds.downstream.ava.tube_files import Clock, read_tube_csv, read_tube_pickle
from vmae2_ds.downstream.ava.tubes import Tubes
from vmae2_ds.downstream.ava.video_map import MULTISPORTS_WITHOUT

FPS = 25


@pytest.fixture
def files(tmp_path: Path) -> dict[str, str]:
    """The golden set: truth, and found boxes as a pickle and as csv, as the sets' users have them."""
    annotations, boxes, _ = golden_set()
    write_pickle(annotations, tmp_path / "gt.pkl")
    write_pickle(boxes, tmp_path / "det.pkl")
    height, width = annotations["resolution"]["sport/v0"]
    keys = [(annotations["test_videos"][0][int(row[0])], round((row[1] - 1) * 1000 / FPS)) for row in boxes]
    shares = boxes[:, 4:] / [width, height, width, height]
    write_detections(make_rows(keys, shares, boxes[:, 2] + 1, boxes[:, 3]), tmp_path / "det.csv")
    return {name: str(tmp_path / name) for name in ("gt.pkl", "det.pkl", "det.csv", "tubes.pkl", "conv")}


def score_json(capsys: pytest.CaptureFixture[str], *words: str) -> dict[str, Any]:
    code, text, error = answer(["ava", "score-tubes", "--json", *words], capsys)
    assert code == 0, error
    found = json.loads(text)
    assert isinstance(found, dict)
    return found


@pytest.mark.parametrize("det", ["det.pkl", "det.csv"])
def test_the_verb_gives_the_published_numbers_of_ucf101_24(
    files: dict[str, str], det: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """ACT's, the default for such a pickle; boxes in csv have 6 digits of a share, 1e-4 of a pixel."""
    expected = golden_json(GOLDEN)["expected"]["act"]
    found = score_json(capsys, "--gt", files["gt.pkl"], "--det", files[det])
    assert found["protocol"] == "act"
    assert found["frame_ap"] == pytest.approx(expected["frame"], abs=1e-12)
    assert found["frame_map"] == pytest.approx(np.mean(list(expected["frame"].values())), abs=1e-12)
    for threshold, ap_of in expected["video"].items():
        assert {name: ap[threshold] for name, ap in found["ap"].items()} == pytest.approx(ap_of, abs=1e-12)
    assert found["mean_video_map"]["0.5:0.95"] == pytest.approx(expected["high"], abs=1e-12)


def test_the_verb_gives_multisports_numbers_from_its_files(
    files: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    """Its tubes are those of the other test, linked as ACT's boxes are: with pixels that have a width."""
    expected = golden_json(GOLDEN)["expected"]["multisports"]
    score_json(capsys, "--gt", files["gt.pkl"], "--det", files["det.pkl"], "--out", files["tubes.pkl"])
    line = [
        "--gt",
        files["gt.pkl"],
        "--det",
        files["det.pkl"],
        "--tubes",
        files["tubes.pkl"],
        "--protocol",
        "multisports",
    ]
    found = score_json(capsys, *line)
    assert found["frame_ap"] == pytest.approx(expected["frame"], abs=1e-12)
    for threshold, ap_of in expected["video"].items():
        assert {name: ap[threshold] for name, ap in found["ap"].items()} == pytest.approx(ap_of, abs=1e-12)
    assert found["mean_video_map"]["0.5:0.95"] == pytest.approx(expected["high"], abs=1e-12)
    assert "basketball save" not in found["ap"]


def test_written_tubes_score_as_linked_ones_and_replace_no_other_file(
    files: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    linked = score_json(capsys, "--gt", files["gt.pkl"], "--det", files["det.csv"], "--out", files["tubes.pkl"])
    ready = score_json(capsys, "--gt", files["gt.pkl"], "--tubes", files["tubes.pkl"])
    assert ready["ap"] == linked["ap"]
    assert (ready["frame_map"], ready["boxes"], ready["short_tubes"]) == (None, None, None)
    line = ["ava", "score-tubes", "--gt", files["gt.pkl"], "--det", files["det.csv"], "--out"]
    written = Path(files["tubes.pkl"]).read_bytes()
    assert answer([*line, files["tubes.pkl"]], capsys)[0] == 0, "tubes may be written anew"
    assert Path(files["tubes.pkl"]).read_bytes() == written
    movie, other = tmp_path / "movie.mp4", tmp_path / "other.pkl"
    movie.write_bytes(b"no pickle")
    write_pickle(golden_set()[0], other)
    for theirs in (movie, other):
        before = theirs.read_bytes()
        assert "is a file of something else; name another, or remove it" in refusal([*line, str(theirs)], capsys)
        assert theirs.read_bytes() == before


def in_order(tubes: Tubes, names: list[str]) -> Tubes:
    """Sorted by video, class and first frame."""
    video_T = [names.index(tubes.videos[video]) for video in tubes.video_T]
    return tubes.some(np.lexsort((tubes.first_T, tubes.class_T, video_T)))


def test_converted_annotations_are_the_same_truth(files: dict[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    """Tubes come back from csv with their frames, classes and boxes, and score a detector alike but for a pixel's width."""
    folder = Path(files["conv"])
    code, said, _ = answer(["ava", "convert", files["gt.pkl"], "--out", str(folder), "--fps", str(FPS)], capsys)
    assert code == 0
    annotations = golden_set()[0]
    frames = sum(annotations["nframes"][video] for video in annotations["test_videos"][0])
    assert f"test.csv: 3 videos, {frames} key frames" in said
    labels = read_label_map(folder / "labels.pbtxt")
    assert labels.names == tuple(annotations["labels"])
    for part in ("test", "train"):
        true = read_tube_pickle(Path(files["gt.pkl"]), part)
        again = read_tube_csv(folder / f"{part}.csv", labels, Clock(FPS))
        assert true.size_V2 is not None
        names = (folder / f"{part}_videos.txt").read_text().split()
        assert names == annotations[f"{part}_videos"][0]
        there = [
            np.lexsort((t.first_T, t.class_T, [names.index(t.videos[v]) for v in t.video_T]))
            for t in (true.truth, again.truth)
        ]
        one, other = (t.some(order) for t, order in zip((true.truth, again.truth), there, strict=True))
        np.testing.assert_array_equal(one.first_T, other.first_T)
        np.testing.assert_array_equal(one.class_T, other.class_T)
        np.testing.assert_allclose(one.box_F4 / [160, 120, 160, 120], other.box_F4, atol=5e-7)
    # every frame of the test videos is named, for what is found where nothing is done is wrong
    assert len(read_truth(folder / "test.csv").keys) == frames
    line = ["--gt", str(folder / "test.csv"), "--labelmap", str(folder / "labels.pbtxt"), "--det", files["det.csv"]]
    plain = score_json(capsys, *line)
    assert plain["protocol"] == "plain"
    from_pickle = score_json(capsys, "--gt", files["gt.pkl"], "--det", files["det.csv"], "--protocol", "plain")
    assert plain["ap"] == from_pickle["ap"]
    assert plain["frame_ap"] == pytest.approx(from_pickle["frame_ap"], abs=1e-12)
    by_verb = answer(["ava", "score", "--protocol", "legacy", "--json", *line], capsys)[1]
    assert plain["frame_map"] == json.loads(by_verb)["frame_map"]


def test_key_frames_may_be_thinned_and_a_folder_of_others_is_left_alone(
    files: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line = ["ava", "convert", files["gt.pkl"], "--out", str(tmp_path / "thin"), "--fps", "25", "--every", "10"]
    assert answer(line, capsys)[0] == 0
    times = {time for _, time in read_truth(tmp_path / "thin" / "test.csv").keys}
    assert times == {0, 400, 800, 1200, 1600}
    assert answer(line, capsys)[0] == 0  # its own files may be written again
    (tmp_path / "thin" / "mine.txt").write_text("")
    assert "holds files of something else" in refusal(line, capsys)


def test_the_page_tells_what_was_scored_and_left_out(
    files: dict[str, str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("COLUMNS", raising=False)  # a narrow terminal has lists for tables
    code, page, _ = answer(["ava", "score-tubes", "--gt", files["gt.pkl"], "--det", files["det.pkl"]], capsys)
    assert code == 0
    assert page.startswith("protocol act: ACT's and MOC's scorer")
    assert "3 videos, 113 frames, 15 tubes of 4 classes" in page
    assert "2536 boxes linked into 57 tubes; 373 more were left out as too short and 177 as too weak" in page
    assert "frame 0.5" in page
    rows = [line.split() for line in page.splitlines() if line.startswith((" mAP", " run", "mAP", "run"))]
    assert [row[-4] for row in rows] == ["91.67", "100.00"]


def test_equal_scores_are_told_with_what_they_leave_open(
    files: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    boxes = golden_set()[1]
    boxes[:, 3] = boxes[:, 3].round(1)
    write_pickle(boxes, Path(files["det.pkl"]))
    found = score_json(capsys, "--gt", files["gt.pkl"], "--det", files["det.pkl"])
    lowest, highest = found["frame_map_interval"]
    assert lowest < found["frame_map"] < highest
    page = answer(["ava", "score-tubes", "--gt", files["gt.pkl"], "--det", files["det.pkl"]], capsys)[1]
    assert f"frame mAP is between {100 * lowest:.4f} and {100 * highest:.4f} by their order" in page


def test_multisports_classes_choose_its_protocol(
    files: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    labels = [
        "run",
        "jump",
        "basketball save",
        "wave",
        *(name for name in MULTISPORTS_WITHOUT if name != "basketball save"),
    ]
    write_pickle(golden_set()[0] | {"labels": labels}, tmp_path / "ms.pkl")
    found = score_json(capsys, "--gt", str(tmp_path / "ms.pkl"), "--det", files["det.pkl"])
    assert (found["protocol"], found["classes"]) == ("multisports", 3)


def test_only_the_best_class_of_a_box_may_be_kept(files: dict[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    _, boxes, _ = golden_set()
    best: dict[tuple[float, ...], tuple[float, float]] = {}
    for row in boxes.tolist():
        key = (row[0], row[1], *row[4:])
        best[key] = max(best.get(key, (-1.0, 0.0)), (row[3], row[2]))
    kept = [[key[0], key[1], klass, score, *key[2:]] for key, (score, klass) in best.items()]
    write_pickle(np.array(kept), Path(files["conv"]).with_name("best.pkl"))
    by_hand = score_json(capsys, "--gt", files["gt.pkl"], "--det", files["conv"].replace("conv", "best.pkl"))
    found = score_json(capsys, "--gt", files["gt.pkl"], "--det", files["det.pkl"], "--best-class")
    assert found["frame_ap"] == by_hand["frame_ap"]
    assert found["ap"] == by_hand["ap"]
    assert found["boxes"] == len(kept) < len(boxes)


def test_what_cannot_be_scored_is_said_in_a_line(
    files: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    gt, det = files["gt.pkl"], files["det.csv"]
    (tmp_path / "gt.csv").write_text("v,0,0,0,1,1,1,1\nv,0.04,0,0,1,1,1,1\n")
    (tmp_path / "map.txt").write_text("run\n")
    write_pickle(golden_set()[0] | {"gttubes": {f"sport/v{n}": {} for n in range(4)}}, tmp_path / "empty.pkl")
    csv = [str(tmp_path / "gt.csv"), "--labelmap", str(tmp_path / "map.txt")]
    for words, said in (
        (["--gt", gt], "nothing to score: give --det, boxes found in frames, or --tubes, ready tubes"),
        (["--gt", gt, "--det", det, "--labelmap", csv[2]], "has its own labels: leave out --labelmap"),
        (["--gt", csv[0], "--det", det], "truth in csv needs --labelmap"),
        (["--gt", *csv, "--det", det, "--protocol", "act"], "--protocol act counts in pixels"),
        (["--gt", str(tmp_path / "empty.pkl"), "--det", det], "has no tube to score in the test videos of split 1"),
        (["--gt", gt, "--det", det, "--split", "2"], "there is no split 2 of test videos; it has 1"),
        (["--gt", gt, "--det", det, "--fps", "7"], "between frames at 7 a second"),
        (["--gt", gt, "--det", det, "--out", gt], "which is read; name another file"),
        (["--gt", gt, "--det", det, "--link.iou", "2"], "link.iou"),
        (["--gt", str(tmp_path / "none.pkl"), "--det", det], "none.pkl: No such file or directory"),
        (["--gt", *csv, "--det", det], "none of its 2536 boxes can be scored: 2536 are in videos that"),
    ):
        assert said in refusal(["ava", "score-tubes", *words], capsys), words
