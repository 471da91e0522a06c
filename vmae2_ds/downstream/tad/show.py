"""`vmae2 tad show`: the timeline of a video as a picture, or those of a whole set on a page, the worst first."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import tyro
from pydantic import Field

from vmae2_ds.config.run import ReaderName
from vmae2_ds.config.strict import Amount, ReadLimit, StrictModel
from vmae2_ds.console.progress import Ticker, heard
from vmae2_ds.data.readers.watchdog import Watchdog
from vmae2_ds.disk import check_out_file, check_there
from vmae2_ds.downstream.tad.feature_change import read_change
from vmae2_ds.downstream.tad.page import is_our_page, write_page
from vmae2_ds.downstream.tad.score_report import TiouList, tious_of
from vmae2_ds.downstream.tad.shown_set import ShownSet, read_files
from vmae2_ds.downstream.tad.thumbnails import Thumbnails, VideoFolder, read_thumbnails
from vmae2_ds.downstream.tad.timelines import Drawn, ShownVideo, timeline_of
from vmae2_ds.draw.sheet import made_by, write_sheet
from vmae2_ds.draw.timeline import sheet_of
from vmae2_ds.errors import ConfigError, DataError, VideoError

log = logging.getLogger(__name__)

SOFTWARE = "vmae2 tad show"


class ShowArguments(StrictModel):
    """Draw what happens when: with VIDEO its timeline as a picture, without it a page of all videos, the worst first.

    A timeline has rows of truth and of predictions by class. A prediction has its score, its tIoU with the truth that it
    overlaps most, and a colour and a mark for what it is: correct, or false and of which kind (vmae2 tad score).
    """

    video: Annotated[tyro.conf.Positional[str | None], tyro.conf.arg(metavar="[VIDEO]")] = None
    """Video to draw: its file, from which frames are shown, or its name in --gt or --pred. Default: all, on a page."""
    gt: Path | None = None
    """Annotations, in the form of ActivityNet, THUMOS14, OpenTAD or ActionFormer. A picture can do without."""
    pred: Path | None = None
    """Predictions, as vmae2 tad detect and other systems write them. A picture can do without."""
    out: Path
    """File to write: a picture, FILE.png, or a page, FILE.html, that needs no other file."""
    videos: Path | None = None
    """Folder of the videos, searched at any depth for files of their names; default: no frames, but for a VIDEO that
    is a file."""
    classes: Path | None = None
    """Text file with one class name per line, in the order of their numbers; default: the names in --gt."""
    subset: tuple[str, ...] | None = None
    """Subsets of --gt that a page shows; default: those that have predictions."""
    tiou: TiouList = "0.3:0.7:0.1"
    """Thresholds of temporal overlap that a page gives mAP at, first:last:step or numbers with commas. THUMOS14:
    0.3:0.7:0.1; ActivityNet and FineAction: 0.5:0.95:0.05."""
    right_at: Annotated[float, Field(gt=0, le=1)] = 0.5
    """Overlap with truth (temporal intersection over union) from which on a prediction that is drawn is right."""
    min_score: Amount | None = None
    """Lowest score of a prediction that is drawn, and that truth is found by. Default: the score from which on the
    predictions of the whole subset have the largest F1; without truth, all are drawn."""
    most: Annotated[int, Field(ge=1, le=500)] = 50
    """Largest number of predictions drawn of a video, those with the highest scores."""
    frames: Annotated[int, Field(ge=0, le=40)] = 10
    """Number of frames under a timeline, at even times; 0 opens no video."""
    features: Path | None = None
    """Folder of features, as vmae2 extract writes it, for a strip under the rows of a picture: how much they change from
    window to window; default: no strip."""
    most_videos: Annotated[int, Field(ge=1, le=1000)] = 50
    """Largest number of videos on a page."""
    reader: ReaderName = "pyav"
    """Video reader: pyav, decord, torchcodec, or module:function for your own."""
    timeout_s: ReadLimit = 30
    """Seconds after which reading one video is given up."""


def show(asked: ShowArguments) -> Path:
    """Write the picture or the page, and return its file.

    A video that cannot be read costs its frames, and a warning. Raises ConfigError or DataError where places, files or names
    are of no use.
    """
    _check(asked)
    folder = VideoFolder(asked.videos) if asked.videos is not None and asked.frames else None
    files = read_files(asked.gt, asked.pred, asked.classes)
    if asked.video is not None:
        name = files.find(asked.video)
        shown = files.around(name).shown(files.subsets_of([name]), tious_of(asked.tiou), asked.right_at)
        _draw(asked, shown, shown.videos[name], folder)
    else:
        shown = files.shown(asked.subset, tious_of(asked.tiou), asked.right_at)
        drawn = _drawn(asked, shown)
        some = shown.worst(drawn.min_score)[: asked.most_videos]
        write_page(files, shown, some, drawn, _read_all(asked, some, folder), asked.out)
    return asked.out


def _check(asked: ShowArguments) -> None:
    """Raises ConfigError, before anything is read, where what is asked for cannot be."""
    alone = asked.video is not None
    inputs = [path for path in (asked.gt, asked.pred, asked.classes) if path is not None]
    read = [*inputs, *([Path(asked.video)] if asked.video else [])]
    check_out_file(asked.out, inputs=read, is_ours=_is_our_picture if alone else is_our_page)
    suffix = ".png" if alone else ".html"
    if asked.out.suffix.lower() != suffix:
        what = "with a VIDEO, a picture" if alone else "without a VIDEO, a page of the set"
        raise ConfigError(f"--out {asked.out}: {what} is written; name a file that ends in {suffix}")
    if asked.gt is None and asked.pred is None:
        raise ConfigError("nothing to draw: give --gt FILE, --pred FILE, or both")
    if not alone and (asked.gt is None or asked.pred is None):
        raise ConfigError("a page tells what went wrong, for which it takes both --gt and --pred; or name a VIDEO")
    if not alone and asked.features is not None:
        raise ConfigError("--features is drawn under one video; name a VIDEO")
    for path in inputs:
        check_there(path)


def _is_our_picture(path: Path) -> bool:
    return made_by(path, SOFTWARE)


def _drawn(asked: ShowArguments, shown: ShownSet) -> Drawn:
    least = asked.min_score
    return Drawn(shown.balanced_score if least is None else least, asked.most, asked.right_at)


def _draw(asked: ShowArguments, shown: ShownSet, video: ShownVideo, folder: VideoFolder | None) -> None:
    found: Thumbnails | None = None
    path = asked.video or ""
    is_file = os.path.isfile(path) or os.path.dirname(path)
    if asked.frames and (is_file or folder is not None):
        try:
            if not is_file and folder is not None:
                path = folder.find(video.name)
            with Watchdog(asked.timeout_s) as watchdog:
                found = read_thumbnails(path, asked.frames, video.duration_s, asked.reader, watchdog)
        except VideoError as error:
            log.warning("%s: %s; its timeline has no frames", path, error)
    duration_s = video.length_s if found is None else found.duration_s
    if not duration_s:
        raise DataError(
            f"{video.name}: nothing is known of it, not even how long it is; name its file, or give --videos"
        )
    frames = None if found is None else found.frames
    change = None if asked.features is None else read_change(asked.features, video.name, duration_s)
    timeline = timeline_of(video, _drawn(asked, shown), duration_s, frames, change)
    write_sheet(sheet_of(timeline), asked.out, SOFTWARE)


def _read_all(
    asked: ShowArguments, videos: Sequence[ShownVideo], folder: VideoFolder | None
) -> dict[str, Thumbnails | VideoError]:
    """Frames of the videos by name, or why there are none; nothing where none are asked for."""
    if folder is None:
        return {}
    found: dict[str, Thumbnails | VideoError] = {}
    with Watchdog(asked.timeout_s) as watchdog, heard(Ticker(log, "videos opened for frames", len(videos))) as ticker:
        for number, video in enumerate(videos):
            ticker.tell(number)
            try:
                path = folder.find(video.name)
                found[video.name] = read_thumbnails(path, asked.frames, video.duration_s, asked.reader, watchdog)
            except VideoError as error:
                found[video.name] = error
    bad = {name: one for name, one in found.items() if isinstance(one, VideoError)}
    if bad:
        first, reason = next(iter(bad.items()))
        log.warning("%d of %d videos have no frames, the first %s: %s", len(bad), len(videos), first, reason)
    return found
