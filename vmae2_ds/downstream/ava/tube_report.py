"""The verb `vmae2 ava score-tubes`: what it is asked, and the page or the JSON that it answers with."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import numpy as np
import tyro
from pydantic import Field

from vmae2_ds.config.strict import StrictModel
from vmae2_ds.console.progress import counted
from vmae2_ds.console.tables import table
from vmae2_ds.disk import check_out_file
from vmae2_ds.downstream.ava.label_map import LabelMap, read_label_map
from vmae2_ds.downstream.ava.linking import FoundBoxes, LinkConfig, Linked, link
from vmae2_ds.downstream.ava.score import FrameScores, score_frames
from vmae2_ds.downstream.ava.tube_files import (
    Clock,
    FoundInFrames,
    Part,
    TubeSet,
    are_found_tubes,
    boxes_of,
    is_pickle,
    read_found,
    read_found_tubes,
    read_tube_csv,
    read_tube_pickle,
    rows_of,
    write_found_tubes,
)
from vmae2_ds.downstream.ava.tubes import Floats, Tubes
from vmae2_ds.downstream.ava.video_map import (
    MULTISPORTS_WITHOUT,
    TUBE_PROTOCOLS,
    TubeProtocol,
    TubeProtocolName,
    TubeScores,
    score_tubes,
)
from vmae2_ds.errors import ConfigError

SHOWN = (0.2, 0.5, 0.75)
MEANS = {"0.5:0.95": (0.5, 0.95, 0.05), "0.05:0.45": (0.05, 0.45, 0.05), "0.1:0.9": (0.1, 0.9, 0.1)}
"""Means over thresholds that papers print: first, last, step."""


class ScoreTubesArguments(StrictModel):
    """Video mAP of action tubes and frame mAP, as the scorers of UCF101-24, JHMDB and MultiSports count them."""

    gt: Path
    """Truth: the pickle of UCF101-24, JHMDB or MultiSports (UCF101v2-GT.pkl, JHMDB-GT.pkl, multisports_GT.pkl), read as plain
    data; or AVA csv with person ids, of which the boxes of a person and action in successive key frames are a tube."""
    det: Path | None = None
    """Boxes found in single frames, which are linked into tubes: AVA csv as vmae2 ava detect writes it, whose action ids count
    from 1 in the order of a pickle's labels; or MultiSports's frame_detections.pkl."""
    tubes: Path | None = None
    """Ready tubes in the form of MultiSports's video_detections.pkl, in the place of linked ones."""
    labelmap: Path | None = None
    """Label map of an AVA csv truth; a pickle has its own labels."""
    protocol: Literal["auto", "act", "multisports", "plain"] = "auto"
    """Whose way of counting. act: ACT's and MOC's, for UCF101-24 and JHMDB; multisports: MultiSports's; plain: for sets of your
    own, boxes counted as AVA's scorer does. auto: by the truth, multisports where it has that set's classes, act for another
    pickle, plain for csv."""
    part: Part = "test"
    """Which videos of a pickle are scored."""
    split: int = Field(1, ge=1, le=99)
    """Which of a pickle's splits (JHMDB has three)."""
    fps: float = Field(25.0, gt=0, le=500)
    """Frames a second that times in csv files stand for, the --fps of vmae2 ava convert; for a csv truth, its key frames a
    second."""
    first_frame: int = Field(1, ge=0, le=10**6)
    """Number of the frame at time 0; the pickles count from 1."""
    best_class: bool = False
    """Keep only the best class of each found box, as mmaction2 does for MultiSports."""
    link: LinkConfig = LinkConfig()
    """How boxes of single frames become tubes."""
    out: Path | None = None
    """File to write the tubes into, before any is suppressed, as video_detections.pkl of MultiSports; default: none."""
    json_: Annotated[bool, tyro.conf.arg(name="json")] = False
    """Print the result as JSON."""


class TubesScored(NamedTuple):
    """What the verb tells; class columns as in `truth.labels`."""

    protocol: TubeProtocolName
    truth: TubeSet
    """Without the classes that the protocol does not score."""
    found: FoundInFrames | None
    """Boxes of single frames, where there were any."""
    linked: Linked | None
    """None for ready tubes."""
    num_elsewhere: int
    """Ready tubes in videos that are not scored."""
    frames: FrameScores | None
    """Frame mAP at 0.5 of the boxes of single frames."""
    scores: TubeScores


def score(asked: ScoreTubesArguments) -> TubesScored:
    """Read, link, score, and write the tubes where asked.

    Raises:
        ConfigError: Nothing to score is given, a label map where it has no place or none where it is needed, a file that
            cannot be written.
        DataError: What the files' readers say, or a truth without tubes.
    """
    if asked.det is None and asked.tubes is None:
        raise ConfigError("nothing to score: give --det, boxes found in frames, or --tubes, ready tubes")
    if asked.out is not None:
        read = [file for file in (asked.gt, asked.det, asked.tubes, asked.labelmap) if file]
        check_out_file(asked.out, "--out", read, are_found_tubes)
    clock = Clock(asked.fps, asked.first_frame)
    truth = _read_truth(asked, clock)
    protocol = _protocol(asked, truth)
    how = TUBE_PROTOCOLS[protocol]
    if how.pixel_ends and truth.size_V2 is None:
        raise ConfigError(
            f"--protocol {protocol} counts in pixels, and {asked.gt} has shares of a frame: --protocol plain scores it"
        )
    truth = _scored_classes(truth, how)
    if not len(truth.truth):
        raise ConfigError(f"{asked.gt} has no tube to score in the {asked.part} videos of split {asked.split}")
    found = None if asked.det is None else read_found(asked.det, truth, clock)
    if found is not None and asked.best_class:
        found = found._replace(boxes=best_classes(found.boxes))
    ends = np.array([0.0, 0, 1, 1]) if how.pixel_ends else np.zeros(4)
    wide_truth = _moved(truth.truth, ends)
    frames = None
    if found is not None:
        boxes = replace(found.boxes, box_N4=found.boxes.box_N4 + ends) if how.pixel_ends else found.boxes
        true_boxes, found_boxes = (rows_of(some, truth.labels) for some in (boxes_of(wide_truth), boxes))
        frames = score_frames(true_boxes, found_boxes, truth.labels, protocol=how.frames)
    linked, elsewhere = None, 0
    if asked.tubes is not None:
        tubes, elsewhere = read_found_tubes(asked.tubes, truth)
        wide = _moved(tubes, ends)
    else:
        linked = link(boxes, asked.link)
        wide = linked.tubes
    if asked.out is not None:
        write_found_tubes(_moved(wide, -ends), len(truth.labels), asked.out)
    thresholds = tuple(round(0.05 * step, 2) for step in range(1, 20))
    scores = score_tubes(wide_truth, wide, len(truth.labels), how, thresholds)
    return TubesScored(protocol, truth, found, linked, elsewhere, frames, scores)


def _read_truth(asked: ScoreTubesArguments, clock: Clock) -> TubeSet:
    if is_pickle(asked.gt):
        if asked.labelmap is not None:
            raise ConfigError(f"{asked.gt} has its own labels: leave out --labelmap")
        return read_tube_pickle(asked.gt, asked.part, asked.split)
    if not asked.gt.is_file():
        raise ConfigError(f"--gt {asked.gt}: there is no such file")
    if asked.labelmap is None:
        raise ConfigError(f"{asked.gt}: truth in csv needs --labelmap, the names of its action ids")
    return read_tube_csv(asked.gt, read_label_map(asked.labelmap), clock)


def _protocol(asked: ScoreTubesArguments, truth: TubeSet) -> TubeProtocolName:
    if asked.protocol != "auto":
        return asked.protocol
    if truth.size_V2 is None:
        return "plain"
    return "multisports" if set(MULTISPORTS_WITHOUT) <= set(truth.labels.names) else "act"


def _scored_classes(truth: TubeSet, how: TubeProtocol) -> TubeSet:
    """Without the tubes of classes that the protocol leaves out."""
    left_out = [column for column, name in enumerate(truth.labels.names) if name in how.without]
    return replace(truth, truth=truth.truth.some(np.flatnonzero(~np.isin(truth.truth.class_T, left_out))))


def _moved(tubes: Tubes, by: Floats) -> Tubes:
    return replace(tubes, box_F4=tubes.box_F4 + by)


def best_classes(boxes: FoundBoxes) -> FoundBoxes:
    """The row with the best score of each box of a frame; of equal scores the first class."""
    key_N6 = np.c_[boxes.video_N, boxes.frame_N, boxes.box_N4]
    order = np.lexsort((boxes.class_N, -boxes.score_N, *key_N6.T))
    is_first = np.r_[True, (np.diff(key_N6[order], axis=0) != 0).any(axis=1)][: len(order)]
    kept = np.sort(order[is_first])
    return boxes.some(kept)


def scores_json(scored: TubesScored) -> dict[str, Any]:
    """What `--json` prints: shares of 1, by threshold of tube overlap."""
    scores, truth, frames = scored.scores, scored.truth, scored.frames
    map_of = scores.map_of()
    return {
        "protocol": scored.protocol,
        "about": TUBE_PROTOCOLS[scored.protocol].about,
        "gt": truth.source,
        "videos": len(truth.truth.videos),
        "frames": int(truth.frames_V.sum()) or None,
        "tubes": len(truth.truth),
        "classes": int((scores.num_truths_C > 0).sum()),
        "frame_map": frames.frame_map if frames else None,
        "frame_map_interval": list(frames.interval) if frames else None,
        "frame_ap": None if frames is None else _by_name(truth.labels, frames.ap_of),
        "video_map": {f"{threshold:.4g}": value for threshold, value in map_of.items()},
        "mean_video_map": {name: mean_over(map_of, *MEANS[name]) for name in MEANS},
        "ap": {
            name: {
                f"{threshold:.4g}": float(ap)
                for threshold, ap in zip(scores.thresholds, scores.ap_CT[column], strict=True)
            }
            for column, name in enumerate(truth.labels.names)
            if scores.num_truths_C[column]
        },
        "found_tubes": len(scores.found),
        "suppressed_tubes": scores.num_suppressed,
        "short_tubes": scored.linked.num_short if scored.linked else None,
        "weak_tubes": scored.linked.num_weak if scored.linked else None,
        "boxes": len(scored.found.boxes.score_N) if scored.found else None,
        "boxes_of_other_videos": scored.found.num_elsewhere if scored.found else None,
        "boxes_of_unknown_classes": scored.found.num_unknown if scored.found else None,
        "tubes_of_other_videos": scored.num_elsewhere,
        "true_boxes_of_unknown_classes": truth.num_unknown,
    }


def _by_name(labels: LabelMap, ap_of: dict[int, float | None]) -> dict[str, float]:
    return {name: ap for name, ap in zip(labels.names, ap_of.values(), strict=True) if ap is not None}


def mean_over(map_of: dict[float, float], first: float, last: float, step: float) -> float:
    """Mean over thresholds first, first + step, ... last."""
    return float(np.mean([map_of[round(each, 2)] for each in np.arange(first, last + step / 2, step).tolist()]))


def describe(scored: TubesScored) -> str:
    """The result as a page: in percent."""
    scores, truth = scored.scores, scored.truth
    head = ["", "tubes", "found", "frame 0.5", *(f"video {threshold:g}" for threshold in SHOWN), "0.5:0.95"]
    columns = [scores.thresholds.index(threshold) for threshold in SHOWN]
    high = [column for column, threshold in enumerate(scores.thresholds) if threshold >= 0.5]
    frame_C = np.full(len(truth.labels), np.nan)
    if scored.frames is not None:
        frame_C[:] = [np.nan if ap is None else ap for ap in scored.frames.ap_of.values()]
    shown_C5 = np.c_[frame_C, scores.ap_CT[:, columns], scores.ap_CT[:, high].mean(axis=1)]
    has_truth = np.flatnonzero(scores.num_truths_C)
    rows = [("mAP", len(truth.truth), len(scores.found), *_percent(shown_C5[has_truth].mean(axis=0)))]
    rows += [
        (truth.labels.names[klass], scores.num_truths_C[klass], scores.num_found_C[klass], *_percent(shown_C5[klass]))
        for klass in has_truth
    ]
    return "\n".join(
        [
            f"protocol {scored.protocol}: {TUBE_PROTOCOLS[scored.protocol].about}",
            f"{truth.source}: {counted(len(truth.truth.videos), 'video')}, {_frames(truth)}"
            f"{counted(len(truth.truth), 'tube')} of {counted(len(has_truth), 'class', 'classes')}",
            *_left_out(scored),
            "",
            table("percent at each overlap of boxes in frames and of tubes in videos", head, rows[:1]),
            "",
            table("average precision by class", head, rows[1:]),
        ]
    )


def _frames(truth: TubeSet) -> str:
    return f"{counted(int(truth.frames_V.sum()), 'frame')}, " if truth.frames_V.any() else ""


def _left_out(scored: TubesScored) -> list[str]:
    """A line for each thing that was done to the files."""
    scores, found, how = scored.scores, scored.found, TUBE_PROTOCOLS[scored.protocol]
    lines = []
    if scored.linked is not None and found is not None:
        lines.append(
            f"{counted(len(found.boxes.score_N), 'box', 'boxes')} linked into {counted(len(scored.linked.tubes), 'tube')}; "
            f"{scored.linked.num_short} more were left out as too short and {scored.linked.num_weak} as too weak (--link)"
        )
    else:
        lines.append(f"{counted(len(scores.found) + scores.num_suppressed, 'tube')} read as they are")
    if how.suppress is not None:
        lines.append(
            f"left out for they overlap a better tube of their class by more than {how.suppress:g}: {scores.num_suppressed}"
        )
    if found is not None and (found.num_elsewhere or found.num_unknown):
        lines.append(
            f"found boxes in videos that are not scored: {found.num_elsewhere}; of unknown classes: {found.num_unknown}"
        )
    if scored.num_elsewhere:
        lines.append(f"found tubes in videos that are not scored: {scored.num_elsewhere}")
    if scored.truth.num_unknown:
        lines.append(f"true boxes of actions that the label map lacks: {scored.truth.num_unknown}")
    if how.without:
        lines.append(
            f"classes that are not scored: {', '.join(name for name in scored.truth.labels.names if name in how.without)}"
        )
    if scored.frames is not None and scored.frames.tied_rows:
        lowest, highest = (f"{100 * value:.4f}" for value in scored.frames.interval)
        lines.append(f"boxes with the score of another one: frame mAP is between {lowest} and {highest} by their order")
    return [*lines, "tubes with equal scores are in the order of video, first frame and box, not of the file"]


def _percent(values: Floats) -> list[str]:
    return ["" if math.isnan(value) else f"{100 * value:.2f}" for value in values.tolist()]
