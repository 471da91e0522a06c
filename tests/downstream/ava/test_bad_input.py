"""Whatever the verbs for people in boxes are given, they answer with one line and exit code 2, and change no file."""

from __future__ import annotations

import os
import pickle
from pathlib import Path

import pytest

from vmae2_ds.cli.main import main


class RunsCode:
    """What a pickle may not be."""

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, ("touch was_run",)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A small set in AVA's form, and what is wrong with others."""
    monkeypatch.chdir(tmp_path)
    for name in ("a_folder", "videos"):
        (tmp_path / name).mkdir()
    truth = [*(f"a,90{second},0.1,0.1,0.5,0.9,1,0" for second in (2, 3)), "b,902,0.2,0.1,0.5,0.9,2,0"]
    texts = {
        "map.txt": "run\njump\n", "gt.csv": "\n".join(truth), "det.csv": "a,902,0.1,0.1,0.5,0.9,1,0.9\n", "empty": "",
        "short.csv": "a,902,0.1,0.1\n", "words.csv": "a,902,x,0.1,0.5,0.9,1,0\n", "other_map.txt": "7: swim\n9: fly\n",
        "twice.txt": "1: run\n1: jump\n", "all.csv": "a,902\na,903\nb,902\n", "nan.csv": "a,902,nan,0.1,0.5,0.9,1,0.5\n",
        "pixels.csv": "a,902,10,20,300,400,1,0.5\n", "true_pixels.csv": "a,902,10,20,300,400,1,0\n",
        "elsewhere.csv": "z,5,0.1,0.1,0.5,0.9,1,0.5\n",
    }  # fmt: skip
    for name, text in texts.items():
        (tmp_path / name).write_text(text)
    (tmp_path / "bytes").write_bytes(bytes(range(256)))
    (tmp_path / "code.pkl").write_bytes(pickle.dumps(RunsCode()))
    (tmp_path / "boxes.pkl").write_bytes(pickle.dumps({"a,0902": [[0.1, 0.1, 0.5, 0.9, 0.9]]}))
    return tmp_path


BOXES = "boxes --truth gt.csv --out new.csv"
SHOW = "show --gt gt.csv --det det.csv --labelmap map.txt --out new.html"
SCORE = "score --gt gt.csv --det det.csv --labelmap map.txt"
TUBES = "score-tubes --gt gt.csv --det det.csv --labelmap map.txt --fps 1"
TRAIN = "ava_desk --data.truth gt.csv --data.label-map map.txt --data.videos videos --model.num-classes 2"
LINES = [
    *(f"{verb} {option} {wrong}" for verb, options, wrongs in (
        (SCORE, ("--gt", "--det", "--labelmap", "--protocol legacy --exclude"), ("gone", "a_folder", "bytes")),
        (SCORE, ("--gt", "--det"), ("short.csv", "words.csv", "nan.csv", "map.txt")),
        (SCORE, ("--labelmap",), ("empty", "twice.txt", "other_map.txt", "gt.csv")),
        (TUBES, ("--gt", "--labelmap"), ("gone", "a_folder", "empty", "bytes")),
        (TUBES, ("--out",), ("gt.csv", "det.csv", "map.txt", "a_folder")),
        (TRAIN, ("--data.truth", "--data.label-map", "--data.videos", "--data.val-truth", "--train.init"), ("gone",)),
        (TRAIN, ("--data.truth", "--data.label-map"), ("a_folder", "empty", "bytes")),
        (TRAIN, ("--data.train-on truth_and_proposals --data.boxes",), ("gone", "code.pkl", "bytes", "empty", "a_folder")),
        ("boxes --convert", ("",), ("gone new.csv", "a_folder new.csv", "bytes new.csv", "code.pkl new.csv", "gt.csv new.pkl")),
        ("boxes --convert boxes.pkl", ("",), ("boxes.pkl", "det.csv", "a_folder", "new.json", "new.txt")),
        (BOXES, ("--from-coco", "--videos videos --weights"), ("gone", "bytes", "a_folder")),
        (SHOW, ("--gt", "--det", "--labelmap", "--videos", "--exclude"), ("gone",)),
        (SHOW, ("--gt", "--det", "--labelmap"), ("a_folder", "bytes")),
        (SHOW, ("--out",), ("gt.csv", "det.csv", "map.txt", "a_folder", "new.png")),
    ) for option in options for wrong in wrongs),
    f"{SCORE} --gt empty", f"{SCORE} --gt all.csv", f"{SCORE} --det elsewhere.csv", f"{SCORE} --det pixels.csv",
    f"{SCORE} --gt true_pixels.csv", f"{SCORE} --iou 0", f"{SCORE} --iou nan",
    f"{SCORE} --protocol legacy --exclude all.csv", f"{SCORE} --protocol nobodys", "score --gt gt.csv",
    "score-tubes --gt code.pkl --det det.csv", "score-tubes --gt boxes.pkl --det det.csv", f"{TUBES} --fps 0",
    "convert gone --fps 25 --out new", "convert code.pkl --fps 25 --out new", "convert boxes.pkl --fps 25 --out gt.csv",
    TRAIN, f"{TRAIN} --data.label-map other_map.txt", f"{TRAIN} --data.excluded all.csv", f"{TRAIN} --data.flip 2",
    f"{TRAIN} --data.kind reels", f"{TRAIN} --data.size 30", f"{TRAIN} --data.most-boxes 0",
    f"{TRAIN} --model.head.exclusive 0 5", "ava_desk", "nothing",
    "detect gone --out new.csv", "detect a_folder --out new.csv", "detect bytes --out new.csv",
    "boxes", f"{BOXES} --videos videos", f"{SHOW} --frames 0", f"{SHOW} --gt empty", "show --out new.html",
    "show nobody --gt gt.csv --out new.png", "check --truth gt.csv --label-map map.txt --pictures gt.csv",
]  # fmt: skip


@pytest.mark.parametrize("line", LINES)
def test_bad_input_is_one_line_and_changes_nothing(line: str, folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    before = contents(folder)
    with pytest.raises(SystemExit) as ended:
        main(["ava", *line.split()])
    said = capfd.readouterr()
    assert ended.value.code == 2, said.err
    assert "\n" not in said.err.strip(), said.err
    assert said.err.startswith("vmae2: ")
    assert not said.out
    assert contents(folder) == before


def contents(folder: Path) -> dict[str, bytes]:
    """The files of a folder."""
    return {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
