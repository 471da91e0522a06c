"""The verb `vmae2 ava score`: what it is asked, and the page or the JSON that it answers with."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, NamedTuple, Optional

import numpy as np
import tyro
from pydantic import Field

from vmae2_ds.config.strict import StrictModel
from vmae2_ds.console.progress import counted
from vmae2_ds.console.tables import table
from vmae2_ds.downstream.ava.label_map import LabelMap, read_label_map
from vmae2_ds.downstream.ava.protocols import FRAME_PROTOCOLS, FrameProtocolName
from vmae2_ds.downstream.ava.rows import BoxRows, read_detections, read_excluded, read_truth, seconds_of
from vmae2_ds.downstream.ava.score import SIZE_LIMITS, SIZES, FrameScores, score_frames
from vmae2_ds.errors import DataError

LOOKED_AT = 10_000
"""Boxes, from the first on, that tell the unit of a file."""
LEFT_OUT = {
    "outside_label_map": "action id that the label map does not have",
    "in_excluded_frames": "excluded key frame",
    "in_frames_without_truth": "key frame without truth",
    "over_the_most_a_frame": "not among the {most} best of its key frame",
    "inside_out": "box inside out or without an area",
    "truth_outside_label_map": "true box whose action id the label map does not have",
    "truth_in_excluded_frames": "true box in an excluded key frame",
}


class AvaScoreArguments(StrictModel):
    """Frame mAP of detections in AVA's form, counted as one of the published scorers does."""

    gt: Path
    """Truth, AVA's csv: video, time in s, x1, y1, x2, y2, action id, and a person id where there is one; rows of video and
    time alone name key frames without a true box."""
    det: Path
    """Detections, AVA's csv: video, time in s, x1, y1, x2, y2, action id, score."""
    labelmap: Path
    """Names and ids of the actions that are scored: AVA's pbtxt, lines `id: name`, or a name a line."""
    exclude: Optional[Path] = None  # noqa: UP045 (for `Path | None` tyro imports typeguard, a tenth of the verb's time)
    """Key frames to leave out (video, time in s), where the protocol does so; activitynet does not."""
    protocol: FrameProtocolName = "activitynet"
    """Whose way of counting; the numbers of two protocols cannot be compared. activitynet: today's official scorer, the 50 best
    detections of a key frame; legacy: the official scorer before, as VideoMAE-Action-Detection has it; legacy_pyslowfast:
    PySlowFast's copy of that, which matches in the order of the file; mmaction2: only key frames with truth, and only
    classes that were detected; act: what papers report for UCF101-24 and JHMDB, but for the width of a pixel, which vmae2 ava
    score-tubes adds."""
    iou: float = Field(0.5, gt=0, le=1)
    """Overlap over union from which on a detection finds a true box."""
    json_: Annotated[bool, tyro.conf.arg(name="json")] = False
    """Print the result as JSON."""


class ScoredFrames(NamedTuple):
    """What the verb tells."""

    scores: FrameScores
    truth: BoxRows
    detections: BoxRows
    label_map: LabelMap


def score(asked: AvaScoreArguments) -> ScoredFrames:
    """Score the files.

    Raises:
        DataError: A file cannot be read, or as `score_frames` says; files of two sets, which have no key frame or no action in
            common; boxes in pixels.
    """
    label_map = read_label_map(asked.labelmap)
    truth = read_truth(asked.gt)
    excluded = read_excluded(asked.exclude) if asked.exclude else frozenset()
    detections = read_detections(asked.det)
    for rows in (truth, detections):
        _check_unit(rows)
    scores = score_frames(truth, detections, label_map, excluded=excluded, protocol=asked.protocol, iou=asked.iou)
    if len(detections):
        _check_same_set(scores, truth, detections, label_map)
    return ScoredFrames(scores, truth, detections, label_map)


def scores_json(scored: ScoredFrames) -> dict[str, Any]:
    """What `--json` prints: shares of 1."""
    scores, counts = scored.scores, scored.scores.counted
    name_of = dict(zip(scored.label_map.ids, scored.label_map.names, strict=True))
    return {
        "protocol": scores.protocol,
        "about": FRAME_PROTOCOLS[scores.protocol].about,
        "iou": scores.iou,
        "frame_map": scores.frame_map,
        "interval": list(scores.interval),
        "tied_rows": scores.tied_rows,
        "cut_among_equal_scores": counts.cut_among_equals,
        "ap": {str(action): ap for action, ap in scores.ap_of.items()},
        "classes": {
            str(action): {
                "name": name_of[action],
                "true_boxes": of_class.truths,
                "detections": of_class.detections,
                "ap_by_size": dict(zip(SIZES, of_class.ap_of_size, strict=True)),
            }
            for action, of_class in scores.classes.items()
        },
        "map_by_size": scores.map_of_size,
        "size_limits": list(SIZE_LIMITS),
        "map_by_group": scores.map_of_group,
        "classes_in_the_mean": sum(ap is not None for ap in scores.ap_of.values()),
        "classes_without_truth": [action for action, of_class in scores.classes.items() if not of_class.truths],
        "classes_without_detections": [
            action for action, of_class in scores.classes.items() if not of_class.detections
        ],
        "key_frames": counts.key_frames,
        "key_frames_without_detection": counts.frames_without_detection,
        "excluded_key_frames": scores.num_excluded,
        "true_boxes": len(scored.truth),
        "true_boxes_counted": len(counts.truth),
        "detections": len(scored.detections),
        "detections_counted": len(counts.found),
        "dropped": counts.dropped,
    }


def describe(scored: ScoredFrames) -> str:
    """The result as a page: in percent."""
    scores, counts = scored.scores, scored.scores.counted
    classes = scores.classes.values()
    with_truth = sum(bool(of_class.truths) for of_class in classes)
    rows = [("all", scores.frame_map), *((f"{name} boxes", value) for name, value in scores.map_of_size.items())]
    rows += [(name.replace("_", " "), value) for name, value in scores.map_of_group.items()]
    names = zip(scored.label_map.ids, scored.label_map.names, classes, strict=True)
    by_class = [
        (action, name, *map(_percent, (of.ap, *of.ap_of_size)), of.truths, of.detections)
        for action, name, of in sorted(names)
    ]
    small, large = (f"{100 * limit:g} %" for limit in SIZE_LIMITS)
    told = [
        f"protocol {scores.protocol}: {FRAME_PROTOCOLS[scores.protocol].about}",
        f"{counted(counts.key_frames, 'key frame')}, {counted(len(counts.truth), 'true box', 'true boxes')} of "
        f"{with_truth} of {counted(len(classes), 'class', 'classes')}; {len(counts.found)} of "
        f"{counted(len(scored.detections), 'detection')} counted",
        *_left_out(scored),
        _ties(scores),
        "",
        table(f"frame mAP in percent at an IoU of {scores.iou:g}", ["", "mAP"], [(n, _percent(v)) for n, v in rows]),
        f"a box is small below {small} of the frame's area, large from {large} on: limits of ours",
        "",
        table(
            "average precision by class", ["id", "class", "AP", *SIZES, "true boxes", "detections"], by_class, left=2
        ),
    ]
    return "\n".join(told)


def _left_out(scored: ScoredFrames) -> list[str]:
    """A line for each reason to leave rows out, with their number, and for what else a reader should know."""
    scores, counts = scored.scores, scored.scores.counted
    most = FRAME_PROTOCOLS[scores.protocol].most_a_frame
    lines = [
        f"left out, {said.format(most=most)}: {counts.dropped[reason]}"
        for reason, said in LEFT_OUT.items()
        if counts.dropped[reason]
    ]
    if scores.num_excluded and not FRAME_PROTOCOLS[scores.protocol].excludes:
        lines.append(
            f"excluded key frames given: {scores.num_excluded}; this protocol scores every key frame that the truth names"
        )
    if counts.frames_without_detection:
        lines.append(f"key frames without a detection that counts: {counts.frames_without_detection}")
    for what, actions in (
        ("without a true box, which are not in the mean", [a for a, of in scores.classes.items() if not of.truths]),
        ("without a detection", [a for a, of in scores.classes.items() if of.truths and not of.detections]),
    ):
        if actions:
            does = ""
            if what == "without a detection":
                is_out = FRAME_PROTOCOLS[scores.protocol].leaves_out_undetected
                does = ", left out of the mean" if is_out else ", 0 in the mean"
            lines.append(f"classes {what}{does}: {', '.join(map(str, actions))}")
    return lines


def _ties(scores: FrameScores) -> str:
    lowest, highest = (f"{100 * value:.4f}" for value in scores.interval)
    cut = scores.counted.cut_among_equals
    cuts = f"; {cut} were cut from the best of their key frame by it" if cut else ""
    if not scores.tied_rows:
        return f"no two detections of a class have equal scores{cuts}"
    return (
        f"detections with the score of another one of their class: {scores.tied_rows}; in another order of equal scores mAP "
        f"is between {lowest} and {highest}; here the order of the file stays{cuts}"
    )


def _check_unit(rows: BoxRows) -> None:
    """Raises DataError where every box, of many the first ones, ends more than a picture beyond it."""
    box_N4 = rows.box_N4[:LOOKED_AT]
    if len(box_N4) and (box_N4.max(axis=1) > 2).all():
        raise DataError(
            f"{rows.source}: boxes are in pixels, it seems, the first {box_N4[0].tolist()}; corners are parts of the picture's "
            "width and height, 0 to 1: divide x by its width and y by its height"
        )


def _check_same_set(scores: FrameScores, truth: BoxRows, detections: BoxRows, label_map: LabelMap) -> None:
    if scores.counted.dropped["outside_label_map"] == len(detections):
        have = np.unique(detections.label_N).tolist()
        raise DataError(
            f"{detections.source} has no action of {label_map.file}: its ids are {_some(have)}, "
            f"those of the label map {_some(sorted(label_map.ids))}"
        )
    if set(truth.keys).isdisjoint(detections.keys):
        raise DataError(
            f"{truth.source} and {detections.source} have no key frame in common: {_frames(truth)} in one, "
            f"{_frames(detections)} in the other; names of videos must be the same, and times be seconds"
        )


def _some(values: list[int]) -> str:
    return ", ".join(map(str, values[:5])) + (", ..." if len(values) > 5 else "")


def _frames(rows: BoxRows) -> str:
    video, time = rows.keys[0]
    return f"{video!r} at {seconds_of(time)}"


def _percent(share: float | None) -> str:
    return "" if share is None else f"{100 * share:.2f}"
