"""Runs flash_attn for real on a CPU: its Triton (AMD) kernels under the Triton interpreter. A script, not a test.

It must set the environment before anything imports Triton, and it patches torch, so it has a process of its own;
test_attention.py starts it. It shows that our call is right and that its gradients are; float32 and float16 only,
because bfloat16 gives garbage under the interpreter, in silence. The CUDA kernels are for tests/gpu.
"""

from __future__ import annotations

import contextlib
import os

os.environ |= {"FLASH_ATTENTION_TRITON_AMD_ENABLE": "TRUE", "TRITON_INTERPRET": "1"}

import torch
from triton.runtime import driver


class InterpretedDriver:
    """As much of an active GPU driver as the AMD backend asks for when it picks its block sizes."""

    class Target:
        backend, arch, warp_size = "hip", "gfx942", 64

    def get_current_target(self) -> Target:
        return self.Target()

    def get_current_device(self) -> int:
        return 0

    def get_active_torch_device(self) -> torch.device:
        return torch.device("cpu")


def let_flash_attn_run_on_cpu() -> None:
    """Give flash_attn a driver, CPU versions of its torch operators, and a CUDA device context that does nothing."""
    driver.set_active(InterpretedDriver())
    from flash_attn import flash_attn_interface

    for name in ("_flash_attn_forward", "_flash_attn_backward"):
        operator = getattr(flash_attn_interface, name)
        operator.register_kernel("cpu")(operator._init_fn)
    torch.cuda.device = lambda *_: contextlib.nullcontext()  # type: ignore[assignment, misc]


def compare(dtype: torch.dtype, tolerance: float) -> None:
    """flash against math, forward and backward, on a length that no block size divides."""
    from vmae2_ds.model.attention import get_attention

    torch.manual_seed(0)
    qkv_BN3HK = torch.randn(2, 37, 3, 2, 32, dtype=dtype)
    dout_BNHK = torch.randn(2, 37, 2, 32, dtype=dtype)
    results = []
    for name in ("flash", "math"):
        x = qkv_BN3HK.clone().requires_grad_()
        out = get_attention(name)(x)
        out.backward(dout_BNHK)
        results.append((out.detach(), x.grad))
    for flash, math in zip(*results, strict=True):
        torch.testing.assert_close(flash, math, rtol=tolerance, atol=tolerance)


if __name__ == "__main__":
    let_flash_attn_run_on_cpu()
    compare(torch.float32, 1e-4)  # measured 1e-6
    compare(torch.float16, 1e-2)  # 11 bits: math itself rounds scores and weights to 16 bit
    print("flash_attn agrees with math on the CPU")
