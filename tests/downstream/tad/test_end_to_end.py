"""Detection end to end: what learns, that chunks and frozen blocks change nothing, and a run from videos to mAP."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.downstream.tad.end_to_end_steps import first_objective, make_batch
from tests.downstream.tad.made_up_videos import end_to_end_config, write_videos
from tests.train.taken_encoder import assert_pretraining_takes_the_encoder_of
from vmae2_ds.checkpoint.zero_weights import read_weights
from vmae2_ds.config.finetune import FinetuneConfig
from vmae2_ds.config.model import ClassifierConfig
from vmae2_ds.config.tad import TadConfig, check_is_named
from vmae2_ds.dist import Ranks
from vmae2_ds.downstream.tad.annotations import read_annotations
from vmae2_ds.downstream.tad.detect import TadDetectArguments, tad_detect
from vmae2_ds.downstream.tad.detector import detect_videos, files_of
from vmae2_ds.downstream.tad.end_to_end import EndToEndDetector
from vmae2_ds.downstream.tad.stage import TAD_TRAINING
from vmae2_ds.errors import ConfigError
from vmae2_ds.json_lines import rows_of
from vmae2_ds.model.classifier import Classifier
from vmae2_ds.runs.export import ExportArguments, export_weights
from vmae2_ds.runs.folder import find_checkpoint
from vmae2_ds.train.session import train_run
from vmae2_ds.weights.files import write_weights
from vmae2_ds.weights.layouts import to_layout

STEPS = 16


@pytest.fixture(scope="module")
def the_set(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return write_videos(tmp_path_factory.mktemp("set"))


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A published file of a classifier with the encoder of these runs."""
    config = end_to_end_config(Path(), (Path(), Path())).model
    model = ClassifierConfig(encoder=config.encoder, patch=config.patch, num_classes=7)
    geometry = FinetuneConfig(model=model).changed(data={"num_frames": 4, "size": 16}).geometry
    file = tmp_path_factory.mktemp("first") / "classifier.pth"
    write_weights(to_layout(Classifier(model, geometry, seed=5).state_dict(), model), file, model)
    return file


def config_of(folder: Path, the_set: tuple[Path, Path], **train: Any) -> TadConfig:
    return end_to_end_config(folder, the_set, **{"max_steps": STEPS, "run": folder / "run", **train})


@pytest.fixture(scope="module")
def run(the_set: tuple[Path, Path], first: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train_run(config_of(tmp_path_factory.mktemp("whole"), the_set, init=first))


def test_pre_training_goes_on_with_its_encoder(run: Path) -> None:
    assert_pretraining_takes_the_encoder_of(run)


def weights_of(run: Path) -> dict[str, torch.Tensor]:
    return read_weights(find_checkpoint(run)[1])


def test_chunks_change_neither_losses_nor_gradients() -> None:
    found = []
    for clips_at_once in (8, 1, 3):
        config = end_to_end_config(Path(), (Path(), Path()))
        adapters = config.model.adapters.model_copy(update={"clips_at_once": clips_at_once})
        config = config.model_copy(update={"model": config.model.model_copy(update={"adapters": adapters})})
        objective = first_objective(config)
        losses = []
        for step in range(2):
            loss = objective(make_batch(config, step, 0, windows=2)).loss
            loss.backward()
            losses.append(loss.item())
        found.append((losses, {name: p.grad for name, p in objective.named_parameters() if p.grad is not None}))
    for losses, gradients in found[1:]:
        assert losses == pytest.approx(found[0][0], abs=1e-6, rel=0)
        assert gradients.keys() == found[0][1].keys()
        for name, gradient in gradients.items():
            torch.testing.assert_close(gradient, found[0][1][name], rtol=1e-5, atol=1e-6, msg=name)


def test_nothing_but_adapters_and_pyramid_has_a_gradient_or_a_place_in_the_optimizer() -> None:
    config = end_to_end_config(Path(), (Path(), Path()))
    objective = first_objective(config)
    objective(make_batch(config, 0, 0)).loss.backward()
    learns = {name for name, parameter in objective.named_parameters() if parameter.grad is not None}
    expected = {name for name, _ in objective.named_parameters() if not name.startswith("model.encoder.")}
    assert learns == expected
    groups = TAD_TRAINING.groups(objective, config)
    assert {name for group in groups for name in group["param_names"]} == expected
    assert sum(len(group["params"]) for group in groups) == len(expected)
    for group in groups:
        kinds = {name.split(".")[1] for name in group["param_names"]}
        assert len(kinds) == 1, "a group is of adapters or of the pyramid"
        assert group["lr_scale"] == (2.0 if kinds == {"adapters"} else 1.0)


def test_a_run_learns_from_videos_and_leaves_the_encoder_as_it_was(run: Path, first: Path) -> None:
    rows, checks = (list(rows_of(run / name)) for name in ("metrics.jsonl", "validation.jsonl"))
    early, late = (sum(row["loss"] / row["flat_loss"] for row in part) / 5 for part in (rows[:5], rows[-5:]))
    assert late < 0.9 * early
    assert checks[-1]["val_videos"] == 2
    assert math.isfinite(checks[-1]["val_map"])
    weights = weights_of(run)
    before = torch.load(first, weights_only=True)["model"]
    same = {name for name in before if any(torch.equal(before[name].flatten(), x.flatten()) for x in weights.values())}
    assert {name for name in before if name.startswith("blocks.")} <= same
    model = EndToEndDetector(config_of(run, (run, run)).model, config_of(run, (run, run)).geometry, seed=0)
    for name, tensor in model.state_dict().items():
        assert name.startswith("encoder.") or not torch.equal(weights[name], tensor), name


def test_checkpoints_hold_no_optimizer_state_of_frozen_weights(run: Path) -> None:
    checkpoint = find_checkpoint(run)[1]
    weights = weights_of(run)
    learns = sum(x.numel() for name, x in weights.items() if not name.startswith("encoder."))
    optimizer = sum(file.stat().st_size for file in checkpoint.rglob("*optim_states.pt"))
    # float32 weights and two moments, of those that learn; headers and padding are small beside the rest
    assert 12 * learns < optimizer < 12 * learns + 4 * sum(x.numel() for x in weights.values())


def test_cut_at_half_and_gone_on_is_the_same_run_also_by_other_chunks(
    run: Path, the_set: Any, first: Path, tmp_path: Path
) -> None:
    train_run(config_of(tmp_path, the_set, init=first, stop_after_steps=STEPS // 2))
    going_on = config_of(tmp_path, the_set, init=first)
    train_run(going_on.changed(train={"stop_after_steps": STEPS - 1}))
    adapters = going_on.model.adapters.model_copy(update={"clips_at_once": 1})
    train_run(going_on.changed(model={"adapters": adapters}))
    whole, cut = (list(rows_of(folder / "metrics.jsonl")) for folder in (run, tmp_path / "run"))
    assert [row["loss"] for row in cut][:-1] == [row["loss"] for row in whole][:-1]
    assert cut[-1]["loss"] == pytest.approx(whole[-1]["loss"], abs=1e-6)
    expected, found = weights_of(run), weights_of(tmp_path / "run")
    assert all(torch.allclose(found[name], expected[name], rtol=0, atol=2e-5) for name in expected)


def test_what_detect_writes_scores_as_the_last_validation_did(run: Path, the_set: Any, tmp_path: Path) -> None:
    found = tad_detect(TadDetectArguments(source=run, out=tmp_path / "found.json", videos=the_set[1]))
    assert found.average_map == pytest.approx(list(rows_of(run / "validation.jsonl"))[-1]["val_map"], abs=1e-9)
    with pytest.raises(ConfigError, match=r"makes its features itself: name --data\.videos"):
        tad_detect(TadDetectArguments(source=run, out=tmp_path / "found.json", features=the_set[1]))


def test_every_pass_of_a_test_calls_each_block_as_often(the_set: Any) -> None:
    """Three windows a video, two at once in training: ZeRO-3 gathers a weight at each call, on all ranks together, and another
    rank may have one window left where this one has two."""
    config = end_to_end_config(Path(), the_set, global_batch=2, micro_batch=2)
    objective = first_objective(config)
    calls: list[int] = []
    objective.model.register_forward_pre_hook(lambda *_: calls.append(0))
    block = objective.get_submodule("model.encoder.blocks.0")
    block.register_forward_pre_hook(lambda *_: calls.append(calls.pop() + 1))
    annotations = read_annotations(the_set[0])
    files = files_of(config, annotations.videos)
    names = ["video_04", "video_05"]
    assert [files.num_windows(name) for name in names] == [3, 3]
    found = detect_videos(objective, files, names, annotations.class_names, config, Ranks())
    assert found is not None
    assert not found.failures
    assert set(calls) == {2}, "four clips, three at once"
    calls.clear()
    objective.output(*files.blank())
    assert calls == [2], "what a rank without a window is given"


def test_a_video_that_opens_late_costs_itself_and_not_a_pass_that_other_ranks_do_not_make(
    the_set: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rank 0 of two looks at the first and the third video; the third is counted as if it could not be opened."""
    config = end_to_end_config(Path(), the_set)
    objective, annotations = first_objective(config), read_annotations(the_set[0])
    passes: list[int] = []
    objective.model.register_forward_pre_hook(lambda *_: passes.append(1))
    files = files_of(config, annotations.videos)
    counted = {"video_00": 3, "video_02": 0}
    monkeypatch.setattr(files, "num_windows", counted.__getitem__)
    monkeypatch.setattr(Ranks, "max", lambda self, *values: list(values))
    monkeypatch.setattr(Ranks, "gather", lambda self, value: [value])
    names = ["video_00", "video_01", "video_02", "video_03"]
    found = detect_videos(objective, files, names, annotations.class_names, config, Ranks(0, 0, 2))
    assert found is not None
    assert len(passes) == 3
    assert [failure.path for failure in found.failures] == ["video_02"]


def test_adapters_and_pyramid_travel_in_a_file(run: Path, the_set: Any, tmp_path: Path) -> None:
    """Exported, and taken up as first weights of another run."""
    file = tmp_path / "whole.safetensors"
    assert "on encoder 32x3 with adapters behind 2 of 3 blocks" in export_weights(ExportArguments(source=run, out=file))
    going_on = train_run(config_of(tmp_path, the_set, init=file, stop_after_steps=1))
    expected, found = weights_of(run), weights_of(going_on)
    # one step of warm-up, whose rate is 0: what was read is still there
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_a_recipe_for_features_and_one_for_videos_are_told_apart() -> None:
    config = end_to_end_config(Path(), (Path("a.json"), Path("videos")))
    check_is_named(config)
    for data, blocks, said in (
        ({"videos": None}, (1, 2), "no videos named"),
        ({"videos": None, "features": Path("f")}, (1, 2), "makes its features itself"),
        ({}, "none", "for videos its encoder needs adapters"),
        ({"videos": None}, "none", "no features named"),
        ({"fit": "pad"}, (1, 2), "set --data.fit windows"),
    ):
        adapters = config.model.adapters.model_copy(update={"blocks": blocks})
        with pytest.raises(ConfigError, match=said):
            check_is_named(config.changed(data=data, model={"adapters": adapters}))
    with pytest.raises(ValueError, match="names block 3, and the encoder has blocks 0 to 2"):
        type(config.model).model_validate({**config.model.model_dump(), "adapters": {"blocks": (1, 3)}})
