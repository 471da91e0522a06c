"""What a timeline of a video shows of its truth and its predictions: which bars, of which kind, with which words."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from typing import NamedTuple

from vmae2_ds.console.progress import counted
from vmae2_ds.downstream.tad.mistakes import FALSE_KINDS, NOT_COUNTED
from vmae2_ds.draw.timeline import Bar, ChangeStrip, ClassRow, FrameStrip, Timeline


class Truth(NamedTuple):
    """A true segment."""

    start_s: float
    end_s: float
    label: str
    found_at: float | None = None
    """Score of the prediction that is right about it; None where there is none, or none was looked for."""
    counts: bool = True
    """Whether it is to be found; Ambiguous segments are not."""


class Prediction(NamedTuple):
    """A predicted one."""

    start_s: float
    end_s: float
    label: str
    score: float
    kind: str = NOT_COUNTED
    """What it is beside the truth, one of DETECTION_KINDS; not counted: there is nothing to compare it with."""


class ShownVideo(NamedTuple):
    """Truth and predictions of one video."""

    name: str
    duration_s: float | None
    """Length that the annotations say."""
    truth: tuple[Truth, ...]
    """In the order of time."""
    predictions: tuple[Prediction, ...]
    """The highest score first."""
    is_compared: bool = True
    """Whether there are both, so that truth is found or missed and predictions are right or wrong."""

    @property
    def length_s(self) -> float:
        """The length that the annotations say, else the last end of a segment."""
        return self.duration_s or max((max(one.start_s, one.end_s) for one in self.segments), default=0.0)

    @property
    def segments(self) -> list[Truth | Prediction]:
        """All of both."""
        return [*self.truth, *self.predictions]

    @property
    def countable(self) -> list[Truth]:
        """The truth that is to be found."""
        return [one for one in self.truth if one.counts]

    def missed(self, min_score: float) -> list[Truth]:
        """Truth that no prediction of at least that score is right about."""
        return [one for one in self.countable if one.found_at is None or one.found_at < min_score]

    def false(self, min_score: float) -> list[Prediction]:
        """Predictions of at least that score that are right about nothing."""
        return [one for one in self.predictions if one.score >= min_score and one.kind in FALSE_KINDS]

    def badness(self, min_score: float) -> tuple[int, float]:
        """What pages are sorted by: the number of mistakes at that score, then the scores of the false positives, summed."""
        false = self.false(min_score)
        return len(self.missed(min_score)) + len(false), math.fsum(one.score for one in false)


class Drawn(NamedTuple):
    """Which predictions are drawn."""

    min_score: float
    """The lowest score; truth that is found only below it counts as missed."""
    most: int
    """Number of predictions, those of the highest scores."""
    tiou: float
    """From which overlap on a prediction of the right label is right."""


def timeline_of(
    video: ShownVideo,
    drawn: Drawn,
    duration_s: float,
    frames: FrameStrip | None = None,
    change: ChangeStrip | None = None,
) -> Timeline:
    """The timeline of a video that is `duration_s` long."""
    truth_of: dict[str, list[Bar]] = defaultdict(list)
    predicted_of: dict[str, list[Bar]] = defaultdict(list)
    for truth in video.truth:
        truth_of[truth.label].append(_truth_bar(truth, drawn.min_score))
    for one in _above(video, drawn.min_score)[: drawn.most]:
        predicted_of[one.label].append(_prediction_bar(one, video.truth if video.is_compared else None))
    labels = dict.fromkeys([*truth_of, *predicted_of])
    rows = tuple(
        ClassRow(label, tuple(truth_of.get(label, ())), tuple(predicted_of.get(label, ()))) for label in labels
    )
    notes = [said_of(video, drawn, duration_s)]
    if predicted_of:
        notes.append(key_of(drawn, video.is_compared))
    return Timeline(video.name, tuple(notes), duration_s, rows, frames, change)


def _above(video: ShownVideo, min_score: float) -> list[Prediction]:
    return [one for one in video.predictions if one.score >= min_score]


def said_of(video: ShownVideo, drawn: Drawn, duration_s: float) -> str:
    """What is said above the rows: how long the video is, what of it was missed, and which predictions are drawn."""
    above, given = len(_above(video, drawn.min_score)), len(video.predictions)
    said = [time_span(duration_s)]
    if video.is_compared:
        said.append(f"{len(video.missed(drawn.min_score))} of {counted(len(video.countable), 'truth')} missed")
    elif video.truth:
        said.append(counted(len(video.truth), "truth"))
    if above < given:
        said.append(
            f"{above} of {counted(given, 'prediction')} with a score of at least {number_text(drawn.min_score)}"
        )
    elif given or video.is_compared:
        said.append(counted(given, "prediction"))
    if video.is_compared and above:
        said[-1] += f", {len(video.false(drawn.min_score))} of them wrong"
    if above > drawn.most:
        said.append(f"the {drawn.most} with the highest scores drawn")
    if beyond := sum(max(one.start_s, one.end_s) > duration_s + 1e-3 for one in video.segments):
        said.append(f"{counted(beyond, 'segment')} beyond the end of the video")
    return "; ".join(said) + "."


def key_of(drawn: Drawn, is_compared: bool) -> str:
    """What the numbers beside predictions are."""
    if not is_compared:
        return "Beside a prediction: its score."
    return (
        "Beside a prediction: its score · its tIoU with the truth that it overlaps most, of whichever label; "
        f"right from a tIoU of {drawn.tiou:g} on. Beside missed truth: the lower score at which it is found."
    )


def number_text(value: float) -> str:
    """A score or an overlap in as few digits as tell it."""
    return "0" if value == 0 else f"{value:.2f}" if abs(value) >= 0.0995 else f"{value:.2g}"


def time_span(seconds: float) -> str:
    """A length: 74.9 s, 12 min 5 s, 1 h 2 min."""
    if seconds < 120:
        return f"{seconds:.4g} s"
    minutes, left = divmod(round(seconds), 60)
    return f"{minutes} min {left} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def _truth_bar(truth: Truth, min_score: float) -> Bar:
    kind, text = "truth", ""
    if truth.counts:
        is_missed = truth.found_at is None or truth.found_at < min_score
        kind = "truth missed" if is_missed else "truth found"
        if is_missed and truth.found_at is not None:
            text = f"at {number_text(truth.found_at)}"
    about = f"{_where(truth)}: {kind}{f', found {text} only' if text else ''}"
    return Bar(truth.start_s, truth.end_s, kind, text, about)


def _prediction_bar(one: Prediction, truth: Sequence[Truth] | None) -> Bar:
    text = number_text(one.score)
    about = f"{_where(one)}, score {one.score:.4g}"
    if truth is not None:
        overlaps = [overlap(one, other) for other in truth]
        best = max(range(len(truth)), key=lambda place: (overlaps[place], truth[place].label == one.label), default=-1)
        of_best = overlaps[best] if truth else 0.0
        text += f" · {number_text(of_best)}"
        nearest = f"tIoU {of_best:.3g} with {_where(truth[best])}" if of_best > 0 else "no truth where it is"
        about += f": {one.kind}, {nearest}"
    start, end = sorted((one.start_s, one.end_s))
    return Bar(start, end, "prediction" if one.kind == NOT_COUNTED else one.kind, text, about)


def overlap(one: Truth | Prediction, other: Truth | Prediction) -> float:
    """Temporal intersection over union; 0 where one of both has no length."""
    shared = min(one.end_s, other.end_s) - max(one.start_s, other.start_s)
    return max(0.0, shared) / max(one.end_s - one.start_s + other.end_s - other.start_s - max(0.0, shared), 1e-12)


def _where(one: Truth | Prediction) -> str:
    return f"{one.label}, {one.start_s:.2f} to {one.end_s:.2f} s"
