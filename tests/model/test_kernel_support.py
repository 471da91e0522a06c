"""What can run where: the table against the refusals and the docs, and what sdpa takes against what runs."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch._subclasses import FakeTensorMode
from torch.profiler import ProfilerActivity, profile

from vmae2_ds.model import kernel_support
from vmae2_ds.model.attention import sdpa_attention
from vmae2_ds.model.kernel_support import SUPPORT, Support, sdpa_kernel, why_not

BF16, FP16, FP32 = torch.bfloat16, torch.float16, torch.float32
CPU, CUDA = torch.device("cpu"), torch.device("cuda", 0)
CHIPS = {"V100": (7, 0), "A100": (8, 0), "RTX 4090": (8, 9), "H100": (9, 0), "B200": (10, 0)}
TRAINING = Path(__file__).parents[2] / "docs" / "TRAINING.md"


@pytest.fixture
def chip(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> str:
    """A GPU by name, with every package."""
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: CHIPS[request.param])
    monkeypatch.setattr(kernel_support, "why_missing", lambda name: None)
    monkeypatch.setattr(torch.backends.cudnn, "is_available", lambda: True)
    monkeypatch.setattr(torch.backends.cuda, "is_flash_attention_available", lambda: True)
    return request.param


EVERYWHERE = {"math", "sdpa"}
RUNS = [
    # chip, dtype: what its maker's and the packages' pages say runs there at head widths 64 and 88
    ("V100", BF16, EVERYWHERE),
    ("V100", FP32, EVERYWHERE | {"efficient"}),
    ("A100", BF16, EVERYWHERE | {"cudnn", "torch_flash", "efficient", "flash"}),
    ("RTX 4090", FP16, EVERYWHERE | {"cudnn", "torch_flash", "efficient", "flash"}),
    ("A100", FP32, EVERYWHERE | {"efficient"}),
    ("H100", BF16, set(SUPPORT) - {"by_head"}),
    ("H100", FP32, EVERYWHERE | {"efficient"}),
    ("B200", BF16, set(SUPPORT) - {"by_head", "flash3"}),
]


def spelt(found: object) -> str:
    """A part of a test's name, the same in every process: a set has no order of its own."""
    return " ".join(sorted(found)) if isinstance(found, set) else str(found)


@pytest.mark.parametrize("head_width", [64, 88])
@pytest.mark.parametrize(("chip", "dtype", "runs"), RUNS, indirect=["chip"], ids=spelt)
def test_what_runs_on_a_chip(chip: str, dtype: torch.dtype, runs: set[str], head_width: int) -> None:
    assert {name for name in SUPPORT if why_not(name, dtype, head_width, CUDA) is None} == runs


@pytest.mark.parametrize("chip", ["H100", "B200"], indirect=True)
def test_what_can_give_the_same_bits_twice(chip: str, same_bits: None) -> None:
    """cuDNN's backward adds with atomics; flash_attn 4 has a fixed order on Blackwell alone."""
    refused = {name for name in SUPPORT if "same bits" in (why_not(name, BF16, 64, CUDA) or "")}
    assert refused == ({"cudnn", "flash4"} if chip == "H100" else {"cudnn"})


@pytest.mark.parametrize("chip", ["H100"], indirect=True)
@pytest.mark.parametrize(
    ("name", "dtype", "head_width", "device", "why"),
    [
        ("cudnn", BF16, 64, CPU, "runs on a CUDA device only, and this is cpu"),
        ("flash", FP32, 64, CUDA, "computes in bf16 or fp16, not in float32"),
        ("cudnn", BF16, 160, CUDA, "takes heads of a multiple of 8 channels, at most 128; these have 160"),
        ("efficient", FP32, 90, CUDA, "takes heads of a multiple of 4 channels, at most 1048576; these have 90"),
    ],
)
def test_a_reason_names_the_numbers(
    chip: str, name: str, dtype: torch.dtype, head_width: int, device: torch.device, why: str
) -> None:
    assert why_not(name, dtype, head_width, device) == why


@pytest.mark.parametrize("chip", ["B200"], indirect=True)
def test_a_chip_that_is_too_new_is_named(chip: str) -> None:
    found = why_not("flash3", BF16, 64, CUDA)
    assert found == "runs on GPUs of compute capability 9.0 to 9.9; this one has 10.0"


def test_the_table_of_the_docs_is_the_table_of_the_code() -> None:
    lines = [f"| `{name}` | {' | '.join(cells(support))} |" for name, support in SUPPORT.items()]
    assert "\n".join(lines) in TRAINING.read_text(), "docs/TRAINING.md wants:\n" + "\n".join(lines)


def cells(support: Support) -> tuple[str, ...]:
    """Package, compute capability by dtype, head widths, whether the same bits come twice."""
    package = support.function.partition(":")[0] if support.function else "torch"
    if support.since is None:
        return package, f"any {'CPU' if support.cpus_only else 'device'} and dtype", "any", "yes"
    words = {BF16: "bf16", FP16: "fp16", FP32: "fp32"}
    newest = f", up to {support.until[0]}.{support.until[1]}" if support.until else ""
    chips = ", ".join(f"{words[dtype]} from {chip[0]}.{chip[1]}" for dtype, chip in support.since.items()) + newest
    step = f"multiples of {support.multiple}" if support.multiple > 1 else "any"
    width = f"{step}, at most {support.widest}" if support.widest < 1024 else step
    return package, chips, width, {None: "no", (0, 0): "yes"}.get(support.same_bits_since, "from 10.0")


def test_everything_that_needs_no_gpu_runs_on_a_cpu() -> None:
    assert {name for name in SUPPORT if why_not(name, BF16, 64, CPU) is None} == EVERYWHERE | {"by_head"}


# --- what sdpa takes ----------------------------------------------------------------------------------------------------

OPERATORS = {
    "aten::_scaled_dot_product_flash_attention_for_cpu": "cpu_flash",
    "aten::_scaled_dot_product_attention_math": "math",
}


def ran(shape: tuple[int, int, int, int], dtype: torch.dtype) -> str:
    """The operator that torch's profiler saw."""
    B, N, H, K = shape
    qkv = torch.randn(B, N, 3, H, K).to(dtype).requires_grad_()
    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        sdpa_attention(qkv)
    (found,) = {OPERATORS[event.key] for event in profiler.key_averages() if event.key in OPERATORS}
    return found


@pytest.mark.parametrize("dtype", [BF16, FP32], ids=str)
@pytest.mark.parametrize("shape", [(2, 160, 6, 64), (1, 208, 16, 88), (3, 7, 2, 16)], ids=str)
def test_sdpa_takes_what_is_said(shape: tuple[int, int, int, int], dtype: torch.dtype) -> None:
    assert sdpa_kernel(shape, dtype, CPU) == ran(shape, dtype) == "cpu_flash"
    with nn.attention.sdpa_kernel(nn.attention.SDPBackend.MATH):
        assert sdpa_kernel(shape, dtype, CPU) == ran(shape, dtype) == "math"


def test_without_torch_s_own_answer_kernels_are_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(torch, "_fused_sdp_choice")
    assert sdpa_kernel((2, 7, 2, 16), BF16, CPU) == "cpu_flash"
    with nn.attention.sdpa_kernel(nn.attention.SDPBackend.MATH):
        before = torch.backends.cuda.flash_sdp_enabled()
        sdpa_kernel((2, 7, 2, 16), BF16, CPU)
        assert torch.backends.cuda.flash_sdp_enabled() == before, "flags are put back"


def test_on_cuda_the_flash_kernel_is_torch_s(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "_fused_sdp_choice", lambda *_: 1)
    with FakeTensorMode():
        assert sdpa_kernel((2, 7, 2, 16), BF16, CUDA) == "torch_flash"


def test_asking_runs_no_attention_and_holds_no_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(F, "scaled_dot_product_attention", lambda *_: pytest.fail("ran"))
    asked = []
    monkeypatch.setattr(torch, "_fused_sdp_choice", lambda q, k, v: asked.append(q.shape) or 3)
    assert sdpa_kernel((64, 208, 16, 88), BF16, CPU) == "cudnn"
    assert asked == [(2, 16, 208, 88)]
