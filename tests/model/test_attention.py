"""Attention kernels agree with a naive version, packages called through stand-ins; names never fall back; auto measures."""

from __future__ import annotations

import math
import subprocess
import sys
import types
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from torch import Tensor
from torch._subclasses import FakeTensorMode

from tests.operators import Operators
from vmae2_ds.config.model import AttentionName
from vmae2_ds.cost.traffic import ATTENTION_KINDS
from vmae2_ds.errors import ConfigError
from vmae2_ds.model import attention
from vmae2_ds.model.attention import ATTENTION, check_attention, choose_attention, get_attention
from vmae2_ds.model.kernel_support import SUPPORT

CPU = torch.device("cpu")
ON_CPU = ["by_head", "math", "sdpa"]
SHAPE = (2, 17, 3, 4, 8)  # odd length on purpose: B, N, 3, H, K


def naive(qkv_BN3HK: Tensor) -> Tensor:
    """One query of one head at a time, in float64."""
    B, N, _, H, K = qkv_BN3HK.shape
    q, k, v = qkv_BN3HK.double().unbind(2)
    out = torch.empty(B, N, H, K, dtype=torch.float64)
    for b in range(B):
        for h in range(H):
            for n in range(N):
                weights = (k[b, :, h] @ q[b, n, h] / math.sqrt(K)).softmax(0)
                out[b, n, h] = weights @ v[b, :, h]
    return out


@pytest.mark.parametrize("name", ON_CPU)
@pytest.mark.parametrize(
    ("dtype", "tolerance"),
    # bf16 keeps 8 bits: scores near 4 are off by up to 2^-7, the weights by about as much relatively, the output by a
    # few 2^-8 of values near 1; gradients add products of these.
    [(torch.float32, {"rtol": 1e-4, "atol": 1e-5}), (torch.bfloat16, {"rtol": 5e-2, "atol": 5e-2})],
    ids=["fp32", "bf16"],
)
def test_kernels_agree_with_naive_attention(name: str, dtype: torch.dtype, tolerance: dict[str, float]) -> None:
    torch.manual_seed(0)
    qkv = torch.randn(SHAPE).to(dtype).requires_grad_()
    exact = qkv.detach().double().requires_grad_()
    dout = torch.randn(2, 17, 4, 8).to(dtype)
    out, expected = get_attention(name)(qkv), naive(exact)
    out.backward(dout)
    expected.backward(dout.double())
    torch.testing.assert_close(out.double(), expected, **tolerance)
    assert qkv.grad is not None
    assert exact.grad is not None
    torch.testing.assert_close(qkv.grad.double(), exact.grad, **tolerance)


# --- other packages and CUDA operators, without a GPU -------------------------------------------------------------------

PACKAGES = {"flash": "flash_attn", "flash3": "flash_attn_interface", "flash4": "flash_attn.cute"}
STEPS = {"cudnn": "cudnn", "torch_flash": "flash", "efficient": "efficient"}


def stand_in(seen: list[bool], *, with_lse: bool) -> tuple[Callable[..., Any], Callable[..., Any]]:
    """A package's packed and unpacked function: naive attention in float64, which notes `deterministic`."""

    def packed(qkv: Tensor, *, deterministic: bool = False) -> Any:
        seen.append(deterministic)
        out = naive(qkv).to(qkv.dtype)
        return (out, torch.zeros(())) if with_lse else out

    def unpacked(q: Tensor, k: Tensor, v: Tensor, *, deterministic: bool = False) -> Any:
        return packed(torch.stack([q, k, v], dim=2), deterministic=deterministic)

    return packed, unpacked


@pytest.fixture
def packages(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> list[bool]:
    """flash_attn 2, 3 and 4 as stand-ins; what they were told about determinism, call by call."""
    seen: list[bool] = []
    packed, unpacked = stand_in(seen, with_lse=getattr(request, "param", False))
    modules = {name: types.ModuleType(name) for name in PACKAGES.values()}
    modules["flash_attn"].flash_attn_qkvpacked_func = stand_in(seen, with_lse=False)[0]  # type: ignore[attr-defined]
    modules["flash_attn_interface"].flash_attn_qkvpacked_func = packed  # type: ignore[attr-defined]
    modules["flash_attn.cute"].flash_attn_func = unpacked  # type: ignore[attr-defined]
    for name, module in modules.items():
        monkeypatch.setitem(sys.modules, name, module)
    return seen


@pytest.mark.parametrize("packages", [False, True], ids=["output alone", "with log-sum-exp"], indirect=True)
@pytest.mark.parametrize("head_width", [64, 88])
@pytest.mark.parametrize("name", PACKAGES)
def test_packages_get_the_layout_that_they_take(packages: list[bool], name: str, head_width: int) -> None:
    """(B, N, H, K) with the usual scale and no padding, and one gradient for packed q, k and v."""
    torch.manual_seed(0)
    qkv = torch.randn(2, 5, 3, 2, head_width, dtype=torch.float64).requires_grad_()
    exact, dout = qkv.detach().clone().requires_grad_(), torch.randn(2, 5, 2, head_width, dtype=torch.float64)
    out = get_attention(name)(qkv)
    out.backward(dout)
    naive(exact).backward(dout)
    torch.testing.assert_close(out, naive(exact))
    torch.testing.assert_close(qkv.grad, exact.grad)
    assert packages == [False]


@pytest.mark.parametrize("name", PACKAGES)
def test_packages_are_told_to_add_in_a_fixed_order(packages: list[bool], name: str, same_bits: None) -> None:
    get_attention(name)(torch.randn(1, 3, 3, 2, 8))
    assert packages == [True]


@pytest.mark.parametrize("name", STEPS)
@pytest.mark.parametrize("head_width", [64, 88])
def test_torch_s_kernels_by_name_are_one_operator_on_what_is_packed(name: str, head_width: int) -> None:
    """On a fake GPU, at the encoder's tokens: q, k and v are views, the output needs no copy."""
    with FakeTensorMode(), Operators() as operators:
        qkv = torch.empty(2, 208, 3, 16, head_width, device="cuda", dtype=torch.bfloat16, requires_grad=True)
        out = get_attention(name)(qkv)
    assert out.shape == (2, 208, 16, head_width)
    assert out.is_contiguous()
    kernels = [found for found in operators.names if "attention" in found]
    assert kernels == [f"_scaled_dot_product_{STEPS[name]}_attention"]
    assert not {"clone", "copy_", "_to_copy", "contiguous"} & set(operators.names)


@pytest.mark.parametrize("name", STEPS)
def test_torch_s_kernels_by_name_hold_what_plans_say(name: str) -> None:
    """Packed q, k and v once, the output and a float32 a row of scores; efficient rounds rows up to 32, all keep a seed."""
    B, N, H, K = 2, 208, 16, 88
    held: dict[int, int] = {}

    def note(tensor: Tensor) -> Tensor:
        held[tensor.untyped_storage()._cdata] = tensor.untyped_storage().nbytes()
        return tensor

    with FakeTensorMode(), torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        qkv = torch.empty(B, N, 3, H, K, device="cuda", dtype=torch.bfloat16, requires_grad=True)
        get_attention(name)(qkv)
    assert sum(held.values()) == pytest.approx(2 * 4 * B * N * H * K + 4 * B * N * H, rel=1e-3)


@pytest.mark.parametrize("name", STEPS)
def test_torch_s_fused_kernels_are_refused_on_a_cpu(name: str) -> None:
    with pytest.raises(ConfigError, match="on a CUDA device only"):
        get_attention(name)(torch.randn(SHAPE))


# --- names and auto -----------------------------------------------------------------------------------------------------


def test_the_setting_has_the_names_of_the_tables() -> None:
    assert set(get_args(AttentionName)) == {*ATTENTION, "auto"}
    assert set(ATTENTION) == set(SUPPORT) == set(ATTENTION_KINDS)


def test_an_unknown_name_lists_the_known_ones() -> None:
    with pytest.raises(ConfigError, match="choose one of"):
        get_attention("flsh")


@pytest.mark.parametrize(("name", "package"), PACKAGES.items())
def test_a_package_never_falls_back_where_it_is_missing(
    name: str, package: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, package, None)  # importing it now raises ImportError
    with pytest.raises(ConfigError, match=rf"attention {name} needs {package}.*(pip install|build it)"):
        get_attention(name)


def test_another_package_of_the_same_name_is_not_taken_for_flash_attn(monkeypatch: pytest.MonkeyPatch) -> None:
    """flash_attn 4 alone makes a package flash_attn with nothing but `cute` in it."""
    monkeypatch.setitem(sys.modules, "flash_attn", types.ModuleType("flash_attn"))
    with pytest.raises(ConfigError, match="has no flash_attn_qkvpacked_func"):
        get_attention("flash")


def test_a_named_kernel_that_cannot_run_is_refused_with_those_that_can() -> None:
    with pytest.raises(ConfigError) as refused:
        check_attention("cudnn", torch.bfloat16, 64, CPU)
    assert str(refused.value) == (
        "--model.attention cudnn runs on a CUDA device only, and this is cpu; choose one of math, by_head, sdpa, or auto"
    )
    check_attention("math", torch.bfloat16, 64, CPU)


def test_auto_measures_the_candidates_and_takes_the_fastest() -> None:
    choice = choose_attention((1, 32, 2, 16), torch.float32, CPU)
    assert sorted(choice.times_s) == ON_CPU
    assert choice.times_s[choice.name] == min(choice.times_s.values()) > 0
    for name in ON_CPU:
        assert f"{name} " in str(choice), "the log line shows every time"


def test_auto_measures_on_data_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """Random values, and the global generator as it was."""
    seen: list[Tensor] = []
    monkeypatch.setitem(ATTENTION, "sdpa", lambda qkv: (seen.append(qkv.detach()), ATTENTION["math"](qkv))[1])
    before = torch.random.get_rng_state()
    choose_attention((1, 32, 2, 16), torch.float32, CPU)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert 0.9 < seen[0].std().item() < 1.1


def test_auto_does_without_a_kernel_that_fails_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(qkv: Tensor) -> Tensor:
        raise RuntimeError("no kernel image is available\nfor this device")

    monkeypatch.setitem(ATTENTION, "sdpa", fails)
    choice = choose_attention((1, 8, 2, 16), torch.float32, CPU)
    assert choice.name in ("math", "by_head")
    assert "sdpa failed: RuntimeError: no kernel image is available)" in str(choice)
    monkeypatch.setitem(ATTENTION, "math", fails)
    monkeypatch.setitem(ATTENTION, "by_head", fails)
    with pytest.raises(ConfigError, match="no kernel runs on cpu"):
        choose_attention((1, 8, 2, 16), torch.float32, CPU)


def test_on_cuda_auto_times_several_launches_as_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """The clock is CUDA's events, which this machine has not: a stand-in that counts what lies between them."""
    calls, clock = [0], []

    class Event:
        def __init__(self, enable_timing: bool) -> None:
            assert enable_timing

        def record(self) -> None:
            self.at = calls[0]

        def synchronize(self) -> None:
            clock.append(self.at)

        def elapsed_time(self, end: Event) -> float:
            return 1000.0 * (end.at - self.at)  # ms: a call takes a second

    monkeypatch.setattr(torch.cuda, "Event", Event)
    assert attention._cuda_time(lambda: calls.__setitem__(0, calls[0] + 1)) == 1.0
    assert clock == [attention.CUDA_LAUNCHES] == [10]


@pytest.mark.skipif(find_spec("flash_attn") is None, reason="needs flash_attn (pip extra: flash)")
def test_flash_attn_agrees_on_a_cpu_under_the_triton_interpreter() -> None:
    script = Path(__file__).with_name("flash_on_cpu.py")
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
