"""Which attention kernel can run where, as one table for code, refusals and docs, and which kernel torch's sdpa takes."""

from __future__ import annotations

import contextlib
import importlib
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F

from vmae2_ds.errors import ConfigError

# B clips, N tokens, H heads, K channels in a head.

AttentionShape = tuple[int, int, int, int]
"""B, N, H, K."""
Capability = tuple[int, int]
"""CUDA compute capability of a GPU: 8.0 is an A100, 9.0 an H100, 10.0 a B200."""

AMPERE, HOPPER, BLACKWELL = (8, 0), (9, 0), (10, 0)
ALWAYS = (0, 0)
IN_16_BIT = {torch.bfloat16: AMPERE, torch.float16: AMPERE}


class Support(NamedTuple):
    """Where a kernel can run."""

    since: Mapping[torch.dtype, Capability] | None = None
    """Lowest compute capability for each dtype; None: any dtype on any device, CPUs too."""
    cpus_only: bool = False
    until: Capability | None = None
    """Highest compute capability."""
    multiple: int = 1
    """Head widths are multiples of this in 16 bit, of half of it in 32 bit: 16 bytes are loaded at once."""
    widest: int = 2**20
    """Largest head width."""
    same_bits_since: Capability | None = ALWAYS
    """Lowest compute capability on which its backward pass can add in a fixed order; None: on none."""
    function: str | None = None
    """module:function of a package that is not torch."""
    remedy: str = ""
    """How to get that package."""


SUPPORT: dict[str, Support] = {
    "math": Support(),
    "by_head": Support(cpus_only=True),
    "sdpa": Support(),
    # torch 2.6 to 2.14, aten/src/ATen/native/transformers/cuda/sdp_utils.cpp: dtypes, chips and widths of each backend;
    # attention_backward.cu: flash and efficient add in a fixed order under use_deterministic_algorithms, cuDNN does not
    "cudnn": Support(IN_16_BIT, multiple=8, widest=128, same_bits_since=None),
    "torch_flash": Support(IN_16_BIT, multiple=8, widest=256),
    "efficient": Support({torch.bfloat16: AMPERE, torch.float16: (5, 0), torch.float32: (5, 0)}, multiple=8),
    "flash": Support(
        IN_16_BIT, widest=256, function="flash_attn:flash_attn_qkvpacked_func",
        remedy="on a machine with CUDA run `pip install --no-build-isolation 'vmae2_ds[flash]'`",
    ),  # pads other widths itself
    "flash3": Support(
        {torch.bfloat16: HOPPER, torch.float16: HOPPER}, until=(9, 9), multiple=8, widest=256,
        function="flash_attn_interface:flash_attn_qkvpacked_func",
        remedy="build it from the folder hopper of github.com/Dao-AILab/flash-attention",
    ),
    # as the package's own checks in flash_attn.cute (4.0 beta) have it: a fixed order in the backward pass on 10.x and 11.x
    "flash4": Support(
        {torch.bfloat16: HOPPER, torch.float16: HOPPER}, multiple=8, widest=128, same_bits_since=BLACKWELL,
        function="flash_attn.cute:flash_attn_func", remedy="run `pip install flash-attn-4`",
    ),
}  # fmt: skip
"""Where each kernel can run, by the names of `model.attention`."""


def why_not(name: str, dtype: torch.dtype, head_width: int, device: torch.device) -> str | None:
    """Why the kernel called `name` cannot run, as the end of a sentence that starts with its name; None where it can.

    Under `torch.use_deterministic_algorithms` a kernel that cannot give the same bits twice cannot run.

    Raises:
        ConfigError: an unknown name.
    """
    return next(_reasons(name, dtype, head_width, device), None)


def why_missing(name: str) -> str | None:
    """Why the package that `name` needs cannot be used, as `why_not`; None where it can, or where torch has the kernel.

    Raises:
        ConfigError: an unknown name.
    """
    support = _support(name)
    if support.function is None:
        return None
    module, _, function = support.function.partition(":")
    try:
        found = hasattr(importlib.import_module(module), function)
        problem = f"{module} has no {function}"
    except (ImportError, OSError, RuntimeError) as error:  # a library or driver that it was built for is not there
        found, problem = False, str(error).splitlines()[0]
    return None if found else f"needs {module}, which cannot be imported ({problem}); {support.remedy}"


def _support(name: str) -> Support:
    if name not in SUPPORT:
        raise ConfigError(f"unknown attention {name!r}; choose one of {', '.join(SUPPORT)}, or auto")
    return SUPPORT[name]


def _reasons(name: str, dtype: torch.dtype, head_width: int, device: torch.device) -> Iterator[str]:
    """From what is known at once to what has to be imported."""
    support = _support(name)
    if support.cpus_only and device.type != "cpu":
        yield f"is made for CPUs, and this is {device.type}; math computes the same"
    if support.since is None:
        return
    if device.type != "cuda":
        yield f"runs on a CUDA device only, and this is {device.type}"
    if dtype not in support.since:
        yield f"computes in {' or '.join(map(_short, support.since))}, not in {_short(dtype)}"
    multiple = support.multiple // 2 if dtype == torch.float32 else support.multiple
    if head_width % max(1, multiple) or head_width > support.widest:
        yield f"takes heads of a multiple of {multiple} channels, at most {support.widest}; these have {head_width}"
    chip = torch.cuda.get_device_capability(device)
    if chip < support.since[dtype] or (support.until or chip) < chip:
        last = f" to {_point(support.until)}" if support.until else " or newer"
        yield f"runs on GPUs of compute capability {_point(support.since[dtype])}{last}; this one has {_point(chip)}"
    if torch.are_deterministic_algorithms_enabled() and (support.same_bits_since or (chip[0] + 1, 0)) > chip:
        yield "does not give the same bits twice on this GPU, which --train.deterministic asks for"
    missing = why_missing(name)
    if missing or not _in_torch(name):
        yield missing or "is not in this build of torch"


def _in_torch(name: str) -> bool:
    if name == "cudnn":
        return torch.backends.cudnn.is_available()
    return name != "torch_flash" or torch.backends.cuda.is_flash_attention_available()


def _short(dtype: torch.dtype) -> str:
    return {torch.bfloat16: "bf16", torch.float16: "fp16"}.get(dtype, str(dtype).removeprefix("torch."))


def _point(capability: Capability) -> str:
    return ".".join(map(str, capability))


_BACKENDS = {
    "CUDNN_ATTENTION": "cudnn",
    "FLASH_ATTENTION": "torch_flash",
    "EFFICIENT_ATTENTION": "efficient",
    "MATH": "math",
}
"""torch's names in the order in which it prefers them on new GPUs, and ours."""


def sdpa_kernel(shape_BNHK: AttentionShape, dtype: torch.dtype, device: torch.device) -> str:
    """The kernel that torch's sdpa takes now for training on packed q, k and v of this shape.

    One of cudnn, torch_flash, efficient and math, or on a CPU cpu_flash and math. It depends on device, torch, cuDNN and
    flags (`torch.use_deterministic_algorithms` rules cuDNN out), not on the number of clips.
    """
    from torch.nn.attention import SDPBackend

    B, N, H, K = shape_BNHK
    qkv_BN3HK = torch.empty(min(B, 2), N, 3, H, K, dtype=dtype, device=device, requires_grad=True)
    qkv_BHNK: list[Any] = list(qkv_BN3HK.permute(2, 0, 3, 1, 4))
    choose = getattr(torch, "_fused_sdp_choice", None)  # private, and the very function that sdpa asks
    taken = SDPBackend(choose(*qkv_BHNK)).name if choose else _first_that_runs(qkv_BHNK)
    found = _BACKENDS.get(taken, taken.lower())
    return "cpu_flash" if device.type == "cpu" and found == "torch_flash" else found


def sdpa_took(
    kernels: Iterable[str], shapes_BNHK: Iterable[AttentionShape], dtype: torch.dtype, device: torch.device
) -> str | None:
    """What sdpa takes where `kernels` name it, tower by tower, the encoder's first; None where none does."""
    asked = [shape for kernel, shape in zip(kernels, shapes_BNHK, strict=True) if kernel == "sdpa"]
    return ", ".join(dict.fromkeys(sdpa_kernel(shape, dtype, device) for shape in asked)) or None


def _first_that_runs(qkv_BHNK: list[Any]) -> str:
    """For a torch that does not say what it takes; a backend that somebody switched off counts all the same."""
    from torch.nn.attention import SDPBackend, sdpa_kernel

    for name in _BACKENDS:
        with contextlib.suppress(RuntimeError), torch.no_grad(), sdpa_kernel(getattr(SDPBackend, name)):
            F.scaled_dot_product_attention(*qkv_BHNK)
            return name
    return "ERROR"
