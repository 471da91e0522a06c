"""The classifier against the published code: golden numbers, first weights, layer decay; and its positions on other clips."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tests.golden_data import clip_by_rule, clip_of, fill, golden_json
from tests.model.test_golden import GRAD_NORM, LOSS, OUTPUT, assert_statistics
from tests.official_names import official_name
from vmae2_ds.config.model import ClassifierConfig, ModelConfig, TowerConfig
from vmae2_ds.contracts import ClipGeometry
from vmae2_ds.model.classifier import Classifier
from vmae2_ds.model.embed import every_cube, normalise_pixels, position_table, sinusoid_table
from vmae2_ds.model.mae import MaskedAutoencoder
from vmae2_ds.weights.layouts import from_layout, layout_shapes


def cubes_of(x_BCTHW: Tensor, geometry: ClipGeometry) -> Tensor:
    return normalise_pixels(every_cube(clip_of(x_BCTHW), geometry))


@pytest.mark.parametrize("attention", ["math", "sdpa"])
@pytest.mark.parametrize("checkpointing", ["none", "every_k", "all"])
def test_tiny_features_logits_loss_and_gradients(attention: str, checkpointing: str) -> None:
    expected = golden_json("finetune_tiny_p16.json")
    geometry = ClipGeometry(8, 64, 64, 2, 16)
    config = ClassifierConfig.model_validate(
        {
            "encoder": TowerConfig(width=96, depth=2, heads=3, mlp=384),
            "num_classes": 10,
            "attention": attention,
            "checkpointing": checkpointing,
        }
    )
    model = Classifier(config, geometry, seed=None)
    model.load_state_dict(from_layout(fill(layout_shapes(config)), config))
    cubes_BNP = cubes_of(clip_by_rule(2, 2, 3, 8, 64, 64), geometry)
    torch.testing.assert_close(model.features(cubes_BNP), torch.tensor(expected["features"]), **OUTPUT)
    logits_BC = model(cubes_BNP)
    torch.testing.assert_close(logits_BC, torch.tensor(expected["logits"]), **OUTPUT)
    loss = F.cross_entropy(logits_BC, torch.tensor(expected["y"]))
    assert loss.item() == pytest.approx(expected["ce"], abs=LOSS)
    loss.backward()
    norms = {
        official_name(n, classifier=True): float(p.grad.norm())
        for n, p in model.named_parameters()
        if p.grad is not None
    }
    assert norms == pytest.approx(expected["grad_norm"], rel=GRAD_NORM)


def test_full_size_small() -> None:
    """ViT-S with 710 classes on 16x224x224, its weights and its clip rebuilt by rule."""
    expected = golden_json("finetune_full_S.json")["S"]
    config, geometry = ClassifierConfig.of_size("small", num_classes=710), ClipGeometry(16, 224, 224, 2, 16)
    model = Classifier(config, geometry, seed=None)
    model.load_state_dict(from_layout(fill(layout_shapes(config)), config))
    assert sum(p.numel() for p in model.parameters()) == expected["n_params"]
    with torch.inference_mode():
        features_BD = model.features(cubes_of(clip_by_rule(2, 1, 3, 16, 224, 224), geometry))
        logits_BC = model.head(features_BD)
    assert_statistics(features_BD, expected["features"])
    assert_statistics(logits_BC, expected["logits"])
    assert logits_BC.topk(5).indices[0].tolist() == expected["top5"]


def test_first_weights_have_the_published_statistics() -> None:
    model = Classifier(ClassifierConfig.of_size("small", num_classes=710), ClipGeometry(16, 224, 224, 2, 16), seed=3)
    weights = {official_name(name, classifier=True): p.detach() for name, p in model.named_parameters()}
    golden = {name: seeds for name, seeds in golden_json("model.json")["init_stats_S"].items() if ":" in name}
    for name, seeds in golden.items():
        weight = weights[name.removeprefix("finetune:")]
        assert float(weight.std()) == pytest.approx(sum(s["std"] for s in seeds) / len(seeds), rel=0.05), name
        assert float(weight.abs().max()) == pytest.approx(seeds[0]["absmax"], rel=0.15), name
    assert (weights["fc_norm.weight"] == 1).all()
    assert not weights["fc_norm.bias"].any()


def test_the_encoder_is_that_of_pre_training(tiny: ModelConfig, geometry: ClipGeometry) -> None:
    """Its keys and shapes, but for the final norm, which a classifier does not have."""
    mae = MaskedAutoencoder(tiny, geometry).encoder
    config = ClassifierConfig(encoder=tiny.encoder, patch=tiny.patch, num_classes=3)
    encoder = Classifier(config, geometry).encoder
    missing, unexpected = encoder.load_state_dict(mae.state_dict(), strict=False)
    assert (missing, unexpected) == ([], ["norm.weight", "norm.bias"])


def test_head_dropout_and_stochastic_depth_act_in_training_alone(tiny: ModelConfig, geometry: ClipGeometry) -> None:
    config = ClassifierConfig(
        encoder=tiny.encoder, patch=tiny.patch, num_classes=5, drop_path=0.5, head_dropout=0.5, head_init_scale=1
    )
    model = Classifier(config, geometry)
    cubes_BNP = torch.randn(2, geometry.num_cubes, geometry.cube_values)
    torch.manual_seed(0)
    assert not torch.equal(model(cubes_BNP), model(cubes_BNP))
    model.eval()
    assert torch.equal(model(cubes_BNP), model(cubes_BNP))
    assert [getattr(block.drop_path, "drop_prob", 0) for block in model.encoder.blocks] == [0, 0.25, 0.5]


def linear_by_hand(values: np.ndarray, size: int, axis: int) -> np.ndarray:
    """Linear interpolation along one axis, cells' middles aligned, ends held: (i + 1/2) / size is (j + 1/2) / old."""
    old = values.shape[axis]
    place = np.clip((np.arange(size) + 0.5) * old / size - 0.5, 0, old - 1)
    low = np.floor(place).astype(int)
    high = np.minimum(low + 1, old - 1)
    shape = [1] * values.ndim
    shape[axis] = size
    share = (place - low).reshape(shape)
    return values.take(low, axis) * (1 - share) + values.take(high, axis) * share


PAPER = ClipGeometry(16, 224, 224, 2, 14), ClipGeometry(64, 266, 266, 2, 14)
"""Of pre-training, and the largest of fine-tuning."""


@pytest.mark.parametrize(
    ("learned", "wanted"),
    [
        PAPER,
        PAPER[::-1],
        (ClipGeometry(8, 32, 48, 2, 16), ClipGeometry(12, 32, 48, 2, 16)),  # frames alone
        (ClipGeometry(8, 32, 48, 2, 16), ClipGeometry(8, 80, 16, 2, 16)),  # more rows, fewer columns
    ],
)
def test_positions_are_interpolated_axis_by_axis(learned: ClipGeometry, wanted: ClipGeometry) -> None:
    """16x224 -> 64x266 is the paper's largest. In float64 by hand, one axis after another."""
    table = sinusoid_table(learned.num_cubes, 16).double().numpy().reshape(*learned.grid, 16)
    for axis, size in enumerate(wanted.grid):
        table = linear_by_hand(table, size, axis)
    found_ND = position_table(wanted, 16, learned)
    np.testing.assert_allclose(found_ND.numpy(), table.reshape(-1, 16), rtol=0, atol=1e-5)
    assert found_ND.is_contiguous()


def test_positions_are_rebuilt_where_nothing_is_interpolated() -> None:
    small, large = PAPER
    assert torch.equal(position_table(large, 64), sinusoid_table(32 * 19 * 19, 64))
    assert torch.equal(position_table(small, 64, small), sinusoid_table(8 * 16 * 16, 64))


def test_every_stage_takes_its_positions_from_the_one_routine(tiny: ModelConfig) -> None:
    """Encoder and decoder of pre-training and the classifier, for a clip of other frames and size than the weights know."""
    learned, wanted = ClipGeometry(8, 32, 32, 2, 8), ClipGeometry(12, 48, 48, 2, 8)
    mae = MaskedAutoencoder(tiny.model_copy(update={"positions_from": (8, 32)}), wanted, seed=0)
    config = ClassifierConfig(encoder=tiny.encoder, patch=8, num_classes=5, positions_from=(8, 32))
    classifier = Classifier(config, wanted, seed=0)
    expected_ND = position_table(wanted, tiny.encoder.width, learned)
    assert torch.equal(mae.encoder.embed.positions_ND, expected_ND)
    assert torch.equal(classifier.encoder.embed.positions_ND, expected_ND)
    assert torch.equal(mae.decoder.positions_NE, position_table(wanted, tiny.decoder.width, learned))
    classifier.load_state_dict(mae.state_dict(), strict=False)  # the next stage at a third size: weights know no clip
    bare = Classifier(config, ClipGeometry(4, 64, 64, 2, 8), seed=0)
    missing, _ = bare.load_state_dict(mae.state_dict(), strict=False)
    assert set(missing) == {"fc_norm.weight", "fc_norm.bias", "head.weight", "head.bias"}


def test_a_clip_of_another_length_and_size_goes_through(tiny: ModelConfig) -> None:
    geometry = ClipGeometry(12, 48, 48, 2, 8)
    for positions_from in (None, (8, 32)):
        config = ClassifierConfig(encoder=tiny.encoder, patch=8, num_classes=5, positions_from=positions_from)
        logits_BC = Classifier(config, geometry)(torch.randn(2, geometry.num_cubes, geometry.cube_values))
        assert logits_BC.shape == (2, 5)
