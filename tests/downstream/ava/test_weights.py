"""What a model of people in boxes starts from, and how its own weights are written and read back."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.downstream.ava.test_model import TOWER
from vmae2_ds.config.ava import AvaModelConfig
from vmae2_ds.config.ava_head import RoiHeadConfig
from vmae2_ds.config.model import ClassifierConfig, ModelConfig, TowerConfig
from vmae2_ds.contracts import ClipGeometry
from vmae2_ds.downstream.ava.model import PersonActionModel
from vmae2_ds.model.classifier import Classifier
from vmae2_ds.model.mae import MaskedAutoencoder
from vmae2_ds.model.seeded import SeededModel
from vmae2_ds.runs.export import ExportArguments, ImportArguments, export_weights, import_weights
from vmae2_ds.runs.open import load_for
from vmae2_ds.weights.files import model_of, write_weights
from vmae2_ds.weights.layouts import to_layout

GEOMETRY = ClipGeometry(4, 32, 32, 2, 16)
CONFIG = AvaModelConfig(encoder=TOWER, num_classes=7)
HEAD = {"head.weight", "head.bias"}
NORM = {"encoder.norm.weight", "encoder.norm.bias"}
HEADS = {"encoder": {"heads": 3}}
"""No published width has three heads."""


def written(model: SeededModel, config: ModelConfig | ClassifierConfig | AvaModelConfig, file: Path) -> Path:
    write_weights(to_layout(model.state_dict(), config), file, config)
    return file


def test_a_classifier_gives_its_encoder_alone_even_where_its_head_would_fit(tmp_path: Path) -> None:
    """Its norm stands behind the mean, and its head behind that: both are new, as published."""
    config = ClassifierConfig(encoder=TOWER, num_classes=CONFIG.num_classes)
    classifier = Classifier(config, GEOMETRY, seed=1)
    weights, report = load_for(written(classifier, config, tmp_path / "classifier.pth"), CONFIG)
    assert set(report.new) == HEAD | NORM
    assert {"head.weight", "fc_norm.weight"} <= set(report.dropped)
    torch.testing.assert_close(weights, {name: x for name, x in classifier.state_dict().items() if name in weights})
    assert len(weights) == len(classifier.encoder.state_dict())


def test_pre_training_gives_its_encoder_and_the_norm_behind_it(tmp_path: Path) -> None:
    config = ModelConfig(encoder=TOWER, decoder=TowerConfig(width=32, depth=1, heads=2, mlp=64))
    weights, report = load_for(
        written(MaskedAutoencoder(config, GEOMETRY, seed=1), config, tmp_path / "pretrained.pth"), CONFIG
    )
    assert set(report.new) == HEAD
    assert set(weights) > NORM


@pytest.mark.parametrize("classes", [7, 5])
def test_another_model_of_people_in_boxes_gives_all_and_its_head_where_it_fits(tmp_path: Path, classes: int) -> None:
    config = AvaModelConfig(encoder=TOWER, num_classes=classes)
    file = written(PersonActionModel(config, GEOMETRY, seed=1), config, tmp_path / "ava.pth")
    _, report = load_for(file, CONFIG)
    assert set(report.new) == (set() if classes == 7 else HEAD)


def test_a_file_of_it_is_read_back_from_names_alone_and_its_own_says_the_head_too(tmp_path: Path) -> None:
    """Under the names of VideoMAE-AD: `norm` and `head`, and no `fc_norm`."""
    config = AvaModelConfig(encoder=TOWER, num_classes=7, head=RoiHeadConfig(size=8, aligned=True))
    model = PersonActionModel(config, GEOMETRY, seed=1)
    theirs = to_layout(model.state_dict(), config)
    assert {name for name in theirs if "blocks" not in name} == {
        "patch_embed.proj.weight", "patch_embed.proj.bias", "norm.weight", "norm.bias", "head.weight", "head.bias",
    }  # fmt: skip
    plain, own = (written(model, config, tmp_path / name) for name in ("ava.pth", "ava.safetensors"))
    assert model_of(own) == config
    found = model_of(plain, HEADS)
    assert isinstance(found, AvaModelConfig)
    assert (found.encoder, found.num_classes, found.head) == (TOWER, 7, RoiHeadConfig())
    said = import_weights(ImportArguments(source=own, out=tmp_path / "in.safetensors"))
    assert "none missing, none extra; head on boxes, 7 actions" in said
    export_weights(ExportArguments(source=tmp_path / "in.safetensors", out=tmp_path / "out.safetensors"))
    weights, report = load_for(tmp_path / "out.safetensors", config)
    assert (report.new, report.dropped) == ((), ())
    torch.testing.assert_close(weights, dict(model.state_dict()))
