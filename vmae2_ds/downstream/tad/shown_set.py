"""The videos that `vmae2 tad show` draws, from annotations, predictions or both, which are then compared."""

from __future__ import annotations

import itertools
import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from vmae2_ds.console.spelling import did_you_mean
from vmae2_ds.downstream.detection_map import balanced_score
from vmae2_ds.downstream.tad.annotations import AMBIGUOUS, AnnotatedVideo, Annotations, check_same_set, read_annotations
from vmae2_ds.downstream.tad.detections import Detections, read_detections
from vmae2_ds.downstream.tad.mistakes import DETECTION_KINDS, NOT_COUNTED, kinds_of_detections, overlaps_of
from vmae2_ds.downstream.tad.protocols import PROTOCOLS
from vmae2_ds.downstream.tad.score import TadScores, match_all, score_detections
from vmae2_ds.downstream.tad.timelines import Prediction, ShownVideo, Truth
from vmae2_ds.errors import DataError


@dataclass(frozen=True)
class ShownSet:
    """Videos with their truth and predictions."""

    videos: dict[str, ShownVideo]
    scores: TadScores | None = None
    """The figures of the subsets; None where there is no truth or no prediction."""
    subsets: tuple[str, ...] = ()

    @cached_property
    def balanced_score(self) -> float:
        """The score from which on the predictions have the largest F1 (harmonic mean of precision and recall)."""
        predictions = [one for video in self.videos.values() if video.is_compared for one in video.predictions]
        score_N = np.array([one.score for one in predictions])
        is_right_N = np.array([one.kind == "correct" for one in predictions], dtype=bool)
        return balanced_score(score_N, is_right_N, sum(len(video.countable) for video in self.videos.values()))

    def worst(self, min_score: float) -> list[ShownVideo]:
        """The videos, those with most mistakes at that score first; of equals the one with the higher false scores."""
        return sorted(self.videos.values(), key=lambda video: video.badness(min_score), reverse=True)


@dataclass(frozen=True)
class Files:
    """What was read; one of both may be missing."""

    annotations: Annotations | None
    detections: Detections | None
    pred: Path | None
    """The file of the detections."""

    @property
    def said(self) -> str:
        """What they are called in messages."""
        files = [self.annotations.file] if self.annotations is not None else []
        return " and ".join(map(str, [*files, *([self.pred] if self.pred is not None else [])]))

    def find(self, video: str) -> str:
        """The name that a video, or its file, has in them; raises DataError where it has none."""
        stem = os.path.splitext(os.path.basename(video))[0]
        known = dict.fromkeys(self.annotations.videos if self.annotations is not None else ())
        known |= dict.fromkeys(self.detections.videos if self.detections is not None else ())
        for name in (video, os.path.basename(video), stem, stem.removeprefix("v_")):
            if name in known:
                return name
        some = ", ".join(list(known)[:3])
        guess = did_you_mean(stem, known)
        raise DataError(f"{video}: no video {stem!r} in {self.said}; {guess}there are {len(known)}: {some}, ...")

    def subsets_of(self, names: Sequence[str]) -> tuple[str, ...]:
        """The subsets that annotated videos of these names are of."""
        videos = self.annotations.videos if self.annotations is not None else {}
        return tuple(sorted({videos[name].subset for name in names if name in videos}))

    def around(self, name: str) -> Files:
        """What there is to draw the video called so: predictions alone where it is not annotated."""
        is_known = self.annotations is None or name in self.annotations.videos
        return self if is_known else Files(None, self.detections, self.pred)

    def shown(self, subsets: Sequence[str] | None, tious: Sequence[float], right_at: float) -> ShownSet:
        """The videos of some subsets (None: of those that have predictions), compared where there are both files.

        `tious`: of the scores; `right_at`: from which tIoU on a prediction is right. With one of both files:
        all that it names. Raises DataError as `score_detections`.
        """
        found, known = self.detections, self.annotations
        if known is None or found is None:
            truth = known.videos if known is not None else {}
            predicted = _by_video(found, [NOT_COUNTED] * len(found), known) if found is not None else {}
            names = dict.fromkeys([*truth, *predicted])
            labels = known.labels if known is not None else ()
            return ShownSet({name: _alone(name, truth.get(name), predicted.get(name, []), labels) for name in names})
        check_same_set(known, found.videos, str(self.pred))
        asked = self.subsets_of(found.videos) if subsets is None else tuple(subsets)
        if not asked:
            raise DataError(f"{self.pred} has no video; with --subset, all truth of that subset is shown as missed")
        videos = known.of_subset(asked)
        without = [label for label in known.labels if label == AMBIGUOUS]
        scores = score_detections(known, found, subset=asked, tious=tious, without=without, drop_unknown=True)
        tables = scores.matches.tables
        truth_N = match_all(tables, (right_at,), PROTOCOLS[scores.protocol]).truth_TN[0]
        kinds = np.full(len(found), NOT_COUNTED, dtype=object)
        kinds[tables.detections.row] = np.array(DETECTION_KINDS)[
            kinds_of_detections(overlaps_of(tables), truth_N, right_at)
        ]
        predicted = _by_video(found, kinds.tolist(), known)
        hits = np.flatnonzero(truth_N >= 0)
        found_at = dict(zip(tables.truths.row[truth_N[hits]].tolist(), tables.score_N[hits].tolist(), strict=True))
        counts = set(tables.truths.row.tolist())
        shown: dict[str, ShownVideo] = {}
        rows = itertools.count()  # of the segments of all videos, as tables number them
        for video in videos:
            true = [
                Truth(one.start_s, one.end_s, known.labels[one.label], found_at.get(row), row in counts)
                for one, row in zip(video.segments, rows, strict=False)  # one of both has no end, and is asked second
            ]
            shown[video.name] = _shown(video.name, video.duration_s, true, predicted.get(video.name, []))
        for name, predictions in predicted.items():
            if name not in known.videos:
                shown[name] = _shown(name, None, [], predictions)
        return ShownSet(shown, scores, asked)


def read_files(gt: Path | None, pred: Path | None, classes: Path | None) -> Files:
    """Read what is given; raises DataError as the readers of both kinds of files."""
    return Files(
        None if gt is None else read_annotations(gt, classes), None if pred is None else read_detections(pred), pred
    )


def _by_video(found: Detections, kinds: Sequence[str], known: Annotations | None) -> dict[str, list[Prediction]]:
    """Predictions of each video by its name, labels as the annotations call them."""
    labels = list(found.labels)
    if known is not None:
        labels = [known.labels[known.label_of[label]] if label in known.label_of else label for label in labels]
    by_video: dict[str, list[Prediction]] = {name: [] for name in found.videos}
    columns = (found.video_N, found.start_N, found.end_N, found.label_N, found.score_N)
    rows = zip(*(column.tolist() for column in columns), kinds, strict=True)
    for video, start, end, label, score, kind in rows:
        by_video[found.videos[video]].append(Prediction(start, end, labels[label], score, kind))
    return by_video


def _alone(name: str, video: AnnotatedVideo | None, predictions: list[Prediction], labels: Sequence[str]) -> ShownVideo:
    """A video of which one of both is known."""
    segments = video.segments if video is not None else ()
    truth = [Truth(one.start_s, one.end_s, labels[one.label], counts=False) for one in segments]
    return _shown(name, video.duration_s if video is not None else None, truth, predictions)._replace(is_compared=False)


def _shown(name: str, duration_s: float | None, truth: list[Truth], predictions: list[Prediction]) -> ShownVideo:
    in_time = sorted(truth, key=lambda one: (one.start_s, one.end_s))
    return ShownVideo(name, duration_s, tuple(in_time), tuple(sorted(predictions, key=lambda one: -one.score)))
