"""Tar shards as webdataset writes them: where each member's bytes lie, so that any video is read by its place alone."""

from __future__ import annotations

import csv
import glob
import io
import os
import re
import tarfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

from tyro.conf import Positional

from vmae2_ds.data.list_header import COLUMNS, VIDEO_SUFFIXES
from vmae2_ds.disk import write_whole
from vmae2_ds.errors import DataError

LABEL_SUFFIX = ".cls"
"""Member of a sample that holds its class number, as webdataset has it."""


class Member(NamedTuple):
    """A video inside a shard."""

    name: str
    offset: int
    size: int
    label: int | None


class IndexedShards(NamedTuple):
    """What `index_shards` wrote."""

    out: Path
    shards: int
    videos: int
    labelled: int

    def __str__(self) -> str:
        return (
            f"{self.videos} videos in {self.shards} shards, {self.labelled} with a label: give {self.out} as the manifest, "
            'in a mixture file with kind = "shards"'
        )


def index_shards(shards: Positional[str], out: Path, workers: int = 8) -> IndexedShards:
    """List the videos of tar shards that something else wrote, so that they can be read in any order.

    Nothing is unpacked: a manifest says in which shard, from which byte, and how many bytes each video has.

    Args:
        shards: Path or URL (fsspec) of one shard, or of many with {000..127} or, on disk, * in its name.
        out: The manifest to write, a CSV file; shards below its folder are named relative to it.
        workers: Shards read at once.
    """
    paths = expand(shards)
    with ThreadPoolExecutor(workers) as pool:
        found = list(pool.map(scan_shard, paths))
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    folder = out.parent.resolve()
    for path, members in zip(paths, found, strict=True):
        inside = "://" not in path and Path(path).resolve().is_relative_to(folder)
        shard = (
            str(Path(path).resolve().relative_to(folder))
            if inside
            else path
            if "://" in path
            else os.path.abspath(path)
        )
        for member in members:
            label = "" if member.label is None else member.label
            writer.writerow([member.name, label, "", "", "", shard, member.offset, member.size])
    videos = [member for members in found for member in members]
    if not videos:
        raise DataError(
            f"{shards}: no video in {len(paths)} shard(s); looked for members that end in {', '.join(VIDEO_SUFFIXES)}"
        )
    out.parent.mkdir(parents=True, exist_ok=True)
    write_whole(out, text.getvalue())
    return IndexedShards(out, len(paths), len(videos), sum(member.label is not None for member in videos))


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


def scan_shard(path: str) -> list[Member]:
    """The videos of one shard in their order, with the labels beside them. Raises DataError where it is no sound tar file."""
    import fsspec

    labels: dict[str, int] = {}
    videos: list[tuple[str, int, int]] = []
    try:
        with fsspec.open(path, "rb") as file, tarfile.open(fileobj=file, mode="r:") as tar:
            for member in tar:
                key, suffix = os.path.splitext(member.name)
                if not member.isfile():
                    continue
                if suffix.lower() in VIDEO_SUFFIXES:
                    videos.append((member.name, member.offset_data, member.size))
                elif suffix == LABEL_SUFFIX and (held := tar.extractfile(member)) is not None:
                    labels[key] = int(held.read())
    except (OSError, tarfile.TarError, ValueError) as error:
        raise DataError(
            f"{path}: not a tar shard that can be read: {str(error).strip() or type(error).__name__}"
        ) from None
    return [Member(name, offset, size, labels.get(os.path.splitext(name)[0])) for name, offset, size in videos]


def iterate_members(path: Path) -> Iterator[tuple[str, int, int]]:
    """(name, offset, size) of every file in a local shard."""
    with tarfile.open(path, "r:") as tar:
        for member in tar:
            yield member.name, member.offset_data, member.size
