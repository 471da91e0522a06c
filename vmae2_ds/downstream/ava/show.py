"""`vmae2 ava show`: key frames of a video with boxes as a picture or an animation, or a set on a page, the worst first."""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import Annotated, Literal

import tyro
from pydantic import Field

from vmae2_ds.config.ava import Seconds, VideosAre
from vmae2_ds.config.run import ReaderName
from vmae2_ds.config.strict import Part, ReadLimit, Size, StrictModel
from vmae2_ds.data.readers.watchdog import GuardedReader
from vmae2_ds.disk import check_out_file, check_there
from vmae2_ds.downstream.ava.animation import animate, stretch_of
from vmae2_ds.downstream.ava.clip_files import ClipFiles
from vmae2_ds.downstream.ava.page import is_our_page, write_page
from vmae2_ds.downstream.ava.people import frames_of
from vmae2_ds.downstream.ava.pictures import Pictures
from vmae2_ds.downstream.ava.protocols import FrameProtocolName
from vmae2_ds.downstream.ava.sheets import Look, choose_frames, picture_of, video_notes, video_sheet
from vmae2_ds.downstream.ava.shown_set import ShownPeople, read_set
from vmae2_ds.draw.frames import WIDTH
from vmae2_ds.draw.sheet import made_by, write_sheet
from vmae2_ds.errors import ConfigError

log = logging.getLogger(__name__)

SOFTWARE = "vmae2 ava show"
SHEETS, ANIMATIONS = (".png", ".svg"), (".mp4", ".gif", ".webp")


class AvaShowArguments(StrictModel):
    """Draw who does what: with VIDEO its key frames with people in boxes, without it a page of all videos, the worst first.

    Each key frame stands twice on a sheet: with the truth, and with what was predicted. Boxes and labels have colours and marks
    for what they are: right, a wrong label, on nobody, or truth that was missed (as vmae2 ava score counts them).
    """

    video: Annotated[tyro.conf.Positional[str | None], tyro.conf.arg(metavar="[VIDEO]")] = None
    """Video to draw: its file, or its name in --gt, --det or --boxes. Default: all, on a page."""
    gt: Path | None = None
    """Truth, as AVA has it: video, second, x1, y1, x2, y2, action id, perhaps a person id. A picture can do without."""
    det: Path | None = None
    """Detections, as vmae2 ava detect and other systems write them: the same with a score. A picture can do without."""
    boxes: Path | None = None
    """People's boxes instead of --det, in a form that vmae2 ava boxes knows; with --gt, which people they find."""
    labelmap: Path | None = None
    """File that names the actions by their ids; --gt and --det together need it."""
    exclude: Path | None = None
    """Key frames that are not compared, as AVA publishes them."""
    out: Path
    """File to write. With VIDEO a contact sheet of key frames, FILE.png or FILE.svg, or an animation, FILE.mp4 (the
    smallest), FILE.gif or FILE.webp; without it a page, FILE.html, that needs no other file."""
    videos: Path | None = None
    """Folder of the videos, as --kind says; default: the folder of a VIDEO that is a file, else boxes are drawn on grey."""
    kind: VideosAre = "movies"
    """How videos are kept: movies, VIDEO.mp4 or with another ending at any depth; clips, VIDEO/SECOND.mp4; frames, a folder
    VIDEO of pictures."""
    video_starts_s: Seconds = 0.0
    """Time in seconds of the first frame of movies and of folders of frames: 900 for AVA's, cut to minutes 15 to 30."""
    video_starts: Path | None = None
    """File with a line `video,seconds` for each video that begins at another time than --video-starts-s."""
    frames_fps: Size = 30
    """With --kind frames: pictures a second."""
    frames: Annotated[int, Field(ge=1, le=100)] = 12
    """Largest number of key frames of a video on a sheet; an animation has as many that follow one another."""
    choose: Literal["worst", "even"] = "worst"
    """Which key frames, if a video has more. worst: those with most mistakes, for an animation the worst stretch; even: at even
    distances, for an animation the first ones. They always stand in the order of time."""
    threshold: Part | None = None
    """Lowest score that is drawn, and that truth is found by. Default: the score from which on the detections of the whole set
    have the largest F1; without truth, all are drawn."""
    top_k: Annotated[int, Field(ge=1, le=100)] = 5
    """Largest number of labels of a predicted box, those with the highest scores."""
    iou: Annotated[float, Field(gt=0, le=1)] = 0.5
    """Overlap with a true box (intersection over union) from which on a detection is right."""
    protocol: FrameProtocolName = "activitynet"
    """Which scorer's rule says what is right: activitynet, legacy, legacy_pyslowfast or mmaction2 (vmae2 ava score)."""
    fps: Annotated[float, Field(ge=1, le=30)] = 10
    """Frames a second of an animation, which keeps the video's pace."""
    most_videos: Annotated[int, Field(ge=0, le=200)] = 20
    """Largest number of videos on a page that have pictures; the others have a line in its table."""
    reader: ReaderName = "pyav"
    """Video reader: pyav, decord, torchcodec, or module:function for your own."""
    timeout_s: ReadLimit = 30
    """Seconds after which reading one frame is given up."""


def show(asked: AvaShowArguments) -> Path:
    """Write the picture, the animation or the page, and return its file.

    A frame that cannot be read is grey, and counted in a warning. Raises ConfigError or DataError where places, files or names
    are of no use.
    """
    _check(asked)
    files = _clip_files(asked)
    shown = read_set(
        asked.gt, asked.det, asked.boxes, asked.labelmap, asked.exclude, asked.protocol, asked.iou, asked.threshold
    )
    look = Look(shown.label_map, asked.top_k)
    reader = GuardedReader(asked.timeout_s)
    try:
        pictures = Pictures(files, reader)
        if asked.video is None:
            _write_page(asked, shown, look, pictures)
        else:
            _write_video(asked, shown, look, pictures)
        pictures.warn(log)
    finally:
        reader.close()
    return asked.out


def _write_video(asked: AvaShowArguments, shown: ShownPeople, look: Look, pictures: Pictures) -> None:
    compared = shown.compared
    name = shown.find(asked.video or "")
    frames = frames_of(compared, name)
    if asked.out.suffix.lower() in ANIMATIONS:
        stretch = stretch_of(compared, frames, asked.frames, worst=asked.choose == "worst")
        return animate(name, compared, stretch, look, pictures, asked.fps, asked.out, SOFTWARE)
    chosen = choose_frames(compared, frames, asked.frames, worst=asked.choose == "worst")
    drawn = [picture_of(compared, frame, pictures.at(frame.key), look) for frame in chosen]
    notes = video_notes(compared, frames, chosen)
    write_sheet(video_sheet(name, notes, compared, drawn, WIDTH, titled=True), asked.out, SOFTWARE)
    return None


def _write_page(asked: AvaShowArguments, shown: ShownPeople, look: Look, pictures: Pictures) -> None:
    write_page(shown, look, pictures, asked.out, asked.most_videos, asked.frames, worst=asked.choose == "worst")


def _check(asked: AvaShowArguments) -> None:
    """Raises ConfigError, before anything is read, where what is asked for cannot be."""
    alone = asked.video is not None
    inputs = [path for path in (asked.gt, asked.det, asked.boxes, asked.labelmap, asked.exclude) if path is not None]
    check_out_file(
        asked.out,
        inputs=[*inputs, *([Path(asked.video)] if asked.video else [])],
        is_ours=_is_our_picture if alone else is_our_page,
    )
    suffixes = (*SHEETS, *ANIMATIONS) if alone else (".html",)
    if asked.out.suffix.lower() not in suffixes:
        what = "with a VIDEO, a sheet or an animation" if alone else "without a VIDEO, a page of the set"
        raise ConfigError(f"--out {asked.out}: {what} is written; name a file that ends in {' or '.join(suffixes)}")
    if not any((asked.gt, asked.det, asked.boxes)):
        raise ConfigError("nothing to draw: give --gt FILE, --det FILE or --boxes FILE, or --gt and one of the others")
    if asked.det is not None and asked.boxes is not None:
        raise ConfigError("--det and --boxes: one of both is drawn beside the truth; leave out the other")
    if asked.gt is not None and asked.det is not None and asked.labelmap is None:
        raise ConfigError("--gt and --det are compared action by action, which takes --labelmap FILE")
    if not alone and (asked.gt is None or (asked.det is None and asked.boxes is None)):
        raise ConfigError("a page tells what went wrong: give --gt and --det, or --gt and --boxes; or name a VIDEO")
    for path in inputs:
        check_there(path)


def _clip_files(asked: AvaShowArguments) -> ClipFiles | None:
    folder = asked.videos
    path = asked.video or ""
    if folder is None and (os.path.isfile(path) or os.path.dirname(path)):
        check_there(Path(path))
        folder = Path(path).parent
    if folder is None:
        return None
    return ClipFiles.of(asked, folder)


def _is_our_picture(path: Path) -> bool:
    return made_by(path, SOFTWARE)
