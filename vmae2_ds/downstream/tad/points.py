"""Points of the pyramid, and which action each of them learns (arXiv 2202.07925 section 3.3; docs/PAPER.md#detection-head)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from vmae2_ds.config.tad_head import HeadConfig
from vmae2_ds.model.kept import once_per_device

# B videos, P points of all levels, G segments, C classes.

TIE = 1e-3
"""Segments whose lengths differ by no more (in positions) are both learned, so that one point can have several classes."""


class Points(NamedTuple):
    """The points of all levels, the finest level first; float32, in positions."""

    position_P: Tensor
    low_P: Tensor
    """The least and the largest distance to an action's farther end that the point's level learns."""
    high_P: Tensor
    stride_P: Tensor


def points_of(lengths: Sequence[int], config: HeadConfig, like: Tensor) -> Points:
    """The points of levels that have so many each, on the device of `like`."""
    return Points(*_points(tuple(lengths), config.ranges, like=like))


@once_per_device
def _points(lengths: tuple[int, ...], ranges: tuple[float, ...], device: torch.device) -> Tensor:
    levels = zip(lengths, (0.0, *ranges), (*ranges, float("inf")), strict=True)
    rows = []
    for level, (length, low, high) in enumerate(levels):
        position_T = torch.arange(length, device=device, dtype=torch.float32) * 2**level
        rows.append(torch.stack([position_T, *(torch.full_like(position_T, x) for x in (low, high, 2.0**level))]))
    return torch.cat(rows, dim=1)


class Targets(NamedTuple):
    """What each point learns."""

    present_BPC: Tensor
    """1 for each class of its action, else 0; float32."""
    offset_BP2: Tensor
    """From the point back to the action's start and on to its end, in strides; where there is an action, above 0."""
    is_positive_BP: Tensor
    """Whether it learns an action."""


def targets_of(
    is_real_LBT: Sequence[Tensor],
    segment_BG2: Tensor,
    label_BG: Tensor,
    head: HeadConfig,
    num_classes: int,
    centre_radius: float,
) -> Targets:
    """What the points of all levels learn, as `assign`, and none of them in padding."""
    points = points_of([is_real_BT.shape[1] for is_real_BT in is_real_LBT], head, like=segment_BG2)
    targets = assign(points, segment_BG2, label_BG, num_classes, centre_radius)
    return targets._replace(is_positive_BP=targets.is_positive_BP & torch.cat([*is_real_LBT], dim=1))


@torch.no_grad()
def assign(points: Points, segment_BG2: Tensor, label_BG: Tensor, num_classes: int, centre_radius: float) -> Targets:
    """The action of each point: of those around it, within reach of their middle and in its level's range, the shortest.

    Segments are in positions; a label of -1 is none. Segments that are as short as the shortest (`TIE`) give their classes
    too, as of two that coincide. With one class in all, every label is that class. `centre_radius` is in strides; with 0,
    anywhere inside of an action is near enough.
    """
    segment_BG2, label_BG = (F.pad(x, (*(0, 0) * (x.ndim - 2), 0, 1), value=-1) for x in (segment_BG2, label_BG))
    start_B1G, end_B1G = segment_BG2.float()[:, None].unbind(-1)
    position_P1, low_P1, high_P1, stride_P1 = (x[:, None] for x in points)
    before_BPG, after_BPG = position_P1 - start_B1G, end_B1G - position_P1
    farther_BPG = torch.maximum(before_BPG, after_BPG)
    fits_BPG = (label_BG[:, None] >= 0) & (torch.minimum(before_BPG, after_BPG) > 0)
    fits_BPG &= (farther_BPG >= low_P1) & (farther_BPG <= high_P1)
    if centre_radius:
        middle_B1G = 0.5 * (start_B1G + end_B1G)
        fits_BPG &= (position_P1 - middle_B1G).abs() < stride_P1 * centre_radius
    length_BPG = (end_B1G - start_B1G).expand_as(fits_BPG).masked_fill(~fits_BPG, float("inf"))
    shortest_BP1, which_BP1 = length_BPG.min(dim=-1, keepdim=True)
    learned_BPG = fits_BPG & (length_BPG <= shortest_BP1 + TIE)
    class_BG = label_BG.clamp(min=0, max=num_classes - 1 if num_classes == 1 else None).long()
    present_BPC = (learned_BPG.float() @ F.one_hot(class_BG, num_classes).float()).clamp(max=1)
    offset_BP2 = torch.cat([x.gather(-1, which_BP1) for x in (before_BPG, after_BPG)], dim=-1) / stride_P1
    return Targets(present_BPC, offset_BP2, fits_BPG.any(-1))
