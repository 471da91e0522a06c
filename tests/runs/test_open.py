"""First weights from a file of any layout: what is used, newly drawn and dropped; and what does not fit is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from tests.checkpoint.made_checkpoint import counted, made_checkpoint
from vmae2_ds.config.finetune import FinetuneConfig, FinetuneTrainConfig, LabelledDataConfig
from vmae2_ds.config.model import ClassifierConfig, EncoderConfig, ModelConfig, TowerConfig
from vmae2_ds.config.pretrain import ObjectiveConfig, PretrainConfig, PretrainDataConfig
from vmae2_ds.contracts import ClipGeometry
from vmae2_ds.errors import CheckpointError, ConfigError
from vmae2_ds.model.classifier import Classifier
from vmae2_ds.model.mae import MaskedAutoencoder
from vmae2_ds.runs.first_weights import initial_weights
from vmae2_ds.runs.open import about_run, load_for, read_head_map
from vmae2_ds.weights.files import write_weights
from vmae2_ds.weights.layouts import LAYOUTS, StateDict, our_shapes, to_layout

GEOMETRY = ClipGeometry(4, 16, 16, 2, 8)
AUTOENCODER = ModelConfig(
    encoder=TowerConfig(width=24, depth=2, heads=3, mlp=48),
    decoder=TowerConfig(width=12, depth=1, heads=2, mlp=24),
    patch=8,
)
CLASSIFIER = ClassifierConfig(encoder=AUTOENCODER.encoder, patch=8, num_classes=5)


def drawn(config: EncoderConfig) -> StateDict:
    make: Any = Classifier if isinstance(config, ClassifierConfig) else MaskedAutoencoder
    return dict(make(config, GEOMETRY, seed=1).state_dict())


def written(state: StateDict, path: Path) -> Path:
    if path.suffix == ".pth":
        torch.save({"model": state}, path)
    else:
        save_file(state, path)
    return path


def assert_taken(weights: StateDict, source: StateDict, names: set[str]) -> None:
    assert set(weights) == names
    for name, tensor in weights.items():
        assert torch.equal(tensor, source[name]), name


@pytest.mark.parametrize("layout", sorted(LAYOUTS))
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_a_classifier_from_a_classifier_of_any_layout(tmp_path: Path, layout: str, suffix: str) -> None:
    ours = drawn(CLASSIFIER)
    weights, report = load_for(written(to_layout(ours, CLASSIFIER, layout), tmp_path / f"x{suffix}"), CLASSIFIER)
    assert_taken(weights, ours, set(ours))
    assert (len(report.used), report.new, report.dropped) == (len(ours), (), ())


@pytest.mark.parametrize("layout", ["published", "transformers", "transformers4"])
def test_a_classifier_from_an_autoencoder_of_any_layout(tmp_path: Path, layout: str) -> None:
    ours = drawn(AUTOENCODER)
    theirs = to_layout(ours, AUTOENCODER, layout)
    weights, report = load_for(written(theirs, tmp_path / "x.pth"), CLASSIFIER)
    assert_taken(weights, ours, {name for name in ours if name.startswith("encoder.") and "encoder.norm" not in name})
    assert set(report.new) == {"fc_norm.weight", "fc_norm.bias", "head.weight", "head.bias"}
    decoder = {name for name in theirs if "decoder" in name or name == "mask_token"}
    final_norm = {name for name in theirs if name.startswith(("encoder.norm", "videomae.layernorm"))}
    assert set(report.dropped) == decoder | final_norm
    assert (
        f"4 newly drawn (fc_norm.weight, fc_norm.bias, head.weight, head.bias), {len(report.dropped)} dropped"
        in str(report)
    )


@pytest.mark.parametrize("prefix", ["backbone.", "encoder.", "module.", "_orig_mod."])
def test_prefixes_are_taken_off(tmp_path: Path, prefix: str) -> None:
    ours = drawn(CLASSIFIER)
    theirs = {prefix + name: tensor for name, tensor in to_layout(ours, CLASSIFIER).items()}
    weights, report = load_for(written(theirs, tmp_path / "x.pth"), CLASSIFIER)
    assert_taken(weights, ours, set(ours))
    assert not report.dropped


def test_a_head_of_other_classes_is_drawn_anew_or_mapped(tmp_path: Path) -> None:
    """K710 -> K400 in small: head[k] = head710[map[k]] (docs/PAPER.md#data)."""
    ours = drawn(CLASSIFIER)
    file = written(to_layout(ours, CLASSIFIER), tmp_path / "x.pth")
    three = CLASSIFIER.model_copy(update={"num_classes": 3})
    weights, report = load_for(file, three)
    assert set(report.new) == set(report.dropped) == {"head.weight", "head.bias"}
    weights, report = load_for(file, three, head_map=[4, 0, 2])
    assert not report.new
    assert torch.equal(weights["head.weight"], ours["head.weight"][[4, 0, 2]])
    assert torch.equal(weights["head.bias"], ours["head.bias"][[4, 0, 2]])
    with pytest.raises(ConfigError, match=r"asks for class 5, and the head of .*x\.pth has 5 classes"):
        load_for(file, three, head_map=[4, 0, 5])
    with pytest.raises(ConfigError, match="has no head"):
        load_for(written(to_layout(drawn(AUTOENCODER), AUTOENCODER), tmp_path / "mae.pth"), three, head_map=[4, 0, 2])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[0, 1]", "names 2 classes, and --model.num-classes 3"),
        ('{"a": 1}', "JSON list of class numbers"),
        ("[", "--train.head-map "),
    ],
)
def test_a_head_map_that_is_none_is_refused(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "map.json").write_text(content)
    with pytest.raises(ConfigError, match=message):
        read_head_map(tmp_path / "map.json", 3)


def test_another_size_is_refused_with_the_shapes(tmp_path: Path) -> None:
    wide = CLASSIFIER.model_copy(update={"encoder": TowerConfig(width=48, depth=2, heads=3, mlp=48)})
    file = written(to_layout(drawn(wide), wide), tmp_path / "wide.pth")
    with pytest.raises(CheckpointError, match=r"encoder\.embed\.proj\.weight \(48, 384\), not \(24, 384\)"):
        load_for(file, CLASSIFIER)
    wide = AUTOENCODER.model_copy(update={"encoder": TowerConfig(width=48, depth=2, heads=3, mlp=48)})
    with pytest.raises(CheckpointError, match=r"encoder\.embed\.proj\.weight \(24, 384\), not \(48, 384\)") as refused:
        load_for(written(to_layout(drawn(AUTOENCODER), AUTOENCODER), tmp_path / "narrow.pth"), wide)
    assert "\n" not in str(refused.value)
    deep = CLASSIFIER.model_copy(update={"encoder": TowerConfig(width=24, depth=3, heads=3, mlp=48)})
    with pytest.raises(CheckpointError, match=r"missing there: blocks\.2\.norm1\.weight"):
        load_for(written(to_layout(drawn(CLASSIFIER), CLASSIFIER), tmp_path / "shallow.pth"), deep)


def test_a_foreign_file_is_refused_with_the_nearest_layout_and_its_first_keys(tmp_path: Path) -> None:
    theirs = to_layout(drawn(CLASSIFIER), CLASSIFIER, "transformers")
    theirs = {name.replace("layernorm_before", "ln_1"): tensor for name, tensor in theirs.items()}
    with pytest.raises(CheckpointError) as refused:
        load_for(written(theirs, tmp_path / "foreign.pth"), CLASSIFIER)
    message = str(refused.value)
    assert "foreign.pth does not fit this model: 4 of the" in message
    assert "nearest key layout: transformers, classifier" in message
    assert "missing there: videomae.encoder.layer.0.layernorm_before.weight" in message
    assert "without a place: videomae.encoder.layer.0.ln_1.weight" in message
    assert "\n" not in message


@pytest.mark.parametrize("layout", sorted(LAYOUTS))
def test_pre_training_from_an_encoder_alone_takes_all_of_it_and_draws_the_rest(tmp_path: Path, layout: str) -> None:
    ours = drawn(CLASSIFIER)
    weights, report = load_for(written(to_layout(ours, CLASSIFIER, layout), tmp_path / "x.pth"), AUTOENCODER)
    assert_taken(weights, ours, {name for name in ours if name.startswith("encoder.")})
    assert set(report.new) == {name for name in our_shapes(AUTOENCODER) if name not in weights}
    assert {name.partition(".")[0] for name in report.new} == {"encoder", "bridge", "decoder"}
    assert {name for name in report.new if name.startswith("encoder")} == {"encoder.norm.weight", "encoder.norm.bias"}


@pytest.mark.parametrize("layout", sorted(LAYOUTS))
def test_a_deeper_encoder_is_refused_with_both_depths(tmp_path: Path, layout: str) -> None:
    deep = CLASSIFIER.model_copy(update={"encoder": TowerConfig(width=24, depth=11, heads=3, mlp=48)})
    file = written(to_layout(drawn(deep), deep, layout), tmp_path / "deep.pth")
    for model in (CLASSIFIER, AUTOENCODER):
        with pytest.raises(
            CheckpointError, match=r"deep.pth has 11 blocks in its encoder, and this model 2: set .*depth 11"
        ):
            load_for(file, model)


@pytest.mark.parametrize("layout", ["published", "transformers"])
def test_deeper_runs_and_decoders_are_refused_too(tmp_path: Path, layout: str) -> None:
    """A decoder's blocks are no encoder's: one that is deeper than both is told as the decoder that does not fit."""
    deep = AUTOENCODER.model_copy(update={"decoder": TowerConfig(width=12, depth=3, heads=2, mlp=24)})
    file = written(to_layout(drawn(deep), deep, layout), tmp_path / "decoder.pth")
    with pytest.raises(
        CheckpointError, match=r"its decoder does not: 3 blocks, not 1; set --model.decoder.width, depth"
    ):
        load_for(file, AUTOENCODER)
    load_for(file, AUTOENCODER, new_decoder=True)
    load_for(file, CLASSIFIER)
    deep = AUTOENCODER.model_copy(update={"encoder": TowerConfig(width=24, depth=3, heads=3, mlp=48)})
    made_checkpoint(tmp_path / "run", PretrainConfig(model=deep), counted(deep), stage=1, ranks=2)
    with pytest.raises(CheckpointError, match="run has 3 blocks in its encoder, and this model 2"):
        load_for(tmp_path / "run", AUTOENCODER)


def test_a_decoder_of_another_target_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    pixels = PretrainConfig(model=AUTOENCODER).changed(objective={"target": "pixels"})
    made_checkpoint(tmp_path / "run", pixels, counted(AUTOENCODER), stage=1, ranks=2)
    ours, file = drawn(AUTOENCODER), tmp_path / "x.safetensors"
    write_weights(to_layout(ours, AUTOENCODER), file, AUTOENCODER, about_run(pixels))
    unsaid = written(to_layout(ours, AUTOENCODER), tmp_path / "unsaid.pth")
    normalised = pixels.changed(objective={"target": "normalised"})
    for init, config, is_told in (
        (tmp_path / "run", normalised, True),
        (file, normalised, True),
        (file, pixels, False),
        (unsaid, pixels, False),
    ):
        caplog.clear()
        initial_weights(config.changed(train={"init": init}))
        assert ("was trained to predict pixels, and this run's target is normalised" in caplog.text) == is_told
    caplog.clear()
    initial_weights(normalised.changed(train={"init": file}, objective={"new_decoder": True}))
    assert "was trained to predict" not in caplog.text


def test_a_new_decoder_is_told_with_the_setting_that_lets_it_learn_alone(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    alone = written(to_layout(drawn(CLASSIFIER), CLASSIFIER), tmp_path / "alone.pth")
    whole = written(to_layout(drawn(AUTOENCODER), AUTOENCODER), tmp_path / "whole.pth")
    for file, steps, is_told in ((alone, 0, True), (alone, 9, False), (whole, 0, False)):
        config = PretrainConfig(model=AUTOENCODER).changed(
            data={"num_frames": 4, "size": 16}, train={"init": file}, optim={"freeze_encoder_steps": steps}
        )
        caplog.clear()
        initial_weights(config)
        assert ("--optim.freeze-encoder-steps N" in caplog.text) == is_told


def test_pre_training_takes_the_decoder_too_unless_a_new_one_is_asked_for(tmp_path: Path) -> None:
    ours = drawn(AUTOENCODER)
    file = written(to_layout(ours, AUTOENCODER), tmp_path / "x.pth")
    assert_taken(load_for(file, AUTOENCODER)[0], ours, set(ours))
    weights, report = load_for(file, AUTOENCODER, new_decoder=True)
    assert_taken(weights, ours, {name for name in ours if name.startswith("encoder.")})
    assert set(report.new) == set(ours) - set(weights)


def test_a_decoder_that_does_not_fit_is_refused_with_both_ways_out(tmp_path: Path) -> None:
    ours = drawn(AUTOENCODER)
    file = written(to_layout(ours, AUTOENCODER), tmp_path / "x.pth")
    for changes, said in (
        ({"width": 16}, r"bridge\.weight \(12, 24\), not \(16, 24\)"),
        ({"depth": 2}, r"no decoder\.blocks\.1\.norm1\.weight"),
    ):
        other = AUTOENCODER.model_copy(update={"decoder": AUTOENCODER.decoder.model_copy(update=changes)})
        with pytest.raises(CheckpointError, match=said) as refused:
            load_for(file, other)
        assert "its encoder fits this model, and its decoder does not" in str(refused.value)
        assert "--model.decoder.width" in str(refused.value)
        assert "--objective.new-decoder" in str(refused.value)
        assert set(load_for(file, other, new_decoder=True)[0]) == {name for name in ours if name.startswith("encoder.")}


def test_head_map_file(tmp_path: Path) -> None:
    (tmp_path / "map.json").write_text(json.dumps([2, 0]))
    assert read_head_map(tmp_path / "map.json", 2) == [2, 0]


def test_another_clip_than_the_run_s_is_told_with_the_choice(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """16x64 -> 12x48: rebuilt unless the config says to interpolate; nothing is said where the clips are the same."""
    caplog.set_level("INFO")
    before = PretrainConfig(model=AUTOENCODER, data=PretrainDataConfig(num_frames=16, size=64))
    made_checkpoint(tmp_path, before, counted(AUTOENCODER), stage=1, ranks=2)

    def told(frames: int, size: int, positions_from: tuple[int, int] | None = None) -> bool:
        caplog.clear()
        config = FinetuneConfig(
            model=CLASSIFIER.model_copy(update={"positions_from": positions_from}),
            data=LabelledDataConfig(num_frames=frames, size=size),
            train=FinetuneTrainConfig(init=tmp_path),
        )
        assert set(initial_weights(config)) == {name for name in our_shapes(CLASSIFIER) if name.startswith("encoder.")}
        return "had 16 frames of 64, these have 12 of 48: positions are rebuilt" in caplog.text

    assert told(12, 48)
    assert "--model.positions-from 16 64 interpolates them instead" in caplog.text
    assert not told(12, 48, (16, 64))
    assert not told(16, 64)


def test_a_new_decoder_without_weights_to_start_from_is_refused() -> None:
    with pytest.raises(ValueError, match=r"--objective\.new-decoder leaves out the decoder of --train\.init"):
        PretrainConfig(model=AUTOENCODER, objective=ObjectiveConfig(new_decoder=True))
