"""`vmae2 data pack`: the videos of a manifest into tar shards (webdataset), and a manifest that finds each inside them."""

from __future__ import annotations

import contextlib
import io
import logging
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Annotated, NamedTuple

import numpy as np
from pydantic import Field
from tyro.conf import Positional

from vmae2_ds.config.strict import Seed, StrictModel
from vmae2_ds.console.progress import Ticker, counted, heard
from vmae2_ds.contracts import ReadFailure
from vmae2_ds.data.bad_files import BadFileLedger
from vmae2_ds.data.readers.storage import fetch
from vmae2_ds.data.sources.list_formats import csv_line, list_form
from vmae2_ds.data.sources.list_header import COLUMNS, VIDEO_SUFFIXES
from vmae2_ds.data.sources.manifest import DEFAULT_SOURCE, Manifest, read_manifest
from vmae2_ds.data.sources.order import Shuffle
from vmae2_ds.data.tools.shards import iterate_members
from vmae2_ds.data.tools.work_folder import check_work_folder, work_folder
from vmae2_ds.disk import HashedFile, sha256_of, whole_file, write_whole
from vmae2_ds.errors import DataError, VideoError
from vmae2_ds.json_lines import adding_rows, rows_of

log = logging.getLogger(__name__)

UNKNOWN_SUFFIX = "video"
"""Suffix of a member whose file's name has none of a video."""
KEY_DIGITS = 9
MOST_MIB = 2**20
"""Largest size of a shard in MiB: a tebibyte."""


class PackedManifest(NamedTuple):
    """What is in the folder now."""

    out: Path
    videos: int
    rows: int
    shards: int
    size: int
    bad: int
    written: int
    """Shards written by this call; the others were there."""

    def __str__(self) -> str:
        bad = f"; {counted(self.bad, 'file')} could not be read and left out, see bad_files.jsonl" if self.bad else ""
        return (
            f"{counted(self.videos, 'video')} of {counted(self.rows, 'row')} in {counted(self.shards, 'shard')}, "
            f"{self.size / 1e9:.3f} GB, {self.written} of them written now{bad}: give {self.out}/manifest.csv as the manifest"
        )


class PackedShard(NamedTuple):
    """A line of shards.jsonl: videos of the places begin .. end-1 of the packing order."""

    shard: str
    begin: int
    end: int
    videos: int
    size: int
    sha256: str


class PackArguments(StrictModel):
    """Copy the videos of a manifest into tar shards of about equal size, for storage that dislikes many small files.

    An interrupted packing goes on with the same command: whole shards stay, half of one is written again. The shards are
    read by vmae2 in any order, by webdataset from front to end, and from any place that fsspec reaches. Folders of frames
    are not packed: make videos of them first.
    """

    manifest: Positional[Path]
    """The list of videos (CSV or published form) or an indexed folder, as --data.manifest takes it."""
    out: Path
    """Local folder to write: the shards, manifest.csv, shards.jsonl (checksums) and bad_files.jsonl."""
    root: Path | None = None
    """Folder that relative paths in the list start from; default: the list's own folder."""
    shard_mib: Annotated[float, Field(ge=0, le=MOST_MIB)] = 1024
    """Size in MiB at which a shard is closed; 0 gives every video a shard of its own."""
    shuffle: Seed | None = None
    """Seed of a random order of the videos inside the shards, for readers that go from front to end; default: the order
    of the list."""
    verify: bool = False
    """Read finished shards again and compare their checksums; by default only their sizes are compared."""
    labels: Path | None = None
    """Text file with one class name per line, in the order of the label numbers: the list may then give class names
    instead of numbers."""
    ignore_columns: tuple[str, ...] | None = None
    """Names of extra columns to ignore in the list; the option without a name ignores every column that is not used
    here. Default: a list with an unknown column is refused."""


def pack_manifest(asked: PackArguments) -> PackedManifest:
    """Copy the videos into shards, with checksums and the manifest that finds each of them."""
    form = list_form(asked.ignore_columns, asked.labels)
    check_work_folder(asked.out, "pack", (asked.manifest, asked.labels), root=asked.root)
    opened = read_manifest(asked.manifest, asked.root, form=form)
    check_work_folder(asked.out, "pack", root=opened.root)
    settings = {"list": opened.rows.digest, "shard_mib": asked.shard_mib, "shuffle": asked.shuffle}
    settings |= {"root": os.path.abspath(opened.root), "labels": form.names and form.names.digest}
    with work_folder(asked.out, "pack", settings):
        firsts = _first_rows(opened)
        places: Sequence[int] = range(len(firsts))
        if asked.shuffle is not None:
            places = Shuffle(len(firsts), np.random.default_rng(asked.shuffle))  # type: ignore[assignment]
        ledger = BadFileLedger(asked.out / "bad_files.jsonl")
        done = {line["shard"]: PackedShard(**line) for line in rows_of(asked.out / "shards.jsonl")}
        log.info("%s: %s for shards of %g MiB", asked.manifest, counted(len(firsts), "file"), asked.shard_mib)
        shards: list[PackedShard] = []
        written = 0
        with heard(Ticker(log, "files packed", len(firsts))) as ticker:
            for name in _names():
                begin = shards[-1].end if shards else 0
                if begin == len(firsts):
                    break
                before = done.get(name)
                if before is None or before.begin != begin or not _is_whole(asked.out, before, asked.verify):
                    limit = int(asked.shard_mib * 2**20)
                    before = _write_shard(asked.out, name, opened, firsts, places, begin, limit, ledger, ticker.tell)
                    with adding_rows(asked.out / "shards.jsonl") as add:
                        add(before._asdict())
                    written += 1
                ticker.tell(before.end)
                shards.append(before)
        rows = _write_manifest(asked.out, opened, firsts, shards)
        videos, size = sum(shard.videos for shard in shards), sum(shard.size for shard in shards)
        if not videos:
            raise DataError(
                f"{asked.manifest}: none of its {len(firsts)} files could be read; see {asked.out}/bad_files.jsonl"
            )
        return PackedManifest(asked.out, videos, rows, len(shards), size, len(ledger.reasons), written)


def _names() -> Iterator[str]:
    number = 0
    while True:
        yield f"{number:06d}.tar"
        number += 1


def _first_rows(manifest: Manifest) -> list[int]:
    """The first row of each file: rows that are parts of one film share its copy."""
    first: dict[str, int] = {}
    for row, entry in enumerate(manifest):
        first.setdefault(entry.name, row)
    return list(first.values())


def _is_whole(out: Path, shard: PackedShard, verify: bool) -> bool:
    path = out / shard.shard
    if not path.is_file() or path.stat().st_size != shard.size:
        log.warning("%s is missing or has another size than shards.jsonl says; writing it again", path)
        return False
    if not verify:
        return True
    if sha256_of(path) != shard.sha256:
        log.warning("%s has another checksum than shards.jsonl says; writing it again", path)
        return False
    return True


def _write_shard(
    out: Path,
    name: str,
    manifest: Manifest,
    firsts: list[int],
    places: Sequence[int],
    begin: int,
    limit: int,
    ledger: BadFileLedger,
    tell: Callable[[int], None],
) -> PackedShard:
    """Places from `begin` on until the shard is full; whole under its name, or not there."""
    from webdataset import TarWriter

    end, videos = begin, 0
    with (
        whole_file(out / name, alone=True) as part,
        HashedFile(part) as file,
        # a fixed owner and time: the same videos give the same bytes
        contextlib.closing(TarWriter(file, user="vmae2", group="vmae2", mtime=0, encoder=False)) as tar,
    ):
        while end < len(firsts) and (end == begin or file.written.size < limit):
            row = firsts[places[end]]
            end += 1
            tell(end)
            entry = manifest[row]
            try:
                video = _content(entry.path, fetch(entry))
            except VideoError as error:
                ledger.record([ReadFailure(entry.name, str(error))])
                continue
            suffix = _suffix_of(entry.path)
            sample: dict[str, str | bytes] = {"__key__": f"{row:0{KEY_DIGITS}d}", suffix: video}
            if entry.label is not None:
                sample["cls"] = str(entry.label).encode()
            tar.write(sample)
            videos += 1
    return PackedShard(name, begin, end, videos, *file.written)


def _suffix_of(path: str) -> str:
    """Suffix of the member: one that index-shards takes for a video, and never that of a label."""
    suffix = os.path.splitext(path)[1].lower()
    return suffix[1:] if suffix in VIDEO_SUFFIXES else UNKNOWN_SUFFIX


def _content(path: str, video: str | bytes) -> bytes:
    if isinstance(video, bytes):
        return video
    try:
        content = Path(path).read_bytes()
    except (OSError, UnicodeEncodeError) as error:
        raise VideoError(f"cannot be opened: {getattr(error, 'strerror', None) or error}") from None
    if not content:
        raise VideoError("an empty file")
    return content


def _write_manifest(out: Path, manifest: Manifest, firsts: list[int], shards: list[PackedShard]) -> int:
    """manifest.csv with every row whose file was packed, in the list's order; returns how many."""
    where: dict[int, tuple[str, int, int]] = {}
    for shard in shards:
        for name, offset, size in iterate_members(out / shard.shard):
            key, _, suffix = name.partition(".")
            if suffix != "cls":
                where[int(key)] = (shard.shard, offset, size)
    first = {manifest[row].name: row for row in firsts}
    text = io.StringIO()
    text.write(csv_line(COLUMNS))
    rows = 0
    for row in range(len(manifest)):
        video = manifest.listed(row)
        found = where.get(first[manifest[row].name])
        if found is not None:
            source = "" if video.source == DEFAULT_SOURCE else video.source
            text.write(csv_line((video.path, video.label, source, video.start or None, video.frames, *found)))
            rows += 1
    write_whole(out / "manifest.csv", text.getvalue())
    return rows
