"""The stage "ava" from files to frame mAP: trained, cut and resumed, the best kept, asked by `vmae2 ava detect`."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.downstream.ava.made_up_set import ACTIONS, MadeUpSet, made_up_ava, write_made_up_set
from tests.train.taken_encoder import assert_pretraining_takes_the_encoder_of
from vmae2_ds.checkpoint.zero_weights import read_weights
from vmae2_ds.config.ava import AvaConfig, check_is_named
from vmae2_ds.config.finetune import FinetuneConfig
from vmae2_ds.config.model import ClassifierConfig
from vmae2_ds.config.stages import read_run_config, with_options
from vmae2_ds.downstream.ava import detect as module
from vmae2_ds.downstream.ava.detect import AvaDetectArguments, AvaDetected, ava_detect
from vmae2_ds.downstream.ava.detector import FoundInFrame
from vmae2_ds.downstream.ava.label_map import read_label_map
from vmae2_ds.downstream.ava.part_files import PartFolder
from vmae2_ds.downstream.ava.rows import read_detections, read_truth
from vmae2_ds.downstream.ava.score import score_frames
from vmae2_ds.errors import ConfigError, TooManyBadFiles
from vmae2_ds.json_lines import rows_of
from vmae2_ds.model.classifier import Classifier
from vmae2_ds.runs.first_weights import initial_weights
from vmae2_ds.runs.folder import find_checkpoint
from vmae2_ds.runs.open import open_model
from vmae2_ds.train.session import train_run
from vmae2_ds.weights.files import write_weights
from vmae2_ds.weights.layouts import to_layout

EPOCHS, VALIDATED_EVERY = 8, 4


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> MadeUpSet:
    return write_made_up_set(tmp_path_factory.mktemp("set"), videos=8, validation=3)


def config_of(folder: Path, files: MadeUpSet, **train: Any) -> AvaConfig:
    return made_up_ava(folder, files, **{"epochs": EPOCHS, "run": folder / "run", **train})


@pytest.fixture(scope="module")
def run(files: MadeUpSet, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole")
    return train_run(config_of(folder, files, keep_best="val_frame_map", validate_every=VALIDATED_EVERY))


def asked(run: Path, out: Path, **options: Any) -> AvaDetected:
    return ava_detect(AvaDetectArguments(source=run, out=out, **options))


def test_it_learns_what_unseen_people_do(run: Path, files: MadeUpSet, tmp_path: Path) -> None:
    """Against the same model untrained, which does not look, on the same boxes."""
    rows, checks = (list(rows_of(run / name)) for name in ("metrics.jsonl", "validation.jsonl"))
    assert sum(row["loss"] for row in rows[-6:]) < 0.7 * sum(row["loss"] for row in rows[:6])
    untrained = train_run(config_of(tmp_path, files, max_steps=1))
    (before,) = rows_of(untrained / "validation.jsonl")
    assert max(check["val_frame_map"] for check in checks) > max(0.8, before["val_frame_map"] + 0.2)
    assert [check["val_key_frames"] for check in checks] == [9] * len(checks)
    assert "Frame mAP on the validation key frames" in (run / "report.html").read_text()


def test_the_best_checkpoint_is_that_of_the_best_validation(run: Path, tmp_path: Path) -> None:
    checks = list(rows_of(run / "validation.jsonl"))
    best = max(checks, key=lambda check: (check["val_frame_map"], -check["step"]))
    assert len(checks) == EPOCHS // VALIDATED_EVERY
    assert (run / "ckpt" / f"step{best['step']:08d}" / "whole.json").is_file()
    assert asked(run, tmp_path / "best.csv", best=True).frame_map == pytest.approx(best["val_frame_map"], abs=1e-12)
    with pytest.raises(ConfigError, match=r"--best: .* is one checkpoint; name its run"):
        asked(find_checkpoint(run)[1], tmp_path / "best.csv", best=True)


def test_what_detect_writes_scores_as_the_last_validation_did(run: Path, files: MadeUpSet, tmp_path: Path) -> None:
    """To the last digit, although a file has six: what was validated was rounded as it."""
    out = tmp_path / "found.csv"
    found = asked(run, out)
    last = list(rows_of(run / "validation.jsonl"))[-1]
    assert found.frame_map == pytest.approx(last["val_frame_map"], abs=1e-12)
    scores = score_frames(read_truth(files.val_truth), read_detections(out), read_label_map(files.label_map))
    assert scores.frame_map == found.frame_map
    other = asked(run, tmp_path / "mmaction2.csv", protocol="mmaction2")
    again = score_frames(
        read_truth(files.val_truth), read_detections(other.file), read_label_map(files.label_map), protocol="mmaction2"
    )
    assert other.frame_map == again.frame_map
    assert "by protocol mmaction2" in str(other)
    other.file.unlink()
    assert found.rows == len(ACTIONS) * found.boxes == len(out.read_text().splitlines())
    assert list(out.parent.iterdir()) == [out], "no parts are left"
    assert asked(run, out).frame_map == found.frame_map, "an earlier file of its own is replaced"
    with pytest.raises(ConfigError, match="file of something else"):
        asked(run, shutil.copy(files.val_truth, tmp_path / "mine.csv"))


def test_scores_are_multiplied_by_those_of_the_detected_people(run: Path, files: MadeUpSet, tmp_path: Path) -> None:
    boxes = (files.boxes,)
    with_person, alone = (
        read_detections(Path(str(asked(run, tmp_path / f"{person}.csv", boxes=boxes, person_score=person).file)))
        for person in (True, False)
    )
    said = {}
    for line in files.boxes.read_text().splitlines():
        video, second, *box, _, score = line.split(",")
        said[(video, 1000 * int(second), *map(float, box))] = float(score)
    assert len(with_person) == len(alone) == len(ACTIONS) * (len(said) - 1), "one person is below the threshold"
    keys = [(*key, *box) for key, box in zip(zip_keys(with_person), with_person.box_N4.tolist(), strict=True)]
    person_N = np.array([said[key] for key in keys])
    assert len(set(person_N)) > 1
    np.testing.assert_allclose(with_person.score_N, alone.score_N * person_N, rtol=0, atol=1.1e-6)
    assert asked(run, tmp_path / "few.csv", boxes=boxes, threshold=0.5).rows == int((with_person.score_N >= 0.5).sum())


def zip_keys(rows: Any) -> list[tuple[str, int]]:
    return [rows.keys[frame] for frame in rows.frame_N.tolist()]


def test_boxes_without_any_truth_are_asked_about(run: Path, files: MadeUpSet, tmp_path: Path) -> None:
    found = asked(run, tmp_path / "found.csv", truth=(), boxes=(files.boxes,), box_threshold=0.0)
    assert found.frame_map is None
    assert found.boxes == len(files.boxes.read_text().splitlines())
    with pytest.raises(ConfigError, match="no key frames named: give --truth FILE, or --boxes FILE"):
        asked(run, tmp_path / "none.csv", truth=())


def test_rows_are_in_the_order_of_videos_times_boxes_and_actions(run: Path, tmp_path: Path) -> None:
    rows = read_detections(asked(run, tmp_path / "found.csv").file)
    keys = zip_keys(rows)
    assert keys == sorted(keys)
    assert rows.label_N.tolist() == list(ACTIONS) * (len(rows) // len(ACTIONS))


def test_detect_that_was_ended_goes_on_where_it_was(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Parts that are whole are not asked about again, one that is damaged is; other options are refused, and keep them."""
    whole = asked(run, tmp_path / "whole.csv").file.read_bytes()
    monkeypatch.setattr(module, "CHUNKS_A_PART", 1)
    out, written, write = tmp_path / "cut.csv", list[int](), PartFolder.write

    def ended(parts: PartFolder, part: int, found: list[FoundInFrame]) -> None:
        if len(written) == 3:
            raise OSError(28, "No space left on device", "disk")
        written.append(part)
        write(parts, part, found)

    monkeypatch.setattr(PartFolder, "write", ended)
    with pytest.raises(OSError, match="No space left"):
        asked(run, out)
    assert not out.exists()
    monkeypatch.setattr(PartFolder, "write", write)
    with pytest.raises(ConfigError, match=r"holds parts of a job with --short-side 32, not 40; give the same options"):
        asked(run, out, short_side=40)
    folder = PartFolder(out).folder
    (folder / "part000001.npz").write_bytes(b"half")
    found = asked(run, out)
    assert found.before == 4, "two parts of two key frames"
    assert out.read_bytes() == whole
    assert not folder.exists()


def test_videos_that_cannot_be_read_are_named_and_the_others_written(
    run: Path, files: MadeUpSet, tmp_path: Path
) -> None:
    videos = shutil.copytree(files.videos, tmp_path / "videos")
    (videos / "video_09.mp4").write_bytes(b"no video")
    out = tmp_path / "found.csv"
    with pytest.raises(
        TooManyBadFiles, match=r"3 of 9 key frames could not be used.*video_09 at 0001 s.*has the others"
    ):
        asked(run, out, videos=videos)
    assert read_detections(out).videos == ("video_08", "video_10")


def test_cut_at_half_and_gone_on_is_the_same_run(files: MadeUpSet, tmp_path: Path) -> None:
    """Losses, last weights and their mean, to the bit; more validations, and checkpoints for the best, change nothing."""
    whole, cut = (
        config_of(tmp_path / name, files, max_steps=8, keep_best="val_frame_map", validate_every=every)
        for name, every in (("whole", 100), ("cut", 0.5))
    )
    train_run(whole)
    for stop in (4, None):
        train_run(cut.changed(train={"stop_after_steps": stop}))
    folders = [tmp_path / name / "run" for name in ("whole", "cut")]
    losses, checks = (
        [list(rows_of(folder / f"{name}.jsonl")) for folder in folders] for name in ("metrics", "validation")
    )
    assert [row["loss"] for row in losses[1]] == [row["loss"] for row in losses[0]]
    assert len(checks[1]) > len(checks[0]) == 1
    assert checks[1][-1] == checks[0][-1]
    for mean in (False, True):
        expected, found = (read_weights(find_checkpoint(folder)[1], mean=mean) for folder in folders)
        assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_what_is_learnt_may_not_change_at_resume_and_what_is_validated_may(files: MadeUpSet, tmp_path: Path) -> None:
    config = config_of(tmp_path, files)
    train_run(config.changed(train={"stop_after_steps": 1}))
    other = tmp_path / "other.csv"
    other.write_text("".join(files.truth.read_text().splitlines(keepends=True)[:-1]))
    copied = tmp_path / "train.csv"
    with pytest.raises(ConfigError, match=r"data\.truth: was .*, now .*other\.csv.*--data\.truth: what .* has changed"):
        train_run(config.changed(data={"truth": (other,)}))
    names = tmp_path / "names.txt"
    names.write_text(files.label_map.read_text().replace("blink", "wink"))
    with pytest.raises(ConfigError, match=r"--data\.label-map: the actions that it names has changed"):
        train_run(config.changed(data={"label_map": names}))
    assert not copied.exists()
    changed = config.changed(data={"val_boxes": (files.boxes,), "val_every": 2}, train={"stop_after_steps": 2})
    train_run(changed)
    run = read_run_config(tmp_path / "run")
    assert isinstance(run, AvaConfig)


def test_another_label_map_is_refused_with_the_action_that_differs(run: Path, files: MadeUpSet, tmp_path: Path) -> None:
    names = tmp_path / "names.txt"
    names.write_text(files.label_map.read_text().replace("green", "teal"))
    with pytest.raises(ConfigError, match=r"action 2 is '5: teal', and the run was trained on '5: green' there"):
        asked(run, tmp_path / "found.csv", label_map=names)
    names.write_text("".join(files.label_map.read_text().splitlines(keepends=True)[:-1]))
    with pytest.raises(
        ConfigError, match=r"action 4 is 'nothing', and the run was trained on '.*' there; give the file that"
    ):
        asked(run, tmp_path / "found.csv", label_map=names)


def test_it_has_no_answer_for_a_whole_clip(run: Path) -> None:
    with pytest.raises(ConfigError, match="says what people in boxes do, which vmae2 ava detect takes"):
        open_model(run)


@pytest.mark.parametrize("kind", ["classifier", "run"])
def test_it_starts_from_other_models_weights(kind: str, run: Path, files: MadeUpSet, tmp_path: Path) -> None:
    """A classifier, whose norm is behind its pooling and whose head is of whole clips, gives its encoder;
    a run of this stage gives all."""
    config = config_of(tmp_path, files)
    if kind == "run":
        source = run
    else:
        source = tmp_path / "classifier.pth"
        model = ClassifierConfig(encoder=config.model.encoder, patch=8, num_classes=7)
        geometry = FinetuneConfig(model=model).changed(data={"num_frames": 4, "size": 32}).geometry
        write_weights(to_layout(Classifier(model, geometry, seed=5).state_dict(), model), source, model)
    weights = initial_weights(config.changed(train={"init": source}))
    names = set(read_weights(find_checkpoint(run)[1]))
    lacking = {"encoder.norm.weight", "encoder.norm.bias", "head.weight", "head.bias"}
    assert set(weights) == (names if kind == "run" else names - lacking)


def test_pre_training_goes_on_with_its_encoder(run: Path) -> None:
    assert_pretraining_takes_the_encoder_of(run)


def test_what_is_not_named_is_asked_for(files: MadeUpSet, tmp_path: Path) -> None:
    config = config_of(tmp_path, files)
    check_is_named(config)
    for changes, message in (
        ({"truth": ()}, "give --data.truth FILE"),
        ({"label_map": None}, "give --data.label-map FILE"),
        ({"videos": None}, "give --data.videos FOLDER"),
        ({"val_truth": (), "val_boxes": (files.boxes,)}, "give --data.val-truth FILE"),
    ):
        with pytest.raises(ConfigError, match=message):
            check_is_named(config.changed(data=changes))
    with pytest.raises(ConfigError, match="a square of this edge is cut out of pictures whose short side may be 32"):
        with_options(config, data={"size": 40})


def test_bad_videos_are_replaced_and_named_and_too_many_end_the_run(files: MadeUpSet, tmp_path: Path) -> None:
    videos = shutil.copytree(files.videos, tmp_path / "videos")
    for number in range(2):
        (videos / f"video_{number:02}.mp4").write_bytes(b"no video")
    config = config_of(tmp_path, files, max_steps=8).changed(data={"videos": videos})
    with pytest.raises(TooManyBadFiles, match=r"\d+ of \d+ videos tried could not be used"):
        train_run(config)
    bad = {Path(row["path"]).name for row in rows_of(tmp_path / "run" / "bad_files.jsonl")}
    assert bad == {f"video_{number:02}.mp4" for number in range(2)}
