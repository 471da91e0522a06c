"""Key layouts: every number goes out and comes back (what transformers makes of it: test_transformers.py)."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch

from vmae2_ds.config.model import ClassifierConfig, EncoderConfig, ModelConfig
from vmae2_ds.contracts import ClipGeometry
from vmae2_ds.errors import ConfigError
from vmae2_ds.model.classifier import Classifier
from vmae2_ds.model.mae import MaskedAutoencoder
from vmae2_ds.weights.layouts import LAYOUTS, from_layout, layout_shapes, to_layout


@pytest.fixture
def classifier(tiny: ModelConfig) -> ClassifierConfig:
    return ClassifierConfig(encoder=tiny.encoder, patch=tiny.patch, num_classes=7, attention="math")


def drawn(model: torch.nn.Module) -> torch.nn.Module:
    """Every parameter random, biases and norms too: one that is lost or swapped then shows."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.2)
    return model


def model_of(config: EncoderConfig, geometry: ClipGeometry) -> torch.nn.Module:
    make: Any = Classifier if isinstance(config, ClassifierConfig) else MaskedAutoencoder
    return drawn(make(config, geometry, seed=None))


@pytest.mark.parametrize("layout", sorted(LAYOUTS))
@pytest.mark.parametrize("stage", ["pretrain", "classifier"])
def test_out_and_in_again_is_bit_exact(
    tiny: ModelConfig, classifier: ClassifierConfig, geometry: ClipGeometry, layout: str, stage: str
) -> None:
    config: EncoderConfig = tiny if stage == "pretrain" else classifier
    if type(config) not in LAYOUTS[layout].stages:
        with pytest.raises(ConfigError, match="no place for a masked autoencoder"):
            layout_shapes(config, layout)
        return
    ours = model_of(config, geometry).state_dict()
    theirs = to_layout(ours, config, layout)
    assert {name: tuple(tensor.shape) for name, tensor in theirs.items()} == layout_shapes(config, layout)
    again = from_layout(theirs, config, layout)
    assert list(again) == list(ours)
    torch.testing.assert_close(again, dict(ours), rtol=0, atol=0)


def test_mmaction2_keys(classifier: ClassifierConfig) -> None:
    """docs/PAPER.md#keys: fc1 -> layers.0.0, fc2 -> layers.1, patch_embed.proj -> projection, head -> cls_head.fc_cls."""
    shapes = layout_shapes(classifier, "mmaction2")
    assert {re.sub(r"blocks\.\d+", "blocks.N", name) for name in shapes} == {
        "backbone.patch_embed.projection.weight",
        "backbone.patch_embed.projection.bias",
        *(f"backbone.blocks.N.{norm}.{kind}" for norm in ("norm1", "norm2") for kind in ("weight", "bias")),
        *(f"backbone.blocks.N.attn.{x}" for x in ("q_bias", "v_bias", "qkv.weight", "proj.weight", "proj.bias")),
        *(f"backbone.blocks.N.mlp.layers.{x}.{kind}" for x in ("0.0", "1") for kind in ("weight", "bias")),
        "backbone.fc_norm.weight",
        "backbone.fc_norm.bias",
        "cls_head.fc_cls.weight",
        "cls_head.fc_cls.bias",
    }


def test_an_unknown_layout_is_refused_with_the_known_ones(classifier: ClassifierConfig) -> None:
    with pytest.raises(ConfigError, match="unknown key layout 'hf'; choose one of published, transformers"):
        layout_shapes(classifier, "hf")
