"""Every file of a manifest looked at once, in parallel, under a watchdog; results go to a file as they come.

What `vmae2 data check` judges by. A line counts again in a later scan while its file and the way of reading are the same.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable, Iterable, Iterator
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
from vmae2_ds.data.tools.parallel import in_parallel
from vmae2_ds.data.tools.video_facts import VideoFacts, probe_entry
from vmae2_ds.errors import VideoError
from vmae2_ds.json_lines import adding_rows, rows_of

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


def scan(
    manifest: Manifest, look: ScanOptions, file: Path, workers: int, tell: Callable[[int, int], None]
) -> dict[str, Scanned]:
    """Look at all files that `file` has no current result of, append theirs to it, and return all results by key.

    `tell` gets (files done, files to do).
    """
    done = dict(_read(file, look.settings))
    entries: dict[str, VideoEntry] = {}
    for entry in manifest:
        entries.setdefault(key_of(entry, look.how), entry)
    found = {key: done[key][1] for key, entry in entries.items() if key in done and done[key][0] == stamp_of(entry)}
    left = [entry for key, entry in entries.items() if key not in found]
    del entries, done
    total = len(found) + len(left)
    tell(len(found), total)
    with adding_rows(file) as add:

        def work(entry: VideoEntry, watchdog: Watchdog) -> tuple[list[int] | None, Scanned]:
            return stamp_of(entry), look_at(entry, look, watchdog)

        for stamp, scanned in in_parallel(left, work, workers, look.timeout_s):
            found[scanned.key] = scanned
            add([look.settings, stamp, *scanned[:-1], scanned.facts])
            tell(len(found), total)
    return found


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


def _read(file: Path, settings: str) -> Iterable[tuple[str, tuple[Any, Scanned]]]:
    """The newest result of each key comes last."""
    for row in rows_of(file):
        with contextlib.suppress(ValueError, TypeError):  # of an earlier version: its file is looked at again
            told, stamp, key, reason, is_missing, frames, facts = row
            if told == settings:
                known = None if facts is None else VideoFacts(*facts)
                yield key, (stamp, Scanned(key, reason, is_missing, frames, known))
