"""Attention kernels agree with each other and with a naive version; names never fall back."""

from __future__ import annotations

import math
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from torch import Tensor

from vmae2_ds.errors import ConfigError
from vmae2_ds.model.attention import ATTENTION, choose_attention, get_attention

ON_CPU = sorted(set(ATTENTION) - {"flash"})
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


def test_an_unknown_name_lists_the_known_ones() -> None:
    with pytest.raises(ConfigError, match="choose one of"):
        get_attention("flsh")


def test_flash_never_falls_back_where_it_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "flash_attn", None)  # importing it now raises ImportError
    with pytest.raises(ConfigError, match="pip install"):
        get_attention("flash")


def test_auto_measures_the_candidates_and_takes_the_fastest() -> None:
    choice = choose_attention((1, 32, 2, 16), torch.float32, torch.device("cpu"))
    assert sorted(choice.times_s) == ON_CPU
    assert choice.times_s[choice.name] == min(choice.times_s.values()) > 0
    for name in ON_CPU:
        assert f"{name} " in str(choice), "the log line shows every time"


@pytest.mark.skipif(find_spec("flash_attn") is None, reason="needs flash_attn (pip extra: flash)")
def test_flash_attn_agrees_on_a_cpu_under_the_triton_interpreter() -> None:
    script = Path(__file__).with_name("flash_on_cpu.py")
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
