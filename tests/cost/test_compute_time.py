"""The time of a step: its FLOPs against torch's count, its rates against those that made up the observations."""

from __future__ import annotations

from dataclasses import astuple, replace

import pytest
from torch.utils.flop_counter import FlopCounterMode

from tests.cost.test_traffic import CLIPS, GEOMETRY, MASKS, MODEL
from tests.model.conftest import make_batch
from vmae2_ds.config.model import ModelConfig
from vmae2_ds.config.pretrain import ObjectiveConfig
from vmae2_ds.contracts import ClipGeometry
from vmae2_ds.cost.compute_time import (
    OPTIMIZER_BYTES,
    DeviceRates,
    Work,
    micro_step_time,
    micro_step_work,
    optimizer_time,
    rates_of,
    time_of,
)
from vmae2_ds.cost.hardware import find_accelerator
from vmae2_ds.cost.traffic import AttentionKind
from vmae2_ds.errors import ConfigError
from vmae2_ds.masking import count_masks
from vmae2_ds.model.mae import MaskedAutoencoder
from vmae2_ds.objectives import Reconstruct

RATES = DeviceRates(
    linear_flops=2e11,
    attention_flops=1.5e11,
    memory_bytes=6e9,
    score_bytes=8e9,
    optimizer_bytes=3e10,
    kernel_s=1e-5,
)
CLIP = ClipGeometry(16, 224, 224, 2, 16)
A100 = find_accelerator("NVIDIA A100-SXM4-80GB")


def step_work(size: str = "small", decode: int = 784, clips: int = 2, attention: AttentionKind = "math") -> Work:
    return micro_step_work(ModelConfig.of_size(size), CLIP, 160, decode, clips, attention=attention, precision="bf16")


@pytest.mark.parametrize("checkpointing", ["none", "decoder", "all"])
@pytest.mark.parametrize("attention", ["math", "sdpa"])
@pytest.mark.parametrize("mask", sorted(MASKS))
def test_flops_are_those_that_torch_counts(mask: str, attention: AttentionKind, checkpointing: str) -> None:
    model = MODEL.model_copy(update={"checkpointing": checkpointing})
    counts = count_masks(MASKS[mask], GEOMETRY)
    module = MaskedAutoencoder(model, GEOMETRY)
    module.use_attention(attention, attention)
    objective = Reconstruct(module, ObjectiveConfig(), GEOMETRY)
    batch = make_batch(MASKS[mask], GEOMETRY, CLIPS)
    with FlopCounterMode(display=False) as counter:
        objective(batch).loss.backward()
    work = micro_step_work(model, GEOMETRY, *counts[:2], CLIPS, attention=attention, precision="fp32")
    by_operation = {str(operation): flops for operation, flops in counter.get_flop_counts()["Global"].items()}
    linear = sum(flops for name, flops in by_operation.items() if name in {"aten.mm", "aten.addmm"})
    assert work.linear_flops == linear
    if attention == "math":  # torch has no formula for the fused kernel of the CPU
        assert work.attention_flops == counter.get_total_flops() - linear


def test_time_is_work_over_rates() -> None:
    time = time_of(Work(4e11, 3e11, 6e9, 16e9, 3e10, 1e5), RATES)
    assert astuple(time) == pytest.approx((2, 2, 1, 2, 1, 1))
    assert time.total_s == pytest.approx(9)


def test_work_grows_with_clips_and_starts_do_not() -> None:
    """Operations of a micro step are as many for one clip as for seven; products, bytes and scores are seven times as much."""
    one, seven = (step_work(clips=clips, attention="math") for clips in (1, 7))
    assert seven.kernels == one.kernels > 0
    for unit in ("linear_flops", "attention_flops", "memory_bytes", "score_bytes"):
        assert getattr(seven, unit) == pytest.approx(7 * getattr(one, unit)), unit


def test_two_kernels_add_up_and_one_name_is_both() -> None:
    def work(attention: AttentionKind | tuple[AttentionKind, AttentionKind]) -> Work:
        return micro_step_work(MODEL, GEOMETRY, 64, 128, 1, attention=attention, precision="bf16")

    assert work("math") == work(("math", "math"))
    mixed, math, sdpa = work(("sdpa", "math")), work("math"), work("sdpa")
    assert 0 == sdpa.score_bytes < mixed.score_bytes < math.score_bytes
    assert mixed.linear_flops == math.linear_flops


@pytest.mark.parametrize(
    ("less", "more"),
    [
        (step_work(clips=2), step_work(clips=3)),
        (step_work(decode=704), step_work(decode=784)),
        (step_work("small"), step_work("base")),
        (step_work(attention="flash"), step_work(attention="math")),
    ],
    ids=["clips", "tokens", "size", "attention"],
)
def test_more_work_takes_longer(less: Work, more: Work) -> None:
    assert time_of(less, RATES).total_s < time_of(more, RATES).total_s
    assert time_of(more, replace(RATES, memory_bytes=2 * RATES.memory_bytes)).total_s < time_of(more, RATES).total_s


def test_recomputation_and_embedding_all_cubes_cost_time() -> None:
    def total_s(checkpointing: str, *, embed_all: bool = False) -> float:
        model = ModelConfig.of_size("base", checkpointing=checkpointing)
        return micro_step_time(
            model, CLIP, 160, 784, 4, RATES, attention="math", precision="autocast", embed_all=embed_all
        ).total_s

    times = [total_s(checkpointing) for checkpointing in ("none", "decoder", "all", "deepspeed")]
    assert times == sorted(times)
    assert times[-1] < 1.4 * times[0]  # a third of the products, and less than that of the rest
    assert total_s("none", embed_all=True) > times[0]


def test_optimizer_time_is_that_of_its_bytes() -> None:
    assert OPTIMIZER_BYTES["bf16"] - OPTIMIZER_BYTES["fp32"] == 2 * (2 + 4)  # gradient up, weight down
    assert optimizer_time(3_000_000, RATES, precision="bf16") == pytest.approx(3e6 * 40 / 3e10)


def test_rates_of_a_gpu() -> None:
    assert A100 is not None
    rates = rates_of(A100, "bf16", matmul_efficiency=0.5, memory_efficiency=0.75)
    assert rates.linear_flops == rates.attention_flops == 156e12
    assert rates.memory_bytes == rates.score_bytes == rates.optimizer_bytes == pytest.approx(2039e9 * 0.75)
    assert rates.kernel_s == 0
    assert rates_of(A100, "fp32", matmul_efficiency=1, memory_efficiency=1).linear_flops == 19.5e12


def test_a_gpu_without_the_format_is_refused() -> None:
    v100 = find_accelerator("Tesla V100-SXM2-32GB")
    assert v100 is not None
    with pytest.raises(ConfigError, match=r"V100 .* has no bf16 peak.*fp16"):
        rates_of(v100, "bf16", matmul_efficiency=0.5, memory_efficiency=0.75)
    assert rates_of(v100, "autocast", matmul_efficiency=1, memory_efficiency=1).linear_flops == 125e12
