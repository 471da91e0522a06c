"""The kernels on a CUDA device: they agree in bfloat16, and a whole step runs and agrees with each."""

from __future__ import annotations

import pytest
import torch
from torch.profiler import ProfilerActivity, profile

from tests.model.conftest import make_batch
from vmae2_ds.config.model import ModelConfig
from vmae2_ds.config.pretrain import MaskConfig, ObjectiveConfig
from vmae2_ds.contracts import ClipGeometry
from vmae2_ds.model.attention import ATTENTION, choose_attention, get_attention, runnable, sdpa_attention
from vmae2_ds.model.kernel_support import sdpa_kernel, why_not
from vmae2_ds.model.mae import MaskedAutoencoder
from vmae2_ds.objectives import Reconstruct

pytestmark = pytest.mark.gpu


def kernel_or_skip(name: str, head_width: int = 64) -> str:
    if (why := why_not(name, torch.bfloat16, head_width, torch.device("cuda"))) is not None:
        pytest.skip(f"{name} {why}")
    return name


@pytest.mark.parametrize("name", sorted(set(ATTENTION) - {"math"}))
@pytest.mark.parametrize(("tokens", "heads", "head_width"), [(160, 6, 64), (944, 3, 64), (208, 16, 88), (1568, 2, 88)])
def test_kernels_agree_with_float64(name: str, tokens: int, heads: int, head_width: int) -> None:
    """bf16 keeps 8 bits: outputs near 1 are off by a few 2^-8, gradients by as much of their largest values."""
    torch.manual_seed(0)
    qkv = torch.randn(2, tokens, 3, heads, head_width, device="cuda", dtype=torch.bfloat16).requires_grad_()
    exact = qkv.detach().double().requires_grad_()
    dout = torch.randn(2, tokens, heads, head_width, device="cuda", dtype=torch.bfloat16)
    out, expected = get_attention(kernel_or_skip(name, head_width))(qkv), get_attention("math")(exact)
    out.backward(dout)
    expected.backward(dout.double())
    torch.testing.assert_close(out.double(), expected, rtol=2e-2, atol=2e-2)
    torch.testing.assert_close(qkv.grad.double(), exact.grad, rtol=2e-2, atol=2e-2)


@pytest.mark.parametrize("name", sorted(ATTENTION))
def test_a_whole_step_of_small_agrees_with_float32(name: str) -> None:
    geometry, config = ClipGeometry(16, 224, 224, 2, 16), ModelConfig.of_size("small", attention="math")
    batch = make_batch(MaskConfig(), geometry).to("cuda")
    objective = Reconstruct(MaskedAutoencoder(config, geometry), ObjectiveConfig(), geometry).cuda()
    exact = objective(batch).loss
    exact.backward()
    exact_norm = torch.stack([p.grad.norm() for p in objective.parameters()]).norm()
    for parameter in objective.parameters():  # as DeepSpeed does: buffers stay float32
        parameter.data, parameter.grad = parameter.data.bfloat16(), None
    objective.model.use_attention(kernel_or_skip(name), name)
    loss = objective(batch).loss
    loss.backward()
    norm = torch.stack([p.grad.float().norm() for p in objective.parameters()]).norm()
    assert loss.item() == pytest.approx(exact.item(), rel=1e-2)
    assert norm.item() == pytest.approx(exact_norm.item(), rel=5e-2)


def test_auto_measures_every_kernel_that_is_there() -> None:
    choice = choose_attention((2, 944, 3, 64), torch.bfloat16, torch.device("cuda"))
    assert set(choice.times_s) == set(runnable(torch.bfloat16, 64, torch.device("cuda")))
    assert not choice.failures
    assert choice.times_s[choice.name] == min(choice.times_s.values())


@pytest.mark.parametrize("head_width", [64, 88])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
def test_sdpa_takes_what_is_said(head_width: int, dtype: torch.dtype) -> None:
    """Against the operator that torch's profiler sees."""
    found = sdpa_kernel((2, 208, 4, head_width), dtype, torch.device("cuda"))
    qkv = torch.randn(2, 208, 3, 4, head_width, device="cuda", dtype=dtype, requires_grad=True)
    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        sdpa_attention(qkv)
    operator = f"aten::_scaled_dot_product_{found.removeprefix('torch_')}_attention"
    ran = {event.key for event in profiler.key_averages()}
    assert operator in ran or (found == "math" and "aten::_scaled_dot_product_attention_math" in ran)


def test_sdpa_leaves_cudnn_out_where_the_same_bits_are_asked_for() -> None:
    torch.use_deterministic_algorithms(True)
    try:
        assert sdpa_kernel((2, 208, 4, 64), torch.bfloat16, torch.device("cuda")) != "cudnn"
    finally:
        torch.use_deterministic_algorithms(False)
