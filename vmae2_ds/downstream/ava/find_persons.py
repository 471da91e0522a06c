"""Persons in the pictures at key frames: read from videos, shown to a detector, kept as they are found.

Each key frame is a row of a file beside the one that is made, so that a job that was killed goes on with the others. Videos are
shared out over ranks; the file is written by rank 0.
"""

from __future__ import annotations

import contextlib
import glob
import logging
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from vmae2_ds.console.progress import Ticker, counted, heard
from vmae2_ds.data.readers.watchdog import GuardedReader
from vmae2_ds.disk import check_there, hold
from vmae2_ds.dist import Ranks, default_device, is_alone
from vmae2_ds.downstream.ava.box_arguments import AvaBoxesArguments, Boxed, check_written, written
from vmae2_ds.downstream.ava.clip_files import ClipFiles, Span
from vmae2_ds.downstream.ava.image_table import ImageTable
from vmae2_ds.downstream.ava.person_boxes import make_person_boxes
from vmae2_ds.downstream.ava.person_detector import Detector, load_detector
from vmae2_ds.downstream.ava.rows import BoxRows, Key, read_truth, seconds_of
from vmae2_ds.engine.ranks import LONGEST_WAIT_S, meet_ranks, start_ranks, stop_ranks
from vmae2_ds.errors import ConfigError, DataError, TooManyBadFiles, VideoError, Vmae2Error
from vmae2_ds.json_lines import adding_rows, rows_of

log = logging.getLogger(__name__)

ONE = Span(1, 1, "pyslowfast")
"""The picture at the key time, and no other."""
READ_AT_ONCE = 32
"""Pictures of one video that are held in memory."""
DIGITS = 6
"""Digits of boxes and scores behind the point, as csv files have them: the boxes are then the same in every form."""


class Moment(NamedTuple):
    """A key frame, and its picture or why there is none."""

    key: Key
    pixels_HWC: NDArray[np.uint8] | None
    reason: str | None = None


class Failure(NamedTuple):
    """A key frame that could not be read."""

    key: Key
    reason: str

    def __str__(self) -> str:
        return f"{self.key[0]} at {seconds_of(self.key[1])} s: {self.reason}"


class Findings:
    """What was found so far: a file of rows for each rank, beside the file that they will make."""

    def __init__(self, out: Path) -> None:
        self._out = out
        self._lock = out.with_name(f".{out.name}.lock")

    @contextlib.contextmanager
    def held(self, of: dict[str, Any]) -> Iterator[None]:
        """Keep other jobs away; raises ConfigError where one is there, or what was found is of something else."""
        lock = hold(self._lock)
        if lock is None:
            raise ConfigError(f"{self._out}: another job makes it; wait for it, or name another file")
        with lock:
            for file in self._files():
                before = next(iter(rows_of(file)), of)
                if before != of:
                    differing = ", ".join(name for name in of if before.get(name) != of[name])
                    raise ConfigError(
                        f"{file} holds what a job with another {differing} found; give the same options to go on with it, name "
                        "another file, or remove that one"
                    )
            try:
                yield
            finally:
                self._lock.unlink(missing_ok=True)

    def of_rank(self, rank: int) -> Path:
        """Where a rank writes."""
        return self._out.with_name(f".{self._out.name}.rank{rank}.jsonl")

    def rows(self) -> dict[Key, dict[str, Any]]:
        """What is known of key frames, by any rank; of one that could not be read nothing."""
        found = [row for file in self._files() for row in rows_of(file) if "boxes" in row]
        return {(row["video"], row["time_ms"]): row for row in found}

    def remove(self) -> None:
        """Take the files away."""
        for file in self._files():
            file.unlink()

    def _files(self) -> list[Path]:
        return sorted(self._out.parent.glob(f".{glob.escape(self._out.name)}.rank*.jsonl"))


def boxes_of_videos(asked: AvaBoxesArguments) -> Boxed:
    """Look for persons at the key frames of the truth, and write them; the same figures on every rank.

    Raises ConfigError, DataError or CheckpointError where files are of no use, and TooManyBadFiles, after writing, where more
    key frames than `max_bad_share` could not be read.
    """
    assert asked.videos is not None, "asked for"
    assert asked.truth is not None, "checked"
    assert asked.weights is not None, "checked"
    check_there(asked.weights)
    if is_alone():
        check_written(asked)
    truth = read_truth(asked.truth)
    files = ClipFiles.of(asked, asked.videos)
    _check_any(files, truth)
    ranks = start_ranks(meet_ranks()._replace(timeout_s=LONGEST_WAIT_S))
    findings = Findings(asked.written)
    with contextlib.ExitStack() as held:

        def begin() -> set[Key]:
            check_written(asked)
            held.enter_context(findings.held(_of(asked)))
            return set(findings.rows())

        done = ranks.from_first(begin)
        detector = load_detector(
            asked.detector,
            asked.weights,
            default_device(),
            label=asked.label,
            threshold=asked.threshold,
            short_side=asked.short_side,
        )
        failures: list[Failure] = []
        error = None
        try:
            failures = _find(asked, detector, files, [key for key in truth.keys if key not in done], findings, ranks)
        except (OSError, Vmae2Error) as found:  # said to all: the others would wait for this rank
            error = found
        said = ranks.first_said(None if error is None else f"rank {ranks.rank}: {error}")
        if said is not None:
            raise error or DataError(f"stopped with {said}")
        gathered = ranks.gather(failures)

        def end() -> tuple[Boxed, list[Failure]]:
            assert gathered is not None, "rank 0 has them"
            result = _written(asked, truth, findings.rows(), gathered)
            findings.remove()
            return result

        result, failures = ranks.from_first(end)
    stop_ranks(ranks)
    if len(failures) > asked.max_bad_share * len(truth.keys):
        raise TooManyBadFiles(
            f"{len(failures)} of {counted(len(truth.keys), 'key frame')} could not be read, more than --max-bad-share "
            f"{asked.max_bad_share:g}; the first: {failures[0]}; {asked.written} has the others"
        )
    return result


def pictures_at(files: ClipFiles, keys: Sequence[Key], reader: GuardedReader) -> Iterator[Moment]:
    """The picture at each key frame of one video; valid until the next one is asked for. A video is opened for many at once."""
    if files.kind == "clips":
        for key in keys:
            try:
                yield Moment(key, files.read(reader, key, ONE)[0])
            except VideoError as error:
                yield Moment(key, None, str(error))
        return
    rest = iter(keys)
    while some := list(islice(rest, READ_AT_ONCE)):
        yield from _of_one_file(files, some, reader)


def _of_one_file(files: ClipFiles, keys: list[Key], reader: GuardedReader) -> Iterator[Moment]:
    reasons: dict[Key, str] = {}

    def choose(length: int, fps: float) -> NDArray[np.int64]:
        chosen = []
        for key in keys:
            try:
                chosen.append(files.indices(key, ONE, length, fps))
            except VideoError as error:
                reasons[key] = str(error)
        if not chosen:
            raise VideoError(next(iter(reasons.values())))
        return np.concatenate(chosen)

    try:
        entry, how = files.entry_of(keys[0][0], files.file_of(keys[0]))
        pictures = iter(reader.read(entry, how, choose))
    except VideoError as error:
        yield from (Moment(key, None, reasons.get(key, str(error))) for key in keys)
        return
    for key in keys:
        yield Moment(key, None, reasons[key]) if key in reasons else Moment(key, next(pictures))


def _find(
    asked: AvaBoxesArguments, detector: Detector, files: ClipFiles, keys: list[Key], findings: Findings, ranks: Ranks
) -> list[Failure]:
    """Write the rows of this rank's part of the key frames; returns what could not be read, and why."""
    keys_of: dict[str, list[Key]] = {}
    for key in sorted(keys):
        keys_of.setdefault(key[0], []).append(key)
    mine = sorted(keys_of, key=lambda video: -len(keys_of[video]))[ranks.rank :: ranks.size]
    failures: list[Failure] = []
    ticker = Ticker(log, "key frames looked at", sum(len(keys_of[video]) for video in mine), speaks=ranks.rank == 0)
    file = findings.of_rank(ranks.rank)
    is_new = not file.exists()
    with adding_rows(file) as add, contextlib.closing(GuardedReader(asked.timeout_s)) as reader, heard(ticker):
        if is_new:
            add(_of(asked))
        looked = 0
        for video in mine:
            pictures = pictures_at(files, keys_of[video], reader)
            before = len(failures)
            while some := [_kept(one) for one in islice(pictures, asked.batch)]:
                failures += [Failure(one.key, one.reason) for one in some if one.reason is not None]
                add(*_rows(detector, [one for one in some if one.pixels_HWC is not None], asked))
                looked += len(some)
                ticker.tell(looked)
            if bad := len(failures) - before:
                log.warning(
                    "%s: %s could not be read, the first: %s", video, counted(bad, "key frame"), failures[before]
                )
    return failures


def _kept(picture: Moment) -> Moment:
    """The same with pixels of its own: those of a reader are written over by the next ones."""
    pixels = picture.pixels_HWC
    return picture if pixels is None else picture._replace(pixels_HWC=pixels.copy())


def _rows(detector: Detector, pictures: Sequence[Moment], asked: AvaBoxesArguments) -> list[dict[str, Any]]:
    pixels = [one.pixels_HWC for one in pictures if one.pixels_HWC is not None]
    found = detector(pixels) if pixels else []
    if len(found) != len(pixels):
        raise DataError(f"--detector {asked.detector} gave {len(found)} answers for {len(pixels)} pictures")
    rows = []
    for picture, pixels_HWC, box_n5 in zip(pictures, pixels, found, strict=True):
        height, width = pixels_HWC.shape[:2]
        rows.append(
            {
                "video": picture.key[0],
                "time_ms": picture.key[1],
                "size": [width, height],
                "boxes": _boxes(np.asarray(box_n5, np.float64), width, height, asked).tolist(),
            }
        )
    return rows


def _boxes(box_n5: NDArray[np.float64], width: int, height: int, asked: AvaBoxesArguments) -> NDArray[np.float64]:
    """Boxes inside of their picture and in parts of it, the best first; raises DataError for what is none."""
    if box_n5.ndim != 2 or box_n5.shape[1:] != (5,) or not np.isfinite(box_n5).all():
        raise DataError(f"--detector {asked.detector} gave an array {box_n5.shape}, where finite (n, 5) is looked for")
    size_5 = np.array([width, height, width, height, 1])
    box_n5 = np.clip(box_n5, 0, size_5)
    is_kept = (box_n5[:, 2:4] - box_n5[:, :2] >= asked.smallest).all(1) & (box_n5[:, 4] >= asked.threshold)
    box_n5 = (box_n5 / size_5)[is_kept].round(DIGITS)
    return np.asarray(box_n5[np.argsort(-box_n5[:, 4], kind="stable")])


def _written(
    asked: AvaBoxesArguments, truth: BoxRows, rows: dict[Key, dict[str, Any]], failures: list[list[Failure]]
) -> tuple[Boxed, list[Failure]]:
    keys = [key for key in truth.keys if key in rows]
    sizes = {key: (float(width), float(height)) for key in keys for width, height in [rows[key]["size"]]}
    images = ImageTable("the videos", dict(enumerate(keys, 1)), sizes)
    boxes = make_person_boxes({key: rows[key]["boxes"] for key in keys}, asked.written, images)
    every = [failure for some in failures for failure in some]
    bad = Counter(failure.key[0] for failure in every)
    first = {failure.key[0]: failure.reason for failure in reversed(every)}
    notes = [
        f"{video}: {counted(number, 'key frame')} could not be read: {first[video]}" for video, number in bad.items()
    ]
    result = written(asked, boxes, truth)
    return result._replace(notes=(*result.notes, *notes)), every


def _of(asked: AvaBoxesArguments) -> dict[str, Any]:
    """All that decides what is found."""
    places = {name: str(getattr(asked, name).resolve()) for name in ("videos", "truth", "weights")}
    decides = {
        "detector",
        "label",
        "threshold",
        "short_side",
        "smallest",
        "kind",
        "video_starts_s",
        "frames_fps",
        "reader",
    }
    starts = {} if asked.video_starts is None else {"video_starts": str(asked.video_starts.resolve())}
    return {**places, **starts, **asked.model_dump(include=decides)}


def _check_any(files: ClipFiles, truth: BoxRows) -> None:
    """Raises DataError where no video of the truth is there."""
    first_of = {video: (video, time) for video, time in reversed(truth.keys)}
    if not first_of:
        raise DataError(f"{truth.source} names no key frame")
    if not any(map(files.has, first_of.values())):
        raise DataError(
            f"{files.folder} has none of the {counted(len(first_of), 'video')} that {truth.source} names, "
            f"{files.file_of(truth.keys[0])} for example; name the folder that holds them, or another --kind"
        )
