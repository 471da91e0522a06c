"""`vmae2 data pack`: the videos of a manifest into tar shards (webdataset), and a manifest that finds each inside them."""

from __future__ import annotations

import contextlib
import json
import logging
import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import numpy as np
from pydantic import Field
from tyro.conf import Positional

from vmae2_ds.config.strict import PartOf, Seed, StrictModel
from vmae2_ds.console.progress import counted
from vmae2_ds.data.readers.storage import fetch, url_size
from vmae2_ds.data.sources.list_formats import csv_line, list_form, writing_list
from vmae2_ds.data.sources.list_header import COLUMNS, VIDEO_SUFFIXES
from vmae2_ds.data.sources.manifest import DEFAULT_SOURCE, Manifest, read_manifest
from vmae2_ds.data.sources.order import Shuffle
from vmae2_ds.data.tools.division import Distinct, Ints, for_each, look, share
from vmae2_ds.data.tools.job_folder import JobFolder, PartDone, job_folder, write_bad_files, write_lines
from vmae2_ds.data.tools.parts import part_here
from vmae2_ds.data.tools.places import BAD, is_bad
from vmae2_ds.data.tools.shard_plan import PackedShard, PlannedShard, ShardPlan, plan_shards, tar_bytes_of
from vmae2_ds.data.tools.shards import iterate_members
from vmae2_ds.data.tools.work_folder import check_work_folder
from vmae2_ds.disk import HashedFile, sha256_of, whole_file
from vmae2_ds.errors import DataError, VideoError

log = logging.getLogger(__name__)

UNKNOWN_SUFFIX = "video"
"""Suffix of a member whose file's name has none of a video."""
KEY_DIGITS = 9
UNKNOWN_SIZE = 2**20
"""Bytes that a video is taken to have whose storage does not say: shards of such videos are closed by their number."""
PLAN = ".shards.npy"
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
    """Shards written by this start of the job; the others were there."""

    def __str__(self) -> str:
        bad = f"; {counted(self.bad, 'file')} could not be read and left out, see bad_files.jsonl" if self.bad else ""
        return (
            f"{counted(self.videos, 'video')} of {counted(self.rows, 'row')} in {counted(self.shards, 'shard')}, "
            f"{self.size / 1e9:.3f} GB, {self.written} of them written now{bad}: give {self.out}/manifest.csv as the manifest"
        )


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
    part: PartOf | None = None
    """For array jobs: do the i-th of N parts of the work, as i/N; the last part to end puts the result together. Under a
    launcher (srun, mpirun, deepspeed, torchrun) the ranks share the work without it."""


def pack_manifest(asked: PackArguments) -> PackedManifest | PartDone:
    """Copy the videos into shards, with checksums and the manifest that finds each of them; or a part of the shards."""
    part = part_here(asked.part)
    out = asked.out
    form = list_form(asked.ignore_columns, asked.labels)
    check_work_folder(out, "pack", (asked.manifest, asked.labels), root=asked.root, several=part.of > 1)
    opened = read_manifest(asked.manifest, asked.root, form=form)
    check_work_folder(out, "pack", root=opened.root, several=part.of > 1)
    settings = {"list": opened.rows.digest, "shard_mib": asked.shard_mib, "shuffle": asked.shuffle}
    settings |= {"root": os.path.abspath(opened.root), "labels": form.names and form.names.digest}
    with job_folder(out, "pack", settings, part, alike={}, results="shards.jsonl") as folder:
        packing = _Packing(opened, asked.shuffle)
        done = _newest(folder.rows())
        limit = int(asked.shard_mib * 2**20)
        with folder.alone(patient=True):
            plan = plan_shards(out / PLAN, done.values(), len(packing.files), packing.tar_bytes, limit)
        mine = share(plan.size, part.number, part.of).tolist()
        left = [number for number in mine if not _is_there(out, plan[number], done, asked.verify)]
        if folder.speaks:
            some = f", {len(mine)} of {counted(len(plan), 'shard')} for {part}" if part.of > 1 else ""
            all_files = counted(len(packing.files), "file")
            log.info("%s: %s for shards of %g MiB%s", asked.manifest, all_files, asked.shard_mib, some)
        files = [plan[number].files for number in mine]
        missing = sum(plan[number].files for number in left)
        with folder.working("files packed", sum(files) - missing, sum(files), len(packing.files)) as add:
            for number in left:
                add(*_write_shard(out, plan[number], packing, folder.under_way), files=plan[number].files)
        result = folder.finish(lambda: _together(asked, packing, plan, folder))
        return result._replace(kind="shards") if isinstance(result, PartDone) else result


class _Packing:
    """The videos of a list in the order in which they are packed: rows that are parts of one film share its copy."""

    def __init__(self, manifest: Manifest, seed: int | None) -> None:
        self.manifest = manifest
        self.files = Distinct(entry.name for entry in manifest)
        self._order: Sequence[int] = range(len(self.files))
        if seed is not None:
            self._order = Shuffle(len(self.files), np.random.default_rng(seed))  # type: ignore[assignment]

    def row_at(self, place: int) -> int:
        """The first row of the file at a place."""
        return int(self.files.first[self._order[place]])

    def number_of_row(self, row: int) -> int:
        """The number, in the order of the list, of the file that a row is read from."""
        return int(self.files.of_place[row])

    def tar_bytes(self) -> Ints:
        """What the file at each place takes in a shard, as far as storage says."""
        sizes = self._sizes()
        labels = np.concatenate([block for _, block in self.manifest.label_blocks()])[self.files.first]
        taken = tar_bytes_of(sizes, labels >= 0)
        order = np.fromiter((self._order[place] for place in range(len(taken))), np.int64, len(taken))
        return np.asarray(taken[order])

    def _sizes(self) -> Ints:
        first = self.files.first.tolist()
        if self.manifest.is_packed:
            return np.array([self.manifest[row].size for row in first], np.int64)
        sizes = np.array(look(lambda number: self.manifest[first[number]].path, len(first))["size"], np.int64)

        def ask(number: int) -> None:
            size = url_size(self.manifest[first[number]].path)
            sizes[number] = UNKNOWN_SIZE if size is None else size

        for_each([number for number, row in enumerate(first) if "://" in self.manifest[row].path], ask)
        return sizes


def _newest(rows: Iterable[dict[str, Any]]) -> dict[str, PackedShard]:
    """The newest line of each shard."""
    return {row["shard"]: PackedShard(**row) for row in rows if not is_bad(row)}


def _is_there(out: Path, shard: PlannedShard, done: dict[str, PackedShard], verify: bool) -> bool:
    before = done.get(shard.shard)
    return before is not None and shard.is_of(before) and _is_whole(out, before, verify)


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
    out: Path, shard: PlannedShard, packing: _Packing, tell: Callable[[int], None]
) -> list[dict[str, Any]]:
    """Lines of the files that could not be read, and that of the shard, which is whole under its name, or not there."""
    from webdataset import TarWriter

    bad: list[dict[str, Any]] = []
    with (
        whole_file(out / shard.shard, alone=True) as part,
        HashedFile(part) as file,
        # a fixed owner and time: the same videos give the same bytes
        contextlib.closing(TarWriter(file, user="vmae2", group="vmae2", mtime=0, encoder=False)) as tar,
    ):
        for place in range(shard.begin, shard.end):
            tell(place + 1 - shard.begin)
            row = packing.row_at(place)
            entry = packing.manifest[row]
            try:
                video = _content(entry.path, fetch(entry))
            except VideoError as error:
                bad.append({"path": entry.name, BAD: str(error)})
                continue
            sample: dict[str, str | bytes] = {"__key__": f"{row:0{KEY_DIGITS}d}", _suffix_of(entry.path): video}
            if entry.label is not None:
                sample["cls"] = str(entry.label).encode()
            tar.write(sample)
    return [*bad, PackedShard(*shard, shard.files - len(bad), *file.written)._asdict()]


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


def _together(asked: PackArguments, packing: _Packing, plan: ShardPlan, folder: JobFolder) -> PackedManifest:
    """The lists of shards, of videos and of bad files, in the order of the list, whoever packed what."""
    out = asked.out
    done = _newest(folder.rows(of_all=True))
    shards = [done[plan[number].shard] for number in range(len(plan))]
    reasons = {row["path"]: row[BAD] for row in folder.rows(of_all=True) if is_bad(row)}
    write_lines(out / "shards.jsonl", (json.dumps(shard._asdict()).encode() for shard in shards))
    places = _member_places(out, packing, shards)
    numbers = {number: why for path, why in reasons.items() if (number := packing.files.number_of(path)) is not None}
    bad = {number: numbers[number] for number in sorted(numbers) if places[number, 2] < 0}  # others were read later
    names = (packing.manifest[int(packing.files.first[number])].name for number in bad)
    write_bad_files(out, ({"path": name, BAD: why} for name, why in zip(names, bad.values(), strict=True)))
    (out / PLAN).unlink()
    if len(bad) == len(packing.files):
        raise DataError(f"{asked.manifest}: none of its {len(bad)} files could be read; see {out}/bad_files.jsonl")
    rows = _write_manifest(out, packing, shards, places)
    videos, size = sum(shard.videos for shard in shards), sum(shard.size for shard in shards)
    return PackedManifest(out, videos, rows, len(shards), size, len(bad), folder.written)


def _member_places(out: Path, packing: _Packing, shards: list[PackedShard]) -> Ints:
    """(number of its shard, offset, size) of each file, in the order of the list; -1 for one that is not there."""
    places = np.full((len(packing.files), 3), -1, np.int64)

    def read(number: int) -> None:
        for name, offset, size in iterate_members(out / shards[number].shard):
            key, _, suffix = name.partition(".")
            if suffix != "cls":
                places[packing.number_of_row(int(key))] = number, offset, size

    for_each(range(len(shards)), read)
    return places


def _write_manifest(out: Path, packing: _Packing, shards: list[PackedShard], places: Ints) -> int:
    """manifest.csv with every row whose file was packed, in the list's order; returns how many."""
    rows = 0
    with writing_list(out / "manifest.csv") as file:
        file.write(csv_line(COLUMNS))
        for row in range(len(packing.manifest)):
            shard, offset, size = places[packing.number_of_row(row)].tolist()
            if shard >= 0:
                video = packing.manifest.listed(row)
                source = "" if video.source == DEFAULT_SOURCE else video.source
                start = video.start or None
                where = (shards[shard].shard, offset, size)
                file.write(csv_line((video.path, video.label, source, start, video.frames, *where)))
                rows += 1
    return rows
