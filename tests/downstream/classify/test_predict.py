"""`vmae2 predict`: classes by name with the scores that evaluate gives, of files, folders and lists, bad ones named."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from vmae2_ds.cli.main import main
from vmae2_ds.config.model import ClassifierConfig, ModelConfig, TowerConfig
from vmae2_ds.contracts import ClipGeometry
from vmae2_ds.data.tools.synthetic import SynthArguments, SyntheticSet, write_synthetic_set
from vmae2_ds.downstream.classify.evaluate import EvaluateArguments, evaluate
from vmae2_ds.downstream.classify.predict import PredictArguments, describe, predict, videos_of
from vmae2_ds.errors import ConfigError, DataError
from vmae2_ds.model.classifier import Classifier
from vmae2_ds.model.mae import MaskedAutoencoder
from vmae2_ds.runs.export import ExportArguments, export_weights
from vmae2_ds.weights.files import write_weights
from vmae2_ds.weights.layouts import to_layout

GEOMETRY = ClipGeometry(8, 32, 32, 2, 8)
TOWER = TowerConfig(width=24, depth=1, heads=2, mlp=32)
CONFIG = ClassifierConfig(encoder=TOWER, num_classes=12, patch=8)
NAMES = [f"motion {letter}" for letter in "abcdefghijkl"]
BIAS = torch.tensor([0.0, 2.0, 1.0, 2.0, -1.0, 0.5, *[-3.0] * 6])
"""Classes 1 and 3 are as likely."""
CLIP: dict[str, Any] = {
    "num_frames": 8,
    "size": 32,
    "stride": 1,
    "clips": 2,
    "crops": 3,
    "precision": "fp32",
    "workers": 0,
}


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> SyntheticSet:
    return write_synthetic_set(
        SynthArguments(folder=tmp_path_factory.mktemp("clips"), train_videos=1, val_videos=3, size=48, frames=20)
    )


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A classifier with drawn weights."""
    model = Classifier(CONFIG, GEOMETRY, seed=3)
    path = tmp_path_factory.mktemp("files") / "classes.safetensors"
    write_weights(to_layout(dict(model.state_dict()), CONFIG), path, CONFIG)
    return path


@pytest.fixture(scope="module")
def biased(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A classifier that says the same of every clip: softmax(BIAS)."""
    model = Classifier(CONFIG, GEOMETRY, seed=3)
    with torch.no_grad():
        model.head.weight.zero_()
        model.head.bias.copy_(BIAS)
    path = tmp_path_factory.mktemp("files") / "biased.safetensors"
    write_weights(to_layout(dict(model.state_dict()), CONFIG), path, CONFIG)
    return path


@pytest.fixture
def names(tmp_path: Path) -> Path:
    path = tmp_path / "names.txt"
    path.write_text("".join(f"{name}\n" for name in NAMES))
    return path


@pytest.fixture
def mixed(clips: SyntheticSet, tmp_path: Path) -> list[str]:
    """A file, a folder with one video, a list with names for labels and a column of somebody's own, and a torn file."""
    videos = clips.val.parent / "val"
    (tmp_path / "folder" / "deep").mkdir(parents=True)
    shutil.copy(videos / "00001.mp4", tmp_path / "folder" / "deep" / "B b.MP4")
    (tmp_path / "folder" / "notes.txt").write_text("no video\n")
    (tmp_path / "list.csv").write_text(f"path,label,camera\n{videos}/00002.mp4,jumping,7\n")
    (tmp_path / "torn.mp4").write_bytes((videos / "00000.mp4").read_bytes()[:900])
    places = ("folder", "torn.mp4", "list.csv")
    return [str(videos / "00000.mp4"), *(str(tmp_path / place) for place in places)]


def test_every_kind_of_place_is_named_in_order_with_closed_form_scores(
    biased: Path, mixed: list[str], names: Path, tmp_path: Path
) -> None:
    out = tmp_path / "new" / "out"
    found = predict(PredictArguments(source=biased, videos=tuple(mixed), labels=names, top=4, out=out, **CLIP))
    assert found is not None
    assert not list(out.iterdir()), "shown before it is written"
    found.finish()
    expected = np.exp(BIAS.double().numpy()) / np.exp(BIAS.double().numpy()).sum()
    videos = found.result["videos"]
    assert [Path(video["video"]).name for video in videos] == ["00000.mp4", "B b.MP4", "torn.mp4", "00002.mp4"]
    for video in videos:
        if video["unreadable"] is None:
            assert [one["class"] for one in video["classes"]] == [1, 3, 2, 5], (
                "of equal scores the lower class is first"
            )
            assert [one["name"] for one in video["classes"]] == ["motion b", "motion d", "motion c", "motion f"]
            np.testing.assert_allclose([one["score"] for one in video["classes"]], expected[[1, 3, 2, 5]], rtol=1e-6)
    assert [video["unreadable"] is None for video in videos] == [True, True, False, True]
    assert str(tmp_path) not in videos[2]["unreadable"], "the reason alone"
    assert f"{100 * expected[1]:.1f} %  motion b" in found.shown
    assert f"could not be read: {videos[2]['unreadable']}" in found.shown

    assert json.loads((out / "predictions.json").read_text()) == found.result
    with (out / "predictions.csv").open(newline="") as table:
        rows = list(csv.DictReader(table))
    assert [(Path(row["path"]).name, row["rank"], row["name"]) for row in rows[3:6]] == [
        ("00000.mp4", "4", "motion f"),
        ("B b.MP4", "1", "motion b"),
        ("B b.MP4", "2", "motion d"),
    ]
    assert [row["unreadable"] for row in rows if row["rank"] == ""] == [videos[2]["unreadable"]]
    assert sorted(path.name for path in (out / "pictures").iterdir()) == ["1_00000.png", "2_B_b.png", "4_00002.png"]
    for path in (out / "pictures").iterdir():
        assert Image.open(path).width > 800
    # the same folder again, with fewer pictures
    again = predict(PredictArguments(source=biased, videos=tuple(mixed[:1]), out=out, pictures=0, top=100, **CLIP))
    assert again is not None
    assert len(again.result["videos"][0]["classes"]) == 12
    assert again.result["videos"][0]["classes"][0]["name"] is None
    assert "class 1" in again.shown


def test_scores_are_those_of_evaluate_and_a_transformers_folder_has_names(
    file: Path, clips: SyntheticSet, names: Path, tmp_path: Path
) -> None:
    found = predict(PredictArguments(source=file, videos=(str(clips.val),), top=12, **CLIP))
    evaluate(EvaluateArguments(source=file, manifest=clips.val, out=tmp_path / "out", **CLIP))
    with np.load(tmp_path / "out" / "scores.npz") as scores:
        score_NC = scores["score"]
    assert found is not None
    assert len(score_NC) == len(found.result["videos"]) == 3
    in_folder = tmp_path / "hf"
    export_weights(
        ExportArguments(source=file, out=in_folder, layout="transformers", num_frames=8, size=32, labels=names)
    )
    of_folder = predict(
        PredictArguments(
            source=in_folder, videos=(str(clips.val),), top=12, **{**CLIP, "num_frames": None, "size": None}
        )
    )
    assert of_folder is not None
    for video, of_file in zip(of_folder.result["videos"], found.result["videos"], strict=True):
        assert [one["name"] for one in video["classes"]] == [NAMES[one["class"]] for one in of_file["classes"]]
        assert [one["score"] for one in video["classes"]] == [one["score"] for one in of_file["classes"]]
    for video, score_C in zip(found.result["videos"], score_NC, strict=True):
        assert {one["class"]: one["score"] for one in video["classes"]} == dict(enumerate(score_C.tolist()))
        assert video["classes"][0]["score"] == score_C.max()


def test_json_is_all_that_is_printed_and_no_readable_video_is_exit_code_2(
    biased: Path, mixed: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--num-frames", "8", "--size", "32", "--clips", "1", "--crops", "1", "--workers", "0", "--json"]
    for places, code in ((mixed[:1], 0), ([mixed[2], str(tmp_path / "nowhere.mp4")], 2)):
        with pytest.raises(SystemExit) as stop:
            main(["predict", str(biased), *places, *words, "--out", str(tmp_path / f"out{code}")])
        printed = capsys.readouterr()
        assert stop.value.code == code
        result = json.loads(printed.out)
        assert [video["video"] for video in result["videos"]] == places
        assert json.loads((tmp_path / f"out{code}" / "predictions.json").read_text()) == result
        if code:
            assert "no such file" in result["videos"][1]["unreadable"].lower()
            assert "no such file" not in result["videos"][0]["unreadable"].lower()
        assert ("none of 2 videos could be read; the first: " in printed.err) == (code == 2)
        assert "Traceback" not in printed.err


def test_the_table_is_one_where_it_fits_and_else_gives_a_name_its_own_line() -> None:
    classes = [{"class": 1, "name": "up", "score": 0.987}, {"class": 0, "name": None, "score": 0.0004}]
    videos = [
        {"video": "a.mp4", "unreadable": None, "classes": classes},
        {"video": "longer.mp4", "unreadable": "empty file", "classes": []},
    ]
    assert describe(videos, 60).splitlines() == [
        "video         score  class",
        "a.mp4        98.7 %  up",
        "              0.0 %  class 0",
        "longer.mp4  could not be read: empty file",
    ]
    assert describe(videos, 40).splitlines() == [
        "a.mp4",
        "   98.7 %  up",
        "    0.0 %  class 0",
        "longer.mp4",
        "  could not be read: empty file",
    ]


def test_what_cannot_be_predicted_is_said_before_any_video_is_read(
    file: Path, clips: SyntheticSet, names: Path, tmp_path: Path
) -> None:
    video = str(clips.val.parent / "val" / "00000.mp4")
    (tmp_path / "empty").mkdir()
    (tmp_path / "theirs").mkdir()
    (tmp_path / "theirs" / "thesis.tex").touch()
    (tmp_path / "few.txt").write_text("one\n")
    model = ModelConfig(encoder=TOWER, decoder=TOWER, patch=8)
    masked = tmp_path / "masked.safetensors"
    write_weights(to_layout(dict(MaskedAutoencoder(model, GEOMETRY).state_dict()), model), masked, model)
    wrong: list[tuple[Path, tuple[str, ...], dict[str, Any], str]] = [
        (file, (), {}, "no videos: name files"),
        (file, (str(tmp_path / "empty"),), {}, "no file in this folder is named like a video"),
        (file, (str(tmp_path / "nowhere.csv"),), {}, "nowhere.csv: cannot read"),
        (file, (video,), {"labels": tmp_path / "few.txt"}, "1 names?, and the model has 12 classes"),
        (file, (video,), {"out": names}, "is a file; name a folder"),
        (file, (video,), {"out": tmp_path / "theirs"}, "holds files of something else"),
        (file, (video,), {"out": Path(video).parent}, "which is read"),
        (masked, (video,), {}, "is a masked autoencoder, which has no classes"),
        (tmp_path / "nowhere", (video,), {}, "nowhere"),
        (Path(video), (str(file),), {}, "the run or file comes first"),
    ]
    for source, places, options, said in wrong:
        with pytest.raises((ConfigError, DataError, Exception), match=said) as error:
            predict(PredictArguments(source=source, videos=places, **{**CLIP, **options}))
        assert getattr(error.value, "exit_code", None) == 2, f"{said}: {error.value!r}"


def test_folders_lists_and_urls_are_told_apart(clips: SyntheticSet) -> None:
    entries = videos_of(["s3://bucket/a.mp4", str(clips.val.parent), str(clips.val), "gone.mp4"])
    assert [entry.path for entry in entries[:1] + entries[-1:]] == ["s3://bucket/a.mp4", "gone.mp4"]
    assert [Path(entry.path).name for entry in entries[1:-1]] == [
        *("00000.mp4",),
        *("00000.mp4", "00001.mp4", "00002.mp4"),
        *("00000.mp4", "00001.mp4", "00002.mp4"),
    ]
    assert all(entry.label is None for entry in entries)
