"""Every file of a manifest looked at once, in parallel, under a watchdog; results go to a file as they come.

What `vmae2 data check` judges by. A line counts again in a later scan while its file and the way of reading are the same.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterable, Iterator
from itertools import chain
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from vmae2_ds.data.clips.sampling import stride_indices
from vmae2_ds.data.entry import ReadAs, VideoEntry
from vmae2_ds.data.readers.frame_index import all_frames, index_of
from vmae2_ds.data.readers.pyav import Upright
from vmae2_ds.data.readers.storage import fetch
from vmae2_ds.data.readers.watchdog import Watchdog
from vmae2_ds.data.sources.manifest import Manifest
from vmae2_ds.data.tools.division import Distinct, Ints
from vmae2_ds.data.tools.job_folder import JobFolder, write_lines
from vmae2_ds.data.tools.parallel import in_parallel
from vmae2_ds.data.tools.video_facts import VideoFacts, probe_entry
from vmae2_ds.errors import VideoError

DecodeName = Literal["clip", "all", "none"]
PIECE = 64
"""Frames held at once where all are decoded by a reader other than PyAV."""
RULES = 2
"""Version of the rules for what counts as a frame: results of another version are not used again."""


class ScanOptions(NamedTuple):
    """How files are looked at."""

    how: ReadAs
    decode: DecodeName
    """clip: read one as training would, from the middle; all: every frame too, from the start; none: the packets alone."""
    num_frames: int
    stride: int
    timeout_s: float

    @property
    def settings(self) -> str:
        """What a result depends on besides the file."""
        return json.dumps([RULES, *self.how, self.decode, self.num_frames, self.stride])


class Scanned(NamedTuple):
    """What was found: a reason why the file is of no use, or its facts."""

    key: str
    reason: str
    is_missing: bool
    frames: int
    """Number of frames, as the reader counts them."""
    facts: VideoFacts | None


def key_of(entry: VideoEntry, how: ReadAs) -> str:
    """What is looked at once: a file; of a folder of frames, the numbers listed."""
    return f"{entry.name}#{entry.start}+{entry.frames}" if how.kind == "frames" else entry.name


def scan(folder: JobFolder, manifest: Manifest, files: Distinct, mine: Ints, look: ScanOptions, workers: int) -> None:
    """Look at the files of `mine` that no row has a current result of; rows of the others are kept as they come."""
    wanted = set(mine.tolist())
    stamps: dict[int, Any] = {}
    for key, (stamp, _) in _read(folder.rows(), look.settings):
        number = files.number_of(key)
        if number is not None and number in wanted:
            stamps[number] = stamp
    entry_of = {number: manifest[int(files.first[number])] for number in wanted}
    left = [
        entry_of[number]
        for number in mine.tolist()
        if number not in stamps or stamps[number] != stamp_of(entry_of[number])
    ]
    before = len(mine) - len(left)
    del stamps, entry_of, wanted

    with folder.working("files checked", before, len(mine), len(files)) as add:

        def work(entry: VideoEntry, watchdog: Watchdog) -> None:
            stamp, scanned = stamp_of(entry), look_at(entry, look, watchdog)
            add([look.settings, stamp, *scanned[:-1], scanned.facts])

        for _ in in_parallel(left, work, workers, look.timeout_s):
            pass


def found_by_all(folder: JobFolder, files: Distinct, look: ScanOptions, file: Path) -> dict[str, Scanned]:
    """The results of all files by key, in the order of the list, whoever found what; they are written so into `file` too.

    Behind them stay the rows of other ways of looking, which may be asked for again.
    """
    found: dict[int, tuple[Any, Scanned]] = {}
    others: dict[str, bytes] = {}
    for row in folder.rows(of_all=True):
        read = next(iter(_read([row], look.settings)), None)
        number = None if read is None else files.number_of(read[0])
        if read is not None and number is not None:
            found[number] = read[1]
        else:
            line = json.dumps(row).encode()
            others[json.dumps([row[0], row[2]]) if isinstance(row, list) and len(row) > 2 else ""] = line
    in_order = [found[number] for number in range(len(files))]
    write_lines(
        file,
        chain(
            (json.dumps([look.settings, stamp, *one[:-1], one.facts]).encode() for stamp, one in in_order),
            others.values(),
        ),
    )
    return {one.key: one for _, one in in_order}


def look_at(entry: VideoEntry, look: ScanOptions, watchdog: Watchdog) -> Scanned:
    """One file. A reader that hangs or dies is a reason like others."""
    key = key_of(entry, look.how)
    path = entry.shard or entry.path
    if "://" not in path and not os.path.lexists(path):
        return Scanned(key, "no such file", is_missing=True, frames=0, facts=None)
    try:
        facts = VideoFacts(*watchdog.call(probe_entry, entry, look.how))
        frames = facts.frames if look.decode == "none" else _try_reading(entry, look, watchdog)
    except VideoError as error:
        return Scanned(key, str(error), is_missing=False, frames=0, facts=None)
    return Scanned(key, "", is_missing=False, frames=frames, facts=facts)


def _try_reading(entry: VideoEntry, look: ScanOptions, watchdog: Watchdog) -> int:
    """Decode, and return the number of frames."""
    lengths = []
    first = entry.start if look.how.kind == "frames" else 0

    def clip(length: int, fps: float) -> np.ndarray:
        lengths.append(length - first)
        span = look.num_frames * look.stride
        return first + stride_indices(length - first, look.num_frames, look.stride, max(0, length - first - span) // 2)

    watchdog.read(entry, look.how, clip)
    if look.decode == "all":
        if look.how.kind == "video" and look.how.reader == "pyav":
            return int(watchdog.follow(decode_all, entry))
        sizes: set[tuple[int, ...]] = set()
        for start in range(0, lengths[0], PIECE):
            stop = min(lengths[0], start + PIECE)
            piece = watchdog.read(entry, look.how, lambda length, fps, a=start, b=stop: first + np.arange(a, b))  # type: ignore[misc]
            sizes.add(piece.shape[1:])
        _check_one_size(sizes)
    return lengths[0]


def decode_all(entry: VideoEntry) -> Iterator[int]:
    """Decode a video from start to end as `data prepare` does, and count; raises VideoError where prepare would."""
    video = fetch(entry)
    index, turn = index_of(video), Upright()
    sizes: set[tuple[int, ...]] = set()
    for count, frame in enumerate(all_frames(video, index), 1):
        across, down = frame.width, frame.height
        sizes.add((across, down) if turn.of(frame)[1] % 2 else (down, across))
        _check_one_size(sizes)
        yield count


def _check_one_size(sizes: set[tuple[int, ...]]) -> None:
    if len(sizes) > 1:
        raise VideoError("its frame size changes on the way; re-encode it")


def stamp_of(entry: VideoEntry) -> list[int] | None:
    """Size and time of the last change; None for what is not a local file."""
    try:
        status = os.stat(entry.shard or entry.path)
    except (OSError, ValueError):
        return None
    return [status.st_size, status.st_mtime_ns]


def _read(rows: Iterable[Any], settings: str) -> Iterator[tuple[str, tuple[Any, Scanned]]]:
    """Results of this way of looking; the newest of each key comes last."""
    for row in rows:
        with contextlib.suppress(ValueError, TypeError):  # of an earlier version: its file is looked at again
            told, stamp, key, reason, is_missing, frames, facts = row
            if told == settings:
                known = None if facts is None else VideoFacts(*facts)
                yield key, (stamp, Scanned(key, reason, is_missing, frames, known))
