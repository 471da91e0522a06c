"""Through transformers and back: what it computes from our weights, and what we compute from its own.

All biases, norms and the rest are random in these models, so one that a version of transformers loses changes the outputs.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.weights.test_layouts import model_of
from vmae2_ds.config.model import ClassifierConfig, EncoderConfig, ModelConfig
from vmae2_ds.config.pretrain import MaskConfig, ObjectiveConfig
from vmae2_ds.contracts import ClipGeometry, PretrainBatch
from vmae2_ds.masking import make_masks
from vmae2_ds.model.classifier import Classifier
from vmae2_ds.model.embed import every_cube, gather_cubes, normalise_pixels
from vmae2_ds.model.mae import MaskedAutoencoder
from vmae2_ds.objectives import Reconstruct
from vmae2_ds.runs.export import ExportArguments, export_weights
from vmae2_ds.runs.open import load_for
from vmae2_ds.weights.about import AboutWeights
from vmae2_ds.weights.files import write_weights
from vmae2_ds.weights.layouts import to_layout
from vmae2_ds.weights.source import read_all

transformers = pytest.importorskip("transformers", reason="needs transformers (pip extra: hf)")
SAME = {"rtol": 1e-4, "atol": 1e-4}


@pytest.fixture
def classifier(tiny: ModelConfig) -> ClassifierConfig:
    return ClassifierConfig(encoder=tiny.encoder.model_copy(update={"width": 192}), patch=tiny.patch, num_classes=7)


@pytest.fixture
def autoencoder(tiny: ModelConfig) -> ModelConfig:
    """Of widths that published models have, so that the number of heads need not be noted."""
    towers = {"encoder": (tiny.encoder, 192), "decoder": (tiny.decoder, 96)}
    changed = {name: tower.model_copy(update={"width": width, "heads": 3}) for name, (tower, width) in towers.items()}
    return tiny.model_copy(update=changed)


@pytest.fixture(params=["transformers", "transformers4"])
def layout(request: pytest.FixtureRequest) -> str:
    """What the installed version reads: 5.6 renamed the q and v biases, and only 5.18 reads the old names again."""
    version = tuple(map(int, transformers.__version__.split(".")[:2]))
    if (version < (5, 6)) if request.param == "transformers" else (5, 6) <= version < (5, 18):
        pytest.skip(f"transformers {transformers.__version__} loses the q and v biases of this layout")
    return request.param


def exported(
    config: EncoderConfig, geometry: ClipGeometry, layout: Any, folder: Path, target: str | None = None
) -> torch.nn.Module:
    """Our model, and its folder as `vmae2 export` writes it."""
    ours = model_of(config, geometry).eval()
    write_weights(
        to_layout(ours.state_dict(), config), folder / "ours.safetensors", config, AboutWeights(target=target)
    )
    export_weights(
        ExportArguments(
            source=folder / "ours.safetensors",
            out=folder / "hf",
            layout=layout,
            num_frames=geometry.num_frames,
            size=geometry.height,
        )
    )
    return ours


def loaded(kind: str, folder: Path) -> Any:
    """As a user would. Nothing may be missing or left over, but for a bias of the keys in 5.6 to 5.17, which is zero."""
    model, report = getattr(transformers, kind).from_pretrained(folder, output_loading_info=True)
    assert not [name for name in report["missing_keys"] if not name.endswith("attention.key.bias")]
    assert not report["unexpected_keys"]
    return model.eval()


def drawn_like_ours(theirs: Any) -> Any:
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.2)
    return theirs.eval()


def clips(geometry: ClipGeometry, count: int) -> Tensor:
    shape = (count, geometry.num_frames, geometry.height, geometry.width, 3)
    return torch.rand(shape, generator=torch.Generator().manual_seed(2))


def as_transformers_wants(clip_BTHWC: Tensor) -> Tensor:
    return normalise_pixels(clip_BTHWC.flatten(1)).view_as(clip_BTHWC).permute(0, 1, 4, 2, 3)


def masked(geometry: ClipGeometry, clip_BTHWC: Tensor) -> tuple[PretrainBatch, Tensor]:
    """One clip's batch without a decoder mask, and what is hidden in it as transformers wants it."""
    masks = make_masks(MaskConfig(encoder_ratio=0.75, decoder="none"), geometry, np.random.default_rng(0))
    batch = PretrainBatch.of_clips(clip_BTHWC, [masks])
    return batch, torch.ones(1, geometry.num_cubes, dtype=torch.bool).scatter(1, batch.visible_BV, False)


def assert_same_pre_training(
    theirs: Any, ours: MaskedAutoencoder, geometry: ClipGeometry, objective: ObjectiveConfig | None = None
) -> None:
    """Predicted cubes, and the loss against the objective's target, by default normalised cube by cube."""
    clip_BTHWC = clips(geometry, 1)
    batch, hidden_BN = masked(geometry, clip_BTHWC)
    cubes_BVP = normalise_pixels(gather_cubes(clip_BTHWC, batch.visible_BV, geometry))
    with torch.inference_mode():
        found = theirs(as_transformers_wants(clip_BTHWC), bool_masked_pos=hidden_BN)
        torch.testing.assert_close(found.logits, ours(cubes_BVP, batch.visible_BV, batch.decode_BM), **SAME)
        loss = Reconstruct(ours, objective or ObjectiveConfig(), geometry)(batch).loss
    torch.testing.assert_close(found.loss, loss, rtol=1e-4, atol=0)


def test_a_classifier_of_ours_there(
    classifier: ClassifierConfig, geometry: ClipGeometry, tmp_path: Path, layout: str
) -> None:
    ours = exported(classifier, geometry, layout, tmp_path)
    clip_BTHWC = clips(geometry, 2)
    logits_BC = loaded("VideoMAEForVideoClassification", tmp_path / "hf")(as_transformers_wants(clip_BTHWC)).logits
    torch.testing.assert_close(logits_BC, ours(normalise_pixels(every_cube(clip_BTHWC, geometry))), **SAME)


def test_a_classifier_of_theirs_here(
    classifier: ClassifierConfig, geometry: ClipGeometry, tmp_path: Path, layout: str
) -> None:
    """Its config.json and weights as save_pretrained writes them."""
    exported(classifier, geometry, layout, tmp_path)  # for a config.json
    config = transformers.VideoMAEConfig.from_pretrained(tmp_path / "hf")
    theirs = drawn_like_ours(transformers.VideoMAEForVideoClassification(config))
    theirs.save_pretrained(tmp_path / "theirs")
    state, (_, read_config, _), _ = read_all(tmp_path / "theirs")
    assert isinstance(read_config, ClassifierConfig)
    ours = Classifier(read_config, geometry, seed=None).eval()
    ours.load_state_dict(state)
    clip_BTHWC = clips(geometry, 2)
    with torch.inference_mode():
        torch.testing.assert_close(
            ours(normalise_pixels(every_cube(clip_BTHWC, geometry))),
            theirs(as_transformers_wants(clip_BTHWC)).logits,
            **SAME,
        )


@pytest.mark.parametrize("target", ["normalised", "pixels"])
def test_an_autoencoder_of_ours_there(
    autoencoder: ModelConfig, geometry: ClipGeometry, tmp_path: Path, layout: str, target: Any
) -> None:
    """Its loss, too, is against what the run's decoder predicts."""
    ours: Any = exported(autoencoder, geometry, layout, tmp_path, target)
    theirs = loaded("VideoMAEForPreTraining", tmp_path / "hf")
    assert_same_pre_training(theirs, ours, geometry, ObjectiveConfig(target=target))


def test_an_autoencoder_of_theirs_here(autoencoder: ModelConfig, geometry: ClipGeometry, tmp_path: Path) -> None:
    exported(autoencoder, geometry, "transformers", tmp_path)  # for a config.json
    config = transformers.VideoMAEConfig.from_pretrained(tmp_path / "hf")
    theirs = drawn_like_ours(transformers.VideoMAEForPreTraining(config))
    theirs.save_pretrained(tmp_path / "theirs")
    state, (_, read_config, _), _ = read_all(tmp_path / "theirs")
    assert isinstance(read_config, ModelConfig)
    ours = MaskedAutoencoder(read_config, geometry, seed=None).eval()
    ours.load_state_dict(state)
    assert_same_pre_training(theirs, ours, geometry)


def test_an_encoder_both_ways(autoencoder: ModelConfig, geometry: ClipGeometry, tmp_path: Path, layout: str) -> None:
    """VideoMAEModel takes it out of a pre-training folder; a classifier starts from what that saves, without `videomae.`."""
    ours: Any = exported(autoencoder, geometry, layout, tmp_path)
    theirs = transformers.VideoMAEModel.from_pretrained(tmp_path / "hf").eval()
    clip_BTHWC = clips(geometry, 2)
    with torch.inference_mode():
        tokens_BND = ours.encoder(normalise_pixels(every_cube(clip_BTHWC, geometry)))
        torch.testing.assert_close(theirs(as_transformers_wants(clip_BTHWC)).last_hidden_state, tokens_BND, **SAME)
    theirs.save_pretrained(tmp_path / "encoder")
    wanted = ClassifierConfig(encoder=autoencoder.encoder, patch=autoencoder.patch, num_classes=3)
    weights, report = load_for(tmp_path / "encoder" / "model.safetensors", wanted)
    assert set(report.new) == {"fc_norm.weight", "fc_norm.bias", "head.weight", "head.bias"}
    dropped = {name for name in report.dropped if not name.endswith("attention.key.bias")}
    assert dropped == {"layernorm.weight", "layernorm.bias"}
    for name, tensor in weights.items():
        assert torch.equal(tensor, ours.state_dict()[name]), name
