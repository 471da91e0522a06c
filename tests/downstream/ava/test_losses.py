"""What boxes lose, against plain PyTorch in float64, box by box."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from vmae2_ds.config.ava_head import BoxLossConfig
from vmae2_ds.downstream.ava.losses import box_losses

CLIPS, BOXES, CLASSES = 4, 3, 6
GROUPS = [(), (0, 2, 3), tuple(range(CLASSES))]


def made_up() -> tuple[Tensor, Tensor, Tensor]:
    """Logits, targets and which are boxes: single labels, several, none; clips with all, some and no boxes."""
    rng = torch.Generator().manual_seed(3)
    logits_BGC = torch.randn(CLIPS, BOXES, CLASSES, dtype=torch.float64, generator=rng) * 3
    target_BGC = (torch.rand(CLIPS, BOXES, CLASSES, generator=rng) < 0.3).float()
    target_BGC[1, 0] = 0
    target_BGC[1, 1] = F.one_hot(torch.tensor(2), CLASSES)
    is_box_BG = torch.tensor([[True] * 3, [True, True, False], [False] * 3, [True, False, True]])
    return logits_BGC.requires_grad_(), target_BGC, is_box_BG


def loss_of_box(logits_C: Tensor, target_C: Tensor, exclusive: tuple[int, ...], learns_nothing: bool) -> Tensor | None:
    """Mean over a box's terms; None where the box is not learnt from."""
    alone = [column for column in range(CLASSES) if column not in exclusive]
    if target_C.sum() == 0 and (learns_nothing or not alone):
        return None
    terms = [
        F.binary_cross_entropy_with_logits(logits_C[column], target_C[column].double(), reduction="sum")
        for column in alone
    ]
    if exclusive:
        right = [column for column in exclusive if target_C[column]]
        log_softmax = F.log_softmax(logits_C[list(exclusive)], dim=0)
        wrong_by = [-log_softmax[exclusive.index(column)] for column in right]
        terms.append(torch.stack(wrong_by).mean() if right else logits_C.sum() * 0)
    return torch.stack(terms).mean()


@pytest.mark.parametrize("exclusive", GROUPS)
@pytest.mark.parametrize("empty", ["learn", "leave_out"])
def test_the_sum_over_boxes_of_the_mean_over_their_terms(exclusive: tuple[int, ...], empty: Any) -> None:
    logits_BGC, target_BGC, is_box_BG = made_up()
    found = box_losses(logits_BGC, target_BGC, is_box_BG, BoxLossConfig(boxes_without_action=empty), exclusive)
    (gradient_BGC,) = torch.autograd.grad(found.loss, logits_BGC)
    each = [
        loss
        for logits_C, target_C in zip(logits_BGC[is_box_BG], target_BGC[is_box_BG], strict=True)
        if (loss := loss_of_box(logits_C, target_C, exclusive, empty == "leave_out")) is not None
    ]
    expected = torch.stack(each).sum()
    assert found.num_boxes == len(each)
    torch.testing.assert_close(found.loss, expected)
    torch.testing.assert_close(gradient_BGC, *torch.autograd.grad(expected, logits_BGC))


def test_without_groups_it_is_the_published_mean_times_the_number_of_boxes() -> None:
    logits_BGC, target_BGC, is_box_BG = made_up()
    found = box_losses(logits_BGC, target_BGC, is_box_BG, BoxLossConfig())
    logits_KC, target_KC = logits_BGC[is_box_BG], target_BGC[is_box_BG].double()
    expected = F.binary_cross_entropy_with_logits(logits_KC, target_KC) * len(logits_KC)
    torch.testing.assert_close(found.loss, expected)


@pytest.mark.parametrize("exclusive", GROUPS)
def test_flat_is_what_equal_chances_lose(exclusive: tuple[int, ...]) -> None:
    logits_BGC, target_BGC, is_box_BG = made_up()
    found = box_losses(torch.zeros_like(logits_BGC), target_BGC, is_box_BG, BoxLossConfig(), exclusive)
    torch.testing.assert_close(found.flat, found.loss)
    if not exclusive:
        assert found.flat.item() == pytest.approx(7 * math.log(2), rel=1e-12)


@pytest.mark.parametrize("exclusive", GROUPS)
def test_sums_of_parts_are_the_sum_of_the_whole(exclusive: tuple[int, ...]) -> None:
    logits_BGC, target_BGC, is_box_BG = made_up()
    whole = box_losses(logits_BGC, target_BGC, is_box_BG, BoxLossConfig(), exclusive)
    parts = [
        box_losses(*(x[part] for x in (logits_BGC, target_BGC, is_box_BG)), BoxLossConfig(), exclusive)
        for part in (slice(0, 1), slice(1, 3), slice(3, 4))
    ]
    for name in whole._fields:
        torch.testing.assert_close(sum(getattr(part, name) for part in parts), getattr(whole, name))


def test_padding_has_no_part_whatever_stands_there() -> None:
    logits_BGC, target_BGC, is_box_BG = made_up()
    other_BGC = torch.where(is_box_BG[..., None], logits_BGC, torch.inf).detach().requires_grad_()
    mine, theirs = (box_losses(x, target_BGC, is_box_BG, BoxLossConfig()) for x in (logits_BGC, other_BGC))
    torch.testing.assert_close(mine.loss, theirs.loss)
    (gradient_BGC,) = torch.autograd.grad(mine.loss, logits_BGC)
    assert gradient_BGC[~is_box_BG].eq(0).all()


def test_no_box_at_all_loses_nothing_and_its_gradient_is_zero() -> None:
    logits_BGC, target_BGC, is_box_BG = made_up()
    found = box_losses(logits_BGC, target_BGC, torch.zeros_like(is_box_BG), BoxLossConfig(), (0, 1))
    (gradient_BGC,) = torch.autograd.grad(found.loss, logits_BGC)
    assert (found.loss, found.flat, found.num_boxes) == (0, 0, 0)
    assert gradient_BGC.eq(0).all()
    empty = box_losses(logits_BGC[:, :0], target_BGC[:, :0], is_box_BG[:, :0], BoxLossConfig())
    assert empty.loss == 0
    assert empty.loss.requires_grad
