"""The page of `vmae2 tad show`: figures of a set, and the timelines of its videos, those with most mistakes first."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from vmae2_ds.console.progress import counted
from vmae2_ds.disk import write_whole
from vmae2_ds.downstream.tad.annotations import AMBIGUOUS
from vmae2_ds.downstream.tad.mistakes import (
    CORRECT,
    FALSE_KINDS,
    MISSED_KINDS,
    TRUTH_KINDS,
    Mistakes,
    counts_of,
    find_mistakes,
)
from vmae2_ds.downstream.tad.score import TadScores
from vmae2_ds.downstream.tad.shown_set import Files, ShownSet
from vmae2_ds.downstream.tad.thumbnails import Thumbnails
from vmae2_ds.downstream.tad.timelines import Drawn, ShownVideo, key_of, number_text, said_of, timeline_of
from vmae2_ds.draw.looks import KINDS, icon_of
from vmae2_ds.draw.pages import Figure, PageTable, TableRow, is_page_of, templates_of
from vmae2_ds.draw.sheet import readable, svg_of_sheet
from vmae2_ds.draw.timeline import sheet_of
from vmae2_ds.errors import VideoError

WIDTH = 860.0
"""Points of a timeline, which fills the page."""
MARK = "Written by vmae2 tad show."
MOST_CLASSES = 100
"""Classes in the table of classes."""


def is_our_page(path: Path) -> bool:
    """Whether a file is a page that `write_page` wrote."""
    return is_page_of(path, MARK)


class Page(NamedTuple):
    """All that a page says; its videos apart, which are drawn one after the other."""

    title: str
    status: str
    figures: Sequence[Figure]
    tables: Sequence[PageTable]
    order: str
    """What the videos are sorted by."""
    left_out: str


def write_page(
    files: Files,
    shown: ShownSet,
    videos: Sequence[ShownVideo],
    drawn: Drawn,
    thumbnails: Mapping[str, Thumbnails | VideoError],
    path: Path,
) -> None:
    """Write the page with the timelines of `videos`, in their order; it needs no other file."""
    page = (
        templates_of("vmae2_ds.downstream.tad")
        .get_template("page.html")
        .render(
            **page_of(files, shown, drawn, len(videos))._asdict(),
            mark=MARK,
            videos=[_entry(video, drawn, thumbnails.get(video.name)) for video in videos],
        )
    )
    write_whole(path, page.encode("utf-8", "replace"))


def page_of(files: Files, shown: ShownSet, drawn: Drawn, num_videos: int) -> Page:
    """What a page says that has so many of the videos."""
    scores = shown.scores
    assert scores is not None, "a page has truth and predictions"
    assert files.annotations is not None, "a page has truth"
    assert files.pred is not None, "a page has predictions"
    left_out = len(shown.videos) - num_videos
    mistakes = find_mistakes(files.annotations, scores)
    return Page(
        title=f"What went wrong: {files.pred.name}",
        status=(
            f"{files.pred} beside {files.annotations.file}, subset {', '.join(map(repr, shown.subsets))}; protocol "
            f"{scores.protocol}{', without Ambiguous' if AMBIGUOUS in files.annotations.labels else ''}."
        ),
        figures=_figures(shown, scores, drawn),
        tables=[
            _map_table(scores),
            _kinds_table(shown, mistakes, drawn),
            *_missed_tables(mistakes, drawn),
            _length_table(mistakes),
            _class_table(shown, scores, drawn),
        ],
        order=(
            f"Sorted by the number of mistakes: truth missed, and predictions of a score of at least "
            f"{number_text(drawn.min_score)} that are right about nothing. {key_of(drawn, is_compared=True)}"
        ),
        left_out=f"{counted(left_out, 'video')} with as many mistakes or fewer left out; --most-videos sets how many are shown."
        if left_out
        else "",
    )


def _entry(video: ShownVideo, drawn: Drawn, found: Thumbnails | VideoError | None) -> dict[str, object]:
    frames = found.frames if isinstance(found, Thumbnails) else None
    duration_s = found.duration_s if isinstance(found, Thumbnails) else video.length_s
    notes = [said_of(video, drawn, duration_s)]
    if isinstance(found, VideoError):
        notes.append(f"No frames: {found}.")
    sheet = sheet_of(timeline_of(video, drawn, duration_s, frames), WIDTH, titled=False)
    mistakes = counted(video.badness(drawn.min_score)[0], "mistake")
    return {"name": readable(video.name), "mistakes": mistakes, "notes": notes, "svg": svg_of_sheet(sheet)}


def _figures(shown: ShownSet, scores: TadScores, drawn: Drawn) -> list[Figure]:
    videos, least = shown.videos.values(), drawn.min_score
    truths = sum(len(video.countable) for video in videos)
    found = truths - sum(len(video.missed(least)) for video in videos)
    above = found + sum(len(video.false(least)) for video in videos)
    given = sum(len(video.predictions) for video in videos)
    silent = sum(not video.predictions for video in videos)
    return [
        Figure(
            "Average mAP", f"{scores.average_map:.2%}", f"over tIoU {', '.join(f'{tiou:g}' for tiou in scores.map_of)}"
        ),
        Figure("Videos", str(len(shown.videos)), f"{silent} without a prediction"),
        Figure(
            "Truth found", f"{found} of {truths}", f"at tIoU {drawn.tiou:g} by scores of {number_text(least)} and above"
        ),
        Figure("Predictions right", f"{found} of {above}", f"with such scores; {given} in all"),
    ]


def _map_table(scores: TadScores) -> PageTable:
    rows = [TableRow(f"{tiou:g}", [f"{value:.2%}"], value) for tiou, value in scores.map_of.items()]
    note = f"Mean over {counted(len(scores.ap_of), 'class', 'classes')} of the average precision."
    return PageTable("mAP by tIoU", note, ["tIoU", "mAP"], rows)


def _kinds_table(shown: ShownSet, mistakes: Mistakes, drawn: Drawn) -> PageTable:
    counts = Counter(
        one.kind for video in shown.videos.values() for one in video.predictions if one.score >= drawn.min_score
    )
    missed = sum(len(video.missed(drawn.min_score)) for video in shown.videos.values())
    most = max(1, missed, *counts.values())

    def row(kind: str, number: int, gain: str, about: str) -> TableRow:
        icon = svg_of_sheet(icon_of(kind))
        return TableRow(kind, [str(number), gain], number / most, about, KINDS[kind].colour, icon)

    gains = {kind: f"{100 * float(gain_T.mean()):+.2f}" for kind, gain_T in mistakes.gain_of.items()}
    rows = [
        row(CORRECT, counts[CORRECT], "", "the first on a true segment of its label"),
        *(row(kind, counts[kind], gains[kind], about) for kind, about in FALSE_KINDS.items()),
        row("truth missed", missed, "", "a true segment that no prediction with such a score is right about"),
    ]
    note = (
        f"Predictions with a score of at least {number_text(drawn.min_score)}, right from a tIoU of {drawn.tiou:g} on. "
        "Gain: points of average mAP more if there were none of a kind, with any score."
    )
    return PageTable("What went wrong", note, ["kind", "number", "gain"], rows)


def _missed_tables(mistakes: Mistakes, drawn: Drawn) -> list[PageTable]:
    """Why truth was missed, for a tIoU that the scores are of; else nothing."""
    if drawn.tiou not in mistakes.tious:
        return []
    counts = counts_of(mistakes.missed_TG[[mistakes.tious.index(drawn.tiou)]], TRUTH_KINDS)
    most = max(1, *(counts[kind][0] for kind in MISSED_KINDS))
    rows = [
        TableRow(kind, [str(counts[kind][0])], counts[kind][0] / most, about) for kind, about in MISSED_KINDS.items()
    ]
    note = f"True segments that no prediction of any score is right about at tIoU {drawn.tiou:g}, by what is there."
    return [PageTable("Truth that was never found", note, ["kind", "number"], rows)]


def _length_table(mistakes: Mistakes) -> PageTable:
    rows = []
    for size, number in mistakes.seconds.truths.items():
        found, normalised = (
            float(mistakes.seconds.found[size].mean()),
            float(mistakes.seconds.normalised_map[size].mean()),
        )
        low, high = mistakes.seconds.bounds[size]
        rows.append(
            TableRow(size, [f"{low:.3g} to {high:.3g} s", str(number), f"{found:.1%}", f"{normalised:.1%}"], found)
        )
    note = (
        "Fifths of the true segments by length; means over tIoU. Found: by a prediction of any score. Normalised mAP: "
        "precision as if each class had the mean number of true segments, so that fifths can be compared."
    )
    return PageTable("Sensitivity to length", note, ["size", "length", "truths", "found", "normalised mAP"], rows)


def _class_table(shown: ShownSet, scores: TadScores, drawn: Drawn) -> PageTable:
    truths, missed, predicted = Counter[str](), Counter[str](), Counter[str]()
    for video in shown.videos.values():
        truths.update(one.label for one in video.countable)
        missed.update(one.label for one in video.missed(drawn.min_score))
        predicted.update(one.label for one in video.predictions if one.score >= drawn.min_score)
    average = {name: sum(of.values()) / len(of) for name, of in scores.ap_of.items()}
    rows = [
        TableRow(
            name,
            [f"{average[name]:.2%}", str(truths[name]), str(missed[name]), str(predicted[name])],
            average[name],
        )
        for name in sorted(average, key=lambda name: average[name])[:MOST_CLASSES]
    ]
    more = f" The {len(rows)} worst of {len(average)}." if len(rows) < len(average) else ""
    columns = ["class", "average AP", "truths", "missed", "predictions"]
    return PageTable("Classes, the worst first", f"Average precision, averaged over tIoU.{more}", columns, rows)
