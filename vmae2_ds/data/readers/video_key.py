"""What a video's decoded frames are kept under: its place, its bytes as far as the file system tells, and what reads it."""

from __future__ import annotations

import hashlib
import importlib.metadata
import importlib.util
import os
from functools import cache
from pathlib import Path

from vmae2_ds.data.entry import ReadAs, VideoEntry
from vmae2_ds.data.readers.storage import frame_names
from vmae2_ds.data.readers.table import PACKAGES
from vmae2_ds.errors import VideoError


def key_of(entry: VideoEntry, how: ReadAs) -> str | None:
    """A name that changes with the file's size and time of change, with the reader and its version, and with the entry's part.

    None where there is no such file, or where nobody says cheaply whether it has changed: behind a URL, or
    with a reader whose package does not tell its version.
    """
    place = entry.path if entry.shard is None else entry.shard
    if "://" in place:
        return None
    try:
        bytes_of = _folder_state(entry, how.template) if how.kind == "frames" else [_state(place)]
    except (OSError, VideoError, ValueError):
        return None  # who reads it says what is wrong with it
    try:
        read_by = reader_state("pillow" if how.kind == "frames" else how.reader)
    except ImportError:  # also a package of another name, such as eva-decord, which brings decord
        return None
    member = (entry.path, entry.offset, entry.size) if entry.shard is not None else None
    about = (os.path.abspath(place), member, bytes_of, entry.start, entry.frames, how.kind, how.template, read_by)
    return hashlib.sha256(repr(about).encode("utf-8", "surrogateescape")).hexdigest()[:32]


def _state(path: str) -> tuple[int, int]:
    about = os.stat(path)
    return about.st_size, about.st_mtime_ns


def _folder_state(entry: VideoEntry, template: str) -> list[tuple[int, int]]:
    """The state of every picture of the part. Raises OSError where one is missing."""
    if entry.frames is None:
        names = frame_names(entry.path, template, entry.start)
    else:
        names = [template.format(number) for number in range(entry.start, entry.start + entry.frames)]
    return [_state(os.path.join(entry.path, name)) for name in names]


@cache
def reader_state(reader: str) -> str:
    """A reader's name, the version of its package, and a digest of the code that calls it: ours, or the user's own module."""
    if ":" in reader:
        found = importlib.util.find_spec(reader.partition(":")[0])
        code = [Path(found.origin)] if found is not None and found.origin is not None else []
        package = "numpy"
    else:
        code, package = sorted(Path(__file__).parent.glob("*.py")), PACKAGES.get(reader, reader)
    digest = hashlib.sha256(b"\0".join(file.read_bytes() for file in code if file.is_file())).hexdigest()
    return f"{reader} {package} {importlib.metadata.version(package)} {digest}"
