"""Which reader to take: measured on the user's own files, after those that read them wrongly are out."""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from contextlib import ExitStack
from typing import NamedTuple

import numpy as np

from vmae2_ds.data.clips.sampling import stride_indices
from vmae2_ds.data.entry import ReadAs, VideoEntry
from vmae2_ds.data.readers.common import Choose
from vmae2_ds.data.readers.storage import read_entry
from vmae2_ds.data.readers.table import installed_readers
from vmae2_ds.data.readers.watchdog import Watchdog
from vmae2_ds.errors import VideoError

NUM_FRAMES, STRIDE, PARTS = 16, 4, 3
"""The clips that are read: as the recipes do, from a few places of a video."""
ROUNDS = 3
REFERENCE = "pyav"
"""The reader whose frames are taken for right (docs/DATA.md)."""
LEVELS = 2.0
"""Grey levels, of 255, that a reader may differ by on average: decoders round their transforms differently."""


class ReaderRow(NamedTuple):
    """One reader on all files."""

    reader: str
    clip_ms: float | None
    """CPU time of a clip, median over the files that it reads."""
    failures: int
    """Files that it does not read and PyAV does."""
    wrong: int
    """Files of which its frames are not PyAV's."""


class ReaderChoice(NamedTuple):
    """The fastest of the readers that read every file rightly."""

    name: str
    files: int
    """Number of sampled files that PyAV reads."""
    rows: tuple[ReaderRow, ...]

    def __str__(self) -> str:
        lines = [f"readers on {self.files} files, CPU time of a clip of {NUM_FRAMES} frames:"]
        for row in self.rows:
            cost = "      -" if row.clip_ms is None else f"{row.clip_ms:7.1f}"
            lines.append(f"  {row.reader:<10} {cost} ms, fails on {row.failures} files, other frames in {row.wrong}")
        return "\n".join([*lines, f"take --data.reader {self.name}"])


def clip_at(part: int) -> Choose:
    """The clip that begins after `part` of PARTS equal parts of where one may begin."""

    def choose(length: int, fps: float) -> np.ndarray:
        return stride_indices(length, NUM_FRAMES, STRIDE, max(0, length - NUM_FRAMES * STRIDE) * part // PARTS)

    return choose


def clip_cost(entry: VideoEntry, how: ReadAs) -> float:
    """CPU seconds of reading a clip, mean over PARTS of them; raises VideoError."""
    began = time.process_time()
    for part in range(PARTS):
        read_entry(entry, how, clip_at(part))
    return (time.process_time() - began) / PARTS


def choose_reader(videos: Sequence[VideoEntry], how: ReadAs, timeout_s: float = 30) -> ReaderChoice:
    """Read the same clips with every installed reader, in turns and each in a process of its own, and take the fastest.

    A reader that fails on a file which PyAV reads, or shows other frames of it, is out.
    """
    names = [REFERENCE, *(name for name in installed_readers() if name != REFERENCE)]
    costs: dict[str, list[float]] = {name: [] for name in names}
    failures, wrong = dict.fromkeys(names, 0), dict.fromkeys(names, 0)
    files = 0
    with ExitStack() as stack:
        watchdogs = {name: stack.enter_context(Watchdog(timeout_s)) for name in names}
        for entry in videos:
            try:
                frames = _clips(watchdogs[REFERENCE], entry, how._replace(reader=REFERENCE))
            except VideoError:
                continue
            files += 1
            for name in names:
                try:
                    found = _clips(watchdogs[name], entry, how._replace(reader=name))
                    wrong[name] += any(_differ(one, other) for one, other in zip(found, frames, strict=True))
                    rounds = [watchdogs[name].call(clip_cost, entry, how._replace(reader=name)) for _ in range(ROUNDS)]
                    costs[name].append(min(rounds))
                except VideoError:
                    failures[name] += 1
    rows = tuple(
        ReaderRow(name, 1e3 * statistics.median(costs[name]) if costs[name] else None, failures[name], wrong[name])
        for name in names
    )
    sound = [row for row in rows if row.clip_ms is not None and not row.failures and not row.wrong]
    best = min(sound, key=lambda row: row.clip_ms or 0.0, default=None)
    return ReaderChoice(best.reader if best is not None else REFERENCE, files, rows)


def _clips(watchdog: Watchdog, entry: VideoEntry, how: ReadAs) -> list[np.ndarray]:
    return [watchdog.read(entry, how, clip_at(part)).copy() for part in range(PARTS)]


def _differ(one: np.ndarray, other: np.ndarray) -> bool:
    return one.shape != other.shape or float(np.abs(one.astype(np.int16) - other).mean()) > LEVELS
