"""Labelled features, and what a probe gets right on them: on a test set, or on each source of the list left out once."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np

from vmae2_ds.console.progress import Ticker
from vmae2_ds.errors import ConfigError

log = logging.getLogger(__name__)

# V videos, F features.


class Features(NamedTuple):
    """Features and labels of the videos of a list that could be read."""

    feature_VF: np.ndarray
    """float64 (V, F), the mean over a video's clips; or float16 (V, N, D), the tokens of all its clips one after another."""
    label_V: np.ndarray
    source_V: np.ndarray
    """Names of the list's column `source`."""
    path_V: np.ndarray
    """What messages call the video."""


ProbeFn = Callable[[Features, np.ndarray, int], np.ndarray]
"""(training set, test features, classes) -> predicted labels."""


class TestedVideos(NamedTuple):
    """Test videos in the order in which they were tested."""

    predicted_V: np.ndarray
    label_V: np.ndarray
    path_V: np.ndarray


def probe_accuracy(train: Features, test: Features | None, fit: ProbeFn) -> tuple[float, int]:
    """Share of test videos that are named right, and their number; without a test set every source is left out once."""
    tested = probe_predictions(train, test, fit)
    return accuracy(tested), len(tested.label_V)


def accuracy(tested: TestedVideos) -> float:
    """Share of its videos that are named right."""
    return float((tested.predicted_V == tested.label_V).mean())


def probe_predictions(train: Features, test: Features | None, fit: ProbeFn) -> TestedVideos:
    """What the probe calls each test video; without a test set each source is left out once and tested."""
    parts: list[TestedVideos] = []
    ticker = Ticker(log, "folds tested", 1 if test is not None else len(set(train.source_V)))
    for part, held in _folds(train, test):
        ticker.tell(len(parts))
        num_classes = int(max(part.label_V.max(), held.label_V.max())) + 1
        parts.append(TestedVideos(fit(part, held.feature_VF, num_classes), held.label_V, held.path_V))
    ticker.close()
    return TestedVideos(*(np.concatenate(arrays) for arrays in zip(*parts, strict=True)))


def _folds(train: Features, test: Features | None) -> Iterator[tuple[Features, Features]]:
    if test is not None:
        yield train, test
        return
    sources = sorted({str(source) for source in train.source_V})
    check_sources(sources)
    for source in sources:
        held = train.source_V == source
        yield _rows(train, ~held), _rows(train, held)


def _rows(features: Features, which: np.ndarray) -> Features:
    return Features(*(array[which] for array in features))


def check_sources(sources: Sequence[str]) -> None:
    """Raises ConfigError where there are no two sources, of which each could be left out once."""
    if len(sources) < 2:
        raise ConfigError(
            f"the list has one source, {sources[0]!r}: name groups (subjects, scenes) in its column `source`, each of which "
            "is left out once, or give --val-manifest"
        )
