"""Attention a few heads at a time: the same mathematics as all heads at once, whatever the slices."""

from __future__ import annotations

import pytest
import torch

from vmae2_ds.model import math_attention
from vmae2_ds.model.math_attention import by_head_attention

SHAPE = (3, 11, 3, 5, 8)  # 15 heads in all: slices of 4 leave 3


def both_passes(attend: object, qkv: torch.Tensor, dout: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    qkv = qkv.clone().requires_grad_()
    out = attend(qkv)  # type: ignore[operator]
    out.backward(dout)
    assert qkv.grad is not None
    return out.detach(), qkv.grad


@pytest.mark.parametrize("heads", [1, 4, 100])
def test_slices_of_heads_give_what_torch_gives_in_float64(heads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(math_attention, "CACHE_BYTES", heads * 11 * 11 * 8)
    generator = torch.Generator().manual_seed(0)
    qkv = torch.randn(SHAPE, generator=generator, dtype=torch.float64)
    dout = torch.randn(3, 11, 5, 8, generator=generator, dtype=torch.float64)

    def theirs(qkv: torch.Tensor) -> torch.Tensor:
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        return torch.nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2)

    for ours, expected in zip(both_passes(by_head_attention, qkv, dout), both_passes(theirs, qkv, dout), strict=True):
        torch.testing.assert_close(ours, expected, rtol=1e-12, atol=1e-12)


def test_the_packed_projection_stays_as_it_was() -> None:
    qkv = torch.randn(1, *SHAPE[1:])  # of one clip, whose heads could be seen in place
    before = qkv.clone()
    by_head_attention(qkv)
    assert torch.equal(qkv, before)


def test_a_compiled_block_gets_the_formula_that_a_compiler_can_fuse() -> None:
    qkv, dout = torch.randn(SHAPE), torch.randn(3, 11, 5, 8)
    compiled = torch.compile(by_head_attention, backend="aot_eager", fullgraph=True)
    for ours, expected in zip(both_passes(compiled, qkv, dout), both_passes(by_head_attention, qkv, dout), strict=True):
        torch.testing.assert_close(ours, expected)
