"""Published checkpoints: exact keys and shapes in every size, a lossless round trip, and errors that say what is wrong."""

from __future__ import annotations

import argparse
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from tests.golden_data import golden_json
from vmae2_ds.config.model import SIZES, ClassifierConfig, ModelConfig
from vmae2_ds.contracts import ClipGeometry
from vmae2_ds.errors import CheckpointError
from vmae2_ds.model.classifier import Classifier
from vmae2_ds.model.mae import MaskedAutoencoder
from vmae2_ds.weights.files import infer_model, read_published
from vmae2_ds.weights.layouts import StateDict, from_layout, layout_shapes, to_layout

PUBLISHED = {"small": "S", "base": "B", "large": "L", "huge": "H", "giant": "g"}


def published_shapes(size: str, stage: str) -> dict[str, tuple[int, ...]]:
    """The golden keys, where one block of each tower stands for all."""
    golden = golden_json("checkpoint_keys.json")[PUBLISHED[size]]
    shapes = {}
    for name, shape in golden[stage].items():
        tower, inside_block, rest = name.partition("blocks.0.")
        depth = golden[f"{tower.rstrip('.') or 'encoder'}_depth"] if inside_block else 1
        for i in range(depth):
            shapes[f"{tower}blocks.{i}.{rest}" if inside_block else name] = tuple(shape)
    return shapes


@pytest.mark.parametrize("size", sorted(PUBLISHED))
def test_export_of_a_fresh_model_has_exactly_the_published_keys_and_shapes(size: str) -> None:
    config = ModelConfig.of_size(size)
    with torch.device("meta"):
        model = MaskedAutoencoder(config, ClipGeometry(16, 224, 224, 2, config.patch), seed=None)
    exported = to_layout(model.state_dict(), config)
    assert {name: tuple(tensor.shape) for name, tensor in exported.items()} == published_shapes(size, "pretrain")


@pytest.mark.parametrize("size", sorted(PUBLISHED))
def test_export_of_a_fresh_classifier_has_exactly_the_published_keys_and_shapes(size: str) -> None:
    expected = published_shapes(size, "finetune")
    config = ClassifierConfig.of_size(size, num_classes=expected["head.weight"][0])
    with torch.device("meta"):
        model = Classifier(config, ClipGeometry(16, 224, 224, 2, config.patch), seed=None)
    exported = to_layout(model.state_dict(), config)
    assert {name: tuple(tensor.shape) for name, tensor in exported.items()} == expected


@pytest.mark.parametrize("size", sorted(SIZES))
def test_the_config_of_every_size_is_read_from_its_shapes(size: str) -> None:
    config = ModelConfig.of_size(size)
    state = {name: torch.empty(shape, device="meta") for name, shape in layout_shapes(config).items()}
    assert infer_model(state) == (config, "published")


@pytest.fixture
def official(tiny: ModelConfig, geometry: ClipGeometry) -> StateDict:
    return to_layout(MaskedAutoencoder(tiny, geometry).state_dict(), tiny)


def test_out_and_in_again_is_lossless(tiny: ModelConfig, geometry: ClipGeometry) -> None:
    ours = MaskedAutoencoder(tiny, geometry).state_dict()
    again = from_layout(to_layout(ours, tiny), tiny)
    assert list(again) == list(ours)
    torch.testing.assert_close(again, dict(ours), rtol=0, atol=0)


def test_names_that_neither_map_changes_stay(official: StateDict) -> None:
    assert official["encoder.patch_embed.proj.weight"].shape == (48, 3, 2, 8, 8)
    assert {"mask_token", "encoder_to_decoder.weight", "decoder.blocks.2.attn.q_bias"} <= set(official)


@pytest.mark.parametrize("wrapper", [None, "model", "module", "state_dict"])
@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.", "module._orig_mod."])
def test_reads_published_files_however_they_were_wrapped(
    tmp_path: Path, official: StateDict, tiny: ModelConfig, wrapper: str | None, prefix: str
) -> None:
    state = {prefix + name: tensor for name, tensor in official.items()}
    # published files also carry the command line and the epoch
    content = {wrapper: state, "args": argparse.Namespace(lr=1e-3), "epoch": 3} if wrapper else state
    torch.save(content, tmp_path / "checkpoint.pth")
    torch.testing.assert_close(read_published(tmp_path / "checkpoint.pth"), official, rtol=0, atol=0)


def test_reads_safetensors_straight_into_a_model(
    tmp_path: Path, official: StateDict, tiny: ModelConfig, geometry: ClipGeometry
) -> None:
    save_file(official, tmp_path / "model.safetensors")
    model = MaskedAutoencoder(tiny, geometry, seed=5)
    model.load_state_dict(from_layout(read_published(tmp_path / "model.safetensors"), tiny))
    torch.testing.assert_close(to_layout(model.state_dict(), tiny), official, rtol=0, atol=0)


def test_what_does_not_match_is_counted_and_named(official: StateDict, tiny: ModelConfig) -> None:
    del official["mask_token"]
    for i in range(7):
        official[f"head.{i}"] = torch.zeros(1)
    official["decoder.norm.bias"] = torch.zeros(5)
    with pytest.raises(CheckpointError) as caught:
        from_layout(official, tiny)
    text = str(caught.value)
    assert "1 missing: mask_token" in text
    assert "7 extra: head.0, head.1, head.2, head.3, head.4, ..." in text
    assert "1 of another shape: decoder.norm.bias (5,), expected (32,)" in text


def test_a_deeper_checkpoint_is_not_cut_to_fit(tiny: ModelConfig) -> None:
    base = {name: torch.empty(s, device="meta") for name, s in layout_shapes(ModelConfig.of_size("base")).items()}
    with pytest.raises(CheckpointError, match="extra"):
        from_layout(base, tiny)


def test_half_a_classifier_is_not_taken_for_a_model() -> None:
    with pytest.raises(CheckpointError, match="neither a masked autoencoder nor a classifier of a known key layout"):
        infer_model({"blocks.0.attn.qkv.weight": torch.zeros(6, 2), "fc_norm.weight": torch.zeros(2)})


def test_heads_of_an_unknown_width_are_asked_for(official: StateDict) -> None:
    with pytest.raises(CheckpointError, match="number of heads"):
        infer_model(official)
