"""Losses of boxes as sums, so that micro batches and ranks can agree on what they are divided by."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from vmae2_ds.config.ava_head import BoxLossConfig
from vmae2_ds.downstream.ava.roi_head import places

# B clips, G boxes of a clip (with padding), C classes.


class BoxLossSums(NamedTuple):
    """Losses of a micro batch, not yet divided by anything, in the dtype of the logits."""

    loss: Tensor
    """Sum over boxes of the mean over a box's terms: one for each class, one for all classes that share a softmax. This is what
    VideoMAE-AD calls the mean over boxes and classes, times the number of boxes (docs/PAPER.md#spatial-detection)."""
    flat: Tensor
    """The same where every class is as likely as not, and those that share a softmax are equally likely."""
    num_boxes: Tensor
    """How many boxes are learnt from; int64."""


def box_losses(
    logits_BGC: Tensor,
    target_BGC: Tensor,
    is_box_BG: Tensor,
    config: BoxLossConfig,
    exclusive: tuple[int, ...] = (),
) -> BoxLossSums:
    """Binary cross entropy of every class; cross entropy of the classes at the places `exclusive`.

    Targets are 0 or 1. A box that has none of the exclusive classes learns nothing of them; one that has several learns them as
    equally right. Nothing waits for the device: shapes do not depend on how many boxes there are.
    """
    num_classes = logits_BGC.shape[-1]
    alone = tuple(column for column in range(num_classes) if column not in set(exclusive))
    target_BGC = target_BGC.to(logits_BGC.dtype)
    each_BGC = F.binary_cross_entropy_with_logits(logits_BGC, target_BGC, reduction="none")
    box_BG, flat_BG = each_BGC.sum(-1), each_BGC.new_full(is_box_BG.shape, len(alone) * math.log(2))
    if exclusive:
        at = places(exclusive, like=logits_BGC)
        shared_BGX = target_BGC.index_select(-1, at)
        share_BGX = shared_BGX / shared_BGX.sum(-1, keepdim=True).clamp(min=1)
        cross_BG = -(share_BGX * logits_BGC.index_select(-1, at).log_softmax(-1)).sum(-1)
        box_BG = each_BGC.index_select(-1, places(alone, like=logits_BGC)).sum(-1) + cross_BG
        flat_BG = flat_BG + share_BGX.sum(-1) * math.log(len(exclusive))
    num_terms = len(alone) + bool(exclusive)
    is_learnt_BG = learnt_boxes(target_BGC, is_box_BG, config, any_class=bool(alone))
    # a made-up loss where there is no box, lest nan times 0 reach the gradient
    loss = torch.where(is_learnt_BG, box_BG, 0).sum() / num_terms
    return BoxLossSums(loss, torch.where(is_learnt_BG, flat_BG, 0).sum() / num_terms, is_learnt_BG.sum())


def learnt_boxes(target_BGC: Tensor, is_box_BG: Tensor, config: BoxLossConfig, *, any_class: bool = True) -> Tensor:
    """Which boxes are learnt from: (B, G) bool. Without a class of its own sigmoid (`any_class`) a box needs an action."""
    if config.boxes_without_action == "learn" and any_class:
        return is_box_BG
    return is_box_BG & (target_BGC > 0).any(-1)
