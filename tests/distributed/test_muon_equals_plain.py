"""Muon beside AdamW on 2 ranks equals torch's two optimizers on one process; a run that was cut is one that was not.

torch's Newton-Schulz takes its products in bfloat16, so a gradient that differs in the last digit of float32 (sums over ranks
and micro steps run in another order) may move a weight by a step of bfloat16, 2^-8 of what it moves. Compared with these
products in float32, in both, whole steps agree to 3e-6; as they are, to what torch's own gives for gradients so far apart.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.distributed.muon_steps import CUT, EMA_DECAY, NUM_STEPS, muon_config, newton_schulz_in_float32
from tests.distributed.steps import GLOBAL_BATCH, NUM_VIDEOS, make_clips
from tests.distributed.zygote import Zygote, run_forked
from vmae2_ds.config.run_plan import plan_run
from vmae2_ds.model.mae import MaskedAutoencoder
from vmae2_ds.objectives import Reconstruct
from vmae2_ds.train.optim import learning_rate

pytestmark = [pytest.mark.slow, pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="torch has no Muon")]
FP32_TOLERANCE = 3e-6  # matrix products add up in another order on each kind of CPU: 2e-7 on one, 1.15e-6 on another
BF16_TOLERANCE = 2e-3  # bf16 gradients are rounded once per micro step and rank, so another split rounds elsewhere
MATRICES = [
    f"model.{tower}.blocks.{block}.{name}.weight"
    for tower, depth in (("encoder", 3), ("decoder", 2))
    for block in range(depth)
    for name in ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")
]
Steps = tuple[list[float], dict[str, Tensor]]


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """As the ranks have: two threads add up in another order, which moves a weight by 1e-6 in these steps."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("muon")


@pytest.fixture(scope="module")
def found(zygote: Zygote, folder: Path) -> dict[str, Any]:
    def part(name: str, policy: str, **more: Any) -> dict[str, Any]:
        files = {"weights": str(folder / f"{name}.pt"), "states": str(folder / f"states of {name}.pt")}
        return {"name": name, "policy": policy, **files, **more}

    low = {"changes": {"train": {"precision": "bf16"}, "optim": {"layer_decay": 0.5}}}
    two = [
        part("zero1", "zero1"),
        part("zero2", "zero2"),
        part("zero1 exact", "zero1", exact=True, save=str(folder / "run")),
        part("zero2 exact", "zero2", exact=True),
        part("resumed", "zero1", exact=True, load=str(folder / "run")),
        part("bf16", "zero2", save=str(folder / "low"), **low),
    ]
    one = [
        part("on one rank", "zero2", exact=True, load=str(folder / "run")),
        part("on one rank, bf16", "zero1", load=str(folder / "low"), **low),
    ]
    results = run_forked(zygote, "tests.distributed.muon_steps", two, folder / "two.json", 2)
    return results | run_forked(zygote, "tests.distributed.muon_steps", one, folder / "one.json", 1)


def plain_steps(*, noise: float = 0, exact: bool = False) -> Steps:
    """The whole batch at once: torch's Muon on every matrix of the blocks, q, k and v apart, torch's AdamW on the rest.

    `noise`: what gradients are changed by, of their own size.
    """
    config = muon_config(1, "zero1")
    plan = plan_run(config, NUM_VIDEOS, 1)
    model = MaskedAutoencoder(config.model, config.geometry, seed=config.train.seed)
    objective = Reconstruct(model, config.objective, config.geometry)
    parameters = dict(objective.named_parameters())
    matrices, others, vectors, pieces = [], [], [], []
    for name, parameter in parameters.items():
        if ".blocks." in name and parameter.ndim == 2:
            parts = parameter.detach().clone().chunk(3 if "qkv" in name else 1)
            mine = [torch.nn.Parameter(part.clone()) for part in parts]
            matrices += mine
            pieces.append((parameter, mine))
        elif parameter.ndim == 1 or name.endswith("mask_token"):
            vectors.append(parameter)
        else:
            others.append(parameter)
    decay = config.optim.weight_decay
    muon = torch.optim.Muon(matrices, lr=0.0, weight_decay=decay, momentum=0.95, adjust_lr_fn="match_rms_adamw")
    adamw = torch.optim.AdamW(
        [{"params": others, "weight_decay": decay}, {"params": vectors, "weight_decay": 0.0}],
        betas=config.optim.betas,
        eps=config.optim.eps,
    )
    generator = torch.Generator().manual_seed(0)
    mean = {name: parameter.detach().clone() for name, parameter in parameters.items()}
    losses = []
    for step in range(NUM_STEPS):
        objective.zero_grad()
        loss = objective(make_clips(config, step, 0, GLOBAL_BATCH)).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters.values(), config.optim.clip_grad)
        for parameter in parameters.values():
            assert parameter.grad is not None
            parameter.grad *= 1 + noise * torch.randn(parameter.shape, generator=generator)
        for parameter, mine in pieces:
            assert parameter.grad is not None
            for piece, grad in zip(mine, parameter.grad.chunk(len(mine)), strict=True):
                piece.grad = grad.clone()
        for optimizer in (muon, adamw):
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(step + 1, plan)
        adamw.step()
        with newton_schulz_in_float32() if exact else contextlib.nullcontext():
            muon.step()
        with torch.no_grad():
            for parameter, mine in pieces:
                parameter.copy_(torch.cat([piece.detach() for piece in mine]))
            for name, parameter in parameters.items():
                mean[name].lerp_(parameter, 1 - EMA_DECAY)
        losses.append(loss.item())
    averaged = {f"mean of {name.removeprefix('model.')}": value for name, value in mean.items()}
    return losses, {**{name: parameter.detach() for name, parameter in parameters.items()}, **averaged}


def apart(one: dict[str, Tensor], other: dict[str, Tensor]) -> float:
    """The largest difference of two models' weights, and of their running means."""
    assert one.keys() == other.keys()
    return max(float((one[name] - other[name]).abs().max()) for name in one)


def weights_of(folder: Path, name: str) -> dict[str, Tensor]:
    return torch.load(folder / f"{name}.pt", weights_only=True)


@pytest.mark.parametrize("name", ["zero1 exact", "zero2 exact"])
def test_two_ranks_equal_torchs_optimizers_on_one_process(name: str, found: Any, folder: Path) -> None:
    """To 3e-6 in float32: with accumulation, clipping, a running mean, and an update that was refused and left momentum be."""
    losses, weights = plain_steps(exact=True)
    assert found[name]["losses"] == pytest.approx(losses, abs=1e-6)
    assert apart(weights_of(folder, name), weights) < FP32_TOLERANCE


@pytest.mark.parametrize("name", ["zero1", "zero2"])
def test_in_bfloat16_they_differ_as_torchs_own_does_of_gradients_1e7_apart(name: str, found: Any, folder: Path) -> None:
    losses, weights = plain_steps()
    _, moved = plain_steps(noise=1e-7)
    assert found[name]["losses"] == pytest.approx(losses, abs=1e-6)
    assert apart(weights_of(folder, name), weights) < 2 * apart(moved, weights)


def test_a_resumed_run_has_the_bits_of_one_that_was_not_cut(found: Any, folder: Path) -> None:
    assert found["resumed"]["losses"] == found["zero1 exact"]["losses"][CUT:]
    assert apart(weights_of(folder, "resumed"), weights_of(folder, "zero1 exact")) == 0


@pytest.mark.parametrize(
    ("name", "of", "tolerance"),
    [("on one rank", "zero1 exact", FP32_TOLERANCE), ("on one rank, bf16", "bf16", BF16_TOLERANCE)],
)
def test_another_number_of_ranks_takes_every_state_over_bit_for_bit(
    name: str, of: str, tolerance: float, found: Any, folder: Path
) -> None:
    """Muon has one moment for the blocks' matrices, AdamW two for all else; each group of each layer its counter of steps."""
    states, written = weights_of(folder, f"states of {name}"), weights_of(folder, f"states of {of}")
    assert states.keys() == written.keys()
    assert all(torch.equal(states[one], written[one]) for one in written)
    with_momentum = {one.split()[0] for one in states if one.endswith("momentum_buffer")}
    assert with_momentum == {one for one in MATRICES if one + " fp32" in states} == set(MATRICES)
    assert not any(one.endswith("exp_avg") and one.split()[0] in with_momentum for one in states)
    assert found[name]["losses"] == pytest.approx(found[of]["losses"][CUT:], abs=tolerance)
