"""Losses of the detection head as sums, so that ranks can agree on what they are divided by."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torchvision.ops import sigmoid_focal_loss

from vmae2_ds.config.tad_head import HeadConfig, HeadLossConfig
from vmae2_ds.downstream.tad.points import targets_of
from vmae2_ds.downstream.tad.pyramid import PyramidOutput

# B videos, P points of all levels, G segments, C classes; N of anything.

EPS = 1e-8


class LossSums(NamedTuple):
    """Losses of a micro batch, float32, not yet divided by anything."""

    classes: Tensor
    """Focal loss over all real points and classes."""
    ends: Tensor
    """Loss of the two ends over the points that learn an action."""
    num_positive: Tensor
    """How many those are; int64."""

    def loss(self, normaliser: Tensor | float, config: HeadLossConfig) -> Tensor:
        """What is learned from: both, divided by the running number of points that learn an action."""
        return (self.classes + config.regression_weight * self.ends) / normaliser


def loss_sums(
    output: PyramidOutput, segment_BG2: Tensor, label_BG: Tensor, head: HeadConfig, config: HeadLossConfig
) -> LossSums:
    """Segments in positions, a label of -1 for none; everything is computed in float32.

    Nothing waits for the device: shapes do not depend on how many points learn an action.
    """
    logits_BPC, offset_BP2, is_real_BP = (torch.cat(levels, dim=1) for levels in output)
    logits_BPC, offset_BP2 = logits_BPC.float(), offset_BP2.float()
    num_classes = logits_BPC.shape[-1]
    targets = targets_of(output.is_real_LBT, segment_BG2, label_BG, head, num_classes, config.centre_radius)
    is_positive_BP = targets.is_positive_BP
    # spread over one class more, as if there were one for the background: docs/PAPER.md#detection-head
    smooth = config.label_smoothing
    target_BPC = targets.present_BPC * (1 - smooth) + smooth / (num_classes + 1)
    focal_BPC = sigmoid_focal_loss(logits_BPC, target_BPC, alpha=config.focal_alpha, gamma=config.focal_gamma)
    # a made-up action where there is none, lest nan times 0 reach the gradient
    wanted_BP2 = torch.where(is_positive_BP[..., None], targets.offset_BP2, 1.0)
    ends_BP = REGRESSION[config.regression](offset_BP2, wanted_BP2)
    return LossSums((focal_BPC * is_real_BP[..., None]).sum(), (ends_BP * is_positive_BP).sum(), is_positive_BP.sum())


def next_normaliser(before: Tensor | float, num_positive: Tensor, config: HeadLossConfig) -> Tensor:
    """The running number of points that learn an action, after a step in which so many did on all ranks together.

    The step that is counted is already divided by the result (docs/PAPER.md#detection-head).
    """
    keep = config.normaliser_momentum
    return keep * before + (1 - keep) * num_positive.clamp(min=1)


def diou_loss(offset_N2: Tensor, wanted_N2: Tensor) -> Tensor:
    """1 - overlap + (distance of the middles / length of both together)^2 of segments around common points: (N,)."""
    overlap_N, _, together_N = _overlap(offset_N2, wanted_N2)
    start_N, end_N = (offset_N2 - wanted_N2).unbind(-1)
    return 1 - overlap_N + (0.5 * (end_N - start_N) / together_N) ** 2


def giou_loss(offset_N2: Tensor, wanted_N2: Tensor) -> Tensor:
    """1 - overlap + the part of the length of both together that neither fills: (N,)."""
    overlap_N, union_N, together_N = _overlap(offset_N2, wanted_N2)
    return 1 - overlap_N + (together_N - union_N) / together_N


def _overlap(offset_N2: Tensor, wanted_N2: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Intersection over union, the union, and the length from the first start to the last end."""
    common_N = torch.minimum(offset_N2, wanted_N2).sum(-1)
    union_N = (offset_N2.sum(-1) + wanted_N2.sum(-1) - common_N).clamp(min=EPS)
    together_N = torch.maximum(offset_N2, wanted_N2).sum(-1).clamp(min=EPS)
    return common_N / union_N, union_N, together_N


REGRESSION: dict[str, Callable[[Tensor, Tensor], Tensor]] = {"diou": diou_loss, "giou": giou_loss}
"""Losses of the two ends by name."""
