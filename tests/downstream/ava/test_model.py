"""The encoder with its head on boxes: golden numbers, wide clips, patches of 14, gradients and names."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from tests.golden_data import GOLDEN, clip_of, fill, golden_json
from tests.operators import Operators
from vmae2_ds.config.ava import AvaModelConfig
from vmae2_ds.config.ava_head import BoxLossConfig
from vmae2_ds.config.model import TowerConfig
from vmae2_ds.contracts import ClipGeometry
from vmae2_ds.downstream.ava.losses import box_losses
from vmae2_ds.downstream.ava.model import PersonActionModel
from vmae2_ds.downstream.ava.roi_head import extended
from vmae2_ds.errors import ConfigError
from vmae2_ds.model.embed import every_cube, normalise_pixels
from vmae2_ds.train.optim import layer_of, parameter_groups
from vmae2_ds.weights.layouts import from_layout, layout_shapes

TOWER = TowerConfig(width=48, depth=2, heads=3, mlp=192)
GOLDEN_TOLERANCE = {"rtol": 1e-4, "atol": 1e-4}


def tiny(seed: int | None = 0, patch: int = 16, **changes: Any) -> PersonActionModel:
    config = AvaModelConfig.model_validate({"encoder": TOWER, "patch": patch, "num_classes": 80, **changes})
    return PersonActionModel(config, ClipGeometry(4, 14 * patch, 14 * patch, 2, patch), seed=seed).eval()


def golden_clips() -> dict[str, Tensor]:
    """The golden set's two batches, drawn as it drew them: boxes and labels lie between them."""
    rng, shapes = np.random.default_rng(3), golden_json("ava/roi_head_tiny.json")["shapes"]
    square = rng.standard_normal(shapes["square"]).astype(np.float32)
    rng.random(420)
    wide = rng.standard_normal(shapes["wide"]).astype(np.float32)
    return {"square": torch.from_numpy(square), "wide": torch.from_numpy(wide)}


def padded(rows_KX: Tensor, counts: list[int]) -> tuple[Tensor, Tensor]:
    """Rows of all boxes as (B, G, X), zeros where a clip has fewer, and which are there."""
    rows_BGX = torch.nn.utils.rnn.pad_sequence(list(rows_KX.split(counts)), batch_first=True)
    return rows_BGX, torch.arange(max(counts)) < torch.tensor(counts)[:, None]


@pytest.mark.parametrize("kind", ["square", "wide"])
def test_extended_boxes_features_logits_and_loss_are_those_of_the_published_code(kind: str) -> None:
    numbers, tensors = golden_json("ava/roi_head_tiny.json"), load_file(GOLDEN / "ava/roi_head_tiny.safetensors")
    expected = {name.removeprefix(f"{kind}/"): x for name, x in tensors.items() if name.startswith(kind)}
    model = tiny(seed=None)
    model.load_state_dict(from_layout(fill(layout_shapes(model.config)), model.config))
    x_BCTHW = golden_clips()[kind]
    clip_BTHWC = clip_of(x_BCTHW)
    box_BG4, is_box_BG = padded(expected["box_K4"], numbers["boxes_of_clips"])
    target_BGC, _ = padded(expected["target_KC"], numbers["boxes_of_clips"])

    wider_BG4 = extended(box_BG4, (0.1, 0.05), torch.tensor([x_BCTHW.shape[-2:]]))
    torch.testing.assert_close(wider_BG4[is_box_BG], expected["extended_K4"], **GOLDEN_TOLERANCE)
    with torch.no_grad():
        pooled_KD = model.head.pooled(model.features(clip_BTHWC), box_BG4)
        logits_BGC = model(clip_BTHWC, box_BG4)
    torch.testing.assert_close(pooled_KD[is_box_BG.flatten()], expected["pooled_KD"], **GOLDEN_TOLERANCE)
    torch.testing.assert_close(logits_BGC[is_box_BG], expected["logits_KC"], **GOLDEN_TOLERANCE)
    loss = box_losses(logits_BGC, target_BGC, is_box_BG, BoxLossConfig()).loss
    assert loss.item() == pytest.approx(numbers["loss_mean_times_number"][kind], abs=1e-5)


def test_a_patch_of_14_looks_where_the_box_is() -> None:
    """Pixels far from a box have no part in it: with a scale of 1/16 the last columns would be looked up too early."""
    model = tiny(patch=14, head={"box_extension": (0, 0), "aligned": True})
    feature_BTHWD = torch.zeros(1, 2, 14, 14, 48)
    feature_BTHWD[:, :, 13, 10] = 1
    inside = [10 * 14, 13 * 14, 11 * 14, 14 * 14]
    box_BG4 = torch.tensor([[inside, [9 * 14, 12 * 14, 10 * 14, 13 * 14], [13 * 14, 10 * 14, 196, 11 * 14]]]).float()
    # the middle one of the 7 x 7 cells is the feature's own place; from a neighbour's no cell is half a patch near, both ways
    pooled_KD = model.head.pooled(feature_BTHWD, box_BG4)
    assert pooled_KD[0].min() == pytest.approx(1, abs=1e-5)
    assert pooled_KD[1:].max() < 0.26


def test_a_wide_clip_of_the_training_size_and_its_own_table_is_the_encoder_as_it_is() -> None:
    model, clip_BTHWC = tiny(), torch.randint(0, 256, (1, 4, 224, 224, 3), dtype=torch.uint8)
    tokens_BND = model.encoder(normalise_pixels(every_cube(clip_BTHWC, model.geometry)))
    torch.testing.assert_close(model.features(clip_BTHWC).flatten(1, 3), tokens_BND)


def test_positions_are_those_of_the_clip_that_is_named() -> None:
    clip_BTHWC = torch.randint(0, 256, (1, 4, 64, 128, 3), dtype=torch.uint8)
    geometry = ClipGeometry(4, 64, 64, 2, 16)  # trained on small squares, its weights on 224
    model = PersonActionModel(tiny(positions_from=(4, 224)).config, geometry, seed=0).eval()
    torch.testing.assert_close(model.features(clip_BTHWC), tiny().features(clip_BTHWC))


def test_in_bf16_the_whole_model_is_near_float64() -> None:
    """Two blocks that round to 8 bits move no logit by more than a twentieth of their deviation, on a wide clip."""
    clip_BTHWC = torch.rand(2, 4, 64, 112, 3, generator=torch.Generator().manual_seed(0))
    box_BG4 = torch.tensor([[[2.0, 3, 60, 50], [9, 9, 100, 40]]] * 2)
    weights = tiny(head={"init_scale": 20}).state_dict()
    exact, narrow = tiny().double(), tiny()
    for model in (exact, narrow):
        model.load_state_dict(weights)
    with torch.no_grad():
        expected_BGC, found_BGC = exact(clip_BTHWC, box_BG4.double()), narrow.bfloat16()(clip_BTHWC, box_BG4)
    assert (expected_BGC.dtype, found_BGC.dtype) == (torch.float64, torch.float32)
    assert expected_BGC.std() > 1
    assert (found_BGC - expected_BGC).abs().max() < expected_BGC.std() / 20


def test_a_clip_that_is_no_multiple_of_the_patch_is_refused() -> None:
    with pytest.raises(ConfigError, match="width 72 is not a positive multiple of the cube's 16"):
        tiny()(torch.zeros(1, 4, 64, 72, 3), torch.zeros(1, 1, 4))


@pytest.mark.parametrize("boxes", [0, 2])
def test_a_batch_without_boxes_gives_every_parameter_a_gradient_of_zeros(boxes: int) -> None:
    """Under ZeRO a rank that lacks one would leave the others waiting; padding alone, and not even that."""
    model = tiny(num_classes=5).train()
    box_BG4, is_box_BG = torch.zeros(2, boxes, 4), torch.zeros(2, boxes, dtype=torch.bool)
    logits_BGC = model(torch.rand(2, 4, 32, 48, 3), box_BG4)
    box_losses(logits_BGC, torch.zeros(2, boxes, 5), is_box_BG, BoxLossConfig()).loss.backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.eq(0).all(), name


def test_no_operator_of_a_step_asks_the_device_how_many_boxes_there_are() -> None:
    """Each of these would have a GPU's host wait for it: what is read by value, or has as many rows as something is true."""
    model, clip_BTHWC = tiny(num_classes=5, head={"exclusive": (0, 1)}).train(), torch.rand(2, 4, 32, 48, 3)
    is_box_BG = torch.tensor([[True, False], [True, True]])

    def step() -> None:
        logits_BGC = model(clip_BTHWC, torch.rand(2, 2, 4) * 30)
        box_losses(logits_BGC, torch.ones(2, 2, 5), is_box_BG, BoxLossConfig(), model.config.exclusive).loss.backward()

    step()  # constants are made in the first
    with Operators() as operators:
        step()
    assert "roi_align" in operators.names
    # index: with a mask; with numbers it would not wait, and is not needed
    waiting = {"_local_scalar_dense", "nonzero", "masked_select", "equal", "lift_fresh", "index", "index_put_"}
    assert not waiting & set(operators.names)


def test_padding_and_clips_without_a_box_change_no_gradient() -> None:
    clip_BTHWC, box_BG4 = torch.rand(3, 4, 32, 48, 3), torch.tensor([[[2.0, 3, 30, 29], [9, 9, 40, 20]]] * 3)
    is_box_BG = torch.tensor([[True, True], [True, False], [False, False]])
    target_BGC = (torch.rand(3, 2, 5) < 0.4).float()
    gradients = []
    for rows in ([0, 1, 2], [1, 0]):
        model = tiny(num_classes=5).train()
        logits_BGC = model(clip_BTHWC[rows], torch.where(is_box_BG[rows][..., None], box_BG4[rows], 0))
        box_losses(logits_BGC, target_BGC[rows], is_box_BG[rows], BoxLossConfig()).loss.backward()
        gradients.append([parameter.grad for parameter in model.parameters()])
    torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("checkpointing", ["every_k", "all"])
def test_blocks_that_are_computed_again_give_the_same_gradients(checkpointing: str) -> None:
    clip_BTHWC, box_BG4 = torch.rand(1, 4, 32, 48, 3), torch.tensor([[[2.0, 3, 30, 29]]])
    gradients = []
    for name in ("none", checkpointing):
        model = tiny(checkpointing=name).train()
        model(clip_BTHWC, box_BG4).square().sum().backward()
        gradients.append([parameter.grad for parameter in model.parameters()])
    torch.testing.assert_close(*gradients)


def test_layer_decay_knows_its_names_and_first_weights_are_the_published_ones() -> None:
    model = tiny(head={"init_scale": 1e-3})
    layers = {name: layer_of(name, 2) for name, _ in model.named_parameters()}
    assert {name for name, layer in layers.items() if layer == 3} == {
        "encoder.norm.weight", "encoder.norm.bias", "head.weight", "head.bias",
    }  # fmt: skip
    assert {group["lr_scale"] for group in parameter_groups(model, 0.05, 0.5, 2)} == {1.0, 0.5, 0.25, 0.125}
    assert model.head.weight.std().item() == pytest.approx(2e-5, rel=0.05)
    assert model.head.bias.eq(0).all()
