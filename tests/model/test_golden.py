"""The model and the loss against the published code, in float32 at the golden set's tolerances."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from tests.golden_data import GOLDEN, TINY_EVERY, clip_by_rule, clip_of, fill, golden_json
from tests.official_names import official_name
from vmae2_ds.config.model import ModelConfig, TowerConfig
from vmae2_ds.config.pretrain import ObjectiveConfig, Target
from vmae2_ds.contracts import ClipGeometry, PretrainBatch
from vmae2_ds.model.embed import gather_cubes, normalise_pixels
from vmae2_ds.model.mae import MaskedAutoencoder
from vmae2_ds.objectives import Reconstruct
from vmae2_ds.weights.layouts import from_layout, layout_shapes

OUTPUT = {"rtol": 1e-4, "atol": 1e-5}  # tests/golden/README.md
LOSS, GRAD_NORM = 1e-5, 1e-3
MODES = ["encoder_only", "dual", "disjoint"]


def make_batch(x_BCTHW: Tensor, hidden_BN: Tensor, not_decoded_BN: Tensor, mode: str) -> PretrainBatch:
    """Our batch from the published tensors: a normalised clip, and masks that are True where something is left out."""
    visible_BN = ~hidden_BN
    decode_BN = {
        "encoder_only": hidden_BN,
        "dual": ~not_decoded_BN,
        "disjoint": ~not_decoded_BN & hidden_BN,
    }[mode]
    num_clips = len(hidden_BN)
    visible_BV, decode_BM = (kept.nonzero()[:, 1].view(num_clips, -1) for kept in (visible_BN, decode_BN))
    return PretrainBatch(clip_of(x_BCTHW), visible_BV, decode_BM, hidden_BN.gather(1, decode_BM))


def grad_norms(model: MaskedAutoencoder) -> dict[str, float]:
    return {official_name(name): float(p.grad.norm()) for name, p in model.named_parameters() if p.grad is not None}


class Tiny(NamedTuple):
    numbers: dict[str, Any]
    tensors: dict[str, Tensor]
    geometry: ClipGeometry
    model: MaskedAutoencoder

    def batch(self, mode: str) -> PretrainBatch:
        x_BCTHW = clip_by_rule(1, 2, 3, 8, 64, 64)
        return make_batch(x_BCTHW, self.tensors["enc_mask"], self.tensors["dec_mask"], mode)


@pytest.fixture(params=["math", "sdpa"])
def tiny_published(request: pytest.FixtureRequest) -> Tiny:
    """Two blocks a tower on two 8x64x64 clips with masks of their own, its weights rebuilt by rule."""
    tensors, numbers = load_file(GOLDEN / "pretrain_tiny_p16.safetensors"), golden_json("pretrain_tiny_p16.json")
    geometry = ClipGeometry(8, 64, 64, 2, 16)
    config = ModelConfig(
        encoder=TowerConfig(width=96, depth=2, heads=3, mlp=384),
        decoder=TowerConfig(width=48, depth=2, heads=3, mlp=192),
        attention=request.param,
    )
    model = MaskedAutoencoder(config, geometry, seed=None)
    model.load_state_dict(from_layout(fill(layout_shapes(config)), config))
    return Tiny(numbers, tensors, geometry, model)


@pytest.mark.parametrize("mode", MODES)
def test_tiny_outputs_and_losses(tiny_published: Tiny, mode: str) -> None:
    numbers, tensors, geometry, model = tiny_published
    batch, expected = tiny_published.batch(mode), numbers[mode]
    objective = Reconstruct(model, ObjectiveConfig(), geometry)
    pred_BMP, target_BMP = objective.predict(batch)
    torch.testing.assert_close(pred_BMP[..., ::TINY_EVERY], tensors[mode], **OUTPUT)
    expected_BMP = tensors["targets"].take_along_dim(batch.decode_BM[..., None], 1)
    torch.testing.assert_close(target_BMP[..., ::TINY_EVERY], expected_BMP, **OUTPUT)
    assert objective(batch).loss.item() == pytest.approx(expected["loss"], abs=LOSS)


@pytest.mark.parametrize("mode", ["encoder_only", "dual"])
def test_tiny_pixel_targets(tiny_published: Tiny, mode: str) -> None:
    numbers, tensors, geometry, model = tiny_published
    batch = tiny_published.batch(mode)
    objective = Reconstruct(model, ObjectiveConfig(target="pixels"), geometry)
    expected_BMP = tensors["targets_unnormalised"].take_along_dim(batch.decode_BM[..., None], 1)
    torch.testing.assert_close(objective.target(batch)[..., ::TINY_EVERY], expected_BMP, **OUTPUT)
    assert objective(batch).loss.item() == pytest.approx(numbers[mode]["loss_unnormalised_target"], abs=LOSS)


@pytest.mark.parametrize(("target", "of"), [("normalised", ""), ("pixels", "_unnormalised_target")])
def test_a_context_weight_of_1_is_the_mean_over_all_that_the_published_decoder_gives(
    tiny_published: Tiny, target: Target, of: str
) -> None:
    batch, expected = tiny_published.batch("dual"), tiny_published.numbers["dual"]
    config = ObjectiveConfig(target=target, context_weight=1)
    found = Reconstruct(tiny_published.model, config, tiny_published.geometry)(batch).loss.item()
    assert found == pytest.approx(expected[f"loss_on_all_outputs{of}"], abs=LOSS)
    assert abs(found - expected[f"loss{of}"]) > 50 * LOSS  # another loss than the one over hidden cubes


@pytest.mark.parametrize("mode", ["encoder_only", "dual"])
def test_tiny_gradient_of_every_parameter(tiny_published: Tiny, mode: str) -> None:
    objective = Reconstruct(tiny_published.model, ObjectiveConfig(), tiny_published.geometry)
    objective(tiny_published.batch(mode)).loss.backward()
    assert grad_norms(tiny_published.model) == pytest.approx(tiny_published.numbers[mode]["grad_norm"], rel=GRAD_NORM)


def test_tiny_encoder_output(tiny_published: Tiny) -> None:
    _, tensors, geometry, model = tiny_published
    batch = tiny_published.batch("dual")
    cubes_BVP = normalise_pixels(gather_cubes(batch.clip_BTHWC, batch.visible_BV, geometry))
    torch.testing.assert_close(model.encoder(cubes_BVP, batch.visible_BV), tensors["encoder_out"], **OUTPUT)


class Small(NamedTuple):
    numbers: dict[str, Any]
    geometry: ClipGeometry
    model: MaskedAutoencoder

    def batch(self, mode: str) -> PretrainBatch:
        masks = np.load(GOLDEN / "masks_full_patch16.npz")
        hidden, not_decoded = (
            torch.from_numpy(np.unpackbits(masks[key])[: self.geometry.num_cubes].astype(bool))[None]
            for key in ("enc", "dec")
        )
        return make_batch(clip_by_rule(1, 1, 3, 16, 224, 224), hidden, not_decoded, mode)


@pytest.fixture(scope="module")
def small_published() -> Small:
    """ViT-S at full size, its weights rebuilt by rule."""
    config, geometry = ModelConfig.of_size("small", attention="sdpa"), ClipGeometry(16, 224, 224, 2, 16)
    model = MaskedAutoencoder(config, geometry, seed=None)
    model.load_state_dict(from_layout(fill(layout_shapes(config)), config))
    return Small(golden_json("pretrain_full_S.json")["S"], geometry, model)


def assert_statistics(x: Tensor, expected: dict[str, Any]) -> None:
    flat = x.detach().flatten()
    assert flat.numel() == expected["shape_numel"]
    found = {"mean": flat.mean(), "std": flat.std(), "absmax": flat.abs().max(), "l2": flat.double().norm()}
    assert {k: float(v) for k, v in found.items()} == pytest.approx({k: expected[k] for k in found}, rel=1e-4, abs=1e-5)
    torch.testing.assert_close(flat[:8], torch.tensor(expected["first8"]), **OUTPUT)
    torch.testing.assert_close(flat[-8:], torch.tensor(expected["last8"]), **OUTPUT)


@pytest.mark.parametrize("mode", MODES)
def test_full_size_small(small_published: Small, mode: str) -> None:
    numbers, geometry, model = small_published
    batch, expected = small_published.batch(mode), numbers[mode]
    objective = Reconstruct(model, ObjectiveConfig(), geometry)
    model.zero_grad()
    outputs: list[Tensor] = []
    with model.register_forward_hook(lambda _module, _inputs, out: outputs.append(out)):
        loss = objective(batch).loss
    assert batch.decode_BM.shape[1] == expected["tokens"]
    assert_statistics(outputs[0], expected["out"])
    assert loss.item() == pytest.approx(expected["loss"], abs=LOSS)
    if "grad_norm" in expected:
        loss.backward()
        norms = grad_norms(model)
        assert {k: norms[k] for k in expected["grad_norm"]} == pytest.approx(expected["grad_norm"], rel=GRAD_NORM)
        total = sum(norm**2 for norm in norms.values()) ** 0.5
        assert total == pytest.approx(expected["grad_norm_total"], rel=GRAD_NORM)


def test_full_size_small_encoder(small_published: Small) -> None:
    numbers, geometry, model = small_published
    batch = small_published.batch("dual")
    assert batch.visible_BV[0, :20].tolist() == numbers["enc_visible_idx_first20"]
    assert batch.decode_BM[0, :20].tolist() == numbers["dec_visible_idx_first20"]
    cubes_BVP = normalise_pixels(gather_cubes(batch.clip_BTHWC, batch.visible_BV, geometry))
    with torch.no_grad():
        assert_statistics(model.encoder(cubes_BVP, batch.visible_BV), numbers["encoder_out"])
    assert sum(p.numel() for p in model.parameters()) == numbers["n_params"]
