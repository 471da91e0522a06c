"""Every video of a list before the model, shared by the ranks: from features or frames to detections in seconds."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from typing import NamedTuple

import torch

from vmae2_ds.config.tad import TadConfig
from vmae2_ds.console.progress import Ticker, heard
from vmae2_ds.contracts import ReadFailure
from vmae2_ds.dist import Ranks
from vmae2_ds.downstream.tad.annotations import AnnotatedVideo
from vmae2_ds.downstream.tad.decode import candidates_of, detections_of, merged
from vmae2_ds.downstream.tad.detections import Detections, make_detections
from vmae2_ds.downstream.tad.features_data import FeatureFiles
from vmae2_ds.downstream.tad.objective import DetectActions
from vmae2_ds.downstream.tad.suppress import Candidates, Floats
from vmae2_ds.downstream.tad.video_data import VideoFiles
from vmae2_ds.errors import VideoError

log = logging.getLogger(__name__)


def files_of(config: TadConfig, videos: Mapping[str, AnnotatedVideo]) -> FeatureFiles | VideoFiles:
    """What a run's model is shown: features in files, or end to end the videos themselves. Errors as `feature_info`."""
    if config.model.is_end_to_end:
        return VideoFiles(config.data, videos)
    return FeatureFiles(config.data, config.model.encoder.width, videos)


class Found(NamedTuple):
    """What was detected in the videos of a list."""

    detections: Detections
    failures: list[ReadFailure]
    """Videos that, or whose features, could not be read: they have no detections."""


@torch.no_grad()
def detect_videos(
    objective: DetectActions,
    files: FeatureFiles | VideoFiles,
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
    mine = names[ranks.rank :: ranks.size]
    # end to end one window is many clips already, and with two a pass would call blocks more often than another rank's with one
    at_once = 1 if config.model.is_end_to_end else config.train.micro_batch
    passes = sum(-(-files.num_windows(name) // at_once) for name in mine) if ranks.size > 1 else 0
    longest, done = int(ranks.max(passes)[0]), 0
    rows: list[tuple[int, int, float, float, float]] = []
    failures: list[ReadFailure] = []

    def candidates(windows: Iterator[tuple[int, torch.Tensor]]) -> Iterator[tuple[int, Candidates]]:
        nonlocal done
        while batch := list(islice(windows, at_once)):
            if ranks.size > 1 and done == longest:  # another pass, and the other ranks would not be there
                raise VideoError("it could not be opened when windows were counted, and now it can; start again")
            output = objective.output(*(x.to(device) for x in files.batch([window for _, window in batch])))
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
                windows = files.windows(name)
                found = merged(candidates(iter(windows)))
            except VideoError as error:
                failures.append(ReadFailure(name, str(error)))
                continue
            scores_C = None if video_scores is None else video_scores.get(name)
            found = detections_of(found, config.detect, windows.grid, scores_C)
            video = ranks.rank + number * ranks.size
            rows += [
                (video, label, *ends, score) for ends, score, label in zip(*(x.tolist() for x in found), strict=True)
            ]
            ticker.tell(min((number + 1) * ranks.size, len(names)))  # the other ranks are about as far
        for _ in range(longest - done):
            objective.output(*(x.to(device) for x in files.blank()))
    objective.train(was_training)
    parts = ranks.gather((rows, failures))
    if parts is None:
        return None
    every = sorted((row for part, _ in parts for row in part), key=lambda row: row[0])
    return Found(make_detections(names, labels, every), sorted(failure for _, part in parts for failure in part))
