"""The reconstruction loss against its definition written out cube by cube."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.model.conftest import TINY, TINY_GEOMETRY, make_batch
from vmae2_ds.config.pretrain import MaskConfig, ObjectiveConfig, Target
from vmae2_ds.contracts import PretrainBatch
from vmae2_ds.model.embed import gather_cubes
from vmae2_ds.model.mae import MaskedAutoencoder
from vmae2_ds.objectives import Reconstruct, normalise_cubes, reconstruction_loss

MASKS = {
    "encoder only": MaskConfig(encoder_ratio=0.75, decoder="none"),
    "dual": MaskConfig(encoder_ratio=0.75),
    "disjoint": MaskConfig(encoder_ratio=0.75, decoder_tokens="disjoint"),
    "varying count": MaskConfig(encoder_ratio=0.75, decoder="random"),
}


def objective_for(target: str = "normalised", context_weight: float = 0.0) -> Reconstruct:
    config = ObjectiveConfig.model_validate({"target": target, "context_weight": context_weight})
    return Reconstruct(MaskedAutoencoder(TINY, TINY_GEOMETRY), config, TINY_GEOMETRY)


def cube_at(batch: PretrainBatch, clip: int, index: int) -> Tensor:
    """Pixels of one cube in [0, 1], (t, h, w, c)."""
    (_, rows, columns), g = TINY_GEOMETRY.grid, TINY_GEOMETRY
    t, rest = divmod(index, rows * columns)
    h, w = divmod(rest, columns)
    frames = batch.clip_BTHWC[clip, t * g.tubelet : (t + 1) * g.tubelet]
    return frames[:, h * g.patch : (h + 1) * g.patch, w * g.patch : (w + 1) * g.patch] / 255


@pytest.mark.parametrize("target", ["normalised", "pixels"])
@pytest.mark.parametrize("masks", sorted(MASKS))
def test_loss_is_its_definition(masks: str, target: str) -> None:
    batch, objective = make_batch(MASKS[masks], TINY_GEOMETRY), objective_for(target)
    with torch.no_grad():
        pred_BMP, target_BMP = objective.predict(batch)
        loss, num_supervised, _ = objective(batch)
    total, count = 0.0, 0
    for clip in range(2):
        seen = set(batch.visible_BV[clip].tolist())
        for place, index in enumerate(batch.decode_BM[clip].tolist()):
            cube = cube_at(batch, clip, index)
            if target == "normalised":
                cube = (cube - cube.mean((0, 1, 2))) / (cube.flatten(0, 2).std(0, unbiased=True) + 1e-6)
            torch.testing.assert_close(target_BMP[clip, place], cube.flatten(), rtol=1e-4, atol=1e-5)
            if index not in seen:
                total += float((pred_BMP[clip, place] - cube.flatten()).square().mean())
                count += 1
    assert num_supervised == count
    assert loss.item() == pytest.approx(total / count, abs=1e-5)


def test_bytes_and_unit_floats_are_the_same_clip() -> None:
    batch, objective = make_batch(MASKS["dual"], TINY_GEOMETRY), objective_for()
    as_floats = batch._replace(clip_BTHWC=batch.clip_BTHWC / 255)
    torch.testing.assert_close(objective(as_floats).loss, objective(batch).loss, rtol=1e-6, atol=0)


def test_cubes_that_the_encoder_saw_get_no_gradient_through_the_loss() -> None:
    batch, objective = make_batch(MASKS["dual"], TINY_GEOMETRY), objective_for()
    predictions: list[Tensor] = []

    def keep(_module: object, _inputs: object, pred_BMP: Tensor) -> None:
        pred_BMP.retain_grad()
        predictions.append(pred_BMP)

    objective.model.register_forward_hook(keep)
    objective(batch).loss.backward()
    assert predictions[0].grad is not None
    has_gradient_BM = predictions[0].grad.abs().amax(dim=-1) > 0
    assert torch.equal(has_gradient_BM, batch.is_supervised_BM)


@pytest.mark.parametrize("target", ["normalised", "pixels"])
@pytest.mark.parametrize("masks", sorted(MASKS))
def test_the_flat_loss_is_that_of_each_cube_s_own_mean_colours(masks: str, target: str) -> None:
    """In numpy's float64, over the cubes that are supervised alone; some are of one colour, some faint."""
    batch, objective = make_batch(MASKS[masks], TINY_GEOMETRY), objective_for(target)
    clip_BTHWC = batch.clip_BTHWC.clone()
    clip_BTHWC[:, 2:4] = 77
    clip_BTHWC[:, 4:6] = clip_BTHWC[:, 4:6] // 32 + 100
    batch = batch._replace(clip_BTHWC=clip_BTHWC)
    errors = []
    for clip in range(2):
        for index, is_supervised in zip(batch.decode_BM[clip].tolist(), batch.is_supervised_BM[clip], strict=True):
            if not is_supervised:
                continue
            pixels = cube_at(batch, clip, index).numpy().astype(np.float64).reshape(-1, 3)
            if target == "normalised":  # then the mean colours are zeros
                pixels = (pixels - pixels.mean(axis=0)) / (pixels.std(axis=0, ddof=1) + 1e-6)
            errors.append(((pixels - pixels.mean(axis=0)) ** 2).mean())
    found = float(objective(batch).flat_loss)
    assert found == pytest.approx(np.mean(errors), rel=1e-5)
    if target == "normalised":  # 127 of 128 in each cube that is not of one colour
        assert found == pytest.approx(127 / 128 * np.mean(np.array(errors) > 0), rel=1e-3)


@pytest.mark.parametrize("target", ["normalised", "pixels"])
def test_a_model_that_says_the_mean_colours_has_the_flat_loss(target: str, monkeypatch: pytest.MonkeyPatch) -> None:
    batch, objective = make_batch(MASKS["dual"], TINY_GEOMETRY), objective_for(target)
    colour_BMC = objective.target(batch).unflatten(-1, (-1, 3)).mean(dim=-2)
    colours_BMP = colour_BMC.repeat(1, 1, TINY_GEOMETRY.cube_values // 3)
    monkeypatch.setattr(objective.model, "forward", lambda *_: colours_BMP)
    out = objective(batch)
    assert float(out.loss) == pytest.approx(float(out.flat_loss), rel=1e-5)


@pytest.mark.parametrize("value", [0.5, 77, 255])
def test_a_flat_cube_has_target_zero(value: float) -> None:
    dtype = torch.uint8 if value > 1 else torch.float32
    flat = torch.full((1, 2, TINY_GEOMETRY.cube_values), value, dtype=dtype)
    assert torch.equal(normalise_cubes(flat, TINY_GEOMETRY), torch.zeros_like(flat, dtype=torch.float32))
    assert (flat == value).all()


class Exact(NamedTuple):
    loss: float
    flat_loss: float
    gradient_BMP: Tensor


def in_float64(pred_BMP: Tensor, batch: PretrainBatch, target: str, context_weight: float = 0.0) -> Exact:
    """The definition in torch's words and float64, with autograd's gradient."""
    cubes_BMP = gather_cubes(batch.clip_BTHWC, batch.decode_BM, TINY_GEOMETRY)
    pixels_BMKC = cubes_BMP.double().div(255 if cubes_BMP.dtype == torch.uint8 else 1).unflatten(-1, (-1, 3))
    mean_BM1C = pixels_BMKC.mean(dim=2, keepdim=True)
    if target == "normalised":
        pixels_BMKC = (pixels_BMKC - mean_BM1C) / (pixels_BMKC.std(dim=2, keepdim=True) + 1e-6)
        mean_BM1C = torch.zeros_like(mean_BM1C)
    pred = pred_BMP.detach().double().requires_grad_()
    part_BM = batch.is_supervised_BM.double() + context_weight * (~batch.is_supervised_BM).double()

    def mean(error_BM: Tensor) -> Tensor:
        return (error_BM * part_BM).sum() / part_BM.sum()

    loss = mean((pred - pixels_BMKC.flatten(2)).square().mean(dim=-1))
    loss.backward()
    assert pred.grad is not None
    flat_loss = mean((pixels_BMKC - mean_BM1C).square().mean(dim=(2, 3)))
    return Exact(float(loss.detach()), float(flat_loss), pred.grad)


def odd_clips(batch: PretrainBatch) -> PretrainBatch:
    """Some cubes are of one colour, some faint and bright, one has a single pixel that is not like the others."""
    clip_BTHWC = batch.clip_BTHWC.clone()
    clip_BTHWC[:, 2:4] = 77
    clip_BTHWC[:, 4:6] = clip_BTHWC[:, 4:6] // 128 + 254
    clip_BTHWC[:, 4:6, :8] = 250
    clip_BTHWC[:, 4, 0, ::8] = 251
    return batch._replace(clip_BTHWC=clip_BTHWC)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("pixels", ["bytes", "floats"])
@pytest.mark.parametrize("target", ["normalised", "pixels"])
def test_loss_and_gradient_are_those_of_float64(target: Target, pixels: str, dtype: torch.dtype) -> None:
    batch = odd_clips(make_batch(MASKS["dual"], TINY_GEOMETRY))
    if pixels == "floats":  # in steps that float32 holds exactly, or a flat cube is not flat to it
        batch = batch._replace(clip_BTHWC=batch.clip_BTHWC.float() / 256)
    shape = (*batch.decode_BM.shape, TINY_GEOMETRY.cube_values)
    pred_BMP = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(dtype).requires_grad_()
    before = batch.clip_BTHWC.clone()
    out = reconstruction_loss(pred_BMP, batch, TINY_GEOMETRY, target)
    (3 * out.loss).backward()  # as a loss scale or accumulation has it
    expected = in_float64(pred_BMP, batch, target)
    assert out.loss.item() == pytest.approx(expected.loss, rel=1e-6)
    assert out.flat_loss.item() == pytest.approx(expected.flat_loss, rel=1e-6)
    assert not out.flat_loss.requires_grad
    assert pred_BMP.grad is not None
    assert pred_BMP.grad.dtype == dtype
    largest = float(expected.gradient_BMP.abs().max())
    rounding = 2.0**-8 if dtype == torch.bfloat16 else 2e-6
    torch.testing.assert_close(pred_BMP.grad.double() / 3, expected.gradient_BMP, rtol=rounding, atol=2e-6 * largest)
    assert torch.equal(batch.clip_BTHWC, before)  # what is written over is a copy


@pytest.mark.parametrize("weight", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("masks", ["dual", "varying count"])
def test_cubes_that_both_see_count_as_their_weight_in_float64(masks: str, weight: float) -> None:
    """At 1: the plain mean over all that the decoder gives."""
    batch = odd_clips(make_batch(MASKS[masks], TINY_GEOMETRY))
    assert not batch.is_supervised_BM.all()
    shape = (*batch.decode_BM.shape, TINY_GEOMETRY.cube_values)
    pred_BMP = torch.randn(shape, generator=torch.Generator().manual_seed(0)).requires_grad_()
    out = reconstruction_loss(pred_BMP, batch, TINY_GEOMETRY, "normalised", weight)
    out.loss.backward()
    expected = in_float64(pred_BMP, batch, "normalised", weight)
    assert out.loss.item() == pytest.approx(expected.loss, rel=1e-6)
    assert out.flat_loss.item() == pytest.approx(expected.flat_loss, rel=1e-6)
    assert pred_BMP.grad is not None
    largest = float(expected.gradient_BMP.abs().max())
    torch.testing.assert_close(pred_BMP.grad.double(), expected.gradient_BMP, rtol=2e-6, atol=2e-6 * largest)
    if weight == 1:
        error = pred_BMP.detach() - objective_for().target(batch)
        assert out.loss.item() == pytest.approx(float(error.double().square().mean()), rel=1e-5)


@pytest.mark.parametrize("target", ["normalised", "pixels"])
def test_a_prediction_without_an_error_has_a_gradient_of_zero(target: Target) -> None:
    """Where a norm has none of its own: 0 / 0."""
    batch = odd_clips(make_batch(MASKS["dual"], TINY_GEOMETRY))
    pred_BMP = torch.zeros(*batch.decode_BM.shape, TINY_GEOMETRY.cube_values)
    if target == "pixels":
        batch = batch._replace(clip_BTHWC=torch.zeros_like(batch.clip_BTHWC))
    else:
        pred_BMP = objective_for(target).target(batch)
    pred_BMP.requires_grad_()
    loss = reconstruction_loss(pred_BMP, batch, TINY_GEOMETRY, target).loss
    loss.backward()
    assert loss.item() == 0
    assert pred_BMP.grad is not None
    assert torch.equal(pred_BMP.grad, torch.zeros_like(pred_BMP))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_one_tensor_as_wide_as_the_prediction_is_kept_for_its_gradient(dtype: torch.dtype) -> None:
    batch = make_batch(MASKS["dual"], TINY_GEOMETRY)
    pred_BMP = torch.randn(*batch.decode_BM.shape, TINY_GEOMETRY.cube_values, dtype=dtype).requires_grad_()
    saved: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: saved.append(x) or x, lambda x: x):  # type: ignore[func-returns-value]
        reconstruction_loss(pred_BMP, batch, TINY_GEOMETRY, "normalised")
    assert [x.dtype for x in saved if x.numel() >= pred_BMP.numel()] == [torch.float32]


@pytest.mark.parametrize(("target", "weight"), [("normalised", 0.0), ("pixels", 0.3)])
def test_compiled_by_itself_it_is_the_same_loss(target: Target, weight: float) -> None:
    """As traced; what a C++ compiler makes of it is in engine/test_compiled.py."""
    batch, objective = odd_clips(make_batch(MASKS["dual"], TINY_GEOMETRY)), objective_for(target, weight)
    gradients = []
    for function in (reconstruction_loss, torch.compile(reconstruction_loss, backend="aot_eager", fullgraph=True)):
        objective.loss_function = function
        objective.zero_grad()
        out = objective(batch)
        out.loss.backward()
        gradients.append([*(x.detach() for x in out), *(p.grad for p in objective.parameters())])
    torch.testing.assert_close(*gradients, rtol=1e-5, atol=1e-7)


def test_a_micro_batch_with_nothing_to_predict_has_loss_zero_and_finite_gradients() -> None:
    batch = make_batch(MASKS["dual"], TINY_GEOMETRY)
    objective = objective_for()
    loss, num_supervised, _ = objective(batch._replace(is_supervised_BM=torch.zeros_like(batch.is_supervised_BM)))
    loss.backward()
    assert (loss.item(), num_supervised.item()) == (0.0, 0)
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in objective.parameters())


def test_it_learns_one_batch_by_heart() -> None:
    batch, objective = make_batch(MASKS["dual"], TINY_GEOMETRY, num_clips=1), objective_for("pixels")
    optimizer = torch.optim.AdamW(objective.parameters(), lr=3e-3, weight_decay=0)
    losses = []
    for _ in range(60):
        loss = objective(batch).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.5 * losses[0]
