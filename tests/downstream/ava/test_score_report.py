"""`vmae2 ava score`: its page, its JSON, and what it refuses."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.cli.lines import answer, refusal
from tests.golden_data import GOLDEN, golden_json

GT, DET, TIED, MAP, EXCLUDED = (
    str(GOLDEN / "ava" / f"protocols_{name}")
    for name in ("gt.csv", "det.csv", "det_tied.csv", "labelmap.pbtxt", "excluded.csv")
)
LINE = ["ava", "score", "--gt", GT, "--det", DET, "--labelmap", MAP]
EXPECTED = golden_json("ava/protocols_expected.json")


def test_the_page_tells_what_was_counted_and_left_out_and_by_whose_rules(capsys: pytest.CaptureFixture[str]) -> None:
    code, page, _ = answer([*LINE, "--exclude", EXCLUDED], capsys)
    assert code == 0
    for line in (
        "protocol activitynet: today's official scorer (ActivityNet): the 50 best of a key frame",
        "36 key frames, 142 true boxes of 13 of 15 classes; 1385 of 2205 detections counted",
        "left out, action id that the label map does not have: 294",
        "left out, key frame without truth: 104",
        "left out, not among the 50 best of its key frame: 345",
        "left out, box inside out or without an area: 77",
        "left out, true box whose action id the label map does not have: 10",
        "excluded key frames given: 3; this protocol scores every key frame that the truth names",
        "key frames without a detection that counts: 1",
        "classes without a true box, which are not in the mean: 3, 80",
        "classes without a detection, 0 in the mean: 63",
        "no two detections of a class have equal scores",
        "a box is small below 5 % of the frame's area, large from 25 % on: limits of ours",
    ):
        assert line in page.splitlines()
    words = [line.split() for line in page.splitlines()]
    expected = EXPECTED["protocols"]["activitynet"]
    assert ["all", f"{100 * expected['mAP']:.2f}"] in words
    assert ["74", "action", "74", f"{100 * expected['ap']['74']:.2f}"] in [line[:4] for line in words]


def test_the_page_tells_how_far_equal_scores_leave_map_open(capsys: pytest.CaptureFixture[str]) -> None:
    expected = EXPECTED["tied"]["mmaction2"]
    _, page, _ = answer([*LINE[:5], TIED, *LINE[6:], "--exclude", EXCLUDED, "--protocol", "mmaction2"], capsys)
    lowest, highest = (f"{100 * expected[end]:.4f}" for end in ("lowest", "highest"))
    assert (
        "detections with the score of another one of their class: 643; in another order of equal scores mAP is between "
        f"{lowest} and {highest}; here the order of the file stays"
    ) in page.splitlines()
    assert "classes without a detection, left out of the mean: 36, 47, 59, 63, 64, 74, 79" in page.splitlines()


def test_rows_cut_from_a_full_key_frame_by_equal_scores_are_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    det = tmp_path / "det.csv"
    det.write_text("vid_aaaaaaaa,0903,0.1,0.1,0.9,0.9,74,0.5\n" * 60)
    _, page, _ = answer([*LINE[:5], str(det), *LINE[6:]], capsys)
    assert "10 were cut from the best of their key frame by it" in page


@pytest.mark.parametrize("protocol", EXPECTED["protocols"])
def test_json_holds_the_same_numbers_in_full(protocol: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    det = tmp_path / "det.csv"
    rows = [line.split(",") for line in Path(DET).read_text().splitlines()]
    upright = [row for row in rows if row[2] <= row[4] and row[3] <= row[5]]
    det.write_text("".join(f"{','.join(row)}\n" for row in (upright if protocol == "mmaction2" else rows)))
    line = [*LINE[:5], str(det), *LINE[6:], "--exclude", EXCLUDED, "--protocol", protocol, "--json"]
    code, text, _ = answer(line, capsys)
    found, expected = json.loads(text), EXPECTED["protocols"][protocol]
    assert (code, found["protocol"]) == (0, protocol)
    assert found["frame_map"] == pytest.approx(expected["mAP"], abs=1e-9)
    assert found["interval"] == pytest.approx([expected["mAP"]] * 2, abs=1e-9)
    assert found["ap"] | expected["ap"] == {
        action: None if ap is None else pytest.approx(found["ap"][action], abs=1e-9)
        for action, ap in (found["ap"] | expected["ap"]).items()
    }
    assert found["classes"]["74"]["name"] == "action 74"
    assert (
        found["detections_counted"]
        + sum(number for reason, number in found["dropped"].items() if not reason.startswith("truth"))
        == found["detections"]
    )
    assert 3 in found["classes_without_truth"]
    assert 63 in found["classes_without_detections"]
    assert list(found["map_by_group"]) == ["person_movement", "object_manipulation", "person_interaction"]


def test_another_sets_actions_have_no_groups(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "gt.csv").write_text("v,1,0,0,1,1,1\n")
    (tmp_path / "det.csv").write_text("v,1,0,0,1,1,1,0.5\n")
    (tmp_path / "names").write_text("run\nstand\n")
    files = {"gt": "gt.csv", "det": "det.csv", "labelmap": "names"}
    line = [f"--{option}={tmp_path / name}" for option, name in files.items()]
    assert json.loads(answer(["ava", "score", *line, "--json"], capsys)[1])["map_by_group"] == {}
    assert "person" not in answer(["ava", "score", *line], capsys)[1]


def test_empty_detections_are_zero(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "none.csv").write_text("")
    line = [*LINE[:5], str(tmp_path / "none.csv"), *LINE[6:]]
    code, text, _ = answer([*line, "--json"], capsys)
    assert (code, json.loads(text)["frame_map"], json.loads(text)["detections"]) == (0, 0, 0)
    assert "0 of 0 detections counted" in answer(line, capsys)[1]


def test_bad_input_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def said(**other: str | Path) -> str:
        files = {"gt": GT, "det": DET, "labelmap": MAP} | other
        return refusal(["ava", "score", *(f"--{name}={file}" for name, file in files.items())], capsys)

    def file(text: str) -> Path:
        (tmp_path / "file").write_text(text)
        return tmp_path / "file"

    assert "gone.csv: No such file or directory" in said(det="gone.csv")
    assert "line 1: 2 columns, where a row has 8 columns" in said(det=EXCLUDED)
    assert "line 1: the person id is '0.122100', which is no whole number; write whole numbers" in said(gt=DET)
    assert "line 2: 8 columns, where a row has 2 columns" in said(exclude=GT)
    assert "has no true box to score" in said(gt=file("v,1\n"))
    assert "have no key frame in common: 'vid_aaaaaaaa' at 0902 in one, 'v.mp4' at 0902 in the other" in said(
        det=file("v.mp4,902,0,0,1,1,74,0.5\n")
    )
    assert "its ids are 300, those of the label map 2, 3, 5, 11, 14, ..." in said(
        det=file("vid_aaaaaaaa,0902,0,0,1,1,300,0.5\n")
    )
    assert "has the id 2 twice" in said(labelmap=file("2: a\n2: b\n"))
    assert "boxes are inside out" in said(protocol="mmaction2")
    assert "iou" in said(iou="0")
    assert "protocol" in said(protocol="ava")
