"""The step in the published style is the published mathematics, by its golden outputs, and the work that its rows say."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.published import PublishedBatch, PublishedBench, PublishedStyle, labels_of, loss_of
from benchmarks.steps import MASKS, geometry_of, make_batch, step_flops
from tests.golden_data import GOLDEN, TINY_EVERY, clip_by_rule, fill, golden_json
from tests.model.test_golden import GRAD_NORM, LOSS, OUTPUT
from vmae2_ds.config.model import ModelConfig, TowerConfig
from vmae2_ds.config.pretrain import ObjectiveConfig
from vmae2_ds.contracts import ClipGeometry
from vmae2_ds.model.mae import MaskedAutoencoder
from vmae2_ds.objectives import Reconstruct
from vmae2_ds.weights.layouts import from_layout, layout_shapes

CPU = torch.device("cpu")
Tiny = tuple[PublishedStyle, PublishedBatch, ClipGeometry, dict[str, Tensor], dict[str, Any]]


@pytest.fixture(params=["encoder_only", "dual"])
def tiny(
    request: pytest.FixtureRequest,
) -> Tiny:
    """Model, batch and clip of the golden set, with its tensors and numbers of one masking."""
    tensors, numbers = load_file(GOLDEN / "pretrain_tiny_p16.safetensors"), golden_json("pretrain_tiny_p16.json")
    geometry = ClipGeometry(8, 64, 64, 2, 16)
    towers = {"encoder": (96, 384), "decoder": (48, 192)}
    config = ModelConfig(**{  # type: ignore[arg-type]
        name: TowerConfig(width=width, depth=2, heads=3, mlp=mlp) for name, (width, mlp) in towers.items()
    })  # fmt: skip
    model = PublishedStyle(config, geometry)
    model.load_state_dict(fill(layout_shapes(config)))
    hidden_BN = tensors["enc_mask"]
    left_out_BN = tensors["dec_mask"] if request.param == "dual" else ~hidden_BN
    batch = PublishedBatch(clip_by_rule(1, 2, 3, 8, 64, 64), hidden_BN, left_out_BN)
    tensors = {"prediction": tensors[request.param], "targets": tensors["targets"][~left_out_BN]}
    return model, batch, geometry, tensors, numbers[request.param]


def test_prediction_labels_loss_and_gradients_are_the_published_ones(tiny: Tiny) -> None:
    model, batch, geometry, tensors, numbers = tiny
    torch.testing.assert_close(model(batch)[..., ::TINY_EVERY], tensors["prediction"], **OUTPUT)
    labels_BMP, _ = labels_of(batch, geometry)
    torch.testing.assert_close(labels_BMP[..., ::TINY_EVERY].flatten(0, 1), tensors["targets"], **OUTPUT)
    loss = loss_of(model, batch, geometry)
    assert loss.item() == pytest.approx(numbers["loss"], abs=LOSS)
    loss.backward()
    norms = {name: float(parameter.grad.norm()) for name, parameter in model.named_parameters()}
    assert norms == pytest.approx(numbers["grad_norm"], rel=GRAD_NORM)


def test_it_starts_from_the_weights_and_clips_that_ours_have() -> None:
    """One loss for both at the sizes that are timed."""
    bench, geometry = PublishedBench("tiny", CPU), geometry_of("tiny")
    batch, config = make_batch(MASKS["dual"], geometry, 1), ModelConfig.of_size("tiny", attention="math")
    ours = MaskedAutoencoder(config, geometry, seed=None)
    ours.load_state_dict(from_layout(bench.model.state_dict(), config))
    with torch.no_grad():
        theirs = loss_of(bench.model, PublishedBatch.of(batch, geometry), geometry)
        assert theirs.item() == pytest.approx(
            Reconstruct(ours, ObjectiveConfig(), geometry)(batch).loss.item(), abs=LOSS
        )


def test_a_step_trains_and_does_the_work_of_embedding_every_cube() -> None:
    bench = PublishedBench("tiny", CPU)
    before = bench.model.encoder_to_decoder.weight.detach().clone()
    predicted: list[torch.dtype] = []
    bench.model.register_forward_hook(lambda _, inputs, out: predicted.append(out.dtype))
    bench.step(MASKS["dual"], 1, "fp32")()
    step = bench.step(MASKS["dual"], 1, "autocast")
    with FlopCounterMode(display=False) as counter:
        step()
    geometry = geometry_of("tiny")
    # the closed form charges a gradient of the pixels, which nobody asks for
    unasked = 2 * geometry.num_cubes * geometry.cube_values * 192
    assert counter.get_total_flops() == step_flops("tiny", MASKS["dual"], 1, embed_all=True) - unasked
    assert predicted == [torch.float32, torch.bfloat16]
    assert not torch.equal(before, bench.model.encoder_to_decoder.weight)
    assert all(parameter.dtype == parameter.grad.dtype == torch.float32 for parameter in bench.model.parameters())
