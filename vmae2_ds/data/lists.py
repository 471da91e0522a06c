"""Text lists of videos, line by line: a CSV with a header, or a published space-separated list."""

from __future__ import annotations

import csv
import difflib
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple, TextIO

from vmae2_ds.errors import DataError

COLUMNS = ("path", "label", "source", "start", "frames", "shard", "offset", "bytes")
PACKED = ("shard", "offset", "bytes")
"""Columns of a list of tar shards: all of them or none."""


class ListedVideo(NamedTuple):
    """One line of a list, as written; None where its cell is empty."""

    path: str
    label: int | None = None
    source: str | None = None
    start: int = 0
    frames: int | None = None
    shard: str | None = None
    offset: int = 0
    size: int = 0


def read_list(path: Path, *, frame_folders: bool = False) -> Iterator[ListedVideo]:
    """The lines of a list. `frame_folders` takes the published form of raw frames, `folder start frames`, literally.

    Raises DataError, naming file and line, for anything it cannot take literally.
    """
    try:
        with path.open("rb") as raw:
            head = raw.read(4096)
        _refuse_binary(path, head)
        # surrogateescape: a path that is not UTF-8 comes back as the bytes that the file system knows
        with path.open(newline="", encoding="utf-8-sig", errors="surrogateescape") as file:
            first = next((line for line in iter(file.readline, "") if line.strip()), "")
            file.seek(0)
            if _is_published_line(first):
                yield from _read_published(path, file, frame_folders)
            else:
                yield from _read_csv(path, file)
    except OSError as error:
        raise DataError(f"{path}: cannot read the manifest: {error.strerror}; check --data.manifest") from error


def _error(file: Path, line: int, problem: str, text: str, way_out: str) -> DataError:
    shown = text.rstrip("\r\n")
    shown = shown if len(shown) <= 120 else shown[:117] + "..."
    return DataError(f"{file}:{line}: {problem} in {shown!r}; {way_out}")


def _refuse_binary(path: Path, head: bytes) -> None:
    if head.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise DataError(f"{path}:1: the manifest is UTF-16; save it as UTF-8 CSV")
    if b"\0" in head:
        raise DataError(f"{path}:1: the manifest is not a text file; --data.manifest takes a CSV or a published list")


# --- CSV -------------------------------------------------------------------------------------------------------------


def _read_csv(path: Path, file: TextIO) -> Iterator[ListedVideo]:
    reader = csv.reader(file, strict=True)
    try:
        header = next((row for row in reader if any(cell.strip() for cell in row)), [])
        if not header:
            return
        columns = _columns(path, reader.line_num, header)
        for row in reader:
            if row:
                yield _csv_row(path, reader.line_num, row, columns)
    except csv.Error as error:
        raise DataError(
            f"{path}:{reader.line_num}: not CSV ({error}); quote a path that holds commas, and double its quotes"
        ) from error


def _columns(path: Path, line: int, header: list[str]) -> dict[str, int]:
    """Where each known column stands: {name: position}."""
    names = [cell.strip() for cell in header]
    text = ",".join(header)
    for name in names:
        if name not in COLUMNS:
            near = difflib.get_close_matches(name.lower(), COLUMNS, n=1, cutoff=0.5)
            hint = f"did you mean {near[0]!r}? " if near else ""
            known = f"the first line must name the columns, separated by commas, out of {', '.join(COLUMNS)}"
            raise _error(path, line, f"unknown column {name!r}", text, hint + known)
        if names.count(name) > 1:
            raise _error(path, line, f"column {name!r} given twice", text, "name each column once")
    if "path" not in names:
        raise _error(path, line, "no column 'path'", text, "name the column that holds the videos 'path'")
    if 0 < sum(name in names for name in PACKED) < len(PACKED):
        raise _error(path, line, "tar shards half described", text, f"they need all of {', '.join(PACKED)}")
    return {name: names.index(name) for name in names}


_NUMBERS = (
    ("label", 0, 2**31, "a class number from 0, or empty"),
    ("start", 0, 2**31, "the first frame to use, counted from 0"),
    ("frames", 1, 2**31, "the number of frames to use, or empty for all"),
    ("offset", 0, 2**63, "the byte of the shard at which the video starts"),
    ("bytes", 1, 2**63, "the number of bytes of the video inside the shard"),
)
"""Column, least value, the first value too large, meaning."""


def _csv_row(path: Path, line: int, row: list[str], columns: dict[str, int]) -> ListedVideo:
    if len(row) != len(columns):
        raise _error(
            path,
            line,
            f"{len(row)} cells where the header has {len(columns)}",
            ",".join(row),
            "put a path that holds commas in double quotes, and leave empty cells empty",
        )
    cells = {name: row[at].strip() for name, at in columns.items()}
    if not cells["path"]:
        raise _error(path, line, "empty path", ",".join(row), "give the video's path or drop the line")
    numbers = {}
    for name, least, limit, meaning in _NUMBERS:
        if cell := cells.get(name):
            numbers[name] = _whole_number(path, line, name, cell, least, limit, meaning, row)
    shard = cells.get("shard") or None
    if "shard" in columns and (shard is None or "offset" not in numbers or "bytes" not in numbers):
        raise _error(path, line, "an empty cell among shard, offset, bytes", ",".join(row), "give all three")
    return ListedVideo(
        cells["path"],
        numbers.get("label"),
        cells.get("source") or None,
        numbers.get("start", 0),
        numbers.get("frames"),
        shard,
        numbers.get("offset", 0),
        numbers.get("bytes", 0),
    )


def _whole_number(
    path: Path, line: int, name: str, cell: str, least: int, limit: int, meaning: str, row: list[str]
) -> int:
    try:
        number = int(cell)
    except ValueError:
        number = least - 1
    if not least <= number < limit:
        raise _error(path, line, f"{name}={cell!r}", ",".join(row), f"{name} is {meaning}")
    return number


# --- published space-separated lists (PAPER A6) ----------------------------------------------------------------------


def _is_int(token: str) -> bool:
    return token.removeprefix("-").isdigit()


def _is_published_line(line: str) -> bool:
    """`path 0 -1`, `path label` or `folder start frames`: no header, and the last word is a whole number."""
    words = line.split()
    return len(words) > 1 and _is_int(words[-1])


def _read_published(path: Path, file: TextIO, frame_folders: bool) -> Iterator[ListedVideo]:
    for line, words, text in _split_lines(file):
        numbers = [int(word) for word in words[1:] if _is_int(word)]
        if len(words) not in (2, 3) or len(numbers) != len(words) - 1:
            raise _error(
                path,
                line,
                "neither 'path 0 -1' nor 'path label'",
                text,
                "paths with spaces need the CSV form: a header line 'path' or 'path,label', and commas",
            )
        if len(words) == 2:
            if not 0 <= numbers[0] < 2**31:
                raise _error(path, line, f"label={numbers[0]}", text, "labels are class numbers from 0")
            yield ListedVideo(words[0], label=numbers[0])
        elif frame_folders:
            start, frames = numbers
            if not (0 <= start < 2**31 and 1 <= frames < 2**31):
                raise _error(path, line, "not a folder of frames", text, "a line is: folder, first frame, frames")
            yield ListedVideo(words[0], start=start, frames=frames)
        elif numbers[1] >= 0:
            raise _error(
                path,
                line,
                f"a folder of raw frames ('folder start frames', {numbers[1]} frames)",
                text,
                'list it in a mixture file, as a source with kind = "frames" (docs/DATA.md), and give --data.mixture',
            )
        elif numbers != [0, -1]:
            raise _error(
                path, line, "a video line that does not end in '0 -1'", text, "use a CSV with start and frames"
            )
        else:
            yield ListedVideo(words[0])


def _split_lines(file: TextIO) -> Iterator[tuple[int, list[str], str]]:
    for line, text in enumerate(file, start=1):
        if words := text.split():
            yield line, words, text
