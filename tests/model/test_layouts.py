"""Key layouts: every number goes out and comes back, and transformers computes the same from what it is given."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from vmae2_ds.config import ClassifierConfig, EncoderConfig, MaskConfig, ModelConfig
from vmae2_ds.contracts import ClipGeometry, PretrainBatch
from vmae2_ds.errors import ConfigError
from vmae2_ds.masking import make_masks
from vmae2_ds.model.classifier import Classifier
from vmae2_ds.model.embed import every_cube, gather_cubes, normalise_pixels
from vmae2_ds.model.layouts import LAYOUTS, from_layout, layout_shapes, to_layout
from vmae2_ds.model.mae import MaskedAutoencoder


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
    """PAPER D2: fc1 -> layers.0.0, fc2 -> layers.1, patch_embed.proj -> projection, head -> cls_head.fc_cls."""
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


# Through transformers


def transformers_config(config: EncoderConfig, geometry: ClipGeometry, **more: Any) -> Any:
    transformers = pytest.importorskip("transformers", reason="needs transformers (pip extra: hf)")
    from vmae2_ds.model.transformers_config import transformers_config_of

    return transformers.VideoMAEConfig(**transformers_config_of(config, geometry), **more)


def loaded(kind: str, config: Any, weights: dict[str, Tensor], folder: Path) -> Any:
    """As a user would: from a folder with config.json and model.safetensors. Nothing may be missing or left over."""
    import transformers

    config.save_pretrained(folder)
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    model, report = getattr(transformers, kind).from_pretrained(folder, output_loading_info=True)
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    return model.eval()


@pytest.fixture(params=["transformers", "transformers4"])
def layout(request: pytest.FixtureRequest) -> str:
    """Version 5 reads both; its first releases lost the q and v biases of version 4's files (PAPER C, quirk 20)."""
    transformers = pytest.importorskip("transformers", reason="needs transformers (pip extra: hf)")
    if request.param == "transformers" and int(transformers.__version__.partition(".")[0]) < 5:
        pytest.skip("needs transformers 5")
    return request.param


def test_transformers_gives_the_same_logits(
    classifier: ClassifierConfig, geometry: ClipGeometry, tmp_path: Path, layout: str
) -> None:
    config = transformers_config(classifier, geometry)
    ours = model_of(classifier, geometry).eval()
    theirs = loaded(
        "VideoMAEForVideoClassification", config, to_layout(ours.state_dict(), classifier, layout), tmp_path
    )
    clip_BTHWC = torch.rand(2, geometry.num_frames, geometry.height, geometry.width, 3)
    cubes_BNP = normalise_pixels(every_cube(clip_BTHWC, geometry))
    with torch.inference_mode():
        torch.testing.assert_close(
            theirs(as_transformers_wants(clip_BTHWC)).logits, ours(cubes_BNP), rtol=1e-4, atol=1e-4
        )


def test_transformers_gives_the_same_reconstruction(
    tiny: ModelConfig, geometry: ClipGeometry, tmp_path: Path, layout: str
) -> None:
    import numpy as np

    config = transformers_config(tiny, geometry)
    ours = model_of(tiny, geometry).eval()
    theirs = loaded("VideoMAEForPreTraining", config, to_layout(ours.state_dict(), tiny, layout), tmp_path)
    clip_BTHWC = torch.rand(1, geometry.num_frames, geometry.height, geometry.width, 3)
    masks = make_masks(MaskConfig(encoder_ratio=0.75, decoder="none"), geometry, np.random.default_rng(0))
    batch = PretrainBatch.of_clips(clip_BTHWC, [masks])
    hidden_BN = torch.ones(1, geometry.num_cubes, dtype=torch.bool).scatter(1, batch.visible_BV, False)
    cubes_BVP = normalise_pixels(gather_cubes(clip_BTHWC, batch.visible_BV, geometry))
    with torch.inference_mode():
        torch.testing.assert_close(
            theirs(as_transformers_wants(clip_BTHWC), bool_masked_pos=hidden_BN).logits,
            ours(cubes_BVP, batch.visible_BV, batch.decode_BM),
            rtol=1e-4,
            atol=1e-4,
        )


def as_transformers_wants(clip_BTHWC: Tensor) -> Tensor:
    return normalise_pixels(clip_BTHWC.flatten(1)).view_as(clip_BTHWC).permute(0, 1, 4, 2, 3)
