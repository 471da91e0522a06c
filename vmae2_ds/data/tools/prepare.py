"""`vmae2 data prepare`: videos re-encoded to a short side and a short GOP, so that reading a clip costs less."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import logging
import os
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import numpy as np
from pydantic import Field
from tyro.conf import Positional

from vmae2_ds.config.strict import AtOnce, ReadLimit, Seed, StrictModel
from vmae2_ds.console.progress import Ticker, counted, heard
from vmae2_ds.contracts import ReadFailure
from vmae2_ds.data.bad_files import BadFileLedger
from vmae2_ds.data.entry import ReadAs, VideoEntry
from vmae2_ds.data.readers.choice import clip_cost
from vmae2_ds.data.readers.common import check_is_file
from vmae2_ds.data.readers.storage import fetch
from vmae2_ds.data.readers.table import read_clip
from vmae2_ds.data.readers.watchdog import Watchdog
from vmae2_ds.data.sources.list_formats import csv_line, list_form
from vmae2_ds.data.sources.manifest import DEFAULT_SOURCE, Manifest, read_manifest
from vmae2_ds.data.tools.encode import X264, Encoded, reencode
from vmae2_ds.data.tools.parallel import in_parallel
from vmae2_ds.data.tools.scan import stamp_of
from vmae2_ds.data.tools.work_folder import check_work_folder, work_folder
from vmae2_ds.disk import whole_file, write_whole
from vmae2_ds.errors import ConfigError, DataError, VideoError
from vmae2_ds.json_lines import adding_rows, rows_of

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
    """Number of videos that are encoded at the same time; default: the number of CPU cores."""
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


def prepare_manifest(asked: PrepareArguments) -> Prepared:
    """Re-encode the videos into the folder asked for, with a manifest of the copies."""
    out = asked.out
    form = list_form(asked.ignore_columns, asked.labels)
    check_work_folder(out, "prepare", (asked.manifest, asked.labels), root=asked.root)
    opened = read_manifest(asked.manifest, asked.root, form=form)
    check_work_folder(out, "prepare", root=opened.root)
    settings = {
        "list": opened.rows.digest,
        "short_side": asked.short_side,
        "gop": asked.gop,
        "crf": asked.crf,
        "x264": X264,
    }
    settings["labels"] = form.names and form.names.digest
    with work_folder(out, "prepare", settings):
        by_name = _jobs(opened)
        jobs = list({job.target: job for job in by_name.values()}.values())
        _refuse_sources(jobs, out)
        ledger = BadFileLedger(out / "bad_files.jsonl")
        done = {line["target"]: line for line in rows_of(out / "prepared.jsonl")}
        kept = {job.target for job in jobs if _is_current(job, done.get(job.target), out)}
        left = [job for job in jobs if job.target not in kept]
        at_once = asked.workers or os.cpu_count() or 1
        log.info(
            "%s: %s, %d of them prepared before, %d at a time",
            asked.manifest,
            counted(len(jobs), "video"),
            len(kept),
            at_once,
        )

        def work(job: _Job, watchdog: Watchdog) -> tuple[_Job, dict[str, Any] | str]:
            return job, _prepare_one(job, out, watchdog, (asked.short_side, asked.gop, asked.crf))

        bad, written = 0, 0
        with (
            adding_rows(out / "prepared.jsonl") as add,
            heard(Ticker(log, "videos prepared", len(jobs), len(kept))) as ticker,
        ):
            for number, (job, line) in enumerate(in_parallel(left, work, at_once, asked.timeout_s), 1):
                if isinstance(line, str):
                    ledger.record([ReadFailure(job.source.name, line)])
                    bad += 1
                    done.pop(job.target, None)
                else:
                    done[job.target] = line
                    add(line)
                    written += 1
                ticker.tell(len(kept) + number)
        there = [job for job in jobs if job.target in done]
        if not there:
            raise DataError(
                f"{asked.manifest}: none of its {len(jobs)} videos could be prepared; see {out}/bad_files.jsonl"
            )
        rows = _write_manifest(out, opened, {name: job.target for name, job in by_name.items() if job.target in done})
        facts = [done[job.target] for job in there]
        if asked.sample:
            log.info(
                "measuring on up to %s how much faster a clip is read", counted(min(asked.sample, len(there)), "video")
            )
        result = Prepared(
            out,
            len(there),
            rows,
            bad,
            sum(fact["bytes_before"] for fact in facts),
            sum(fact["bytes"] for fact in facts),
            sum(fact["seconds"] for fact in facts) / 3600,
            sorted(_speedups(there, out, asked.sample, asked.seed, min(asked.timeout_s, SAMPLE_S))),
            written,
        )
        write_whole(out / "report.json", json.dumps({**result._asdict(), "out": str(out), **settings}, indent=1))
        return result


def _jobs(manifest: Manifest) -> dict[str, _Job]:
    """Jobs by the name of the video; names of one file share a job, and two files never share a target.

    The tree below the root is kept; what lies elsewhere goes into a folder named by a hash of where.
    """
    jobs: dict[str, _Job] = {}
    taken: dict[str, _Job] = {}
    for entry in manifest:
        if entry.name in jobs:
            continue
        job = _Job(entry, _target(entry, manifest.root))
        other = taken.get(job.target)
        if other is not None and not _is_same_file(
            other.source, entry
        ):  # x.avi becomes x.avi.mp4, which may be there too
            job = _Job(entry, _elsewhere(entry))
        jobs[entry.name] = taken.setdefault(job.target, job)
    return jobs


def _is_same_file(one: VideoEntry, other: VideoEntry) -> bool:
    try:
        return one.shard is None and other.shard is None and os.path.samefile(one.path, other.path)
    except OSError:
        return False


def _refuse_sources(jobs: list[_Job], out: Path) -> None:
    """Raises ConfigError where a copy would replace a video that is read, under whatever name."""
    sources = {place: job.source.name for job in jobs if (place := _place_of(job.source.shard or job.source.path))}
    for job in jobs:
        place = _place_of(out / job.target)
        if place is not None and (source := sources.get(place)):
            raise ConfigError(f"{out / job.target} is {source}, which is read; name another --out")


def _place_of(path: str | Path) -> tuple[int, int] | None:
    """Device and inode of what lies at `path` now; None where there is nothing."""
    try:
        status = os.stat(path)
    except (OSError, ValueError):
        return None
    return status.st_dev, status.st_ino


def _target(entry: VideoEntry, root: str) -> str:
    inside = os.path.relpath(entry.path, root) if entry.shard is None and "://" not in entry.path else entry.path
    if entry.shard is not None or inside.startswith("..") or os.path.isabs(inside) or "://" in inside:
        return _elsewhere(entry)
    # the old suffix stays in front of the new one: a.avi and a.mp4 do not become one file
    return inside if inside.endswith(".mp4") else f"{inside}.mp4"


def _elsewhere(entry: VideoEntry) -> str:
    where = hashlib.sha256(os.fsencode(entry.name)).hexdigest()[:16]
    name = os.path.basename(entry.path)
    return os.path.join("elsewhere", where, name if name.endswith(".mp4") else f"{name}.mp4")


def _is_current(job: _Job, line: dict[str, Any] | None, out: Path) -> bool:
    if line is None or line["stamp"] != stamp_of(job.source):
        return False
    target = out / job.target
    return target.is_file() and target.stat().st_size == line["bytes"]


def _prepare_one(job: _Job, out: Path, watchdog: Watchdog, settings: tuple[int, int, int]) -> dict[str, Any] | str:
    """A line of prepared.jsonl, or why the video could not be prepared."""
    target = out / job.target
    target.parent.mkdir(parents=True, exist_ok=True)
    stamp = stamp_of(job.source)
    try:
        with whole_file(target, alone=True) as part:
            encoded, bytes_before, seconds = watchdog.call(_encode, job.source, str(part), settings)
    except VideoError as error:
        return str(error)
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


def _write_manifest(out: Path, manifest: Manifest, targets: dict[str, str]) -> int:
    """manifest.csv with every row whose file was prepared; returns how many."""
    text = io.StringIO()
    text.write(csv_line(["path", "label", "source", "start", "frames"]))
    rows = 0
    for row in range(len(manifest)):
        video, target = manifest.listed(row), targets.get(manifest[row].name)
        if target is not None:
            source = "" if video.source == DEFAULT_SOURCE else video.source
            text.write(csv_line((target, video.label, source, video.start or None, video.frames)))
            rows += 1
    write_whole(out / "manifest.csv", text.getvalue())
    return rows


def _speedups(jobs: list[_Job], out: Path, sample: int, seed: int, timeout_s: float) -> list[float]:
    """CPU time of the same clips before over after, of up to `sample` videos; those that cannot be read are passed over."""
    found: list[float] = []
    with Watchdog(timeout_s) as watchdog:
        for at in np.random.default_rng(seed).permutation(len(jobs))[: 2 * sample]:
            job = jobs[int(at)]
            copy = VideoEntry(str(out / job.target), None, "", 0, None)
            if len(found) < sample:
                with contextlib.suppress(VideoError):
                    before, after = (watchdog.call(clip_cost, entry, ReadAs()) for entry in (job.source, copy))
                    found.append(before / max(1e-9, after))
    return found
