"""`vmae2 predict`: what a classifier takes videos for that nobody has labelled, by name, with scores."""

from __future__ import annotations

import csv
import io
import json
import logging
import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, NamedTuple, TypedDict

import tyro
from pydantic import Field

from vmae2_ds.config.finetune import ViewSampling
from vmae2_ds.config.strict import ClipLength, Edge, StrictModel, Views, Workers
from vmae2_ds.console.progress import Ticker, counted, heard
from vmae2_ds.console.terminal import columns
from vmae2_ds.data.entry import VideoEntry
from vmae2_ds.data.sources.list_formats import ListForm
from vmae2_ds.data.sources.list_header import VIDEO_SUFFIXES, videos_below
from vmae2_ds.data.sources.manifest import INDEX, read_manifest
from vmae2_ds.disk import check_out_folder, check_there, write_whole
from vmae2_ds.errors import ConfigError, DataError

if TYPE_CHECKING:  # torch is imported where work begins: `--help` needs the signature below, and nothing else
    from vmae2_ds.config.finetune import FinetuneConfig
    from vmae2_ds.downstream.classify.scores import Scores

log = logging.getLogger(__name__)

LISTS = (".csv", ".tsv", ".txt", ".list", ".lst")
"""What lists of videos are called; everything else that is no folder is a video."""
UNLABELLED = ListForm(ignore_columns=(), label_is_read=False)
MOST = 1_000_000
RESULT, TABLE, PICTURES = "predictions.json", "predictions.csv", "pictures"


NamedClass = TypedDict("NamedClass", {"class": int, "name": str | None, "score": float})
"""A class that a video may be of; its name is None where nobody said the names."""


class Predicted(TypedDict):
    """What is said of one video."""

    video: str
    unreadable: str | None
    """Why it could not be read."""
    classes: list[NamedClass]
    """The most likely first; none of a video that could not be read."""


class Predictions(NamedTuple):
    """What was found, on rank 0; `finish` keeps it and says whether it is enough."""

    result: dict[str, Any]
    """What `--json` prints."""
    shown: str
    """The result as a table, for a terminal."""
    finish: Callable[[], None]
    """Writes --out. Raises DataError where not one video could be read."""


class PredictArguments(StrictModel):
    """Name videos with a classifier: the most likely classes of each, with the mean softmax of several views as score.

    Scored as by evaluate, on any number of ranks; only rank 0 returns something.
    """

    source: tyro.conf.Positional[Path]
    """Classifier: a run folder (its newest whole checkpoint is taken), a folder of runs (the newest), a checkpoint
    runs/.../ckpt/stepN, or a checkpoint file or folder with a head."""
    videos: tyro.conf.Positional[tuple[str, ...]]
    """Videos to name: files or URLs; folders, searched at any depth; lists (.csv, .txt or an indexed folder), whose
    labels are not looked at."""
    root: Path | None = None
    """Folder that relative paths in the lists start from; default: each list's own folder."""
    labels: Path | None = None
    """Text file with one class name per line, in the order of the label numbers; default: the run's labels.txt, or the
    names in the checkpoint file, else classes are shown as numbers."""
    top: Annotated[int, Field(ge=1, le=MOST)] = 5
    """Number of classes to show for each video."""
    json_: Annotated[bool, tyro.conf.arg(name="json")] = False
    """Print the result as JSON instead of a table."""
    out: Path | None = None
    """Folder to write: predictions.json, predictions.csv and pictures of videos; default: nothing is written."""
    pictures: Annotated[int, Field(ge=0, le=MOST)] = 100
    """Largest number of videos that a picture is drawn of in --out; 0 draws none."""
    clips: Views | None = None
    """Number of clips of each video, at equal distances in time; default: the run's test.clips, for a checkpoint file
    5."""
    crops: Views | None = None
    """Number of square crops of each clip, along its longer side; default: the run's test.crops, for a checkpoint file
    3."""
    sampling: ViewSampling | None = None
    """Which frames make a clip. dense: every stride-th frame (Kinetics); segments: frames from the whole video (SSv2).
    Default: the run's, for a checkpoint file dense."""
    precision: Literal["bf16", "fp32"] | None = None
    """Number format of the forward pass; default: the run's, for a checkpoint file bf16."""
    num_frames: ClipLength | None = None
    """Number of frames in a clip; default: the run's. Of a checkpoint file: what the file says, else 16."""
    size: Edge | None = None
    """Height and width of a clip in pixels; default: the run's. Of a checkpoint file: what the file says, else 224."""
    stride: ClipLength | None = None
    """Step between two frames of a clip, for --sampling dense; default: the run's. Of a checkpoint file: what the file
    says, else 4."""
    workers: Workers | None = None
    """Number of data loader processes per rank; default: the run's, for a checkpoint file 8."""
    config: Path | None = None
    """JSON file with fields of the model config that the weights of a checkpoint file do not show, such as {"encoder":
    {"heads": 8}}. A run says them itself."""


def predict(asked: PredictArguments) -> Predictions | None:
    """Score the videos; only rank 0 returns what was found."""
    if asked.source.suffix.lower() in VIDEO_SUFFIXES:
        raise ConfigError(f"{asked.source} is named like a video: the run or file comes first, then the videos")
    check_there(asked.source)
    entries = videos_of(asked.videos, asked.root)
    if asked.out is not None:
        sources = {str(Path(entry.path).parent): entry.path for entry in entries if "://" not in entry.path}
        check_out_folder(asked.out, inputs=[*sources.values(), *filter(os.path.isfile, asked.videos)], is_ours=_is_ours)
    from vmae2_ds.config.stages import CLIP_OPTIONS
    from vmae2_ds.data.feed.views import ViewsDataset
    from vmae2_ds.downstream.classify.evaluate import as_asked, score_videos, scoring_line
    from vmae2_ds.engine.ranks import start_ranks, stop_ranks
    from vmae2_ds.runs.open import classifier_of, clip_line, labels_of, open_classifier, read_names
    from vmae2_ds.weights.source import read_given

    config, weights, checkpoint = open_classifier(asked.source, given=read_given(asked.config))
    clip = asked.model_dump(include=CLIP_OPTIONS)
    config = as_asked(config, asked)
    labels, classes = asked.labels, config.model.num_classes
    names = labels_of(asked.source) if labels is None else read_names(labels, classes, "--labels")
    dataset = ViewsDataset(config, entries, config.test)
    ranks = start_ranks()
    dataset.check_shared_memory(ranks)
    objective = classifier_of(config, weights)
    del weights
    views = config.test
    if ranks.rank == 0:
        line = scoring_line(len(entries), config, clip_line(asked.source, config.data, **clip), ranks)
        unnamed = "" if names else "; no class names, --labels FILE gives them"
        log.info("%s: %s%s", checkpoint, line, unnamed)
    scores = score_videos(objective, dataset, views.views_at_once, ranks)
    stop_ranks(ranks)
    if scores is None:
        return None
    about = {
        "checkpoint": str(checkpoint), "precision": config.train.precision,
        **views.model_dump(include={"clips", "crops", "sampling"}),
        **config.data.model_dump(include=set(clip)),
    }  # fmt: skip
    result = {**about, "videos": _found(entries, scores, names, asked.top)}
    bad = len(scores.failures)
    if bad:
        log.warning("%d of %s could not be read", bad, counted(len(entries), "video"))
    shown = json.dumps(result, indent=1) if asked.json_ else describe(result["videos"], columns())

    def finish() -> None:
        if asked.out is not None:
            write(result, asked.out)
            draw(result["videos"], entries, config, asked.out / PICTURES, asked.pictures)
            log.info("written: %s", asked.out)
        if bad == len(entries):
            raise DataError(f"none of {counted(bad, 'video')} could be read; the first: {scores.failures[0]}")

    return Predictions(result, shown, finish)


def videos_of(places: Sequence[str], root: Path | None = None) -> list[VideoEntry]:
    """The videos that these files, URLs, folders and lists mean, in their order.

    Raises ConfigError where there are none, DataError as `read_manifest`.
    """
    found: list[VideoEntry] = []
    for place in places:
        path = Path(place)
        if "://" in place:
            found.append(_video(place))
        elif path.is_dir() and not (path / INDEX).is_file():
            inside = videos_below(place)
            if not inside:
                raise ConfigError(
                    f"{place}: no file in this folder is named like a video ({', '.join(VIDEO_SUFFIXES[:4])}, ...)"
                )
            found += map(_video, inside)
        elif path.is_dir() or path.suffix.lower() in LISTS:
            found += read_manifest(path, root, form=UNLABELLED)
        else:
            found.append(_video(place))
    if not found:
        raise ConfigError("no videos: name files, folders or lists of them behind the checkpoint")
    return found


def _video(path: str) -> VideoEntry:
    return VideoEntry(path, label=None, source="default", start=0, frames=None)


def _found(entries: Sequence[VideoEntry], scores: Scores, names: Sequence[str] | None, top: int) -> list[Predicted]:
    """Each video in order: its classes, of equal scores the lower class first, or why there are none."""
    reasons = iter(scores.failures)
    place_of = {int(row): place for place, row in enumerate(scores.row_N)}
    found: list[Predicted] = []
    for row, entry in enumerate(entries):
        if row not in place_of:
            reason = next(reasons).removeprefix(f"{entry.name}: ")
            found.append({"video": entry.name, "unreadable": reason, "classes": []})
            continue
        score_C = scores.score_NC[place_of[row]]
        best = (-score_C).argsort(kind="stable")[:top]
        classes: list[NamedClass] = [
            {"class": int(label), "name": names[label] if names else None, "score": float(score_C[label])}
            for label in best
        ]
        found.append({"video": entry.name, "unreadable": None, "classes": classes})
    return found


def describe(videos: Sequence[Predicted], width: int | None) -> str:
    """A table: video, score, class. Where a line would not fit into `width` (None: any does) a name has its own line."""
    longest = max(len(video["video"]) for video in videos)
    rows = [(video["video"], _lines(video)) for video in videos]
    if width is not None and longest + 2 + max(len(line) for _, lines in rows for line in lines) > width:
        return "\n".join(line for name, lines in rows for line in (name, *(f"  {line}" for line in lines)))
    table = [f"{'video':<{longest}}    score  class"]
    for name, lines in rows:
        table += [f"{name if number == 0 else '':<{longest}}  {line}" for number, line in enumerate(lines)]
    return "\n".join(table)


def _lines(video: Predicted) -> list[str]:
    if video["unreadable"] is not None:
        return [f"could not be read: {video['unreadable']}"]
    return [f"{100 * one['score']:5.1f} %  {_name(one)}" for one in video["classes"]]


def _name(one: NamedClass) -> str:
    return f"class {one['class']}" if one["name"] is None else str(one["name"])


def write(result: dict[str, Any], folder: Path) -> None:
    """predictions.json, and predictions.csv with a line for each class of each video."""
    write_whole(folder / RESULT, json.dumps(result, indent=1) + "\n")
    text = io.StringIO(newline="")
    table = csv.writer(text, lineterminator="\n")
    table.writerow(("path", "rank", "class", "name", "score", "unreadable"))
    for video in result["videos"]:
        for rank, one in enumerate(video["classes"], start=1):
            table.writerow((video["video"], rank, one["class"], one["name"], f"{one['score']:.6f}", ""))
        if video["unreadable"] is not None:
            table.writerow((video["video"], "", "", "", "", video["unreadable"]))
    write_whole(folder / TABLE, text.getvalue())


def draw(
    videos: Sequence[Predicted], entries: Sequence[VideoEntry], config: FinetuneConfig, folder: Path, most: int
) -> None:
    """A picture of each of the first `most` videos that could be read: the middle of its middle clip, and its classes."""
    from vmae2_ds.data.feed.views import ViewsDataset
    from vmae2_ds.draw.pictures import draw_prediction

    readable = [row for row, video in enumerate(videos) if video["unreadable"] is None]
    if len(readable) > most > 0:
        log.info("drawing the first %d of %d videos; --pictures %d draws all", most, len(readable), len(readable))
    rows = readable[:most]
    if not rows:
        return
    with heard(Ticker(log, "pictures drawn", len(rows))) as ticker:
        for number, viewed in enumerate(ViewsDataset(config, entries, None).iterate(rows)):
            ticker.tell(number)
            if viewed.clip_KTHWC is None:
                log.warning("%s: read before, and not again to be drawn: %s", entries[viewed.row].name, viewed.reason)
                continue
            video = videos[viewed.row]
            stem = re.sub(r"[^\w.-]", "_", Path(video["video"]).stem)[:60]  # a name has 255 bytes at most
            draw_prediction(
                viewed.clip_KTHWC[0].numpy(),
                [_name(one) for one in video["classes"]],
                [one["score"] for one in video["classes"]],
                video["video"],
                folder / f"{viewed.row + 1:0{len(str(len(entries)))}}_{stem}.png",
            )


def _is_ours(folder: Path) -> bool:
    """What an earlier call wrote, and nothing else."""
    names = {path.name for path in folder.iterdir()}
    return RESULT in names and names <= {RESULT, TABLE, PICTURES}
