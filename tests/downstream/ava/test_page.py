"""docs/DETECTION.md, who does what: the steps for one's own people run one after another."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.downstream.ava.made_up_set import write_made_up_set
from tests.downstream.tad.test_page import PAGE, commands, exit_code, verb_of
from vmae2_ds.downstream.ava.rows import read_detections, read_truth

QUICK = (
    "--train.max-steps 2 --train.micro-batch 2 --train.global-batch 2 --data.num-frames 4 --data.stride 1 "
    "--data.size 32 --data.short-side 32 32 --data.test-short-side 32 --data.workers 0 --model.positions-from 4 32"
)


@pytest.mark.slow
def test_the_steps_for_own_people_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The page's own lines, in their order, with a made-up set; but for torchvision's detector, which needs its weights."""
    monkeypatch.chdir(tmp_path)
    files = write_made_up_set(tmp_path / "set", videos=2, validation=1)
    for file, name in (
        (files.truth, "truth.csv"),
        (files.val_truth, "val_truth.csv"),
        (files.label_map, "actions.txt"),
    ):
        shutil.copy(file, name)
    files.videos.rename("videos")
    assert exit_code(f"ava boxes --convert {files.boxes} results.json --size 48x32".split()) == 0
    (video,) = read_truth(files.val_truth).videos
    section = PAGE.partition("### Your own people")[2].partition("\n### ")[0]
    steps = [words for words in commands(section) if "--weights" not in words]
    assert [verb_of(words) for words in steps] == [
        "ava check", "ava boxes", "ava", "ava detect", "ava score", "ava show", "ava show"
    ]  # fmt: skip
    for words in steps:
        line = " ".join(words).replace("my_video", video).replace("num-classes 7", "num-classes 4")
        line = line.replace(" --train.init runs/vit_ti_finetune_desk", "")
        more = {"ava": QUICK}.get(verb_of(words), "")
        assert exit_code([*line.split(), *more.split()]) == 0, line
    assert {path.name for path in tmp_path.iterdir()} > {"boxes.csv", "found.csv", "found.html", f"{video}.png", "runs"}
    assert read_detections(Path("found.csv")).videos == (video,)
