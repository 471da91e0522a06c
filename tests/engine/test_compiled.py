"""Blocks compiled one by one: a graph for all of a tower, the numbers of eager, a choice that is kept."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch._dynamo.utils import counters

from tests.distributed.steps import NUM_VIDEOS, make_clips, make_config
from tests.test_objectives import odd_clips
from vmae2_ds.config.ds_config import resolve_ds_config
from vmae2_ds.config.model import TowerConfig
from vmae2_ds.config.run_plan import plan_run
from vmae2_ds.contracts import PretrainBatch
from vmae2_ds.engine import compiled
from vmae2_ds.engine.compiled import choose_compile, compile_parts, why_no_compiler
from vmae2_ds.engine.ranks import start_ranks
from vmae2_ds.errors import ConfigError
from vmae2_ds.model.mae import MaskedAutoencoder
from vmae2_ds.objectives import Reconstruct
from vmae2_ds.train.build import build_engine


@pytest.fixture(autouse=True)
def fresh_compiler() -> Iterator[None]:
    torch._dynamo.reset()
    counters.clear()
    yield
    torch._dynamo.reset()


def objective_of(**model: Any) -> tuple[Reconstruct, Any]:
    """A small objective in float32, and clips for it."""
    config = make_config(1)
    made = config.model.model_copy(update=model)
    objective = Reconstruct(MaskedAutoencoder(made, config.geometry), config.objective, config.geometry)
    return objective, make_clips(config, 0, 0, 2)


def gradients(objective: Reconstruct, clips: Any) -> tuple[float, list[torch.Tensor]]:
    torch.manual_seed(1)
    objective.zero_grad()
    loss = objective(clips).loss
    loss.backward()
    return loss.item(), [parameter.grad.clone() for parameter in objective.parameters() if parameter.grad is not None]


def deep(drop_path: float = 0.0, checkpointing: str = "none") -> dict[str, Any]:
    """More blocks than torch compiles versions of a function before it gives up (recompile_limit, 8)."""
    encoder, decoder = (TowerConfig(width=width, depth=9, heads=2, mlp=32) for width in (16, 8))
    return {"encoder": encoder, "decoder": decoder, "drop_path": drop_path, "checkpointing": checkpointing}


@pytest.mark.parametrize("checkpointing", ["none", "all", "decoder"])
def test_all_blocks_of_a_tower_share_one_graph_and_give_eager_s_numbers(checkpointing: str) -> None:
    objective, clips = objective_of(**deep(checkpointing=checkpointing))
    loss, of_eager = gradients(objective, clips)
    compile_parts(objective, "aot_eager")
    for _ in range(2):
        found, of_compiled = gradients(objective, clips)
    assert found == pytest.approx(loss, rel=1e-6)
    torch.testing.assert_close(of_compiled, of_eager, rtol=1e-4, atol=1e-6)
    with_loss = hasattr(objective, "loss_function")
    assert counters["stats"]["unique_graphs"] == 2 + with_loss, "encoder, decoder, loss"
    assert not counters["graph_break"]


def test_stochastic_depth_needs_no_graph_for_each_block() -> None:
    """Its rate is another in each; the same seed drops the same clips as without a compiler."""
    objective, clips = objective_of(**deep(drop_path=0.5))
    loss, of_eager = gradients(objective, clips)
    compile_parts(objective, "aot_eager")
    found, of_compiled = gradients(objective, clips)
    assert found == pytest.approx(loss, rel=1e-6)
    torch.testing.assert_close(of_compiled, of_eager, rtol=1e-4, atol=1e-6)
    # the first block has no rate; the others are in three pieces around the two draws; decoder and loss
    assert counters["stats"]["unique_graphs"] <= 1 + 3 + 1 + 1


@pytest.mark.parametrize("stage", [1, pytest.param(3, marks=pytest.mark.slow)])
def test_an_engine_with_compiled_blocks_takes_the_steps_of_one_without(stage: int) -> None:
    start_ranks()
    results = []
    for backend in ("none", "aot_eager"):
        train = {"ds_config": f"zero{stage}", "precision": "bf16", "compile": backend}
        config = make_config(1, train=train, model={"checkpointing": "all"})
        plan = plan_run(config, NUM_VIDEOS, 1)
        engine = build_engine(config, resolve_ds_config(config, plan, on_cpu=True))
        clips, losses = make_clips(config, 0, 0, plan.micro_batch), []
        for _ in range(2):
            losses += [engine.micro_step(clips).loss.item() for _ in range(plan.accumulation)]
            losses.append(engine.update().grad_norm)
        engine.deepspeed.destroy()
        results.append(losses)
    assert results[1] == pytest.approx(results[0], rel=1e-3)
    assert counters["stats"]["unique_graphs"] > 0


def test_without_a_compiler_it_is_refused_and_auto_does_without(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    assert why_no_compiler({"CXX": "/nonexistent"}) == "needs a C++ compiler, and /nonexistent is not here"
    monkeypatch.setattr(compiled, "why_no_compiler", lambda: "needs a C++ compiler, and g++ is not here")
    objective, _ = objective_of()
    with pytest.raises(ConfigError, match="inductor needs"):
        compile_parts(objective, "inductor")
    caplog.set_level(logging.INFO)
    missing = compiled.why_no_compiler()
    assert choose_compile(objective, [(2, 8, 2, 32)], torch.float32, stage=1, missing=missing) == "none"
    assert "g++ is not here" in caplog.text


@pytest.mark.parametrize(("compiled_s", "chosen"), [(0.5, "inductor"), (0.99, "none"), (2.0, "none"), (None, "none")])
def test_auto_takes_what_is_faster_by_more_than_noise(
    compiled_s: float | None, chosen: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def timed(*shape: Any, backend: str | None = None) -> float:
        if backend and compiled_s is None:
            raise RuntimeError("the compiler broke")
        return compiled_s if backend and compiled_s else 1.0

    monkeypatch.setattr(compiled, "time_block", timed)
    objective, _ = objective_of()
    assert choose_compile(objective, [(2, 8, 2, 32)], torch.float32, stage=1, missing=None) == chosen
    assert choose_compile(objective, [(2, 8, 2, 32)], torch.float32, stage=3, missing=None) == "none"


@pytest.fixture
def inductor_trusts_the_cpu() -> Iterator[None]:
    """It would compile torch's headers once for each set of instructions, to see whether it can; and start workers for it."""
    import torch._inductor.config as inductor

    with inductor.patch({"cpp.vec_isa_ok": True, "compile_threads": 1}):
        yield


def loss_by_itself(objective: Reconstruct, clips: PretrainBatch) -> list[torch.Tensor]:
    """Of a made-up prediction: what the loss gives, and its gradient."""
    draws = torch.Generator().manual_seed(0)
    pred_BMP = torch.randn(*clips.decode_BM.shape, objective.geometry.cube_values, generator=draws).requires_grad_()
    out = objective.loss_function(pred_BMP, clips, objective.geometry, objective.config.target, 0.0)
    out.loss.backward()
    assert pred_BMP.grad is not None
    return [*(x.detach() for x in out), pred_BMP.grad]


def encoder_by_itself(objective: Reconstruct, clips: PretrainBatch) -> list[torch.Tensor]:
    """Its tokens, and the gradients of its parameters under a made-up loss."""
    encoder = objective.model.encoder
    encoder.zero_grad()
    tokens_BVD = encoder(objective.visible_cubes(clips), clips.visible_BV)
    (tokens_BVD * torch.randn(tokens_BVD.shape, generator=torch.Generator().manual_seed(0))).mean().backward()
    return [tokens_BVD.detach(), *(each.grad.clone() for each in encoder.parameters() if each.grad is not None)]


@pytest.mark.slow
def test_inductor_gives_eager_s_numbers_and_auto_measures_it(inductor_trusts_the_cpu: None) -> None:
    """An encoder of three blocks, and the loss; a decoder's block would be as many kernels again of the same operations."""
    objective, clips = objective_of()
    clips = odd_clips(clips)
    of_eager, loss_of_eager = encoder_by_itself(objective, clips), loss_by_itself(objective, clips)
    shape = (2, clips.visible_BV.shape[1], 2, 32)  # the encoder's own, so its block is compiled once
    assert choose_compile(objective, [shape], torch.float32, stage=1, missing=None) in ("inductor", "none")
    compile_parts(objective, "inductor")
    torch.testing.assert_close(encoder_by_itself(objective, clips), of_eager, rtol=1e-3, atol=1e-5)
    torch.testing.assert_close(loss_by_itself(objective, clips), loss_of_eager, rtol=1e-5, atol=1e-7)
    assert counters["stats"]["unique_graphs"] == 2, "a block, which was timed, and the loss"
