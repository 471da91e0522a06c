"""The masked autoencoder: first weights, recomputation, precision, and what compilers and fake tensors ask of it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from tests.golden_data import golden_json
from tests.official_names import official_name
from vmae2_ds.config.model import ModelConfig
from vmae2_ds.config.pretrain import ObjectiveConfig
from vmae2_ds.contracts import ClipGeometry, PretrainBatch
from vmae2_ds.errors import ConfigError
from vmae2_ds.model.mae import MaskedAutoencoder
from vmae2_ds.objectives import Reconstruct

Gradients = dict[str, Tensor]


def changed(config: ModelConfig, **changes: Any) -> ModelConfig:
    return ModelConfig.model_validate(config.model_dump() | changes)


def loss_and_gradients(model: MaskedAutoencoder, batch: PretrainBatch) -> tuple[float, Gradients]:
    loss = Reconstruct(model, ObjectiveConfig(), model.geometry)(batch).loss
    loss.backward()
    return loss.item(), {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


# First weights


def test_first_weights_have_the_published_statistics() -> None:
    """Standard deviations within 5 %, twice the spread of the three published seeds' widest tensor; maxima below bounds."""
    model = MaskedAutoencoder(ModelConfig.of_size("small"), ClipGeometry(16, 224, 224, 2, 16), seed=3)
    weights = {official_name(name): p.detach() for name, p in model.named_parameters()}
    for name, seeds in golden_json("model.json")["init_stats_S"].items():
        if name.startswith("finetune:"):
            continue
        std = sum(s["std"] for s in seeds) / len(seeds)
        assert float(weights[name].std()) == pytest.approx(std, rel=0.05 if weights[name].numel() > 500 else 0.2), name
        assert float(weights[name].abs().max()) == pytest.approx(seeds[0]["absmax"], rel=0.05), name
    for name, weight in weights.items():
        if "norm" in name:
            assert (weight == (1 if name.endswith("weight") else 0)).all(), name
        elif name.endswith("bias") and "patch_embed" not in name:
            assert (weight == 0).all(), name


def test_first_weights_depend_on_seed_and_name_alone(tiny: ModelConfig, geometry: ClipGeometry) -> None:
    model = MaskedAutoencoder(tiny, geometry, seed=1)
    later = MaskedAutoencoder(tiny, geometry, seed=None)
    for name, parameter in reversed(list(later.named_parameters())):  # another order, and from another global seed
        torch.manual_seed(7)
        later.init_parameter(name, parameter, seed=1)
    for (name, a), b, other in zip(
        model.named_parameters(),
        later.parameters(),
        MaskedAutoencoder(tiny, geometry, seed=2).parameters(),
        strict=True,
    ):
        assert torch.equal(a, b), name
        assert torch.equal(a, other) == ("norm" in name or ("bias" in name and "embed" not in name)), name


def test_building_leaves_the_global_generator_alone(tiny: ModelConfig, geometry: ClipGeometry) -> None:
    before = torch.get_rng_state()
    MaskedAutoencoder(tiny, geometry, seed=1)
    assert torch.equal(torch.get_rng_state(), before)


# Recomputation and stochastic depth


@pytest.mark.parametrize(
    ("mode", "encoder", "decoder"),
    [("decoder", [], [0, 1, 2]), ("every_k", [0, 2], [0, 2]), ("all", [0, 1, 2], [0, 1, 2])],
)
def test_recomputing_changes_no_gradient(
    tiny: ModelConfig, geometry: ClipGeometry, batch: PretrainBatch, mode: str, encoder: list[int], decoder: list[int]
) -> None:
    plain = loss_and_gradients(MaskedAutoencoder(tiny, geometry), batch)
    model = MaskedAutoencoder(changed(tiny, checkpointing=mode, checkpoint_every=2), geometry)
    calls = {id(block): 0 for block in [*model.encoder.blocks, *model.decoder.blocks]}

    def count(block: torch.nn.Module, _inputs: object) -> None:
        calls[id(block)] += 1

    for block in [*model.encoder.blocks, *model.decoder.blocks]:
        block.register_forward_pre_hook(count)
    torch.testing.assert_close(loss_and_gradients(model, batch), plain, rtol=0, atol=0)
    for blocks, recomputed in ((model.encoder.blocks, encoder), (model.decoder.blocks, decoder)):
        assert [i for i, block in enumerate(blocks) if calls[id(block)] == 2] == recomputed


def test_deepspeed_recomputation_goes_through_the_function_it_is_given(
    tiny: ModelConfig, geometry: ClipGeometry, batch: PretrainBatch
) -> None:
    plain = loss_and_gradients(MaskedAutoencoder(tiny, geometry), batch)
    model = MaskedAutoencoder(changed(tiny, checkpointing="deepspeed"), geometry)
    with pytest.raises(AssertionError, match="give a checkpoint function"):
        loss_and_gradients(model, batch)
    seen = []

    def recompute(block: torch.nn.Module, x_BND: Tensor) -> Tensor:
        seen.append(block)
        return block(x_BND)

    model.use_checkpoint_function(recompute)
    torch.testing.assert_close(loss_and_gradients(model, batch), plain, rtol=0, atol=0)
    assert len(seen) == 6


def test_stochastic_depth_rises_along_the_encoder_and_rests_in_evaluation(
    tiny: ModelConfig, geometry: ClipGeometry, batch: PretrainBatch
) -> None:
    model = MaskedAutoencoder(changed(tiny, drop_path=0.5), geometry)
    assert [getattr(block.drop_path, "drop_prob", 0.0) for block in model.encoder.blocks] == [0.0, 0.25, 0.5]
    assert all(isinstance(block.drop_path, torch.nn.Identity) for block in model.decoder.blocks)
    objective, plain = (Reconstruct(m, ObjectiveConfig(), geometry) for m in (model, MaskedAutoencoder(tiny, geometry)))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        assert len({objective(batch).loss.item() for _ in range(8)}) > 1
    assert objective.eval()(batch).loss.item() == plain(batch).loss.item()


# Kernels


def test_kernels_are_named_for_each_tower_and_do_not_change_the_result(
    tiny: ModelConfig, geometry: ClipGeometry, batch: PretrainBatch
) -> None:
    model = MaskedAutoencoder(tiny, geometry)
    math = loss_and_gradients(model, batch)
    model.zero_grad()
    model.use_attention(encoder="sdpa", decoder="math")
    assert model.encoder.blocks[0].attn.attend is not model.decoder.blocks[0].attn.attend
    torch.testing.assert_close(loss_and_gradients(model, batch), math, rtol=1e-4, atol=1e-5)


def test_a_kernel_that_does_not_exist_is_refused(tiny: ModelConfig, geometry: ClipGeometry) -> None:
    with pytest.raises(ConfigError, match="unknown attention"):
        MaskedAutoencoder(tiny, geometry).use_attention("sdpa", "slow")


# Precision, fake tensors, compilers


def test_bfloat16_weights_give_a_float32_loss_close_to_the_float32_one(
    tiny: ModelConfig, geometry: ClipGeometry, batch: PretrainBatch
) -> None:
    model = MaskedAutoencoder(tiny, geometry)
    exact, _ = loss_and_gradients(model, batch)
    for parameter in model.parameters():  # as DeepSpeed does: buffers stay float32
        parameter.data, parameter.grad = parameter.data.bfloat16(), None
    loss, num_supervised, _ = Reconstruct(model, ObjectiveConfig(), geometry)(batch)
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(exact, rel=1e-2)  # 8 bits, and rounding that averages out
    assert num_supervised == batch.is_supervised_BM.sum()


def test_a_step_runs_on_fake_tensors(tiny: ModelConfig, geometry: ClipGeometry, batch: PretrainBatch) -> None:
    """Nothing depends on data: no .item(), no boolean indexing; so memory can be planned without a device."""
    with FakeTensorMode(allow_non_fake_inputs=False) as mode:
        model = MaskedAutoencoder(tiny, geometry, seed=None)
        fake = PretrainBatch(*(mode.from_tensor(tensor) for tensor in batch))
        loss = Reconstruct(model, ObjectiveConfig(), geometry)(fake).loss
        loss.backward()
    assert loss.shape == ()
    assert all(p.grad is not None for p in model.parameters())


def test_a_forward_pass_runs_on_a_fake_cuda_device(
    tiny: ModelConfig, geometry: ClipGeometry, batch: PretrainBatch
) -> None:
    """The whole model is built where `torch.device` says, tables too: this is how memory on a GPU is planned without one."""
    with FakeTensorMode(), torch.device("cuda"):
        model = MaskedAutoencoder(tiny, geometry, seed=None)
        fake = PretrainBatch(*(torch.empty(tensor.shape, dtype=tensor.dtype) for tensor in batch))
        loss = Reconstruct(model, ObjectiveConfig(), geometry)(fake).loss
    assert loss.device.type == "cuda"


def test_tables_survive_the_meta_device(tiny: ModelConfig, geometry: ClipGeometry) -> None:
    with torch.device("meta"):
        model = MaskedAutoencoder(tiny, geometry, seed=None)
    assert model.bridge.weight.is_meta
    assert model.decoder.positions_NE.device.type == "cpu"


def test_compiled_equals_eager(
    tiny: ModelConfig, geometry: ClipGeometry, batch: PretrainBatch, batch_for: Callable[..., PretrainBatch]
) -> None:
    eager = loss_and_gradients(MaskedAutoencoder(tiny, geometry), batch)
    model = MaskedAutoencoder(tiny, geometry)
    compiled = torch.compile(Reconstruct(model, ObjectiveConfig(), geometry), backend="aot_eager", fullgraph=True)
    loss = compiled(batch).loss
    loss.backward()
    gradients = {name: p.grad for name, p in model.named_parameters()}
    torch.testing.assert_close((loss.item(), gradients), eager, rtol=1e-5, atol=1e-6)
