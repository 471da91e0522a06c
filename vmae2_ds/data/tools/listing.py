"""`vmae2 data list`: the videos in a folder as a list, long films as parts of some seconds."""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from pydantic import Field
from tyro.conf import Positional

from vmae2_ds.config.strict import AtOnce, ReadLimit, StrictModel
from vmae2_ds.console.progress import Ticker, counted, heard
from vmae2_ds.data.entry import ReadAs, VideoEntry
from vmae2_ds.data.readers.watchdog import Watchdog
from vmae2_ds.data.sources.list_formats import csv_line
from vmae2_ds.data.sources.list_header import VIDEO_SUFFIXES, videos_below
from vmae2_ds.data.tools.parallel import in_parallel
from vmae2_ds.data.tools.parts import at_once_here
from vmae2_ds.data.tools.video_facts import VideoFacts, probe_entry
from vmae2_ds.data.tools.work_folder import full_disk_is_told
from vmae2_ds.disk import check_out_file, write_whole
from vmae2_ds.errors import ConfigError, VideoError

log = logging.getLogger(__name__)


class ListedFolder(NamedTuple):
    """What was written."""

    out: Path
    files: int
    rows: int
    unread: int
    """Files whose length could not be told."""

    def __str__(self) -> str:
        parts = f", {counted(self.rows, 'row')}" if self.rows != self.files else ""
        unread = (
            f"; of {counted(self.unread, 'file')} no length could be read: vmae2 data check says why"
            if self.unread
            else ""
        )
        return f"{counted(self.files, 'video')}{parts}{unread}: give {self.out} as the manifest"


class ListArguments(StrictModel):
    """List the videos in a folder, at any depth, as --data.manifest takes it; long films as parts.

    A video is what is named like one, and nothing of it is read unless --part-s asks for its length. Links to folders are not
    followed.
    """

    folder: Positional[Path]
    """Folder of videos."""
    out: Path
    """CSV file to write, which must not be there yet; videos in or below its folder are named relative to it."""
    part_s: float | None = Field(None, gt=0, le=1e6)
    """Length of a part in seconds: a longer film becomes several rows, so that a pass sees a clip of each part of it and
    not one clip of the whole. A rest of less than half a part belongs to the part before. Default: a row a file."""
    workers: AtOnce | None = None
    """With --part-s: number of files that are read at the same time; default: as many as this process may use CPU cores."""
    timeout_s: ReadLimit = 600
    """With --part-s: seconds after which reading the length of one film is given up."""


def list_folder(asked: ListArguments) -> ListedFolder:
    """Write the list. Raises ConfigError where there is no video, or something is at its place."""
    check_out_file(asked.out)
    if asked.out.exists():
        raise ConfigError(f"--out {asked.out} is there already; name another file, or remove it")
    paths = videos_below(asked.folder)
    if not paths:
        if not asked.folder.is_dir():
            raise ConfigError(f"{asked.folder} is no folder")
        raise ConfigError(
            f"{asked.folder}: no file in this folder is named like a video ({', '.join(VIDEO_SUFFIXES[:4])}, ...)"
        )
    facts = {} if asked.part_s is None else _facts(paths, asked)
    base = asked.out.parent.resolve()
    columns = ["path"] if asked.part_s is None else ["path", "start", "frames"]
    rows: list[list[object]] = [
        [_named(path, base), *part][: len(columns)]
        for path in paths
        for part in (parts_of(facts[path], asked.part_s) if path in facts and asked.part_s else [("", "")])
    ]
    with full_disk_is_told(asked.out):
        write_whole(asked.out, csv_line(columns) + "".join(map(csv_line, rows)))
    return ListedFolder(asked.out, len(paths), len(rows), len(paths) - len(facts) if asked.part_s else 0)


def parts_of(facts: VideoFacts, part_s: float) -> Iterator[tuple[object, object]]:
    """First frame and number of frames of each part of a film, empty for a film of one part."""
    length = round(part_s * facts.fps) if math.isfinite(facts.fps) else 0
    count = round(facts.frames / length) if length else 1
    if count <= 1:
        yield "", ""
        return
    for number in range(count):
        yield number * length, length if number < count - 1 else facts.frames - number * length


def _facts(paths: list[str], asked: ListArguments) -> dict[str, VideoFacts]:
    """The facts of each file that can be read, by its path."""

    def look(path: str, watchdog: Watchdog) -> tuple[str, VideoFacts | None]:
        try:
            return path, VideoFacts(*watchdog.call(probe_entry, VideoEntry(path, None, "", 0, None), ReadAs()))
        except VideoError as error:
            log.warning("%s: %s", path, error)
            return path, None

    found = {}
    with heard(Ticker(log, "films read", len(paths))) as ticker:
        for number, (path, facts) in enumerate(
            in_parallel(paths, look, at_once_here(asked.workers), asked.timeout_s), 1
        ):
            ticker.tell(number)
            if facts is not None:
                found[path] = facts
    return found


def _named(path: str, base: Path) -> str:
    place = Path(path).resolve()
    return str(place.relative_to(base)) if place.is_relative_to(base) else os.path.abspath(path)
