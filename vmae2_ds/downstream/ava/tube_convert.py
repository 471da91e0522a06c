"""The verb `vmae2 ava convert`: annotations of tubes become the files that training and scoring of AVA's form read."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, NamedTuple

import numpy as np
import tyro
from pydantic import Field

from vmae2_ds.config.strict import StrictModel
from vmae2_ds.console.progress import counted
from vmae2_ds.disk import check_out_folder, whole_file, write_whole
from vmae2_ds.downstream.ava.rows import names_in_csv, seconds_of
from vmae2_ds.downstream.ava.tube_files import Clock, Part, TubeSet, boxes_of, read_tube_pickle

PARTS: tuple[Part, ...] = ("train", "test")
LABELS = "labels.pbtxt"
WRITTEN = (LABELS, *(f"{part}{end}" for part in PARTS for end in (".csv", "_videos.txt")))


class ConvertArguments(StrictModel):
    """Turn the annotations of UCF101-24, JHMDB or MultiSports into AVA csv files, a label map and lists of videos."""

    gt: Annotated[Path, tyro.conf.Positional]
    """The pickle: UCF101v2-GT.pkl, JHMDB-GT.pkl, multisports_GT.pkl, or another of their form. It is read as plain data: no
    code in it is run."""
    out: Path
    """Folder to write labels.pbtxt, train.csv, test.csv, train_videos.txt and test_videos.txt into."""
    fps: float = Field(gt=0, le=500)
    """Frames a second of the video files, by which numbers of frames become times (UCF101-24 and MultiSports 25, JHMDB 30)."""
    split: int = Field(1, ge=1, le=99)
    """Which of the set's splits (JHMDB has three)."""
    every: int = Field(1, ge=1, le=10**6)
    """Write each such frame of a video, counted from its first: key frames that follow each other are nearly the same."""


class Converted(NamedTuple):
    """What was written."""

    folder: Path
    num_classes: int
    parts: dict[Part, tuple[int, int, int]]
    """Videos, key frames and rows with a box."""

    def __str__(self) -> str:
        lines = [f"{self.folder}: {LABELS} with {counted(self.num_classes, 'class', 'classes')}"]
        for part, (videos, frames, rows) in self.parts.items():
            lines.append(
                f"{part}.csv: {counted(videos, 'video')}, {counted(frames, 'key frame')}, {counted(rows, 'box', 'boxes')}"
            )
        return "\n".join(lines)


def convert(asked: ConvertArguments) -> Converted:
    """Write the files; each is there whole or not at all.

    Raises:
        DataError: As `read_tube_pickle`.
        ConfigError: The folder cannot be written, or holds files of something else.
    """
    check_out_folder(
        asked.out, "--out", [asked.gt], lambda folder: {path.name for path in folder.iterdir()} <= set(WRITTEN)
    )
    sets = {part: read_tube_pickle(asked.gt, part, asked.split) for part in PARTS}
    labels = sets["test"].labels
    items = [
        f'item {{\n  name: "{_quoted(name)}"\n  id: {action}\n}}\n'
        for action, name in zip(labels.ids, labels.names, strict=True)
    ]
    write_whole(asked.out / LABELS, "".join(items))
    parts: dict[Part, tuple[int, int, int]] = {}
    for part, made in sets.items():
        write_whole(asked.out / f"{part}_videos.txt", "".join(f"{video}\n" for video in made.truth.videos))
        frames = rows = 0
        with whole_file(asked.out / f"{part}.csv") as file, file.open("w", encoding="utf-8") as out:
            # where nothing is done in the test videos a detection is a mistake: such frames are named, by rows of 2 columns
            for line, is_row in _lines(made, Clock(asked.fps), asked.every, names_empty=part == "test"):
                out.write(line)
                rows += is_row
                frames += not is_row
        parts[part] = (len(made.truth.videos), frames, rows)
    return Converted(asked.out, len(labels), parts)


def _lines(made: TubeSet, clock: Clock, every: int, *, names_empty: bool) -> Iterator[tuple[str, bool]]:
    """Lines by video and frame, and whether one holds a box; a key frame counts with the first line that is none ("")."""
    tubes = made.truth
    assert made.size_V2 is not None, "a pickle has its resolutions"
    boxes = boxes_of(tubes)
    number_F, video_F, frame_F = np.repeat(np.arange(len(tubes)), np.diff(tubes.start_T1)), boxes.video_N, boxes.frame_N
    share_F4 = boxes.box_N4 / np.tile(made.size_V2[video_F], 2)
    order = np.lexsort((number_F, frame_F, video_F))
    bounds = np.searchsorted(video_F[order], np.arange(len(tubes.videos) + 1))
    for video, name in enumerate(names_in_csv(tubes.videos)):
        mine = order[bounds[video] : bounds[video + 1]]
        last = int(max(made.frames_V[video], frame_F[mine].max(initial=0)))
        first_of = np.searchsorted(frame_F[mine], np.arange(clock.first_frame, last + 2))
        for frame in range(clock.first_frame, last + 1, every):
            some = mine[first_of[frame - clock.first_frame] : first_of[frame + 1 - clock.first_frame]]
            head = f"{name},{seconds_of(clock.time_ms(frame))}"
            if len(some):
                yield "", False
            elif names_empty:
                yield f"{head}\n", False
            for row in some:
                box = ",".join(f"{side:.6f}" for side in share_F4[row])
                tube = number_F[row]
                yield f"{head},{box},{made.labels.ids[tubes.class_T[tube]]},{tube}\n", True


def _quoted(name: str) -> str:
    return name.replace("\\", "\\\\").replace('"', '\\"')
