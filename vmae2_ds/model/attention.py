"""Self-attention kernels in one table, and the measurement behind `auto`. The only door to flash_attn.

Every kernel takes the packed projection (B, N, 3, H, K) and returns (B, N, H, K): packed, because flash_attn and the
backward pass then write one gradient instead of three that have to be joined. Where each can run: model/kernel_support.py.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from vmae2_ds.errors import ConfigError
from vmae2_ds.model.kernel_support import AttentionShape, why_missing, why_not
from vmae2_ds.model.math_attention import by_head_attention, math_attention

# B clips, N tokens, H heads, K channels in a head.

AttentionFn = Callable[[Tensor], Tensor]


def sdpa_attention(qkv_BN3HK: Tensor) -> Tensor:
    """torch's scaled_dot_product_attention, whichever of its kernels fits."""
    q_BHNK, k_BHNK, v_BHNK = qkv_BN3HK.permute(2, 0, 3, 1, 4)
    # Looked up on F at each call, so that DeepSpeed's FLOPs profiler, which patches it there, sees it.
    return F.scaled_dot_product_attention(q_BHNK, k_BHNK, v_BHNK).transpose(1, 2)


def cudnn_attention(qkv_BN3HK: Tensor) -> Tensor:
    """cuDNN's fused kernel, as torch calls it."""
    return _torch_kernel("cudnn", qkv_BN3HK, None, _is_trained(qkv_BN3HK))


def torch_flash_attention(qkv_BN3HK: Tensor) -> Tensor:
    """The flash kernel that comes with torch."""
    return _torch_kernel("flash", qkv_BN3HK)


def efficient_attention(qkv_BN3HK: Tensor) -> Tensor:
    """torch's memory-efficient kernel (xFormers'): float32 too."""
    return _torch_kernel("efficient", qkv_BN3HK, None, _is_trained(qkv_BN3HK))


def _torch_kernel(name: str, qkv_BN3HK: Tensor, *words: Any) -> Tensor:
    # The operator and not sdpa under torch.nn.attention.sdpa_kernel: that sets five global flags and back in every block.
    # torch 2.6 to 2.14 have the three of them with these arguments; all give the output first.
    if not qkv_BN3HK.is_cuda:
        raise ConfigError(f"torch's {name} attention runs on a CUDA device only; choose sdpa or math on the CPU")
    q_BHNK, k_BHNK, v_BHNK = qkv_BN3HK.permute(2, 0, 3, 1, 4)
    run = getattr(torch.ops.aten, f"_scaled_dot_product_{name}_attention")
    return run(q_BHNK, k_BHNK, v_BHNK, *words)[0].transpose(1, 2)


def _is_trained(qkv_BN3HK: Tensor) -> bool:
    """Whether a backward pass will want the log-sum-exp of each row of scores."""
    return torch.is_grad_enabled() and qkv_BN3HK.requires_grad


def flash_attention(qkv_BN3HK: Tensor) -> Tensor:
    """flash_attn 2's packed kernel: 16 bit on CUDA."""
    from flash_attn import flash_attn_qkvpacked_func

    _refuse_float32("flash", qkv_BN3HK)
    return flash_attn_qkvpacked_func(qkv_BN3HK, deterministic=torch.are_deterministic_algorithms_enabled())


def flash3_attention(qkv_BN3HK: Tensor) -> Tensor:
    """FlashAttention 3's packed kernel, for Hopper: 16 bit on CUDA."""
    from flash_attn_interface import flash_attn_qkvpacked_func

    _refuse_float32("flash3", qkv_BN3HK)
    return _output(flash_attn_qkvpacked_func(qkv_BN3HK, deterministic=torch.are_deterministic_algorithms_enabled()))


def flash4_attention(qkv_BN3HK: Tensor) -> Tensor:
    """FlashAttention 4's kernel in CuTe, compiled at its first call: 16 bit on CUDA. It has no packed form."""
    from flash_attn.cute import flash_attn_func

    _refuse_float32("flash4", qkv_BN3HK)
    q_BNHK, k_BNHK, v_BNHK = qkv_BN3HK.unbind(2)
    deterministic = torch.are_deterministic_algorithms_enabled()
    return _output(flash_attn_func(q_BNHK, k_BNHK, v_BNHK, deterministic=deterministic))


def _refuse_float32(name: str, qkv_BN3HK: Tensor) -> None:
    if qkv_BN3HK.is_cuda and qkv_BN3HK.dtype == torch.float32:
        raise ConfigError(
            f"--model.attention {name} computes in 16 bit only; set --train.precision bf16, or choose sdpa"
        )


def _output(returned: Any) -> Tensor:
    """Some versions return the log-sum-exp beside the output."""
    return returned[0] if isinstance(returned, tuple) else returned


ATTENTION: dict[str, AttentionFn] = {
    "math": math_attention,
    "by_head": by_head_attention,
    "sdpa": sdpa_attention,
    "cudnn": cudnn_attention,
    "torch_flash": torch_flash_attention,
    "efficient": efficient_attention,
    "flash": flash_attention,
    "flash3": flash3_attention,
    "flash4": flash4_attention,
}


def get_attention(name: str) -> AttentionFn:
    """The kernel called `name`, never another one.

    Raises:
        ConfigError: an unknown name, or one whose package cannot be imported.
    """
    if (missing := why_missing(name)) is not None:
        raise ConfigError(f"--model.attention {name} {missing}; or choose sdpa, math or auto")
    return ATTENTION[name]


def check_attention(name: str, dtype: torch.dtype, head_width: int, device: torch.device) -> None:
    """Nothing where the kernel called `name` can run.

    Raises:
        ConfigError: it cannot, or nobody knows it; with the reason and those that can.
    """
    if (why := why_not(name, dtype, head_width, device)) is not None:
        others = ", ".join(runnable(dtype, head_width, device))
        raise ConfigError(f"--model.attention {name} {why}; choose one of {others}, or auto")


def runnable(dtype: torch.dtype, head_width: int, device: torch.device) -> list[str]:
    """Names of the kernels that can run."""
    return [name for name in ATTENTION if why_not(name, dtype, head_width, device) is None]


class AttentionChoice(NamedTuple):
    """What `auto` chose and why."""

    name: str
    times_s: dict[str, float]
    """Forward and backward of each candidate, in seconds; inf where it failed."""
    failures: dict[str, str]
    """What went wrong with those that failed."""

    def __str__(self) -> str:
        times = ", ".join(
            f"{name} {self.failures[name] if name in self.failures else f'{1e3 * time_s:.2f} ms'}"
            for name, time_s in sorted(self.times_s.items())
        )
        return f"attention auto -> {self.name} ({times})"


def choose_attention(shape_BNHK: AttentionShape, dtype: torch.dtype, device: torch.device) -> AttentionChoice:
    """Time forward and backward of every kernel that can run, once, and take the fastest.

    Ranks may measure differently: let one choose and tell the others.

    Raises:
        ConfigError: every one of them failed.
    """
    times_s, failures = {}, {}
    for name in runnable(dtype, shape_BNHK[-1], device):
        try:
            times_s[name] = _time_attention(name, shape_BNHK, dtype, device)
        except Exception as error:  # kernels of others fail in ways of their own, and auto may do without one
            times_s[name], failures[name] = (
                float("inf"),
                f"failed: {type(error).__name__}: {str(error).split(chr(10))[0]}",
            )
    if len(failures) == len(times_s):
        raise ConfigError(f"--model.attention auto: no kernel runs on {device} at {shape_BNHK}: {failures}")
    return AttentionChoice(min(times_s, key=lambda name: times_s[name]), times_s, failures)


CUDA_LAUNCHES = 10
"""Calls that are timed as one on CUDA: a call takes as long as its launches, which would be all that is compared."""


def _time_attention(
    name: str, shape_BNHK: AttentionShape, dtype: torch.dtype, device: torch.device, repeats: int = 3
) -> float:
    """Best of `repeats` times of a forward and backward pass in seconds, after one repeat to warm up."""
    attention = get_attention(name)
    B, N, H, K = shape_BNHK
    if device.type == "cpu":
        B = min(B, 2)  # ranks the kernels as a large batch does, in less time
    # Of a generator of its own, as the global seed is not ours; not zeros, on which a GPU runs faster than on data.
    draws = torch.Generator(device).manual_seed(0)
    qkv_BN3HK = torch.randn(B, N, 3, H, K, dtype=dtype, device=device, generator=draws).requires_grad_()
    dout_BNHK = torch.randn(B, N, H, K, dtype=dtype, device=device, generator=draws)

    def run() -> None:
        qkv_BN3HK.grad = None
        attention(qkv_BN3HK).backward(dout_BNHK)

    return best_time(run, device, repeats)


def best_time(run: Callable[[], None], device: torch.device, repeats: int = 3) -> float:
    """Best of `repeats` times of a call in seconds, after one repeat to warm up: CPU time, or a GPU's own."""
    time_of = _cuda_time if device.type == "cuda" else _cpu_time
    return min([time_of(run) for _ in range(repeats + 1)][1:])


def _cpu_time(run: Callable[[], None]) -> float:
    start = time.process_time()  # a busy machine must not decide
    run()
    return time.process_time() - start


def _cuda_time(run: Callable[[], None]) -> float:
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    for _ in range(CUDA_LAUNCHES):
        run()
    end.record()
    end.synchronize()
    return start.elapsed_time(end) / 1e3 / CUDA_LAUNCHES
