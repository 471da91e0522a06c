"""The classifier, testing and training, against the paper written out in float64 and against timm's block."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from timm.models.vision_transformer import Block as TimmBlock
from torch import nn

from tests import by_hand
from vmae2_ds.config.model import ClassifierConfig, TowerConfig
from vmae2_ds.contracts import ClipGeometry
from vmae2_ds.model.block import Block, Blocks
from vmae2_ds.model.classifier import Classifier
from vmae2_ds.model.embed import every_cube
from vmae2_ds.objectives import Classify

TOWER = TowerConfig(width=24, depth=4, heads=3, mlp=40)
GEOMETRY = ClipGeometry(4, 16, 16, 2, 8)


def random_weights(model: nn.Module) -> None:
    """All of them, norms and biases too, so that one that is left out shows."""
    rng = torch.Generator().manual_seed(5)
    for name, parameter in model.named_parameters():
        middle = 1.0 if "norm" in name and name.endswith("weight") else 0.0
        parameter.data = middle + 0.3 * torch.randn(parameter.shape, generator=rng, dtype=parameter.dtype)


def classify(**config: object) -> Classify:
    model = Classifier(ClassifierConfig(encoder=TOWER, patch=8, num_classes=7, **config), GEOMETRY)
    objective = Classify(model, 0.0, GEOMETRY).double()
    random_weights(objective)
    return objective


@pytest.fixture
def clips() -> torch.Tensor:
    return torch.randint(0, 256, (6, 4, 16, 16, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize(("drop_path", "head_dropout"), [(0.0, 0.0), (0.6, 0.0), (0.0, 0.6), (0.9, 0.9)])
def test_logits_are_the_paper_s_written_out(
    clips: torch.Tensor, drop_path: float, head_dropout: float, training: bool
) -> None:
    """Both in float64: what differs is the order of sums."""
    objective = classify(drop_path=drop_path, head_dropout=head_dropout, attention="math").train(training)
    weights = {name.removeprefix("model."): p.detach() for name, p in objective.named_parameters()}
    shape = by_hand.Shape(depth=4, heads=3, patch=8, drop_path=drop_path, head_dropout=head_dropout)
    pixels = by_hand.normalised(clips)
    for seed in range(3):
        torch.manual_seed(seed)
        expected_BC = by_hand.logits(pixels, weights, shape, training=training)
        torch.manual_seed(seed)
        found_BC = objective.model(every_cube(pixels, GEOMETRY))
        torch.testing.assert_close(found_BC, expected_BC, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(objective.cubes(clips), every_cube(pixels, GEOMETRY).float(), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("rate", [0.0, 0.4])
@pytest.mark.parametrize("training", [False, True])
def test_a_block_is_timm_s(rate: float, training: bool) -> None:
    """Attention and MLP each dropped on its own, sample by sample, and scaled by 1 / (1 - rate)."""
    block = Block(TOWER, rate).double().train(training)
    random_weights(block)
    norm: Any = partial(nn.LayerNorm, eps=1e-6)
    theirs = TimmBlock(24, 3, mlp_ratio=40 / 24, qkv_bias=True, drop_path=rate, norm_layer=norm).double()
    ours = dict(block.state_dict())
    q_bias, v_bias = ours.pop("attn.qkv.q_bias"), ours.pop("attn.qkv.v_bias")
    theirs.load_state_dict({**ours, "attn.qkv.bias": torch.cat([q_bias, torch.zeros_like(q_bias), v_bias])})
    theirs.train(training)
    x_BND = torch.randn(16, 5, 24, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    torch.manual_seed(2)
    expected_BND = theirs(x_BND)
    torch.manual_seed(2)
    found_BND = block(x_BND)
    torch.testing.assert_close(found_BND, expected_BND, rtol=1e-10, atol=1e-10)
    untouched = int((found_BND == x_BND).all(dim=-1).all(dim=-1).sum())
    assert (untouched > 0) == (training and rate > 0), "a sample whose two branches are both dropped stays as it is"


@pytest.mark.parametrize(
    ("depth", "rate", "rates"),
    [(1, 0.3, [0]), (2, 0.3, [0, 0.3]), (5, 0.2, [0, 0.05, 0.1, 0.15, 0.2]), (3, 0.0, [0, 0, 0])],
)
def test_stochastic_depth_rises_linearly_to_its_rate_at_the_last_block(
    depth: int, rate: float, rates: list[float]
) -> None:
    """Published: torch.linspace(0, rate, depth)."""
    blocks = Blocks(TOWER.model_copy(update={"depth": depth}), rate)
    assert [getattr(block.drop_path, "drop_prob", 0) for block in blocks] == pytest.approx(rates)


@pytest.mark.parametrize("checkpointing", ["every_k", "all"])
def test_what_is_computed_again_draws_the_same_again(clips: torch.Tensor, checkpointing: str) -> None:
    """With a block's own draws in the backward pass its gradients would be those of another network."""
    gradients = []
    for setting in ("none", checkpointing):
        objective = classify(drop_path=0.8, head_dropout=0.5, attention="math", checkpointing=setting).train()
        torch.manual_seed(3)
        objective.model(objective.cubes(clips)).square().sum().backward()
        gradients.append([p.grad for p in objective.parameters()])
    torch.testing.assert_close(gradients[1], gradients[0], rtol=1e-10, atol=1e-10)
