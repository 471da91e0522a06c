"""The list of videos: a CSV with a header, or a published space-separated list, held as arrays (millions of rows)."""

from __future__ import annotations

import csv
import difflib
import os
from array import array
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, TextIO

import numpy as np

from vmae2_ds.errors import DataError

COLUMNS = ("path", "label", "source", "start", "frames")
DEFAULT_SOURCE = "default"
"""Source of videos whose manifest names none."""

_NONE = -1  # "no label" and "to the end" inside the arrays
_FILES_LOOKED_AT = 8  # at reading; a scan of millions of files is not a reader's job


class VideoEntry(NamedTuple):
    """One row: a video, or `frames` frames of it from frame `start` on (None: to the end)."""

    path: str
    label: int | None
    source: str
    start: int
    frames: int | None


@dataclass(frozen=True)
class Manifest:
    """Rows as columns: about 30 bytes a row plus its path. `manifest[i]` is a `VideoEntry`; made by `read_manifest`."""

    file: str
    root: str
    """Folder that relative paths start from."""
    path_bytes: bytes
    """All paths, end to end, as the file system spells them."""
    path_ends: np.ndarray
    labels: np.ndarray
    source_codes: np.ndarray
    sources: tuple[str, ...]
    """Source names; `source_codes` counts into it."""
    starts: np.ndarray
    frames: np.ndarray

    def __len__(self) -> int:
        return len(self.path_ends)

    def __getitem__(self, row: int) -> VideoEntry:
        if not 0 <= row < len(self):
            raise IndexError(f"row {row} of a manifest of {len(self)}")
        begin = int(self.path_ends[row - 1]) if row else 0
        path = os.fsdecode(self.path_bytes[begin : int(self.path_ends[row])])
        label, frames = int(self.labels[row]), int(self.frames[row])
        return VideoEntry(
            path=os.path.join(self.root, path),
            label=None if label == _NONE else label,
            source=self.sources[self.source_codes[row]],
            start=int(self.starts[row]),
            frames=None if frames == _NONE else frames,
        )


def read_manifest(path: str | Path, root: str | Path | None = None) -> Manifest:
    """Read a manifest; relative video paths start from `root`, by default the manifest's folder.

    Raises DataError, naming file and line, for anything it cannot take literally, and where none of the first few
    videos exists (a wrong root). A single missing video is left to the loader, which skips, counts and names it.
    """
    path = Path(path)
    rows = _Rows()
    try:
        with path.open("rb") as raw:
            head = raw.read(4096)
        _refuse_binary(path, head)
        # surrogateescape: a path that is not UTF-8 comes back as the bytes that the file system knows
        with path.open(newline="", encoding="utf-8-sig", errors="surrogateescape") as file:
            first = next((line for line in iter(file.readline, "") if line.strip()), "")
            file.seek(0)
            read = _read_csv if not _is_published_line(first) else _read_published
            read(path, file, rows)
    except OSError as error:
        raise DataError(f"{path}: cannot read the manifest: {error.strerror}; check --data.manifest") from error
    if not rows.path_ends:
        raise DataError(f"{path}: the manifest lists no videos; it needs a header line with 'path' and a line a video")
    manifest = rows.freeze(path, path.parent if root is None else Path(root))
    _refuse_wrong_root(manifest)
    return manifest


class _Rows:
    """Columns while they grow."""

    def __init__(self) -> None:
        self.path_bytes = bytearray()
        self.path_ends = array("q")
        self.labels = array("i")
        self.source_codes = array("H")
        self.sources: dict[str, int] = {}
        self.starts = array("i")
        self.frames = array("i")

    def add(self, path: str, label: int = _NONE, source: str = "", start: int = 0, frames: int = _NONE) -> None:
        self.path_bytes += os.fsencode(path)
        self.path_ends.append(len(self.path_bytes))
        self.labels.append(label)
        self.source_codes.append(self.sources.setdefault(source or DEFAULT_SOURCE, len(self.sources)))
        self.starts.append(start)
        self.frames.append(frames)

    def freeze(self, file: Path, root: Path) -> Manifest:
        return Manifest(
            file=str(file),
            root=str(root),
            path_bytes=bytes(self.path_bytes),
            path_ends=np.array(self.path_ends),
            labels=np.array(self.labels),
            source_codes=np.array(self.source_codes),
            sources=tuple(self.sources),
            starts=np.array(self.starts),
            frames=np.array(self.frames),
        )


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


def _read_csv(path: Path, file: TextIO, rows: _Rows) -> None:
    reader = csv.reader(file, strict=True)
    try:
        header = next((row for row in reader if any(cell.strip() for cell in row)), [])
        if not header:
            return
        columns = _columns(path, reader.line_num, header)
        for row in reader:
            if row:
                _add_csv_row(path, reader.line_num, row, columns, rows)
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
    return {name: names.index(name) for name in names}


def _add_csv_row(path: Path, line: int, row: list[str], columns: dict[str, int], rows: _Rows) -> None:
    text = ",".join(row)
    if len(row) != len(columns):
        raise _error(
            path,
            line,
            f"{len(row)} cells where the header has {len(columns)}",
            text,
            "put a path that holds commas in double quotes, and leave empty cells empty",
        )
    cells = {name: row[at].strip() for name, at in columns.items()}
    if not cells["path"]:
        raise _error(path, line, "empty path", text, "give the video's path or drop the line")
    numbers = {}
    for name, least, meaning in (
        ("label", 0, "a class number from 0, or empty"),
        ("start", 0, "the first frame to use, counted from 0"),
        ("frames", 1, "the number of frames to use, or empty for all"),
    ):
        cell = cells.get(name, "")
        if cell:
            numbers[name] = _whole_number(path, line, name, cell, least, meaning, text)
    rows.add(cells["path"], source=cells.get("source", ""), **numbers)


def _whole_number(path: Path, line: int, name: str, cell: str, least: int, meaning: str, text: str) -> int:
    try:
        number = int(cell)
    except ValueError:
        number = least - 1
    if not least <= number < 2**31:
        raise _error(path, line, f"{name}={cell!r}", text, f"{name} is {meaning}")
    return number


# --- published space-separated lists (PAPER A6) ----------------------------------------------------------------------


def _is_int(token: str) -> bool:
    return token.removeprefix("-").isdigit()


def _is_published_line(line: str) -> bool:
    """`path 0 -1`, `path label` or `folder start frames`: no header, and the last word is a whole number."""
    words = line.split()
    return len(words) > 1 and _is_int(words[-1])


def _read_published(path: Path, file: TextIO, rows: _Rows) -> None:
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
        if len(words) == 3 and numbers[-1] >= 0:
            raise _error(
                path,
                line,
                f"a folder of raw frames ('folder start frames', {numbers[-1]} frames)",
                text,
                "raw frames are not read by this version; make a video of the folder and list it as 'path 0 -1'",
            )
        if len(words) == 2 and not 0 <= numbers[0] < 2**31:
            raise _error(path, line, f"label={numbers[0]}", text, "labels are class numbers from 0")
        if len(words) == 3 and numbers != [0, -1]:
            raise _error(
                path, line, "a video line that does not end in '0 -1'", text, "use a CSV with start and frames"
            )
        rows.add(words[0], label=numbers[0] if len(words) == 2 else _NONE)


def _split_lines(file: TextIO) -> Iterator[tuple[int, list[str], str]]:
    for line, text in enumerate(file, start=1):
        if words := text.split():
            yield line, words, text


# --- the folder ------------------------------------------------------------------------------------------------------


def _refuse_wrong_root(manifest: Manifest) -> None:
    tried = [manifest[row].path for row in range(min(_FILES_LOOKED_AT, len(manifest)))]
    if not any(os.path.exists(path) for path in tried):
        raise DataError(
            f"{manifest.file}: none of its first {len(tried)} videos exists, for example {tried[0]!r}; "
            f"relative paths start from {manifest.root!r}: set --data.root to the folder they belong to"
        )
