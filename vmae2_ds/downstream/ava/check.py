"""`vmae2 ava check`: what is wrong with a set in AVA's form, before anything is trained on it."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple, TypeVar

import numpy as np
import tyro

from vmae2_ds.config.ava import Files, Seconds, VideosAre
from vmae2_ds.config.strict import Count, Part, ReadLimit, Seed, Size, StrictModel
from vmae2_ds.console.progress import Ticker, counted
from vmae2_ds.disk import check_out_folder
from vmae2_ds.downstream.ava.check_rows import (
    SetFinding,
    check_both_parts,
    check_boxes,
    check_classes,
    check_doubles,
    check_excluded,
    check_labels,
    check_person_boxes,
)
from vmae2_ds.downstream.ava.label_map import LabelMap, read_label_map
from vmae2_ds.downstream.ava.person_boxes import checked, read_as_written
from vmae2_ds.downstream.ava.rows import BoxRows, Key, read_excluded, read_truth, seconds_of
from vmae2_ds.errors import DataError, Vmae2Error

if TYPE_CHECKING:
    from vmae2_ds.downstream.ava.clip_files import ClipFiles

log = logging.getLogger(__name__)

T = TypeVar("T")
SHEET = "key_frames.png"


class AvaCheckArguments(StrictModel):
    """Explain what is wrong with a set of key frames, boxes and actions: a line each, with the numbers and the way out.

    Exit code 2 where training or its validation would fail, learn nothing of what is there, or other actions; 0 otherwise.
    """

    truth: Files = ()
    """Files of boxes and actions to train on: video, second, x1, y1, x2, y2, action id, and perhaps a person id."""
    label_map: Path | None = None
    """File that names the actions by their ids."""
    val_truth: Files = ()
    """Files of boxes and actions to validate on."""
    excluded: Files = ()
    """Files of key frames that are left out."""
    boxes: Files = ()
    """Files of detected persons, in any of the forms of vmae2 ava boxes."""
    images: Path | None = None
    """JSON file with the images that boxes in pixels refer to."""
    box_threshold: Part = 0.8
    """Score from which on a detected person counts, as --data.box-threshold in training."""
    videos: Path | None = None
    """Folder of the videos, each of which is opened; default: videos are not looked at."""
    kind: VideosAre = "movies"
    """How videos are kept: movies, clips of one second, or folders of frames."""
    video_starts_s: Seconds = 0.0
    """Time in seconds of the first frame of movies and of folders of frames: 900 for AVA's, cut to minutes 15 to 30."""
    video_starts: Path | None = None
    """File with a line `video,seconds` for each video that begins at another time than --video-starts-s."""
    frames_fps: Size = 30
    """With --kind frames: pictures a second."""
    reader: str = "pyav"
    """Reader of videos, as --data.reader in training."""
    max_bad_share: Part = 0.1
    """Share of key frames without a picture past which training ends, as --data.max-bad-share."""
    timeout_s: ReadLimit = 60
    """Seconds after which opening a video is given up."""
    pictures: Path | None = None
    """Folder to draw key frames at random into, with their boxes and actions: key_frames.png."""
    num_pictures: Count = 12
    """How many of them."""
    seed: Seed = 0
    """Which of them: another number draws others."""
    json_: Annotated[bool, tyro.conf.arg(name="json")] = False
    """Print the findings as JSON."""


class CheckedSet(NamedTuple):
    """What was found."""

    findings: tuple[SetFinding, ...]
    rows: int
    key_frames: int
    videos: int
    pictures: Path | None

    @property
    def would_fail(self) -> bool:
        """Whether training would."""
        return any(one.weight == "fails" for one in self.findings)

    def json(self) -> dict[str, Any]:
        """What `--json` prints."""
        sizes = {"rows": self.rows, "key_frames": self.key_frames, "videos": self.videos, "would_fail": self.would_fail}
        return {**sizes, "findings": [one._asdict() for one in self.findings]}

    def __str__(self) -> str:
        order = ("fails", "warns", "tells")
        lines = [str(one) for one in sorted(self.findings, key=lambda one: order.index(one.weight))]
        if not any(one.weight != "tells" for one in self.findings):
            lines.append("nothing found that is wrong")
        sizes = (
            f"{counted(self.rows, 'row')} at {counted(self.key_frames, 'key frame')} of {counted(self.videos, 'video')}"
        )
        drawn = [f"pictures: {self.pictures}"] if self.pictures else []
        return "\n".join([f"looked at {sizes}", *lines, *drawn])


def ava_check(asked: AvaCheckArguments) -> CheckedSet:
    """Look at all files that are named; raises ConfigError for a folder of pictures that is none of this verb's."""
    if asked.pictures is not None:
        check_out_folder(
            asked.pictures, "--pictures", is_ours=lambda there: {path.name for path in there.iterdir()} <= {SHEET}
        )
    findings: list[SetFinding] = []
    label_map = None if asked.label_map is None else _read(read_label_map, asked.label_map, findings)
    train, val = ([_read(read_truth, file, findings) for file in files] for files in (asked.truth, asked.val_truth))
    parts = [[rows for rows in part if rows is not None] for part in (train, val)]
    every = [rows for part in parts for rows in part]
    if not (asked.truth or asked.val_truth):
        findings.append(SetFinding("fails", "no file of boxes and actions was given", "give --truth FILE"))
    for rows in every:
        findings += _of_rows(rows, label_map)
    if all(parts):
        findings += check_both_parts(*parts)
    excluded = [_read(read_excluded, file, findings) for file in asked.excluded]
    left_out = frozenset[Key]().union(*(one for one in excluded if one is not None))
    names = ", ".join(map(str, asked.excluded))
    for rows in every:
        findings += check_excluded(rows.keys, left_out, rows.source, names) if asked.excluded else ()
    keys = [key for key in dict.fromkeys(key for rows in every for key in rows.keys) if key not in left_out]
    findings += _of_boxes(asked, every, left_out)
    if label_map is not None and parts[0] and not any(one.weight == "fails" for one in findings):
        findings += _as_in_training(parts[0], label_map, left_out)
    files = _read(partial(_files, asked), asked.videos, findings) if asked.videos is not None and keys else None
    if files is not None:
        findings += _of_videos(asked, files, keys)
    drawn = None
    if asked.pictures is not None and keys:
        drawn = _draw(asked, files, asked.pictures, every, keys, label_map)
    num = sum(map(len, every))
    return CheckedSet(tuple(findings), num, len(keys), len({video for video, _ in keys}), drawn)


def _read(read: Callable[[Path], T], file: Path, findings: list[SetFinding]) -> T | None:
    """What is in a file; None where it cannot be read, which is a finding."""
    try:
        return read(file)
    except DataError as error:
        findings.append(SetFinding("fails", str(error)))
        return None


def _of_rows(rows: BoxRows, label_map: LabelMap | None) -> list[SetFinding]:
    findings = [*check_boxes(rows), *check_doubles(rows)]
    if not len(rows):
        findings.append(SetFinding("fails", f"{rows.source} has no row with a box", "give a file of boxes and actions"))
    empty = len(rows.keys) - len(np.unique(rows.frame_N))
    if empty:
        findings.append(SetFinding("tells", f"{rows.source}: {counted(empty, 'key frame')} have no box"))
    if label_map is not None:
        findings += [*check_labels(rows, label_map), *check_classes(rows, label_map)]
    return findings


def _of_boxes(asked: AvaCheckArguments, every: Sequence[BoxRows], left_out: frozenset[Key]) -> list[SetFinding]:
    """Files of detected persons, each beside the truth that it has the most key frames of."""
    findings: list[SetFinding] = []
    for file in asked.boxes:
        try:
            boxes = checked(read_as_written(file, asked.images))
        except DataError as error:
            findings.append(SetFinding("fails", str(error)))
            continue
        findings += [SetFinding("warns", note) for note in boxes.notes]
        if every:
            rows = max(every, key=lambda rows: sum(key in boxes for key in rows.keys))
            with_rows = set(np.unique(rows.frame_N).tolist())
            keys = [key for place, key in enumerate(rows.keys) if place in with_rows and key not in left_out]
            findings += check_person_boxes(boxes, keys, asked.box_threshold, rows.source) if keys else ()
    return findings


def _as_in_training(train: Sequence[BoxRows], label_map: LabelMap, left_out: frozenset[Key]) -> list[SetFinding]:
    """What training itself says of the rows."""
    from vmae2_ds.downstream.ava.key_frames import make_key_frames

    try:
        make_key_frames(train, label_map, excluded=left_out)
    except Vmae2Error as error:
        return [SetFinding("fails", str(error))]
    return []


def _of_videos(asked: AvaCheckArguments, files: ClipFiles, keys: Sequence[Key]) -> list[SetFinding]:
    from vmae2_ds.downstream.ava.check_videos import check_videos

    def tell(number: int) -> Ticker:
        return Ticker(log, "videos opened", number)

    try:
        return list(check_videos(files, keys, asked.max_bad_share, asked.timeout_s, tell))
    except DataError as error:
        return [SetFinding("fails", str(error))]


def _files(asked: AvaCheckArguments, folder: Path) -> ClipFiles:
    from vmae2_ds.downstream.ava.clip_files import ClipFiles

    return ClipFiles.of(asked, folder)


def _draw(
    asked: AvaCheckArguments,
    files: ClipFiles | None,
    folder: Path,
    every: Sequence[BoxRows],
    keys: Sequence[Key],
    label_map: LabelMap | None,
) -> Path:
    """A sheet of key frames drawn at random, with their boxes and actions."""
    import contextlib

    from vmae2_ds.data.readers.watchdog import GuardedReader
    from vmae2_ds.downstream.ava.find_persons import pictures_at
    from vmae2_ds.downstream.ava.sheets import key_frame_picture
    from vmae2_ds.draw.frames import sheet_of_frames
    from vmae2_ds.draw.sheet import write_sheet

    chosen = np.random.default_rng(asked.seed).permutation(len(keys))[: asked.num_pictures]
    pixels: dict[Key, np.ndarray] = {}
    reasons: dict[Key, str] = {}
    drawn = [keys[place] for place in sorted(chosen.tolist())]
    if files is not None:
        with contextlib.closing(GuardedReader(asked.timeout_s)) as reader:
            for key in drawn:
                for moment in pictures_at(files, [key], reader):
                    if moment.pixels_HWC is not None:
                        pixels[key] = moment.pixels_HWC.copy()
                    reasons[key] = moment.reason or ""
    pictures = []
    for key in drawn:
        actions_of: dict[tuple[float, ...], list[int]] = {}
        for rows in every:
            is_there = (rows.time_ms_N == key[1]) & (np.array(rows.videos, object)[rows.video_N] == key[0])
            for box, action in zip(rows.box_N4[is_there].tolist(), rows.label_N[is_there].tolist(), strict=True):
                actions_of.setdefault(tuple(box), []).append(action)
        box_G4 = np.array(list(actions_of), np.float64).reshape(-1, 4)
        title = f"{key[0]} at {seconds_of(key[1])} s"
        about = reasons.get(key, "")[:100]
        pictures.append(key_frame_picture(title, pixels.get(key), box_G4, list(actions_of.values()), label_map, about))
    sheet = sheet_of_frames("key frames with their boxes and actions", [], pictures)
    write_sheet(sheet, folder / SHEET, "vmae2 ava check")
    return folder / SHEET
