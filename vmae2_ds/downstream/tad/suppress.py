"""Which of many overlapping candidates of a video become its detections: soft and hard suppression, and voting."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from vmae2_ds.config.tad_head import DetectConfig

# N candidates of one video.

Floats = NDArray[np.float64]


class Candidates(NamedTuple):
    """Segments of one video that may be actions."""

    segment_N2: Floats
    """Start and end, in positions or in seconds."""
    score_N: Floats
    label_N: NDArray[np.int64]

    def take(self, index_M: NDArray[np.int64]) -> Candidates:
        """Some of them, in this order."""
        return Candidates(self.segment_N2[index_M], self.score_N[index_M], self.label_N[index_M])


def suppress(found: Candidates, config: DetectConfig) -> Candidates:
    """At most `config.most` of the candidates, the best first, their scores lowered or their ends voted as the settings say.

    One loop over what is kept, whatever the number of classes: classes lie one after the other, and a pick reads its own.
    """
    found = found.take(np.argsort(-found.score_N, kind="stable"))
    if config.suppression == "none":
        return found.take(np.arange(min(config.most, len(found.score_N))))
    found = found.take(np.flatnonzero(found.score_N > config.min_score))
    if config.by_class:
        found = found.take(np.argsort(found.label_N, kind="stable"))
        first_N = np.searchsorted(found.label_N, found.label_N, side="left")
        end_N = np.searchsorted(found.label_N, found.label_N, side="right")
    else:
        first_N, end_N = np.zeros_like(found.label_N), np.full_like(found.label_N, len(found.label_N))
    return _picked(found, first_N, end_N, config)


def _picked(
    found: Candidates, first_N: NDArray[np.int64], end_N: NDArray[np.int64], config: DetectConfig
) -> Candidates:
    """Pick the best that is left, lower those among first:end that overlap it, and again; 0 is a candidate that is gone."""
    start_N, stop_N = np.ascontiguousarray(found.segment_N2.T)
    left_N = found.score_N.copy()
    votes = config.voting > 0 and not config.by_class
    picked: list[int] = []
    scores: list[float] = []
    segments: list[Floats] = []
    while len(picked) < min(config.most, len(left_N)) and left_N[best := int(left_N.argmax())] > 0:
        rivals = slice(first_N[best], end_N[best])
        overlap = _overlaps(start_N[rivals], stop_N[rivals], start_N[best], stop_N[best])
        picked.append(best)
        scores.append(left_N[best])
        left_N[best] = 0
        if config.suppression == "soft":
            left = left_N[rivals] * np.exp(-(overlap**2) / config.sigma)
            left_N[rivals] = np.where(left < config.min_score, 0, left)
        else:
            left_N[rivals][overlap >= config.max_overlap] = 0
        if votes:
            weight = found.score_N[rivals] * overlap * (overlap >= config.voting)
            segments.append(weight @ found.segment_N2[rivals] / weight.sum())
    kept = found.take(np.array(picked, np.int64))
    segment_N2 = np.array(segments).reshape(-1, 2) if votes else kept.segment_N2
    return Candidates(segment_N2, np.array(scores), kept.label_N)


def _overlaps(start_N: Floats, stop_N: Floats, start: float, stop: float) -> Floats:
    """Intersection over union of each segment and one."""
    common = np.maximum(np.minimum(stop_N, stop) - np.maximum(start_N, start), 0)
    return common / np.maximum(stop_N - start_N + (stop - start) - common, 1e-12)
