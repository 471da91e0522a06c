"""A detection head from features to mAP: trained, cut and resumed, validated, used by `vmae2 tad detect`."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.downstream.tad.made_up import FPS, INFO, made_up_config, write_set
from vmae2_ds.checkpoint.zero_weights import read_weights
from vmae2_ds.config.tad import TadConfig
from vmae2_ds.downstream.tad.annotations import Annotations, read_annotations
from vmae2_ds.downstream.tad.detect import TadDetectArguments, tad_detect
from vmae2_ds.downstream.tad.detections import Detections, read_detections
from vmae2_ds.downstream.tad.score import score_detections
from vmae2_ds.errors import ConfigError, TooManyBadFiles
from vmae2_ds.json_lines import rows_of
from vmae2_ds.runs.folder import find_checkpoint
from vmae2_ds.runs.ready import load_encoder
from vmae2_ds.train.session import train_run

STEPS = 48


@pytest.fixture(scope="module")
def the_set(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return write_set(tmp_path_factory.mktemp("set"))


def config_of(folder: Path, the_set: tuple[Path, Path], **train: Any) -> TadConfig:
    return made_up_config(folder, the_set, **{"max_steps": STEPS, "run": folder / "run", **train})


@pytest.fixture(scope="module")
def run(the_set: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train_run(config_of(tmp_path_factory.mktemp("whole"), the_set, keep_best="val_map", validate_every=10))


def test_a_head_finds_what_it_was_shown(run: Path) -> None:
    rows = list(rows_of(run / "metrics.jsonl"))
    checks = list(rows_of(run / "validation.jsonl"))
    assert rows[-1]["loss"] < 0.3 * rows[0]["loss"]
    assert [row["step"] for row in checks] == [30, 48]
    assert checks[-1]["val_map_0.50"] > 0.9
    assert checks[-1]["val_map"] == pytest.approx(
        sum(checks[-1][f"val_map_{t:.2f}"] for t in (0.3, 0.4, 0.5, 0.6, 0.7)) / 5
    )
    assert (run / "ema.safetensors").is_file()
    assert "Average mAP on the validation videos" in (run / "report.html").read_text()
    assert find_checkpoint(run)[1].name == "step00000048"


def test_what_detect_writes_scores_as_the_last_validation_did(run: Path, the_set: Any, tmp_path: Path) -> None:
    out = tmp_path / "found.json"
    found = tad_detect(TadDetectArguments(source=run, out=out))
    last = list(rows_of(run / "validation.jsonl"))[-1]
    assert found.average_map == pytest.approx(last["val_map"], abs=1e-12)
    truth = read_annotations(the_set[0])
    assert score_detections(truth, read_detections(out), subset="validation").average_map == pytest.approx(
        found.average_map
    )
    assert abs(median_shift_s(truth, read_detections(out))) < 0.5 * INFO.stride / FPS
    few = tad_detect(TadDetectArguments(source=run, out=out, most=3, weights="last"))
    assert few.detections == 3 * few.videos
    with pytest.raises(ConfigError, match="file of something else"):
        tad_detect(TadDetectArguments(source=run, out=the_set[0]))


def median_shift_s(truth: Annotations, found: Detections) -> float:
    """How much later than the middle of an action the middle of the best detection around it is."""
    shifts = []
    for video, name in enumerate(found.videos):
        middles = ((found.start_N + found.end_N) / 2)[found.video_N == video]
        scores = found.score_N[found.video_N == video]
        for start, end, _ in truth.videos[name].segments:
            inside = (middles > start) & (middles < end)
            shifts.append(middles[inside][scores[inside].argmax()] - (start + end) / 2)
    return float(np.median(shifts))


def test_cut_at_half_and_gone_on_is_the_same_run(run: Path, the_set: Any, tmp_path: Path) -> None:
    """Losses, last weights and their mean, to the bit: order, stretches, stochastic depth and the running normaliser go on, and
    more validations in between, with the mean of the weights in their place, change nothing."""
    for stop in (STEPS // 2, None):
        train_run(config_of(tmp_path, the_set, validate_every=4, stop_after_steps=stop))
    whole, cut = (list(rows_of(folder / "metrics.jsonl")) for folder in (run, tmp_path / "run"))
    assert [row["loss"] for row in cut] == [row["loss"] for row in whole]
    for mean in (False, True):
        expected, found = (read_weights(find_checkpoint(folder)[1], mean=mean) for folder in (run, tmp_path / "run"))
        assert all(torch.equal(found[name], expected[name]) for name in expected)


def other_features(the_set: tuple[Path, Path], folder: Path, **changes: Any) -> Path:
    """The same files, said to be something else."""
    shutil.copytree(the_set[1], folder)
    (folder / "features.json").write_text(INFO.model_copy(update=changes).model_dump_json())
    return folder


def test_other_features_are_refused_with_what_differs(run: Path, the_set: Any, tmp_path: Path) -> None:
    other = other_features(the_set, tmp_path / "other", stride=8, grid="opentad", offset_frames=2)
    with pytest.raises(ConfigError, match="stride 8, not 4") as error:
        tad_detect(TadDetectArguments(source=run, out=tmp_path / "out.json", features=other))
    assert "grid opentad, not opengvlab" in str(error.value)
    assert not (tmp_path / "out.json").exists()
    folder = tmp_path / "cut"
    shutil.copytree(the_set[1], folder)
    config = config_of(tmp_path, (the_set[0], folder), stop_after_steps=1)
    train_run(config)
    (folder / "features.json").write_text(INFO.model_copy(update={"stride": 8}).model_dump_json())
    with pytest.raises(ConfigError, match=r"--data.features: stride was 4, now 8"):
        train_run(config)


def test_detect_ends_with_77_where_videos_cannot_be_read_and_writes_the_others(
    run: Path, the_set: Any, tmp_path: Path
) -> None:
    folder, out = tmp_path / "cut", tmp_path / "found.json"
    shutil.copytree(the_set[1], folder)
    file = folder / "video_012.npy"
    file.write_bytes(file.read_bytes()[:500])
    with pytest.raises(TooManyBadFiles, match=r"1 of 6 videos could not be used.*video_012.*cut short.*has the others"):
        tad_detect(TadDetectArguments(source=run, out=out, features=folder))
    assert len(set(read_detections(out).video_N.tolist())) == 5


def test_a_head_has_no_encoder_to_load(run: Path) -> None:
    with pytest.raises(ConfigError, match="a head for temporal detection, which vmae2 tad detect takes"):
        load_encoder(run)


def test_a_head_starts_from_another_s_weights(run: Path, the_set: Any, tmp_path: Path) -> None:
    """An exported file, with other classes: all is taken but the last layer of the classes."""
    from vmae2_ds.runs.export import ExportArguments, export_weights
    from vmae2_ds.runs.first_weights import initial_weights

    file = tmp_path / "head.safetensors"
    assert "detection head 16 wide, 3 levels, 3 classes" in export_weights(ExportArguments(source=run, out=file))
    config = config_of(tmp_path, the_set, init=file)
    weights = read_weights(find_checkpoint(run)[1])
    assert all(torch.equal(found, weights[name]) for name, found in initial_weights(config).items())
    other = config.model_copy(update={"model": config.model.model_copy(update={"num_classes": 5})})
    lacking = set(weights) - set(initial_weights(other))
    assert lacking == {"pyramid.classify.last.weight", "pyramid.classify.last.bias"}


def test_a_head_without_classes_takes_them_from_scores_of_whole_videos(the_set: Any, tmp_path: Path) -> None:
    config = config_of(tmp_path, the_set, max_steps=40)
    config = config.model_copy(update={"model": config.model.model_copy(update={"num_classes": 1})})
    run = train_run(config)
    assert list(rows_of(run / "validation.jsonl"))[-1]["val_map_0.50"] > 0.8
    truth = read_annotations(the_set[0])
    scores = {
        name: [float(any(segment.label == label for segment in video.segments)) for label in range(3)]
        for name, video in truth.videos.items()
    }
    file = tmp_path / "scores.json"
    file.write_text(json.dumps({"results": scores, "class": truth.class_names}))
    asked = TadDetectArguments(source=run, out=tmp_path / "out.json", video_scores=file, by_class=False)
    found = tad_detect(asked)
    assert set(read_detections(tmp_path / "out.json").labels) <= set(truth.class_names)
    assert found.average_map is not None
    assert found.average_map > 0.3  # classes are those of the video, not of the segment
    del scores["video_012"]
    file.write_text(json.dumps({"results": scores, "class": truth.class_names}))
    with pytest.raises(ConfigError, match="no scores for 1 of 6 videos, video_012 for one"):
        tad_detect(asked)
