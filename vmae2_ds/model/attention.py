"""Self-attention kernels in one table, and the measurement behind `auto`. The only door to flash_attn.

Every kernel takes the packed projection (B, N, 3, H, K) and returns (B, N, H, K): packed, because flash_attn and the
backward pass then write one gradient instead of three that have to be joined.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from vmae2_ds.errors import ConfigError
from vmae2_ds.model.math_attention import by_head_attention, math_attention

# B clips, N tokens, H heads, K channels in a head.

AttentionFn = Callable[[Tensor], Tensor]
AttentionShape = tuple[int, int, int, int]


def sdpa_attention(qkv_BN3HK: Tensor) -> Tensor:
    """torch's scaled_dot_product_attention, whichever of its kernels fits."""
    q_BHNK, k_BHNK, v_BHNK = qkv_BN3HK.permute(2, 0, 3, 1, 4)
    # Looked up on F at each call, so that DeepSpeed's FLOPs profiler, which patches it there, sees it.
    return F.scaled_dot_product_attention(q_BHNK, k_BHNK, v_BHNK).transpose(1, 2)


def flash_attention(qkv_BN3HK: Tensor) -> Tensor:
    """flash_attn's packed kernel: 16 bit on CUDA."""
    from flash_attn import flash_attn_qkvpacked_func

    if qkv_BN3HK.is_cuda and qkv_BN3HK.dtype == torch.float32:
        raise ConfigError("--model.attention flash computes in 16 bit only; set --train.precision bf16, or choose sdpa")
    return flash_attn_qkvpacked_func(qkv_BN3HK)


ATTENTION: dict[str, AttentionFn] = {
    "flash": flash_attention,
    "sdpa": sdpa_attention,
    "math": math_attention,
    "by_head": by_head_attention,
}


def get_attention(name: str) -> AttentionFn:
    """The kernel called `name`, never another one.

    Raises:
        ConfigError: an unknown name, or flash where flash_attn cannot be imported.
    """
    if name not in ATTENTION:
        raise ConfigError(f"unknown attention {name!r}; choose one of {sorted(ATTENTION)}, or auto")
    if name == "flash":
        try:
            import flash_attn  # noqa: F401
        except ImportError as error:
            raise ConfigError(
                f"--model.attention flash needs flash_attn, which cannot be imported ({error}); on a machine with CUDA "
                "run `pip install --no-build-isolation 'vmae2_ds[flash]'`, or choose sdpa, math or auto"
            ) from error
    return ATTENTION[name]


class AttentionChoice(NamedTuple):
    """What `auto` chose and why."""

    name: str
    times_s: dict[str, float]
    """Forward and backward of each candidate, in seconds; inf where it ran out of memory."""

    def __str__(self) -> str:
        times = ", ".join(f"{name} {1e3 * time_s:.2f} ms" for name, time_s in sorted(self.times_s.items()))
        return f"attention auto -> {self.name} ({times})"


def choose_attention(shape_BNHK: AttentionShape, dtype: torch.dtype, device: torch.device) -> AttentionChoice:
    """Time forward and backward of every kernel that can run, once, and take the fastest.

    Ranks may measure differently: let one choose and tell the others.
    """
    times_s = {name: _time_attention(name, shape_BNHK, dtype, device) for name in _candidates(dtype, device)}
    return AttentionChoice(min(times_s, key=lambda name: times_s[name]), times_s)


def _candidates(dtype: torch.dtype, device: torch.device) -> list[str]:
    names = ["sdpa", "math"] + ["by_head"] * (device.type == "cpu")
    # flash_attn has no kernels for GPUs before Ampere
    if device.type == "cuda" and dtype != torch.float32 and torch.cuda.get_device_capability(device) >= (8, 0):
        try:
            get_attention("flash")
            names.append("flash")
        except ConfigError:
            pass  # auto may do without it, and the log shows that it was not timed
    return names


def _time_attention(
    name: str, shape_BNHK: AttentionShape, dtype: torch.dtype, device: torch.device, repeats: int = 3
) -> float:
    """Best of `repeats` forward and backward passes in seconds, after one to warm up."""
    attention = get_attention(name)
    B, N, H, K = shape_BNHK
    if device.type == "cpu":
        B = min(B, 2)  # ranks the kernels as a large batch does, in less time
    clock = time.process_time if device.type == "cpu" else time.perf_counter  # a busy machine must not decide
    best_s = float("inf")
    try:
        # Zeros do: no kernel here looks at the values, and the global seed is not ours.
        qkv_BN3HK = torch.zeros(B, N, 3, H, K, dtype=dtype, device=device, requires_grad=True)
        for repeat in range(repeats + 1):
            _wait(device)
            start = clock()
            out_BNHK = attention(qkv_BN3HK)
            out_BNHK.backward(torch.ones_like(out_BNHK))
            _wait(device)
            if repeat:
                best_s = min(best_s, clock() - start)
    except torch.OutOfMemoryError:
        return float("inf")
    return best_s


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
