"""Fine-tuning by two ranks at every ZeRO stage equals plain PyTorch: mixing, layer decay, accumulation, dropout, EMA."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from tests import by_hand
from tests.distributed.finetune_steps import (
    ACCUMULATION,
    NUM_CLASSES,
    NUM_STEPS,
    RANKS,
    make_batch,
    make_config,
    plain_steps,
)
from tests.distributed.zygote import Zygote, run_forked
from vmae2_ds.errors import ConfigError
from vmae2_ds.model.classifier import Classifier
from vmae2_ds.train.ema import check_ema
from vmae2_ds.train.loop import seed_of

POLICIES = ("zero0", "zero1", "zero2", "zero3", "zero3_offload")
ADAPTED = ("zero0 lora", "zero1 lora", "zero2 lora", "zero3 lora parted", "zero1 last", "zero3 last")
"""And what learns, where that is not everything."""
TOLERANCE = 1e-6


@pytest.fixture(scope="module")
def plain() -> Any:
    return plain_steps(make_config())


@pytest.fixture(scope="module")
def folder_and_losses(zygote: Zygote, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, list[float]]]:
    folder = tmp_path_factory.mktemp("steps")
    return folder, run_forked(
        zygote, "tests.distributed.finetune_steps", (*POLICIES, *ADAPTED), folder / "out.json", RANKS
    )


@pytest.mark.slow
@pytest.mark.parametrize("policy", POLICIES)
def test_losses_weights_and_their_mean_are_equal(policy: str, plain: Any, folder_and_losses: Any) -> None:
    folder, losses = folder_and_losses
    expected, last, mean = plain
    assert losses[policy] == pytest.approx(expected, abs=TOLERANCE, rel=0)
    found = torch.load(folder / f"{policy}.pt", weights_only=True)
    for name in last:
        torch.testing.assert_close(found["last"][name], last[name], rtol=0, atol=TOLERANCE, msg=name)
        torch.testing.assert_close(found["mean"][name], mean[name], rtol=0, atol=TOLERANCE, msg=name)


@pytest.mark.slow
@pytest.mark.parametrize("policy", ADAPTED)
def test_so_they_are_where_adapters_or_the_last_blocks_learn(policy: str, folder_and_losses: Any) -> None:
    config = make_config(*policy.split())
    losses_and_weights = plain_steps(config)
    test_losses_weights_and_their_mean_are_equal(policy, losses_and_weights, folder_and_losses)
    _, last, _ = losses_and_weights
    first = Classifier(config.model, config.geometry).state_dict()
    moved = {name for name, x in last.items() if not torch.equal(x, first[name])}
    inside = (".lora.",) if "lora" in policy else (".blocks.1.", ".blocks.2.")
    assert moved == {name for name in first if not name.startswith("encoder.") or any(x in name for x in inside)}


def test_the_reference_moves(plain: Any) -> None:
    """Otherwise equality would prove nothing: weights, and their mean's distance from them, beat the tolerance by far."""
    _, last, mean = plain
    assert max(float((last[name] - mean[name]).abs().max()) for name in last) > 1e-3


def test_the_reference_is_the_paper_s_training_written_out(plain: Any) -> None:
    """Six steps in float64 without our model, groups, schedule or loss: dropout, stochastic depth, mixing, smoothing, layer
    decay, accumulation, clipping, AdamW and EMA.

    Float32 against float64: 1e-6 in the loss. Adam divides by the gradient's own size, so that a weight whose gradient is
    near zero keeps few of its digits: 2e-5, where the first step alone moves every head weight by 3e-3.
    """
    config = make_config()
    first = Classifier(config.model, config.geometry).state_dict()
    weights = {name: tensor.double().requires_grad_() for name, tensor in first.items()}
    assert weights["head.weight"].shape == (NUM_CLASSES, 48)
    shape = by_hand.Shape(depth=3, heads=2, patch=8, drop_path=0.2, head_dropout=0.1)
    scale = {name: by_hand.layer_scale(name, 3, 0.6) for name in weights}
    optimizer = by_hand.AdamW(weights, scale, decay=0.05, betas=(0.9, 0.999), eps=1e-8)
    mean = {name: tensor.detach().clone() for name, tensor in weights.items()}
    losses = []
    for step in range(NUM_STEPS):
        parts = []
        for micro_step in range(ACCUMULATION):
            for rank in range(RANKS):
                batch = make_batch(config, step, micro_step, rank)
                torch.manual_seed(seed_of(0, step, micro_step, rank))
                mixing = (float(batch.keep_pixels), float(batch.keep_label))
                parts.append(by_hand.mixed_loss(batch.clip_BTHWC, batch.label_B, *mixing, 0.1, weights, shape))
        loss = torch.stack(parts).mean()
        found = torch.autograd.grad(loss, list(weights.values()))
        norm = float(sum(gradient.square().sum() for gradient in found)) ** 0.5
        gradients = {name: x / max(1.0, norm) for name, x in zip(weights, found, strict=True)}
        # one step an epoch: one of warm-up, which is the 0 of its line
        optimizer.step(gradients, by_hand.published_rate(step, 3e-3, 1e-6, 1, NUM_STEPS))
        mean = {name: 0.7 * mean[name] + 0.3 * tensor.detach() for name, tensor in weights.items()}
        losses.append(loss.item())
    expected, last, averaged = plain
    assert expected == pytest.approx(losses, abs=1e-6, rel=0)
    assert last.keys() == weights.keys()
    for name, tensor in weights.items():
        torch.testing.assert_close(last[name].double(), tensor.detach(), rtol=0, atol=2e-5, msg=name)
        torch.testing.assert_close(averaged[name].double(), mean[name], rtol=0, atol=2e-5, msg=name)


def test_a_mean_of_weights_on_disk_is_refused() -> None:
    with pytest.raises(ConfigError, match="nvme"):
        check_ema({"zero_optimization": {"stage": 3, "offload_optimizer": {"device": "nvme"}}})
