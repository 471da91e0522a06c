"""Every video of a list before the head, shared by the ranks: from features to detections in seconds."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import NamedTuple

import torch

from vmae2_ds.config.tad import TadConfig
from vmae2_ds.console.progress import Ticker, heard
from vmae2_ds.contracts import ReadFailure
from vmae2_ds.dist import Ranks
from vmae2_ds.downstream.tad.decode import candidates_of, detections_of, merged
from vmae2_ds.downstream.tad.detections import Detections, make_detections
from vmae2_ds.downstream.tad.features_data import FeatureFiles, fitted, padded, window_starts, windows_of
from vmae2_ds.downstream.tad.objective import DetectActions
from vmae2_ds.downstream.tad.suppress import Candidates, Floats
from vmae2_ds.errors import VideoError

log = logging.getLogger(__name__)


class Found(NamedTuple):
    """What was detected in the videos of a list."""

    detections: Detections
    failures: list[ReadFailure]
    """Videos whose features could not be read: they have no detections."""


@torch.no_grad()
def detect_videos(
    objective: DetectActions,
    files: FeatureFiles,
    names: Sequence[str],
    labels: Sequence[str],
    config: TadConfig,
    ranks: Ranks,
    video_scores: dict[str, Floats] | None = None,
) -> Found | None:
    """The detections of these videos on rank 0, None elsewhere; rank r takes videos r, r + ranks, ...

    All ranks make the same number of forward passes, which ZeRO-3 gathers weights for: those with fewer end with blank ones.

    Args:
        labels: names of the classes, in the order of the model's, or of `video_scores`.
        video_scores: how likely each class is for a whole video, for a head that has one class.
    """
    device = next(objective.parameters()).device
    data, at_once = config.data, config.train.micro_batch
    mine = names[ranks.rank :: ranks.size]
    passes = sum(-(-len(window_starts(count, data)) // at_once) for count in map(files.rows, mine) if count)
    longest, done = int(ranks.max(passes)[0]), 0
    rows: list[tuple[int, int, float, float, float]] = []
    failures: list[ReadFailure] = []

    def candidates(windows: Iterator[tuple[int, torch.Tensor]]) -> Iterator[tuple[int, Candidates]]:
        nonlocal done
        while batch := list(islice(windows, at_once)):
            feature_BTD, is_real_BT = padded([feature_TD for _, feature_TD in batch], data.length)
            output = objective.output(feature_BTD.to(device), is_real_BT.to(device))
            done += 1
            yield from zip(
                (start for start, _ in batch), candidates_of(output, config.model.head, config.detect), strict=True
            )

    was_training = objective.training
    objective.eval()
    ticker = Ticker(log, "videos looked at for actions", len(names), draws=False, speaks=ranks.rank == 0)
    with heard(ticker):
        for number, name in enumerate(mine):
            try:
                track = fitted(files.read(name), data)
            except VideoError as error:
                failures.append(ReadFailure(name, str(error)))
                continue
            found = merged(candidates(windows_of(track, data)))
            scores_C = None if video_scores is None else video_scores.get(name)
            found = detections_of(found, config.detect, track.grid, scores_C)
            video = ranks.rank + number * ranks.size
            rows += [
                (video, label, *ends, score) for ends, score, label in zip(*(x.tolist() for x in found), strict=True)
            ]
            ticker.tell(min((number + 1) * ranks.size, len(names)))  # the other ranks are about as far
        blank = torch.zeros(1, data.length, config.model.encoder.width, device=device)
        for _ in range(longest - done):
            objective.output(blank, torch.ones(1, data.length, dtype=torch.bool, device=device))
    objective.train(was_training)
    parts = ranks.gather((rows, failures))
    if parts is None:
        return None
    every = sorted((row for part, _ in parts for row in part), key=lambda row: row[0])
    return Found(make_detections(names, labels, every), sorted(failure for _, part in parts for failure in part))
