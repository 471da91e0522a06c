"""The page of `vmae2 ava show`: figures of a set, its classes and videos, and sheets of the videos with most mistakes."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from vmae2_ds.console.progress import Ticker, counted, heard
from vmae2_ds.disk import write_whole
from vmae2_ds.downstream.ava.compared import FOUND, KINDS_OF_DETECTIONS, MISSED, NOT_COMPARED, Compared
from vmae2_ds.downstream.ava.people import frames_of
from vmae2_ds.downstream.ava.pictures import Pictures
from vmae2_ds.downstream.ava.score import FrameScores
from vmae2_ds.downstream.ava.sheets import (
    Look,
    choose_frames,
    key_of,
    picture_of,
    score_text,
    video_notes,
    video_sheet,
)
from vmae2_ds.downstream.ava.shown_set import ShownPeople, VideoSum
from vmae2_ds.draw.looks import KINDS, icon_of
from vmae2_ds.draw.pages import Figure, PageTable, TableRow, is_page_of, templates_of
from vmae2_ds.draw.sheet import readable, svg_of_sheet

log = logging.getLogger(__name__)

WIDTH = 900.0
"""Points of a sheet, which fills the page."""
MARK = "Written by vmae2 ava show."
MOST_CLASSES, MOST_ROWS = 100, 2000
"""Classes, and videos, in their tables."""


def is_our_page(path: Path) -> bool:
    """Whether a file is a page that `write_page` wrote."""
    return is_page_of(path, MARK)


def write_page(
    shown: ShownPeople, look: Look, pictures: Pictures, path: Path, most_videos: int, most_frames: int, *, worst: bool
) -> None:
    """Write the page, with sheets of the first `most_videos` of `shown.videos`; it needs no other file."""
    drawn = shown.videos[:most_videos]
    with heard(Ticker(log, "videos drawn", len(drawn))) as ticker:
        sections = []
        for number, video in enumerate(drawn):
            ticker.tell(number)
            sections.append(_section(shown.compared, video, look, pictures, most_frames, worst=worst))
    template = templates_of("vmae2_ds.downstream.ava").get_template("page.html")
    page = template.render(**page_of(shown), mark=MARK, sections=sections)
    write_whole(path, page.encode("utf-8", "replace"))


def page_of(shown: ShownPeople) -> dict[str, Any]:
    """What the page says beside the sheets."""
    compared, scores = shown.compared, shown.scores
    assert scores is not None, "a page has truth and detections"
    videos = shown.videos
    rows, left_out = videos[:MOST_ROWS], videos[MOST_ROWS:]
    most = max(1, *(video.mistakes for video in videos))
    return {
        "title": f"What went wrong: {Path(shown.sources[-1]).name}",
        "status": f"{shown.sources[-1]} beside {shown.sources[0]}; protocol {scores.protocol}, right from an IoU of "
        f"{scores.iou:g} on.",
        "figures": _figures(shown, scores),
        "tables": [_kinds_table(compared), _class_table(shown, scores)],
        "order": "Sorted by the number of mistakes: true labels missed, and predicted ones of a score of at least "
        f"{score_text(compared.threshold)} that are wrong. {' '.join(key_of(compared, ()))}",
        "rows": [_row(video, most) for video in rows],
        "left_out": f"{counted(len(left_out), 'video')} with as many mistakes or fewer left out." if left_out else "",
    }


def _row(video: VideoSum, most: int) -> dict[str, object]:
    values = (video.mistakes, video.truths, video.missed, video.predicted, video.false, video.key_frames)
    return {"name": readable(video.name), "numbers": values, "share": video.mistakes / most}


def _section(
    compared: Compared, video: VideoSum, look: Look, pictures: Pictures, most_frames: int, *, worst: bool
) -> dict[str, object]:
    frames = frames_of(compared, video.name)
    chosen = choose_frames(compared, frames, most_frames, worst=worst)
    drawn = [picture_of(compared, frame, pictures.at(frame.key), look) for frame in chosen]
    return {
        "name": readable(video.name),
        "mistakes": counted(video.mistakes, "mistake"),
        "notes": video_notes(compared, frames, chosen),
        "svg": svg_of_sheet(video_sheet(video.name, (), compared, drawn, WIDTH, titled=False)),
    }


def _figures(shown: ShownPeople, scores: FrameScores) -> list[Figure]:
    compared, videos = shown.compared, shown.videos
    truths, missed = int(compared.asked_G.sum()), int(compared.is_missed.sum())
    judged, false = int(compared.is_judged.sum()), int(compared.is_false.sum())
    silent = sum(not video.predicted for video in videos)
    with_truth = sum(score.truths > 0 for score in scores.classes.values())
    return [
        Figure(
            "Frame mAP",
            f"{scores.frame_map:.2%}",
            f"at IoU {scores.iou:g}, {counted(with_truth, 'class', 'classes')}",
        ),
        Figure(
            "Videos",
            str(len(videos)),
            f"{silent} without a prediction; {counted(scores.counted.key_frames, 'key frame')} scored",
        ),
        Figure(
            "Truth found", f"{truths - missed} of {truths}", f"by scores of {score_text(compared.threshold)} and above"
        ),
        Figure("Predictions right", f"{judged - false} of {judged}", "with such scores"),
    ]


def _kinds_table(compared: Compared) -> PageTable:
    names = list(KINDS_OF_DETECTIONS)
    count_of = dict(zip(names, np.bincount(compared.kind_N, minlength=len(names)).tolist(), strict=True))
    missed = int(compared.is_missed.sum())
    most = max(1, missed, *count_of.values())

    def row(kind: str, number: int, about: str) -> TableRow:
        return TableRow(kind, [str(number)], number / most, about, KINDS[kind].colour, svg_of_sheet(icon_of(kind)))

    about = {**KINDS_OF_DETECTIONS, NOT_COMPARED: "in key frames, or of actions, that are not scored"}
    rows = [row(kind, count_of[kind], words) for kind, words in about.items() if kind != NOT_COMPARED or count_of[kind]]
    found = int(compared.asked_G.sum()) - missed
    rows.append(row(FOUND, found, "a true label that such a prediction is right about"))
    rows.append(row(MISSED, missed, "a true label that none is right about"))
    note = f"Predicted labels with a score of at least {score_text(compared.threshold)}."
    return PageTable("What went wrong", note, ["kind", "number"], rows)


def _class_table(shown: ShownPeople, scores: FrameScores) -> PageTable:
    compared, look = shown.compared, Look(shown.label_map, 0)

    def count(rows: np.ndarray, which: np.ndarray) -> dict[int, int]:
        actions, numbers = np.unique(rows[which], return_counts=True)
        return dict(zip(actions.tolist(), numbers.tolist(), strict=True))

    columns = {
        "truths": {action: score.truths for action, score in scores.classes.items()},
        "missed": count(compared.truth.label_N, compared.is_missed),
        "predicted": count(compared.detections.label_N, compared.is_judged),
        "wrong": count(compared.detections.label_N, compared.is_false),
    }
    meant = sorted((ap, action) for action, ap in scores.ap_of.items() if ap is not None)
    rows = [
        TableRow(look.name(action), [f"{ap:.2%}", *(str(of.get(action, 0)) for of in columns.values())], ap)
        for ap, action in meant[:MOST_CLASSES]
    ]
    more = f" The {len(rows)} worst of {len(meant)}." if len(rows) < len(meant) else ""
    silent = [look.name(action) for action, ap in scores.ap_of.items() if ap is None]
    without = f" Not in the mean, for want of truth: {_listed(silent)}." if silent else ""
    note = f"Average precision at IoU {scores.iou:g}.{more}{without}"
    return PageTable("Classes, the worst first", note, ["class", "AP", *columns], rows)


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
