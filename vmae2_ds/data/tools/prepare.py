"""`vmae2 data prepare`: videos re-encoded to a short side and a short GOP, so that reading a clip costs less."""

from __future__ import annotations

import contextlib
import json
import logging
import os
from collections.abc import Container, Iterable, Iterator
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import numpy as np
from pydantic import Field
from tyro.conf import Positional

from vmae2_ds.config.strict import AtOnce, PartOf, ReadLimit, Seed, StrictModel
from vmae2_ds.console.progress import counted
from vmae2_ds.data.entry import ReadAs, VideoEntry
from vmae2_ds.data.readers.choice import clip_cost
from vmae2_ds.data.readers.common import check_is_file
from vmae2_ds.data.readers.storage import fetch
from vmae2_ds.data.readers.table import read_clip
from vmae2_ds.data.readers.watchdog import Watchdog
from vmae2_ds.data.sources.list_formats import csv_line, list_form, writing_list
from vmae2_ds.data.sources.manifest import DEFAULT_SOURCE, Manifest, read_manifest
from vmae2_ds.data.tools.copies import Copies, refuse_sources
from vmae2_ds.data.tools.division import share
from vmae2_ds.data.tools.encode import X264, Encoded, reencode
from vmae2_ds.data.tools.job_folder import JobFolder, PartDone, job_folder, write_bad_files, write_lines
from vmae2_ds.data.tools.parallel import in_parallel
from vmae2_ds.data.tools.parts import at_once_here, part_here
from vmae2_ds.data.tools.places import BAD, is_bad
from vmae2_ds.data.tools.scan import stamp_of
from vmae2_ds.data.tools.work_folder import check_work_folder
from vmae2_ds.disk import whole_file, write_whole
from vmae2_ds.errors import DataError, VideoError

log = logging.getLogger(__name__)

SHORTEST_SIDE, LONGEST_SIDE = 16, 16384
"""Limits of the short side in pixels: a cube's edge, and what H.264 ends at."""
LONGEST_GOP, WORST_CRF = 10_000, 51
"""x264's scale of quality ends at 51."""
MOST_SAMPLED = 10_000
FASTER = 1.1
"""A clip that is read that many times as fast is read faster; below it is the noise of a busy machine."""
SAMPLE_S = 60.0
"""What reading the clips of one sampled video may take."""


class Prepared(NamedTuple):
    """What is in the folder now."""

    out: Path
    videos: int
    rows: int
    bad: int
    bytes_before: int
    bytes_after: int
    hours: float
    """Hours of video, at the average frame rates."""
    speedups: list[float]
    """CPU time of reading a clip before over after, of each video of a sample, sorted."""
    written: int
    """Videos encoded by this call; the others were there."""

    def __str__(self) -> str:
        bad = f"; {self.bad} could not be read, see bad_files.jsonl" if self.bad else ""
        quicker = "how much faster a clip is read was not measured"
        if self.speedups:
            low, middle, high = (float(np.quantile(self.speedups, share)) for share in (0.25, 0.5, 0.75))
            sampled = counted(len(self.speedups), "video")
            quicker = f"a clip is read {middle:.2f}x as fast (quartiles {low:.2f} to {high:.2f}, {sampled} sampled)"
        times = self.bytes_after / max(1, self.bytes_before)
        advice = f"give {self.out}/manifest.csv as the manifest"
        if self.brings_nothing:
            both = f"{times:.2f} times the bytes, and read {middle:.2f}x as fast"
            advice = f"this brings nothing here: {both}; keep the originals"
        return (
            f"{counted(self.videos, 'video')} ({self.written} encoded now) of {counted(self.rows, 'row')}{bad}\n"
            f"{_size(self.bytes_before)} became {_size(self.bytes_after)}, {self.hours:.2f} hours\n{quicker}\n{advice}"
        )

    @property
    def brings_nothing(self) -> bool:
        """The copies are larger, and read no faster by more than what two measurements differ by."""
        return self.bytes_after > self.bytes_before and bool(self.speedups) and float(np.median(self.speedups)) < FASTER


def _size(bytes_: int) -> str:
    """A size in GB, or in MB where that says more."""
    return f"{bytes_ / 1e9:.3f} GB" if bytes_ >= 1e9 else f"{bytes_ / 1e6:.2f} MB"


class _Job(NamedTuple):
    source: VideoEntry
    target: str
    """Relative to the folder."""


class PrepareArguments(StrictModel):
    """Re-encode the videos of a manifest as H.264 with a key frame every few frames, upright, small, without sound.

    Every shown frame is kept, so frame numbers and parts of films stay right; times do not, where the frame rate varied.
    An interrupted run goes on with the same command, and encodes again what has changed. Folders of frames stay as they are.
    """

    manifest: Positional[Path]
    """The list of videos (CSV or published form) or an indexed folder, as --data.manifest takes it."""
    out: Path
    """Folder to write: the videos, in the folders they come from, and manifest.csv, report.json and bad_files.jsonl."""
    root: Path | None = None
    """Folder that relative paths in the list start from; default: the list's own folder."""
    short_side: Annotated[int, Field(ge=SHORTEST_SIDE, le=LONGEST_SIDE)] = 256
    """Length of the shorter side in pixels; larger videos are scaled down, smaller ones stay as they are."""
    gop: Annotated[int, Field(ge=1, le=LONGEST_GOP)] = 16
    """Largest number of frames from one key frame to the next."""
    crf: Annotated[int, Field(ge=0, le=WORST_CRF)] = 20
    """Quality of the x264 encoder: lower is better and gives larger files."""
    workers: AtOnce | None = None
    """Number of videos that are encoded at the same time; default: as many as this process may use CPU cores."""
    timeout_s: ReadLimit = 1800
    """Seconds after which encoding one video is given up."""
    sample: Annotated[int, Field(ge=0, le=MOST_SAMPLED)] = 8
    """Number of videos from which a clip is read before and after, to measure the gain in speed; 0 measures nothing."""
    seed: Seed = 0
    """Seed of the random choice of measured videos."""
    labels: Path | None = None
    """Text file with one class name per line, in the order of the label numbers: the list may then give class names
    instead of numbers."""
    ignore_columns: tuple[str, ...] | None = None
    """Names of extra columns to ignore in the list; the option without a name ignores every column that is not used
    here. Default: a list with an unknown column is refused."""
    part: PartOf | None = None
    """For array jobs: do the i-th of N parts of the work, as i/N; the last part to end puts the result together. Under a
    launcher (srun, mpirun, deepspeed, torchrun) the ranks share the work without it."""


def prepare_manifest(asked: PrepareArguments) -> Prepared | PartDone:
    """Re-encode the videos into the folder asked for, with a manifest of the copies; or a part of them."""
    part = part_here(asked.part)
    out = asked.out
    form = list_form(asked.ignore_columns, asked.labels)
    check_work_folder(out, "prepare", (asked.manifest, asked.labels), root=asked.root, several=part.of > 1)
    opened = read_manifest(asked.manifest, asked.root, form=form)
    check_work_folder(out, "prepare", root=opened.root, several=part.of > 1)
    settings = {
        "list": opened.rows.digest,
        "short_side": asked.short_side,
        "gop": asked.gop,
        "crf": asked.crf,
        "x264": X264,
    }
    settings["labels"] = form.names and form.names.digest
    alike = {"sample": asked.sample, "seed": asked.seed}
    with job_folder(out, "prepare", settings, part, alike=alike, results="prepared.jsonl") as folder:
        copies = Copies(opened)
        seen = folder.look(copies.place, len(copies))
        mine = share(copies.costs(seen), part.number, part.of)
        refuse_sources(copies, mine, seen, out)
        done = _found(copies, folder.rows(), set(mine.tolist()))[0]
        left = [number for number in mine.tolist() if not _is_current(copies, number, done.get(number), out)]
        at_once = at_once_here(asked.workers)
        if folder.speaks:
            log.info(
                "%s: %s, %d of them prepared before, %d at a time",
                asked.manifest,
                counted(len(mine), "video") + (f" of {len(copies)} for {part}" if part.of > 1 else ""),
                len(mine) - len(left),
                at_once,
            )
        del seen, done

        with folder.working("videos prepared", len(mine) - len(left), len(mine), len(copies)) as add:

            def work(number: int, watchdog: Watchdog) -> None:
                job = _Job(copies.source(number), copies.target(number))
                line = _prepare_one(job, out, watchdog, (asked.short_side, asked.gop, asked.crf))
                add(
                    line, written=not is_bad(line)
                )  # before the thread takes another: a kill loses what is in work alone

            for _ in in_parallel(left, work, at_once, asked.timeout_s):
                pass
        return folder.finish(lambda: _together(asked, opened, copies, folder, settings))


def _found(
    copies: Copies, rows: Iterable[dict[str, Any]], wanted: Container[int]
) -> tuple[dict[int, bytes], dict[int, str]]:
    """The newest line of each copy that is wanted, as JSON, which is small; and why others could not be made."""
    done: dict[int, bytes] = {}
    bad: dict[int, str] = {}
    for row in rows:
        number = copies.number_of_name(row["path"]) if is_bad(row) else copies.number_of(row["target"])
        if number is None or number not in wanted:
            continue
        if is_bad(row):
            bad[number] = row[BAD]
            done.pop(number, None)
        else:
            done[number] = json.dumps(row).encode()
            bad.pop(number, None)
    return done, bad


def _together(
    asked: PrepareArguments, opened: Manifest, copies: Copies, folder: JobFolder, settings: dict[str, Any]
) -> Prepared:
    """The manifest and the report of what all parts have done, in the order of the list, whoever did what."""
    out = asked.out
    done, bad = _found(copies, folder.rows(of_all=True), range(len(copies)))
    there = sorted(done)
    write_lines(out / "prepared.jsonl", (done[number] for number in there))
    write_bad_files(out, ({"path": copies.source(number).name, BAD: bad[number]} for number in sorted(bad)))
    if not there:
        raise DataError(
            f"{asked.manifest}: none of its {len(copies)} videos could be prepared; see {out}/bad_files.jsonl"
        )
    rows = _write_manifest(out, opened, copies, done)
    before = size = 0
    seconds = 0.0
    for number in there:
        fact = json.loads(done[number])
        before, size, seconds = before + fact["bytes_before"], size + fact["bytes"], seconds + fact["seconds"]
    if asked.sample:
        log.info(
            "measuring on up to %s how much faster a clip is read", counted(min(asked.sample, len(there)), "video")
        )
    speedups = _speedups(copies, there, out, asked.sample, asked.seed, min(asked.timeout_s, SAMPLE_S))
    result = Prepared(out, len(there), rows, len(bad), before, size, seconds / 3600, sorted(speedups), folder.written)
    about = {name: value for name, value in result._asdict().items() if name not in ("out", "written")}
    write_whole(out / "report.json", json.dumps({**about, **settings}, indent=1))
    return result


def _is_current(copies: Copies, number: int, line: bytes | None, out: Path) -> bool:
    if line is None:
        return False
    fact = json.loads(line)
    if fact["stamp"] != stamp_of(copies.source(number)):
        return False
    target = out / fact["target"]
    return target.is_file() and target.stat().st_size == fact["bytes"]


def _prepare_one(job: _Job, out: Path, watchdog: Watchdog, settings: tuple[int, int, int]) -> dict[str, Any]:
    """A line of prepared.jsonl, or one that says why the video could not be prepared."""
    target = out / job.target
    target.parent.mkdir(parents=True, exist_ok=True)
    stamp = stamp_of(job.source)
    try:
        with whole_file(target, alone=True) as part:
            encoded, bytes_before, seconds = watchdog.call(_encode, job.source, str(part), settings)
    except VideoError as error:
        return {"path": job.source.name, BAD: str(error)}
    return {"target": job.target, "stamp": stamp, "bytes_before": bytes_before, "seconds": seconds} | {
        "frames": encoded.frames,
        "bytes": encoded.size,
        "height": encoded.height,
        "width": encoded.width,
    }


def _encode(source: VideoEntry, target: str, settings: tuple[int, int, int]) -> tuple[Encoded, int, float]:
    """Encode in a child process; returns (what was written, bytes of the source, seconds of video)."""
    video = fetch(source)
    if isinstance(video, str):
        check_is_file(video)
    encoded = reencode(video, target, *settings)
    rates: list[float] = []

    def note(length: int, fps: float) -> np.ndarray:
        rates.append(fps)
        if length != encoded.frames:
            raise VideoError(f"the copy has {length} frames, the video {encoded.frames}")
        return np.array([length - 1])

    read_clip(target, note)
    size = len(video) if isinstance(video, bytes) else os.path.getsize(video)
    return encoded, size, encoded.frames / rates[0]


def _write_manifest(out: Path, manifest: Manifest, copies: Copies, done: Container[int]) -> int:
    """manifest.csv with every row whose file was prepared; returns how many."""
    rows = 0
    with writing_list(out / "manifest.csv") as file:
        file.write(csv_line(["path", "label", "source", "start", "frames"]))
        for row in range(len(manifest)):
            number = copies.of_row(row)
            if number in done:
                video = manifest.listed(row)
                source = "" if video.source == DEFAULT_SOURCE else video.source
                file.write(csv_line((copies.target(number), video.label, source, video.start or None, video.frames)))
                rows += 1
    return rows


def _speedups(
    copies: Copies, numbers: list[int], out: Path, sample: int, seed: int, timeout_s: float
) -> Iterator[float]:
    """CPU time of the same clips before over after, of up to `sample` videos; those that cannot be read are passed over."""
    found = 0
    with Watchdog(timeout_s) as watchdog:
        for at in np.random.default_rng(seed).permutation(len(numbers))[: 2 * sample].tolist():
            copy = VideoEntry(str(out / copies.target(numbers[at])), None, "", 0, None)
            if found < sample:
                with contextlib.suppress(VideoError):
                    source = copies.source(numbers[at])
                    before, after = (watchdog.call(clip_cost, entry, ReadAs()) for entry in (source, copy))
                    found += 1
                    yield before / max(1e-9, after)
