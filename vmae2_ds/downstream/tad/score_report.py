"""The verb `vmae2 tad score`: what it is asked, and the page or the JSON that it answers with."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, NamedTuple

import numpy as np
import tyro
from pydantic import AfterValidator

from vmae2_ds.config.strict import StrictModel
from vmae2_ds.console.progress import counted
from vmae2_ds.console.tables import table
from vmae2_ds.disk import check_out_folder
from vmae2_ds.downstream.tad.annotations import AMBIGUOUS, read_annotations, write_annotations
from vmae2_ds.downstream.tad.detections import read_detections, write_detections, write_for_actionformer
from vmae2_ds.downstream.tad.mistakes import Mistakes, find_mistakes
from vmae2_ds.downstream.tad.mistakes_report import describe_mistakes, mistakes_json
from vmae2_ds.downstream.tad.protocols import PROTOCOLS, ProtocolName
from vmae2_ds.downstream.tad.score import TadScores, score_detections

MOST_TIOUS = 100
WRITTEN = ("annotations.json", "detections.json", "detections_actionformer.json")


def tious_of(text: str) -> tuple[float, ...]:
    """Thresholds of FIRST:LAST:STEP, evenly spaced as published scorers have them, or of numbers with commas.

    Raises:
        ValueError: It is no such text, a threshold is not above 0 and at most 1, or the steps do not end at LAST.
    """
    way_out = "write first:last:step, such as 0.3:0.7:0.1, or numbers with commas; each above 0 and at most 1"
    try:
        numbers = [float(part) for part in text.replace(":", ",").split(",")]
    except ValueError:
        raise ValueError(f"{text!r} is no list of tIoU thresholds; {way_out}") from None
    if ":" in text:
        if len(numbers) != 3 or "," in text or not (numbers[2] > 0 and numbers[1] >= numbers[0]):
            raise ValueError(f"{text!r} is no list of tIoU thresholds; {way_out}")
        first, last, step = numbers
        steps = (last - first) / step
        if not abs(steps - round(steps)) < 1e-6:
            raise ValueError(f"{text!r}: steps of {step:g} from {first:g} do not end at {last:g}")
        numbers = np.linspace(first, last, min(round(steps), MOST_TIOUS) + 1).tolist()
    if not all(0 < number <= 1 for number in numbers):
        raise ValueError(f"{text!r} has a threshold that is not above 0 and at most 1")
    if len(numbers) > MOST_TIOUS or len({f"{number:.4g}" for number in numbers}) < len(numbers):  # as they are printed
        raise ValueError(f"{text!r} has a threshold twice, or more than {MOST_TIOUS}")
    return tuple(numbers)


def _check_tious(text: str) -> str:
    tious_of(text)
    return text


TiouList = Annotated[str, AfterValidator(_check_tious)]
"""Thresholds as `tious_of` takes them."""


class ScoreArguments(StrictModel):
    """Mean average precision and recall of temporal detections, counted as one of the published scorers does."""

    gt: Path
    """JSON file of annotations in the form of ActivityNet, THUMOS14, OpenTAD or ActionFormer."""
    pred: Path
    """JSON file of detections: {"results": {video: [{"segment", "label", "score"}]}}, or what ActionFormer's scorer takes."""
    protocol: ProtocolName = "activitynet"
    """Whose way of counting; the numbers of two protocols cannot be compared. activitynet: what most papers report, for
    THUMOS14 too; actionformer and opentad: the same without copies of true segments and without those that have no length;
    thumos14 and thumos14_2015: the kits of THUMOS14, where each true segment takes its closest detection."""
    subset: tuple[str, ...] = ()
    """Names of the subsets to score; default: the only one that the annotations have."""
    tiou: TiouList = "0.3:0.7:0.1"
    """Thresholds of temporal overlap, first:last:step or numbers with commas. THUMOS14: 0.3:0.7:0.1; ActivityNet and
    FineAction: 0.5:0.95:0.05."""
    classes: Path | None = None
    """List of the classes, a name per line (category_idx.txt); it says what numbers for labels stand for where the
    annotations have no label_id."""
    without: tuple[str, ...] = ()
    """Labels that are taken out of annotations and detections first, such as Ambiguous."""
    drop_unknown: bool = False
    """Leave out detections of labels that have no true segment, where the protocol (activitynet) stops at them."""
    mistakes: bool = False
    """Tell what went wrong as well: false positives and missed true segments by kind and what each costs, and how short and
    long ones fare."""
    out: Path | None = None
    """Folder to write annotations.json, detections.json and detections_actionformer.json into, in the forms that the
    published scorers read; default: nothing is written."""
    json_: Annotated[bool, tyro.conf.arg(name="json")] = False
    """Print the result as JSON."""


class Scored(NamedTuple):
    """What the verb tells."""

    scores: TadScores
    subset: tuple[str, ...]
    num_detections: int
    """All of the file."""
    mistakes: Mistakes | None


def score(asked: ScoreArguments) -> Scored:
    """Score the files; write them again where asked. Raises DataError or ConfigError as `score_detections` says."""
    if asked.out is not None:
        inputs = [asked.gt, asked.pred, *([asked.classes] if asked.classes else [])]
        check_out_folder(
            asked.out, "--out", inputs, lambda folder: {path.name for path in folder.iterdir()} <= set(WRITTEN)
        )
    annotations = read_annotations(asked.gt, asked.classes)
    detections = read_detections(asked.pred)
    scores = score_detections(
        annotations,
        detections,
        subset=asked.subset or None,
        tious=tious_of(asked.tiou),
        protocol=asked.protocol,
        without=asked.without,
        drop_unknown=asked.drop_unknown or None,
    )
    if asked.out is not None:
        truth, found, for_actionformer = (asked.out / name for name in WRITTEN)
        write_annotations(annotations, truth)
        write_detections(detections, found)
        write_for_actionformer(detections, annotations, for_actionformer)
    mistakes = find_mistakes(annotations, scores) if asked.mistakes else None
    return Scored(scores, asked.subset or annotations.subsets, len(detections), mistakes)


def scores_json(scored: Scored) -> dict[str, Any]:
    """What `--json` prints: shares of 1, by tIoU."""
    scores, tables = scored.scores, scored.scores.matches.tables
    return {
        "protocol": scores.protocol,
        "about": PROTOCOLS[scores.protocol].about,
        "subset": list(scored.subset),
        "average_map": scores.average_map,
        "map": _by_name(scores.map_of),
        "recall": {f"{k}x": _by_name(recall) for k, recall in scores.recall_of.items()},
        "ap": {label: _by_name(ap) for label, ap in scores.ap_of.items()},
        "videos": tables.num_videos,
        "videos_with_truth": len(np.unique(tables.truths.video)),
        "instances": len(tables.truths.row),
        "classes": len(tables.classes),
        "detections": scored.num_detections,
        "detections_counted": len(tables.detections.row),
        "duplicates_dropped": tables.copies,
        "short_instances_dropped": tables.too_short,
        "instances_without_length": tables.without_length,
        "instances_beyond_their_video": tables.beyond,
        "unknown_labels_dropped": tables.unknown,
        "detections_of_other_videos": tables.outside,
        "reversed_detections": tables.reversed,
        "detections_counted_under_another_class": tables.renumbered,
        "ambiguous_regions": len(tables.regions.row),
        **({} if scored.mistakes is None else {"mistakes": mistakes_json(scored.mistakes)}),
    }


def describe(scored: Scored) -> str:
    """The result as a page: in percent."""
    scores, tables = scored.scores, scored.scores.matches.tables
    head = ["", *(f"{tiou:.4g}" for tiou in scores.map_of), "average"]
    rows = [("mAP", scores.map_of), *((f"recall at {k}x", recall) for k, recall in scores.recall_of.items())]
    by_class = [(label, ap) for label, ap in scores.ap_of.items()]
    told = [
        f"protocol {scores.protocol}: {PROTOCOLS[scores.protocol].about}",
        f"subset {', '.join(map(repr, scored.subset))}: {counted(tables.num_videos, 'video')}, "
        f"{counted(len(tables.truths.row), 'true segment')} of {counted(len(tables.classes), 'class', 'classes')}; "
        f"{len(tables.detections.row)} of {counted(scored.num_detections, 'detection')} counted",
        *_left_out(scores),
        "",
        table("percent at each tIoU", head, [(name, *_percent(values)) for name, values in rows]),
        "",
        table("average precision by class", head, [(name, *_percent(values)) for name, values in by_class]),
        *([] if scored.mistakes is None else ["", describe_mistakes(scored.mistakes)]),
    ]
    return "\n".join(told)


def _left_out(scores: TadScores) -> list[str]:
    """A line for each thing that the protocol did to the files, with its number; duplicates and unknown labels always."""
    tables, how = scores.matches.tables, PROTOCOLS[scores.protocol]
    unknown = ", ".join(f"{label!r} {number}" for label, number in list(tables.unknown.items())[:5])
    some = f" ({unknown}{', ...' if len(tables.unknown) > 5 else ''})" if unknown else ""
    lines = [
        f"duplicates dropped: {tables.copies}; unknown labels dropped: {len(tables.unknown)}, of "
        f"{counted(sum(tables.unknown.values()), 'detection')}{some}"
    ]
    if tables.too_short:
        lines.append(f"true segments without length dropped: {tables.too_short}")
    if tables.without_length:
        lines.append(f"true segments without length: {tables.without_length}; they count as they stand")
    if tables.beyond:
        lines.append(f"true segments that end behind the end of their video: {tables.beyond}; they count as they stand")
    if tables.outside:
        lines.append(
            f"detections in videos that the subset does not have: {tables.outside}; they count as false positives"
        )
    if tables.reversed:
        does = "are turned round" if how.turns_reversed else "overlap nothing"
        lines.append(f"detections that end before they start: {tables.reversed}; they {does}")
    if tables.renumbered:
        lines.append(
            f"detections of classes without truth that count under another class's number, as in ActionFormer's scorer: "
            f"{tables.renumbered}"
        )
    if len(tables.regions.row):
        lines.append(f"Ambiguous segments: {len(tables.regions.row)}; detections on them are no false positives")
    elif AMBIGUOUS in tables.classes:
        lines.append("Ambiguous counts as a class: --without Ambiguous takes it out")
    ties = "hits come first" if how.hits_first else "the order of the file stays"
    return [*lines, f"among equal scores {ties}"]


def _by_name(values: dict[float, float]) -> dict[str, float]:
    return {f"{tiou:.4g}": value for tiou, value in values.items()}


def _percent(values: dict[float, float]) -> list[str]:
    shares = list(values.values())
    return [f"{100 * share:.2f}" for share in (*shares, sum(shares) / len(shares))]
