"""Closed forms of the detection head against the module and torch's counter."""

from __future__ import annotations

from unittest import mock

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch._subclasses import FakeTensorMode
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from tests.cost.parameter_counts import pyramid_parameters
from tests.golden_head import TINY_HEAD
from vmae2_ds.config.tad_head import HeadConfig
from vmae2_ds.cost.pyramid import level_points, pyramid_held, pyramid_macs
from vmae2_ds.downstream.tad.pyramid import ActionPyramid

FINEACTION = HeadConfig(width=256, windows=(7, 7, 7, 7, 7, -1), absolute_positions=True)
HEADS = {
    "thumos": (HeadConfig(), 1408, 20, 2304),
    "fineaction": (FINEACTION, 1408, 1, 192),
    "full window": (HeadConfig(windows=(-1,)), 768, 20, 768),
    "odd": (HeadConfig(width=48, embed_convs=1, stem=0, head_convs=1, windows=(5,), ranges=(4, 8)), 7, 3, 333),
    "golden": (TINY_HEAD, 24, 4, 128),
}


@pytest.mark.parametrize("name", sorted(HEADS))
def test_parameters_and_macs(name: str) -> None:
    head, input_width, num_classes, length = HEADS[name]
    with torch.device("meta"):
        pyramid = ActionPyramid(input_width, num_classes, head, length).to("meta")
        feature, is_real = torch.empty(1, length, input_width), torch.ones(1, length, dtype=torch.bool)
    assert pyramid_parameters(head, input_width, num_classes) == sum(p.numel() for p in pyramid.parameters())
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH), torch.no_grad():
        output = pyramid(feature, is_real)
    assert level_points(head, length) == tuple(logits.shape[1] for logits in output.logits_LBTC)
    assert 2 * pyramid_macs(head, input_width, num_classes, length) == counter.get_total_flops()


def test_a_sequence_of_another_length_costs_as_one_with_its_padding() -> None:
    head, input_width, num_classes, length = HEADS["golden"]
    with torch.device("meta"):
        pyramid = ActionPyramid(input_width, num_classes, head, length)
        feature, is_real = torch.empty(1, 77, input_width), torch.ones(1, 77, dtype=torch.bool)
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH), torch.no_grad():
        pyramid(feature, is_real)
    assert 2 * pyramid_macs(head, input_width, num_classes, 77 + head.strides[-1]) == counter.get_total_flops()


def fused(q: Tensor, k: Tensor, v: Tensor, attn_mask: Tensor) -> Tensor:
    """The kernel that sdpa takes for a mask on a GPU; with no GPU to ask it falls back on math."""
    bias = torch.zeros_like(attn_mask, dtype=q.dtype).expand(-1, q.shape[1], -1, -1)
    return torch.ops.aten._scaled_dot_product_efficient_attention(q, k, v, bias, True)[0]


@pytest.mark.parametrize(("name", "dtype"), [("thumos", torch.bfloat16), ("full window", torch.float32)])
def test_memory_that_the_forward_pass_keeps(name: str, dtype: torch.dtype) -> None:
    head, input_width, num_classes, length = HEADS[name]
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        kept[storage._cdata] = storage.nbytes()
        held.append(tensor)  # lest a later one gets its number
        return tensor

    held: list[Tensor] = []
    hooks = torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor)
    with FakeTensorMode(), torch.device("cuda"), mock.patch.object(F, "scaled_dot_product_attention", fused):
        pyramid = ActionPyramid(input_width, num_classes, head, length)
        for parameter in pyramid.parameters():
            parameter.data = parameter.data.to(dtype)
        feature, is_real = torch.empty(2, length, input_width, dtype=dtype), torch.ones(2, length, dtype=torch.bool)
        with hooks:
            pyramid(feature, is_real)
        weights = {parameter.untyped_storage()._cdata for parameter in pyramid.parameters()}
    found = sum(size for number, size in kept.items() if number not in weights)
    assert 2 * pyramid_held(head, input_width, length, dtype.itemsize) == pytest.approx(found, rel=0.02)
