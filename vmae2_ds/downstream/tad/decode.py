"""From what the pyramid says of its points to detections in seconds."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from vmae2_ds.config.tad_head import DetectConfig, HeadConfig
from vmae2_ds.downstream.tad.points import points_of
from vmae2_ds.downstream.tad.pyramid import PyramidOutput
from vmae2_ds.downstream.tad.suppress import Candidates, Floats, suppress

# B videos or windows, T points of a level, K kept, C classes, N candidates of a video.


@dataclass(frozen=True)
class TimeGrid:
    """When a position is: (position * stride + offset_frames) / fps seconds."""

    stride: float
    """Frames from one position to the next; where features were resized, the video's frames over their number."""
    offset_frames: float
    fps: float
    duration_s: float
    """No detection goes on longer."""

    def seconds(self, position: Floats) -> Floats:
        """Within the video."""
        return np.clip((position * self.stride + self.offset_frames) / self.fps, 0.0, self.duration_s)


@torch.no_grad()
def candidates_of(output: PyramidOutput, head: HeadConfig, config: DetectConfig) -> list[Candidates]:
    """For each video or window of a batch: the best of each level that pass the threshold, in positions.

    The device is waited for once.
    """
    levels = [
        _best_of_level(*level, config.top_k)
        for level in zip(output.logits_LBTC, output.offsets_LBT2, output.is_real_LBT, strict=True)
    ]
    points = points_of([level.shape[1] for level in output.is_real_LBT], head, like=output.logits_LBTC[0])
    first = np.cumsum([0, *(level.shape[1] for level in output.is_real_LBT)])
    columns = []
    for (score_BK, offset_BK2, point_BK, class_BK), start in zip(levels, first[:-1], strict=True):
        position_BK, stride_BK = (x[point_BK + int(start)] for x in (points.position_P, points.stride_P))
        ends = position_BK - offset_BK2[..., 0] * stride_BK, position_BK + offset_BK2[..., 1] * stride_BK
        columns.append(torch.stack([*ends, score_BK, class_BK.float()]))
    start_BN, end_BN, score_BN, class_BN = torch.cat(columns, dim=-1).double().cpu().numpy()
    keep_BN = (score_BN > config.threshold) & (end_BN - start_BN > config.min_length)
    return [
        Candidates(np.stack([start[keep], end[keep]], axis=1), score[keep], label[keep].astype(np.int64))
        for start, end, score, label, keep in zip(start_BN, end_BN, score_BN, class_BN, keep_BN, strict=True)
    ]


def _best_of_level(
    logits_BTC: Tensor, offset_BT2: Tensor, is_real_BT: Tensor, top_k: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Scores of the best pairs of point and class, and their offsets, points and classes: (B, K), (B, K, 2), (B, K), (B, K)."""
    num_classes = logits_BTC.shape[-1]
    score_BX = (logits_BTC.float().sigmoid() * is_real_BT[..., None]).flatten(1)
    score_BK, place_BK = score_BX.topk(min(top_k, score_BX.shape[1]), dim=1)
    point_BK = place_BK // num_classes
    offset_BK2 = offset_BT2.float().take_along_dim(point_BK[..., None], dim=1)
    return score_BK, offset_BK2, point_BK, place_BK % num_classes


def merged(windows: Iterable[tuple[int, Candidates]]) -> Candidates:
    """The candidates of one video from those of its windows, each with the position where it starts."""
    moved = [Candidates(found.segment_N2 + start, found.score_N, found.label_N) for start, found in windows]
    return Candidates(*(np.concatenate(columns) for columns in zip(*moved, strict=True)))


def detections_of(
    found: Candidates, config: DetectConfig, grid: TimeGrid, video_score_C: Floats | None = None
) -> Candidates:
    """The detections of one video from all of its candidates, in seconds, the best first.

    `video_score_C`: how likely each class is for the whole video, by a classifier of somebody else. Then what is found has no
    class of its own, and is given each of the likeliest `config.external_top_k`, with the root of both scores' product
    (published so in ActionFormer and OpenTAD: docs/PAPER.md#detection-head).
    """
    found = suppress(found, config)
    found = found._replace(segment_N2=grid.seconds(found.segment_N2))
    return found if video_score_C is None else _with_classes(found, video_score_C, config.external_top_k)


def _with_classes(found: Candidates, video_score_C: Floats, top_k: int) -> Candidates:
    class_K = np.argsort(-video_score_C, kind="stable")[:top_k]
    score_KN = np.sqrt(video_score_C[class_K, None] * found.score_N)
    all_of_them = Candidates(
        np.tile(found.segment_N2, (len(class_K), 1)), score_KN.ravel(), class_K.repeat(len(found.score_N))
    )
    return all_of_them.take(np.argsort(-all_of_them.score_N, kind="stable"))
