"""`vmae2 data check`: which rows of a manifest are of use, why the others are not, and what the set is made of."""

from __future__ import annotations

import logging
import os
from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import chain
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import Field
from tyro.conf import Positional

from vmae2_ds.config.strict import AtOnce, ClipLength, PartOf, ReadLimit, Seed, StrictModel
from vmae2_ds.console.progress import counted
from vmae2_ds.data.entry import ReadAs
from vmae2_ds.data.readers.storage import check_template
from vmae2_ds.data.readers.table import find_reader
from vmae2_ds.data.sources.list_formats import LARGEST_LABEL, csv_line, list_form, writing_list
from vmae2_ds.data.sources.manifest import DEFAULT_SOURCE, Manifest, read_manifest
from vmae2_ds.data.tools.check_report import write_check_report
from vmae2_ds.data.tools.division import Distinct, Ints, share
from vmae2_ds.data.tools.job_folder import JobFolder, PartDone, job_folder
from vmae2_ds.data.tools.parts import at_once_here, part_here
from vmae2_ds.data.tools.scan import DecodeName, Scanned, ScanOptions, found_by_all, key_of, scan
from vmae2_ds.data.tools.verdicts import CheckedManifest, JudgedRow, judge
from vmae2_ds.data.tools.work_folder import check_work_folder
from vmae2_ds.errors import ConfigError, DataError

log = logging.getLogger(__name__)

BENCHED = 16
"""Files that the readers are measured on."""
PICTURE = 50_000
"""Bytes that a picture is taken to have where it is only known how many there are."""
MOST_PICTURES = 1000
"""On one page."""
ADVICE = "before a long run, check once with --decode all: damage outside of one clip of each file was not looked for"


class CheckArguments(StrictModel):
    """Read every file of a manifest, under a time limit, and write what is good, what is bad and why, and a page of it.

    An interrupted check goes on: the same command looks only at files that it has not seen or that have changed since.
    """

    manifest: Positional[Path]
    """The list of videos (CSV or published form) or an indexed folder, as --data.manifest takes it. For packed videos:
    their manifest.csv."""
    out: Path
    """Folder to write: clean.csv, bad.csv, report.html, report.json and checked.jsonl (one line per file)."""
    root: Path | None = None
    """Folder that relative paths in the list start from; default: the list's own folder."""
    kind: Literal["video", "frames"] = "video"
    """What the list names. video: video files, also inside tar shards; frames: folders of pictures."""
    template: str = "{:05}.jpg"
    """With --kind frames: file name of frame number k, as a Python format."""
    reader: str = "pyav"
    """Video reader that the files are tried with: pyav, decord, torchcodec, or module:function for your own."""
    decode: DecodeName = "clip"
    """How much of each file is decoded. clip: one clip from its middle, as training reads it; all: every frame too,
    recommended once before a long run, because damage elsewhere is not found otherwise; none: packets are read,
    nothing is decoded."""
    num_frames: ClipLength = 16
    """Number of frames in a clip that is decoded or drawn."""
    stride: ClipLength = 4
    """Step between two frames of such a clip."""
    min_frames: ClipLength = 2
    """Smallest number of frames; a video, or part of one, with fewer is reported as too short."""
    classes: Annotated[int, Field(ge=1, le=LARGEST_LABEL + 1)] | None = None
    """Number of classes; a row whose label is not below it is reported."""
    labels: Path | None = None
    """Text file with one class name per line: labels must be one of the names, or the number of a line, counted from 0."""
    ignore_columns: tuple[str, ...] | None = None
    """Names of extra columns to ignore in the list; the option without a name ignores every column that is not used
    here. Default: a list with an unknown column is refused."""
    workers: AtOnce | None = None
    """Number of files that are checked at the same time; default: as many as this process may use CPU cores."""
    timeout_s: ReadLimit = 30
    """Seconds after which reading one file is given up."""
    bench: bool = False
    """Time the installed readers on a sample of the files, and recommend one."""
    pictures: Annotated[int, Field(ge=0, le=MOST_PICTURES)] = 24
    """Number of random clips drawn in report.html, as the model would see them."""
    seed: Seed = 0
    """Seed of the random choice of timed files and drawn clips."""
    strict: bool = False
    """End with exit code 2 when any row is bad."""
    part: PartOf | None = None
    """For array jobs: do the i-th of N parts of the work, as i/N; the last part to end puts the result together. Under a
    launcher (srun, mpirun, deepspeed, torchrun) the ranks share the work without it."""


def check_manifest(asked: CheckArguments) -> CheckedManifest | PartDone:
    """Write what is good, what is bad and why, and a page of it, into the folder asked for; or look at a part of the files."""
    part = part_here(asked.part)
    manifest, out = asked.manifest, asked.out
    if asked.kind == "frames":
        check_template(asked.template)
    else:
        find_reader(asked.reader)
    if asked.labels is not None and asked.classes is not None:
        raise ConfigError("--classes and --labels say the same thing twice; keep one")
    form = list_form(asked.ignore_columns, asked.labels, frame_folders=asked.kind == "frames")
    classes = asked.classes if form.names is None else len(form.names.names)
    check_work_folder(out, "check", (manifest, asked.labels), root=asked.root, several=part.of > 1)
    opened = read_manifest(manifest, asked.root, form=form)
    check_work_folder(out, "check", root=opened.root, several=part.of > 1)
    how = ReadAs(asked.kind, asked.template, asked.reader)
    look = ScanOptions(how, asked.decode, asked.num_frames, asked.stride, asked.timeout_s)
    alike: dict[str, Any] = {"ways": look.settings, "min_frames": asked.min_frames, "classes": classes}
    alike |= {"list": opened.rows.digest, "bench": asked.bench, "pictures": asked.pictures, "seed": asked.seed}
    alike |= {"root": os.path.abspath(opened.root), "strict": asked.strict}
    settings = {"list": os.path.abspath(manifest)}
    with job_folder(out, "check", settings, part, alike=alike, results="checked.jsonl") as folder:
        files = Distinct(key_of(entry, how) for entry in opened)
        mine = share(_costs(folder, opened, files, how), part.number, part.of)
        at_once = at_once_here(asked.workers)
        if folder.speaks:
            some = f", {len(mine)} of {counted(len(files), 'file')} for {part}" if part.of > 1 else ""
            log.info("%s: %s%s, looked at %d at a time", manifest, counted(len(opened), "row"), some, at_once)
        scan(folder, opened, files, mine, look, at_once)
        result = folder.finish(
            lambda: _together(asked, opened, look, found_by_all(folder, files, look, out / "checked.jsonl"), classes)
        )
    if asked.strict and isinstance(result, CheckedManifest) and result.bad:
        raise DataError(f"{result.bad} of {result.rows} rows of {manifest} are bad: see {out}/bad.csv and report.html")
    return result


def _costs(folder: JobFolder, manifest: Manifest, files: Distinct, how: ReadAs) -> Ints:
    """About what looking at each file costs: its bytes, or the pictures of a folder."""
    if folder.part.of == 1:
        return np.zeros(len(files), np.int64)  # nothing is divided
    if how.kind == "video" and not manifest.is_packed:
        seen = folder.look(lambda number: manifest[int(files.first[number])].path, len(files))
        return np.asarray(seen["size"], np.int64)
    entries = (manifest[row] for row in files.first.tolist())
    return np.array([entry.size or PICTURE * (entry.frames or 1) for entry in entries], np.int64)


def _together(
    asked: CheckArguments, opened: Manifest, look: ScanOptions, found: dict[str, Scanned], classes: int | None
) -> CheckedManifest:
    """Lists, verdicts and the page of what all parts have found."""
    out = asked.out
    judged = list(judge(opened, found, look.how, asked.min_frames, classes))
    _write_lists(opened, judged, out)
    warnings = [*_warnings(opened, found), *_advice(found, asked.num_frames * asked.stride)]
    verdicts = Counter(str(row.verdict) for row in judged if row.verdict is not None)
    if asked.bench:
        log.info("measuring the readers on up to %d files", BENCHED)
    readers = _bench(opened, judged, look.how, asked.timeout_s, asked.seed) if asked.bench else ""
    advice = "" if asked.decode == "all" else ADVICE
    result = CheckedManifest(out, len(opened), len(found), dict(verdicts), warnings, readers, advice)
    write_check_report(result, opened, found, judged, look, asked.pictures, asked.seed)
    return result


def _write_lists(manifest: Manifest, judged: list[JudgedRow], out: Path) -> None:
    """clean.csv with the columns that are in use, and bad.csv; each in one go."""
    columns = {
        "path": lambda video: video.path,
        "label": lambda video: "" if video.label is None else video.label,
        "source": lambda video: "" if video.source == DEFAULT_SOURCE else video.source,
        "start": lambda video: video.start or "",
        "frames": lambda video: "" if video.frames is None else video.frames,
    }
    used = [
        "path",
        *(name for name, cell in columns.items() if name != "path" and any(cell(j.video) != "" for j in judged)),
    ]
    if manifest.is_packed:
        columns |= {"shard": lambda v: v.shard, "offset": lambda v: v.offset, "bytes": lambda v: v.size}
        used += ["shard", "offset", "bytes"]
    good = [row.video for row in judged if row.verdict is None]
    _write_csv(out / "clean.csv", used, ([columns[name](video) for name in used] for video in good))
    bad = (row for row in judged if row.verdict is not None)
    _write_csv(
        out / "bad.csv",
        ["row", "path", "verdict", "reason"],
        ([row.row, row.video.path, row.verdict, row.reason] for row in bad),
    )


def _write_csv(path: Path, header: list[str], rows: Iterable[Sequence[object]]) -> None:
    with writing_list(path) as file:
        file.writelines(csv_line(row) for row in chain((header,), rows))


def _warnings(manifest: Manifest, found: dict[str, Scanned]) -> list[str]:
    variable = sum(scanned.facts.is_vfr for scanned in found.values() if scanned.facts is not None)
    unlabelled = sum(manifest.listed(row).label is None for row in range(len(manifest)))
    warnings = []
    if variable:
        warnings.append(f"{counted(variable, 'file')} of a variable frame rate: frames are read by number, not by time")
    if 0 < unlabelled < len(manifest):
        warnings.append(f"{unlabelled} of {len(manifest)} rows have no label, the others have one")
    return warnings


def _advice(found: dict[str, Scanned], span: int) -> list[str]:
    """Advice on re-encoding where it pays: decoding starts at a key frame, and costs more the larger the frames."""
    facts = [scanned.facts for scanned in found.values() if scanned.facts is not None]
    far = sum(fact.gop > 2 * span for fact in facts)
    large = sum(min(fact.width, fact.height) > 400 for fact in facts)
    if max(far, large) * 2 <= len(facts):
        return []
    return [
        f"{far} of {len(facts)} files have more than {2 * span} frames between key frames, {large} a short side over 400 "
        "pixels: vmae2 data prepare makes both small, and reading quicker"
    ]


def _bench(manifest: Manifest, judged: list[JudgedRow], how: ReadAs, timeout_s: float, seed: int) -> str:
    from vmae2_ds.data.readers.choice import choose_reader

    good = [row.row for row in judged if row.verdict is None]
    if not good or how.kind == "frames":
        return "no reader was measured: there is no good video file"
    rows = np.random.default_rng(seed).permutation(good)[:BENCHED]
    return str(choose_reader([manifest[int(row)] for row in rows], how, timeout_s))
