"""Closed forms of the detection head against the module and torch's counter."""

from __future__ import annotations

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from tests.golden_head import TINY_HEAD
from vmae2_ds.config.tad_head import HeadConfig
from vmae2_ds.cost.pyramid import level_points, pyramid_macs, pyramid_parameters
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
