"""The head on boxes: features inside of each box, averaged into cells, their maximum, and a score for every class."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.ops import roi_align

from vmae2_ds.config.ava_head import RoiHeadConfig
from vmae2_ds.model.embed import Linear
from vmae2_ds.model.kept import once_per_device

# B clips, T steps, H x W cells of a clip's grid, D width, G boxes of a clip (with padding), K = B * G, S cells of a box along
# each side, C classes.


class RoiHead(Linear):
    """Mean over time, RoIAlign, maximum over the cells of a box, and the linear layer whose weights it owns.

    All of it is computed in float32, whatever the weights are in: RoIAlign has no bf16 kernel on a GPU (torchvision dispatches
    floats and half), and logits of 8 bits would make scores equal that are not, whose order decides about mAP.

    Nothing waits for the device: boxes that are padding go through, and whoever calls leaves out what comes of them. A batch
    without any box gives every parameter a gradient too, of zeros, as ZeRO needs it.
    """

    def __init__(self, width: int, num_classes: int, config: RoiHeadConfig, patch: int) -> None:
        """`patch`: edge of a cell of the grid in pixels."""
        super().__init__(width, num_classes)
        self.config, self.patch = config, patch

    def forward(  # type: ignore[override]
        self, feature_BTHWD: Tensor, box_BG4: Tensor, picture_B2: Tensor | None = None
    ) -> Tensor:
        """Features behind the encoder's norm, and boxes in pixels (x1 y1 x2 y2) -> logits (B, G, C), float32 at least.

        `picture_B2`: height and width in pixels of what is shown of each clip, where the rest was filled up; default: all.
        """
        pooled_KD = self.pooled(feature_BTHWD, box_BG4, picture_B2)
        logits_KC = F.linear(pooled_KD, self.weight.to(pooled_KD.dtype), self.bias.to(pooled_KD.dtype))
        return logits_KC.view(*box_BG4.shape[:2], self.out_features)

    def pooled(self, feature_BTHWD: Tensor, box_BG4: Tensor, picture_B2: Tensor | None = None) -> Tensor:
        """What the linear layer sees of each box: (K, D). In a test boxes are extended as `extended` does."""
        config, (num_clips, _, rows, columns, _) = self.config, feature_BTHWD.shape
        dtype = torch.promote_types(feature_BTHWD.dtype, torch.float32)
        feature_BDHW = feature_BTHWD.mean(dim=1, dtype=dtype).permute(0, 3, 1, 2)
        if not self.training and any(config.box_extension):
            if picture_B2 is None:
                picture_B2 = _row((rows * self.patch, columns * self.patch), like=box_BG4)[None]
            box_BG4 = extended(box_BG4, config.box_extension, picture_B2)
        clip_BG1 = _numbers(num_clips, like=box_BG4)[:, None, None].expand(-1, box_BG4.shape[1], 1)
        roi_K5 = torch.cat([clip_BG1.to(dtype), box_BG4.to(dtype)], dim=-1).flatten(0, 1)
        cell_KDSS = roi_align(
            feature_BDHW, roi_K5, config.size, 1 / self.patch, config.sampling_ratio, aligned=config.aligned
        )
        if config.dropout_on == "cells":
            cell_KDSS = F.dropout(cell_KDSS, config.dropout, self.training)
        pooled_KD = F.max_pool2d(cell_KDSS, config.size).flatten(1)  # not amax, which shares a gradient among equals
        return pooled_KD if config.dropout_on == "cells" else F.dropout(pooled_KD, config.dropout, self.training)


@once_per_device
def _numbers(count: int, device: torch.device) -> Tensor:
    return torch.arange(count, device=device)


@once_per_device
def _row(values: tuple[float, ...], device: torch.device) -> Tensor:
    return torch.tensor(values, dtype=torch.float32).to(device)


def extended(box_BG4: Tensor, extension: tuple[float, float], picture_B2: Tensor) -> Tensor:
    """Boxes made larger about their middles by these parts of their width and height, and cut off at the borders of pictures
    of these heights and widths.

    Published (docs/PAPER.md#spatial-detection): corners are pixels, so that a box is x2 - x1 + 1 wide, and the last pixel of a
    picture is width - 1. A box beyond the borders becomes one without width; none is left out.
    """
    first_BG2, last_BG2 = box_BG4[..., :2], box_BG4[..., 2:]
    more_BG2 = (last_BG2 - first_BG2 + 1) * (_row(extension, like=box_BG4) / 2)
    border_B12 = (picture_B2.flip(-1) - 1).unsqueeze(-2)
    corners = (
        corner_BG2.clamp(min=0).minimum(border_B12) for corner_BG2 in (first_BG2 - more_BG2, last_BG2 + more_BG2)
    )
    return torch.cat(list(corners), dim=-1)


def probabilities(logits_XC: Tensor, exclusive: tuple[int, ...] = ()) -> Tensor:
    """Sigmoid of every class, and one softmax of those at the places `exclusive`, in the dtype of the logits."""
    score_XC = logits_XC.sigmoid()
    if not exclusive:
        return score_XC
    place = places(exclusive, like=logits_XC)
    return score_XC.index_copy(-1, place, logits_XC.index_select(-1, place).softmax(dim=-1))


@once_per_device
def places(columns: tuple[int, ...], device: torch.device) -> Tensor:
    """Numbers of classes as an index: (n,) int64."""
    return torch.tensor(columns, dtype=torch.int64).to(device)
