"""The head on boxes, against bilinear sampling by hand, float64 and closed forms."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from vmae2_ds.config.ava_head import RoiHeadConfig
from vmae2_ds.downstream.ava.roi_head import RoiHead, extended, probabilities

EXACT = {"rtol": 1e-5, "atol": 1e-5}  # float32 against float64
WIDTH, CLASSES = 6, 5


def made_head(patch: int = 16, **config: Any) -> RoiHead:
    head = RoiHead(WIDTH, CLASSES, RoiHeadConfig.model_validate(config), patch)
    rng = torch.Generator().manual_seed(0)
    for parameter in head.parameters():
        parameter.data.normal_(generator=rng)
    return head.eval()


def features(rows: int, columns: int, clips: int = 2, steps: int = 3) -> Tensor:
    return torch.randn(clips, steps, rows, columns, WIDTH, generator=torch.Generator().manual_seed(1))


def value_at(feature_HW: Tensor, y: float, x: float) -> float:
    """Between four neighbours; nothing a whole cell and more outside."""
    rows, columns = feature_HW.shape
    if not (-1 <= y <= rows and -1 <= x <= columns):
        return 0.0
    y, x = min(max(y, 0.0), rows - 1), min(max(x, 0.0), columns - 1)
    top, left = int(y), int(x)
    below, right = min(top + 1, rows - 1), min(left + 1, columns - 1)
    dy, dx = y - top, x - left
    upper = (1 - dx) * feature_HW[top, left] + dx * feature_HW[top, right]
    lower = (1 - dx) * feature_HW[below, left] + dx * feature_HW[below, right]
    return float((1 - dy) * upper + dy * lower)


def pooled_by_hand(feature_HW: Tensor, box: list[float], config: RoiHeadConfig, patch: int) -> float:
    """The largest of size x size means of samples, of one channel."""
    shift = 0.5 if config.aligned else 0.0
    x1, y1, x2, y2 = (value / patch - shift for value in box)
    width, height = (x2 - x1, y2 - y1) if config.aligned else (max(x2 - x1, 1), max(y2 - y1, 1))
    cell_w, cell_h = width / config.size, height / config.size
    across, down = config.sampling_ratio or math.ceil(cell_w), config.sampling_ratio or math.ceil(cell_h)
    means = []
    for row in range(config.size):
        for column in range(config.size):
            values = [
                value_at(
                    feature_HW, y1 + (row + (j + 0.5) / down) * cell_h, x1 + (column + (i + 0.5) / across) * cell_w
                )
                for j in range(down)
                for i in range(across)
            ]
            means.append(sum(values) / len(values))
    return max(means)


@pytest.mark.parametrize(
    ("patch", "config"),
    [
        (16, {}),
        (14, {}),
        (16, {"aligned": True, "dropout": 0.5}),
        (14, {"aligned": True, "size": 8, "dropout": 0.5, "dropout_on": "cells"}),
        (16, {"sampling_ratio": 2, "size": 3}),
    ],
)
def test_a_box_is_the_largest_of_its_cells_between_its_neighbours(patch: int, config: dict[str, Any]) -> None:
    head, feature_BTHWD = made_head(patch, box_extension=(0, 0), **config), features(9, 14)
    box = [20.0, 33.5, 171.0, 96.25]  # of no symmetry
    box_BG4 = torch.tensor([[[1, 2, 30, 40], [0, 0, 0, 0]], [[5.0, 5.0, 50.0, 20.0], box]])
    pooled_K = head.pooled(feature_BTHWD, box_BG4)[3]
    mean_HWD = feature_BTHWD[1].double().mean(dim=0)
    by_hand = [pooled_by_hand(mean_HWD[..., channel], box, head.config, patch) for channel in range(WIDTH)]
    torch.testing.assert_close(pooled_K.double(), torch.tensor(by_hand, dtype=torch.float64), **EXACT)
    logits_C = torch.tensor(by_hand, dtype=torch.float64) @ head.weight.double().T + head.bias.double()
    torch.testing.assert_close(head(feature_BTHWD, box_BG4)[1, 1].double(), logits_C, **EXACT)


def test_in_bf16_the_head_computes_in_float32_what_float64_gives() -> None:
    """Of the same bf16 features and weights: only they are rounded, nothing in between is."""
    head, feature_BTHWD = made_head().bfloat16(), features(9, 14).bfloat16().requires_grad_()
    box_BG4 = torch.tensor([[[20.0, 33.5, 171.0, 96.25]], [[3.0, 4.0, 60.0, 90.0]]])
    logits_BGC = head(feature_BTHWD, box_BG4)
    assert logits_BGC.dtype == torch.float32
    wide, wide_BTHWD = made_head().double(), feature_BTHWD.detach().double().requires_grad_()
    wide.load_state_dict(head.state_dict())
    expected_BGC = wide(wide_BTHWD, box_BG4.double())
    assert expected_BGC.dtype == torch.float64
    torch.testing.assert_close(logits_BGC.double(), expected_BGC, **EXACT)
    for output in (logits_BGC, expected_BGC):
        output.square().sum().backward()
    for narrow, exact in ((head.weight.grad, wide.weight.grad), (feature_BTHWD.grad, wide_BTHWD.grad)):
        assert narrow is not None
        assert narrow.dtype == torch.bfloat16
        torch.testing.assert_close(narrow.double(), exact, rtol=2**-8, atol=1e-3)


def test_boxes_are_extended_in_a_test_alone_and_cut_off_at_the_last_pixel() -> None:
    box_BG4 = torch.tensor([[[10.0, 20.0, 29.0, 59.0], [0.0, 0.0, 99.0, 63.0], [150.0, -90.0, 160.0, -80.0]]])
    wider_BG4 = torch.tensor([[[9.0, 19.0, 30.0, 60.0], [0.0, 0.0, 99.0, 63.0], [99.0, 0.0, 99.0, 0.0]]])
    torch.testing.assert_close(extended(box_BG4, (0.1, 0.05), torch.tensor([[64, 100]])), wider_BG4)
    head, feature_BTHWD = made_head(), features(4, 7, clips=1)
    wider_BG4 = extended(box_BG4, (0.1, 0.05), torch.tensor([[4 * 16, 7 * 16]]))
    as_they_are = made_head(box_extension=(0, 0))
    torch.testing.assert_close(head(feature_BTHWD, box_BG4), as_they_are(feature_BTHWD, wider_BG4))
    torch.testing.assert_close(head.train()(feature_BTHWD, box_BG4), as_they_are(feature_BTHWD, box_BG4))


def test_an_extended_box_ends_where_its_own_picture_does_not_where_the_clip_was_filled_up_to() -> None:
    box_BG4 = torch.tensor([[[40.0, 10.0, 99.0, 59.0]]]).expand(2, -1, -1)
    picture_B2 = torch.tensor([[60, 100], [58, 104]])
    wider_BG4 = extended(box_BG4, (0.1, 0.05), picture_B2)
    torch.testing.assert_close(wider_BG4[:, 0], torch.tensor([[37, 8.75, 99, 59], [37, 8.75, 102, 57]]))
    head, feature_BTHWD = made_head(), features(4, 7)
    as_they_are = made_head(box_extension=(0, 0))
    found_BGC = head(feature_BTHWD, box_BG4, picture_B2)
    torch.testing.assert_close(found_BGC, as_they_are(feature_BTHWD, wider_BG4))
    assert not torch.equal(found_BGC, head(feature_BTHWD, box_BG4))


@pytest.mark.parametrize("aligned", [False, True])
def test_boxes_without_area_or_outside_of_the_picture_give_finite_scores_and_gradients(aligned: bool) -> None:
    head, feature_BTHWD = made_head(aligned=aligned), features(4, 4, clips=1).requires_grad_()
    boxes = [
        [8, 8, 8, 8],
        [0, 5, 64, 5],
        [900, 900, 950, 950],
        [-80, -80, -60, -60],
        [40, 40, 10, 10],
        [-9, -9, 99, 99],
    ]
    for training in (False, True):
        logits_BGC = head.train(training)(feature_BTHWD, torch.tensor([boxes], dtype=torch.float32))
        assert logits_BGC.isfinite().all()
        logits_BGC.sum().backward()
        assert feature_BTHWD.grad is not None
        assert feature_BTHWD.grad.isfinite().all()


def test_dropout_falls_on_the_maximum_or_on_each_cell() -> None:
    """Of features that are 1 everywhere a kept value is 1 / (1 - rate): nearly every box keeps one of its cells."""
    ones_BTHWD, box_BG4 = torch.ones(1, 2, 4, 4, WIDTH), torch.tensor([[[0.0, 0.0, 40.0, 40.0]] * 300])
    for place, kept in (("maximum", 0.25), ("cells", 1.0)):
        torch.manual_seed(0)
        head = made_head(dropout=0.75, dropout_on=place).train()
        pooled_KD = head.pooled(ones_BTHWD, box_BG4)
        assert set(pooled_KD.unique().tolist()) == {4.0} | ({0.0} if place == "maximum" else set())
        assert (pooled_KD > 0).double().mean() == pytest.approx(kept, abs=0.04)
        assert set(head.eval().pooled(ones_BTHWD, box_BG4).unique().tolist()) == {1.0}


def test_classes_that_exclude_each_other_share_a_softmax_the_others_have_a_sigmoid() -> None:
    logits_XC = torch.randn(4, CLASSES, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    score_XC = probabilities(logits_XC, (0, 3))
    odds_XC = logits_XC.exp()
    for column in range(CLASSES):
        others = odds_XC[:, 0] + odds_XC[:, 3] if column in (0, 3) else 1 + odds_XC[:, column]
        torch.testing.assert_close(score_XC[:, column], odds_XC[:, column] / others)
    torch.testing.assert_close(probabilities(logits_XC), logits_XC.sigmoid())
    torch.testing.assert_close(probabilities(logits_XC, tuple(range(CLASSES))), logits_XC.softmax(-1))
