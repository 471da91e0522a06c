"""The timed steps do the work that their rows say: same tokens, same weights, real updates."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from benchmarks.cases import CASES, Options
from benchmarks.steps import MASKS, _update, geometry_of, make_batch, step_flops


@pytest.mark.parametrize(("mask", "supervised"), [("encoder_only", 1408), ("dual", 704), ("dual_disjoint", 704)])
def test_batches_have_the_published_counts(mask: str, supervised: int) -> None:
    batch = make_batch(MASKS[mask], geometry_of("small"), 2)
    assert batch.visible_BV.shape == (2, 160)
    assert batch.is_supervised_BM.sum(dim=1).tolist() == [supervised, supervised]


def test_flops_are_six_per_mac_of_what_is_computed() -> None:
    # PAPER B: GMACs of ViT-S per clip, embedding visible cubes only: dual 7.0099, disjoint 6.6225
    assert step_flops("small", MASKS["dual"], 2) == pytest.approx(2 * 6 * 7.0099e9, rel=1e-4)
    assert step_flops("small", MASKS["dual_disjoint"], 1) == pytest.approx(6 * 6.6225e9, rel=1e-4)


def test_masters_keep_what_bf16_would_lose() -> None:
    start = torch.linspace(-1, 1, 64).bfloat16()
    with_masters, plain = nn.Parameter(start.clone()), nn.Parameter(start.clone())
    reference = nn.Parameter(start.float())
    updates = [
        _update([with_masters], masters=True),
        _update([plain], masters=False),
        _update([reference], masters=False),
    ]
    for _ in range(20):  # 20 steps of 1e-4 are half a bf16 step near 1, and every one of them is lost without masters
        for parameter, update in zip((with_masters, plain, reference), updates, strict=True):
            parameter.grad = torch.ones_like(parameter)
            update()
            assert parameter.grad is None
    assert torch.equal(with_masters, reference.bfloat16())
    assert not torch.equal(plain, reference.bfloat16())


def test_cases_are_described_and_quick_is_small() -> None:
    assert all(case.about for case in CASES.values())
    quick = Options(quick=True).resolved()
    assert (quick.sizes, quick.rounds) == (("small",), 3)
    assert Options(rounds=7).resolved().rounds == 7
