"""`vmae2 tad score`: its page, its JSON, the files that it writes for others, and what it refuses."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cli.lines import answer, refusal
from tests.golden_data import GOLDEN, golden_json
from vmae2_ds.downstream.tad.score_report import tious_of

GT, PRED = (str(GOLDEN / "tad" / f"protocols_{name}.json") for name in ("gt", "pred"))
LINE = ["tad", "score", "--gt", GT, "--pred", PRED, "--subset", "Test"]


def test_the_page_tells_what_was_counted_and_left_out_and_by_whose_rules(capsys: pytest.CaptureFixture[str]) -> None:
    expected = golden_json("tad/protocols_expected.json")["protocols"]["opentad"]["ambiguous_as_class"]
    code, page, _ = answer([*LINE, "--protocol", "opentad"], capsys)
    assert code == 0
    for line in (
        "protocol opentad: OpenTAD's scorer: ActivityNet's without copies and segments without length",
        "subset 'Test': 12 videos, 171 true segments of 21 classes; 487 of 489 detections counted",
        "duplicates dropped: 3; unknown labels dropped: 1, of 2 detections ('Juggling' 2)",
        "true segments without length dropped: 2",
        "detections in videos that the subset does not have: 24; they count as false positives",
        "Ambiguous counts as a class: --without Ambiguous takes it out",
        "among equal scores the order of the file stays",
    ):
        assert line in page.splitlines()
    percent = [f"{100 * value:.2f}" for value in (*expected["mAP"], expected["average"])]
    assert ["mAP", *percent] in [line.split() for line in page.splitlines()]
    assert ["Diving", *(f"{100 * value:.2f}" for value in expected["ap"]["Diving"])] in [
        line.split()[:-1] for line in page.splitlines()
    ]
    for protocol in ("activitynet", "thumos14", "thumos14_2015"):
        _, page, _ = answer([*LINE, "--protocol", protocol, "--drop-unknown"], capsys)
        assert ("the usual one for THUMOS14" in page) == (protocol == "activitynet")
        assert ("the THUMOS14 kit of" in page) == protocol.startswith("thumos14")
        assert "official" not in page.lower()


def test_json_holds_the_same_numbers_in_full(capsys: pytest.CaptureFixture[str]) -> None:
    expected = golden_json("tad/protocols_expected.json")["protocols"]["actionformer"]["ambiguous_removed"]
    code, text, _ = answer([*LINE, "--protocol", "actionformer", "--without", "Ambiguous", "--json"], capsys)
    found = json.loads(text)
    assert code == 0
    assert list(found["map"]) == ["0.3", "0.4", "0.5", "0.6", "0.7"]
    assert list(found["map"].values()) == pytest.approx(expected["mAP"], abs=1e-9)
    assert found["average_map"] == pytest.approx(expected["average"], abs=1e-9)
    assert list(found["ap"]["Diving"].values()) == pytest.approx(expected["ap"]["Diving"], abs=1e-9)
    assert found["recall"]["5x"]["0.3"] > found["recall"]["1x"]["0.3"]
    assert (found["videos"], found["videos_with_truth"], found["instances"]) == (12, 11, expected["truths_used"])
    assert found["duplicates_dropped"] + found["short_instances_dropped"] == expected["truths_dropped"]
    assert found["unknown_labels_dropped"] == {"Juggling": 2}


def test_files_written_for_others_score_alike_and_nothing_else_is_written_over(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    asked = ["--protocol", "actionformer", "--json"]
    _, before, _ = answer([*LINE, *asked, "--out", str(out)], capsys)
    for name in ("detections.json", "detections_actionformer.json"):
        again = ["tad", "score", "--gt", str(out / "annotations.json"), "--pred", str(out / name), "--subset", "Test"]
        after = json.loads(answer([*again, *asked], capsys)[1])
        after["unknown_labels_dropped"] = {
            "Juggling": sum(after["unknown_labels_dropped"].values())
        }  # 21 in the second
        assert after == json.loads(before)
    assert answer([*LINE, *asked, "--out", str(out)], capsys)[0] == 0
    (out / "mine.txt").write_text("mine")
    assert "holds files of something else" in refusal([*LINE, *asked, "--out", str(out)], capsys)


def test_bad_input_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def said(*words: str) -> str:
        return refusal(["tad", "score", *words], capsys)

    assert "gone.json: there is no such file" in said("--gt", "gone.json", "--pred", PRED)
    assert 'no "database" of videos' in said("--gt", PRED, "--pred", PRED)
    assert 'no "results" by video' in said("--gt", GT, "--pred", str(GOLDEN / "tad" / "shift.json"))
    assert "it has 'Test', 'Validation'" in said("--gt", GT, "--pred", PRED, "--subset", "test")
    assert "name the one that is meant" in said("--gt", GT, "--pred", PRED)
    assert "'Juggling'" in said("--gt", GT, "--pred", PRED, "--subset", "Test")
    classes = tmp_path / "category_idx.txt"
    classes.write_text("Diving\n")
    assert "the list of classes does not have" in said("--gt", GT, "--pred", PRED, "--classes", str(classes))
    assert "--without Divving: neither" in said("--gt", GT, "--pred", PRED, "--subset", "Test", "--without", "Divving")
    assert "no video in common" in said(
        "--gt", GT, "--pred", str(GOLDEN / "tad" / "map_pred.json"), "--subset", "Validation"
    )


def test_true_segments_that_cannot_be_so_are_counted_and_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The scorers take them as they stand; a user should know that they are there."""
    segments = [(1, 5), (7, 7), (90, 104), (99, 100.0005)]
    rows = [{"segment": [start, end], "label": "x"} for start, end in segments]
    gt, pred = tmp_path / "gt.json", tmp_path / "pred.json"
    gt.write_text(json.dumps({"database": {"a": {"subset": "val", "duration": 100, "annotations": rows}}}))
    pred.write_text(json.dumps({"results": {"a": [{"segment": [1, 5], "label": "x", "score": 0.5}]}}))
    line = ["tad", "score", "--gt", str(gt), "--pred", str(pred)]
    _, page, _ = answer(line, capsys)
    assert "true segments without length: 1; they count as they stand" in page.splitlines()
    assert "true segments that end behind the end of their video: 1; they count as they stand" in page.splitlines()
    _, page, _ = answer([*line, "--protocol", "opentad"], capsys)
    assert "true segments without length dropped: 1" in page.splitlines()
    assert "true segments without length: " not in page


@pytest.mark.parametrize(
    "text",
    [
        "",
        "0.3:0.7",
        "0.3:0.7:0",
        "0.7:0.3:0.1",
        "0.3:0.7:0.15",
        "0,0.5",
        "0.5,1.2",
        "nan",
        "0.5,0.5",
        "0.33333,0.333333",
    ],
)
def test_thresholds_that_cannot_be_are_refused(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert "--tiou" in refusal([*LINE, "--tiou", text], capsys)


def test_thresholds_are_those_of_the_published_scorers_to_the_last_bit() -> None:
    expected = golden_json("tad/map_expected.json")
    assert list(tious_of("0.3:0.7:0.1")) == expected["thumos_0.3_0.7"]["tiou"]
    assert list(tious_of("0.5:0.95:0.05")) == expected["anet_0.5_0.95"]["tiou"]
    assert tious_of("0.5") == (0.5,)
    assert tious_of("0.1,0.3,0.5") == (0.1, 0.3, 0.5)


def test_scoring_needs_no_torch() -> None:
    code = (
        "import sys; from pathlib import Path; from vmae2_ds.downstream.tad.score_report import ScoreArguments, score; "
        f"score(ScoreArguments(gt=Path({GT!r}), pred=Path({PRED!r}), subset=('Test',), drop_unknown=True)); "
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
