"""Tar shards as webdataset writes them: where each member's bytes lie, so that any video is read by its place alone."""

from __future__ import annotations

import glob
import io
import logging
import os
import re
import tarfile
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Annotated, NamedTuple

from pydantic import Field
from tyro.conf import Positional

from vmae2_ds.config.strict import StrictModel
from vmae2_ds.console.progress import Ticker, counted, heard
from vmae2_ds.data.sources.class_names import ClassNames, read_class_names
from vmae2_ds.data.sources.list_formats import csv_line
from vmae2_ds.data.sources.list_header import COLUMNS, VIDEO_SUFFIXES
from vmae2_ds.data.tools.tar_samples import ShardContent, videos_in
from vmae2_ds.data.tools.work_folder import full_disk_is_told
from vmae2_ds.disk import check_out_file, write_whole
from vmae2_ds.errors import ConfigError, DataError

log = logging.getLogger(__name__)

_COMPRESSED = {
    b"\x1f\x8b": "gzip",
    b"BZh": "bzip2",
    b"\xfd7zXZ": "xz",
    b"\x28\xb5\x2f\xfd": "zstd",
    b"PK\x03\x04": "ZIP",
}
"""What a shard that is no plain tar file begins with."""
_HEADER = csv_line(COLUMNS).encode()
MOST_THREADS = 256
"""They wait for storage, not for cores."""
SHOWN = 3
"""Shards of a kind that are named."""


class IndexedShards(NamedTuple):
    """What `index_shards` wrote."""

    out: Path
    shards: int
    videos: int
    labelled: int
    left_out: dict[str, int]
    """Members that are no videos of use, by why."""
    notes: list[str]
    """What else is worth knowing."""

    def __str__(self) -> str:
        left_out = "".join(f"; {why}: {count}, left out" for why, count in self.left_out.items())
        lines = [
            f"{counted(self.videos, 'video')} in {counted(self.shards, 'shard')}, {self.labelled} with a label{left_out}",
            *self.notes,
            f'give {self.out} as the manifest, in a mixture file with kind = "shards"',
        ]
        return "\n".join(lines)


class IndexShardsArguments(StrictModel):
    """List the videos of tar shards that something else wrote, so that they can be read in any order.

    Nothing is unpacked: a manifest says in which shard, from which byte, and how many bytes each video has. Labels are taken
    from the .cls or .class member of a video's sample, else from "label", "cls" or "class" in its .json, or from a .txt that is
    a number.
    """

    shards: Positional[str]
    """Path or URL (fsspec) of one tar shard, or of several: {000..127} stands for numbers, * for any letters of a local
    name."""
    out: Path
    """CSV file to write, to be named as the manifest afterwards; shards in or below its folder are named relative to
    it."""
    workers: Annotated[int, Field(ge=1, le=MOST_THREADS)] = 8
    """Number of shards that are read at the same time."""
    labels: Path | None = None
    """Text file with one class name per line, in the order of the label numbers: labels in the shards may then be names
    instead of numbers."""


def index_shards(asked: IndexShardsArguments) -> IndexedShards:
    """Write a manifest of the videos in the shards."""
    names = None if asked.labels is None else read_class_names(asked.labels)
    paths = expand(asked.shards)
    _check_out(asked.out, [*paths, *([] if asked.labels is None else [asked.labels])])
    found: list[ShardContent] = []
    refused: list[DataError] = []
    log.info("%s: %s, read %d at a time", asked.shards, counted(len(paths), "shard"), asked.workers)
    with heard(Ticker(log, "shards read", len(paths))) as ticker, ThreadPoolExecutor(asked.workers) as pool:
        for number, one in enumerate(pool.map(lambda path: _scanned(path, names), paths), 1):
            ticker.tell(number)
            if isinstance(one, DataError):
                refused.append(one)
            else:
                found.append(one)
    if refused:
        raise _refusal(refused, len(paths))
    text = io.StringIO()
    text.write(csv_line(COLUMNS))
    folder = asked.out.parent.resolve()
    for path, one in zip(paths, found, strict=True):
        shard = _relative_to(folder, path)
        for member in one.videos:
            text.write(csv_line([member.name, member.label, "", "", "", shard, member.offset, member.size]))
    videos = [member for one in found for member in one.videos]
    left_out, no_labels = Counter[str](), Counter[str]()
    for one in found:
        left_out += one.left_out
        no_labels += one.no_labels
    if not videos:
        why = "".join(f"; {why}: {count}" for why, count in left_out.items())
        raise DataError(
            f"{asked.shards}: no video in {counted(len(paths), 'shard')}{why}; looked for members that end in "
            f"{', '.join(VIDEO_SUFFIXES)}"
        )
    with full_disk_is_told(asked.out):
        write_whole(asked.out, text.getvalue())
    labelled = sum(member.label is not None for member in videos)
    return IndexedShards(
        asked.out, len(paths), len(videos), labelled, dict(left_out), _notes(paths, found, no_labels, names)
    )


def _check_out(out: Path, inputs: Sequence[str | Path]) -> None:
    """Raises ConfigError where the list cannot be written, or something else than such a list is there."""
    check_out_file(out, inputs=inputs)
    if out.exists():
        with out.open("rb") as file:
            is_ours = file.read(len(_HEADER)) == _HEADER
        if not is_ours:
            raise ConfigError(f"--out {out} is there and no list of index-shards; name another file, or remove it")


def _notes(paths: list[str], found: list[ShardContent], no_labels: Counter[str], names: ClassNames | None) -> list[str]:
    notes = []
    if empty := [path for path, one in zip(paths, found, strict=True) if not one.videos]:
        more = ", ..." if len(empty) > SHOWN else ""
        notes.append(f"{counted(len(empty), 'shard')} without a video: {', '.join(empty[:SHOWN])}{more}")
    if no_labels and names is None:
        shown = ", ".join(map(repr, list(no_labels)[:SHOWN]))
        notes.append(
            f"{counted(no_labels.total(), 'label')} that are no class numbers, for example {shown}: these videos have none; "
            "--labels FILE says which number a name is"
        )
    elif no_labels and names is not None:
        notes.append(f"{names.describe_unknown(no_labels)}: these videos have none")
    return notes


def _relative_to(folder: Path, shard: str) -> str:
    """A shard as a list in `folder` names it."""
    if "://" in shard:
        return shard
    place = Path(shard).resolve()
    return str(place.relative_to(folder)) if place.is_relative_to(folder) else os.path.abspath(shard)


def _refusal(refused: list[DataError], shards: int) -> DataError:
    if shards == 1:
        return refused[0]
    more = "; ..." if len(refused) > SHOWN else ""
    return DataError(f"{len(refused)} of {shards} shards cannot be read: {'; '.join(map(str, refused[:SHOWN]))}{more}")


def expand(shards: str) -> list[str]:
    """One path, or those that {000..127} and, without a URL, * stand for. Raises DataError where there is none."""
    if match := re.search(r"\{(\d+)\.\.(\d+)\}", shards):
        first, last = match[1], match[2]
        width = len(first) if len(first) == len(last) else 0
        numbers = (f"{number:0{width}}" for number in range(int(first), int(last) + 1))
        paths = [
            path for number in numbers for path in expand(shards[: match.start()] + number + shards[match.end() :])
        ]
    elif "://" in shards or not re.search(r"[*?\[]", shards):
        return [shards]
    else:
        paths = sorted(glob.glob(shards))
    if not paths:
        raise DataError(f"{shards}: no such shards")
    return paths


def _scanned(path: str, names: ClassNames | None) -> ShardContent | DataError:
    try:
        return scan_shard(path, names)
    except DataError as error:
        return error


def scan_shard(path: str, names: ClassNames | None = None) -> ShardContent:
    """The videos of one shard in their order, with the labels beside them; an empty file has none.

    Raises DataError where it is no sound tar file.
    """
    import fsspec

    try:
        with fsspec.open(path, "rb") as file:
            head = file.read(8)
            if not head:
                return ShardContent([], Counter(), Counter())
            if kind := next((kind for magic, kind in _COMPRESSED.items() if head.startswith(magic)), None):
                raise DataError(
                    f"{path}: a {kind} file; the videos of a compressed shard have no place to be read from: unpack it to a "
                    "plain .tar (gunzip and its like leave the members together)"
                )
            file.seek(0)
            with tarfile.open(fileobj=file, mode="r:") as tar:
                return videos_in(tar, names)
    except (OSError, tarfile.TarError, ValueError, ImportError) as error:
        told = getattr(error, "strerror", None) or str(error).strip() or type(error).__name__
        raise DataError(f"{path}: not a tar shard that can be read: {told}") from None


def iterate_members(path: Path) -> Iterator[tuple[str, int, int]]:
    """(name, offset, size) of every file in a local shard."""
    with tarfile.open(path, "r:") as tar:
        for member in tar:
            yield member.name, member.offset_data, member.size
