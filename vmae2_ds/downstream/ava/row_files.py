"""AVA's csv files as they are found, read in pieces: byte-order marks, CRLF, a header, spaces, quotes, no last line end.

What cannot be meant is refused with the file, the line and the way out.
"""

from __future__ import annotations

import csv
import enum
import math
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from vmae2_ds.console.progress import counted
from vmae2_ds.downstream.ava.row_columns import NotPlain, TextColumns
from vmae2_ds.errors import DataError

_Read = TypeVar("_Read", int, float)
PIECE_BYTES = 1 << 20
"""Read at a time: the columns of so much text stay in the cache."""
KEPT_FREE = 24 << 20
"""Bytes that are asked for and given back first: until it has seen so much freed at once, glibc returns what a piece of text
took to the system, which fills it anew page by page for the next one, a third of the time of reading."""
LONGEST_LINE = 1 << 16
LATEST_S = 1e12
MOST_COLUMNS = 8
MOST_ID = 2**31
BOX = ("x1", "y1", "x2", "y2")
WAYS_OUT = {
    "time": "write seconds, such as 902 or 12.5",
    **dict.fromkeys(BOX, "write shares of the frame's width and height, 0 to 1"),
    "action id": "write the number that the label map gives the action",
    "score": "write a number, or leave the row out",
    "person id": "write whole numbers, or no such column; a file with scores there is one of detections",
}


class RowKind(enum.Enum):
    """What a row of a file is, and the columns that it may have."""

    TRUTH = "2 columns (video, time), 7 (x1, y1, x2, y2 and an action id as well) or 8 (a person id as well)"
    DETECTIONS = "8 columns: video, time, x1, y1, x2, y2, action id, score"
    FRAMES = "2 columns: video, time"


COLUMNS = {RowKind.TRUTH: (2, 7, 8), RowKind.DETECTIONS: (8,), RowKind.FRAMES: (2,)}


def time_ms_of(text: str) -> int:
    """Milliseconds of a time in seconds as files write it: 0902, 902, 902.0, 12.5; raises ValueError where it is none."""
    return round(1000 * _number(text, LATEST_S))


class RowFile:
    """A file of rows: `pieces` reads it once, and fills `frame_of` with the key frames that it names."""

    def __init__(self, file: Path, kind: RowKind) -> None:
        self.file, self.kind = file, kind
        self._frame_of_text: dict[bytes, int] = {}
        self.frame_of: dict[tuple[str, int], int] = {}
        """(video, time in ms) -> index of the key frame, in the order of the file."""
        self.share_read = 1.0
        """The share of the file's bytes that was read with the last piece; a half of a pipe's, which has no length."""

    def pieces(self) -> Iterator[list[NDArray[Any]]]:
        """The rows with a box, some at a time: frames int32, boxes float64 (n, 4), action ids int32, and scores or person ids.

        Raises:
            DataError: As the module says.
        """
        np.empty(KEPT_FREE, np.uint8)
        yield self._columns([])
        first_line = 1
        for text in self._texts():
            try:
                table = TextColumns(text, MOST_COLUMNS)
                piece, lines = self._plain(table), table.lines
            except NotPlain:
                piece, lines = self._by_hand(text, first_line), text.count(b"\n")
            yield piece
            first_line += lines

    def _texts(self) -> Iterator[bytes]:
        """The file's bytes, the first line and then many whole lines at a time."""
        try:
            with self.file.open("rb") as raw:
                size = os.fstat(raw.fileno()).st_size
                head = raw.readline(LONGEST_LINE)
                if head.startswith((b"\xff\xfe", b"\xfe\xff")) or b"\0" in head:
                    raise DataError(f"{self.file}: this is no csv file of UTF-8 text; save it as one")
                read = len(head)
                self.share_read = min(read / size, 1.0) if size else 0.5
                yield head.removeprefix(b"\xef\xbb\xbf")
                while text := b"".join((raw.read(PIECE_BYTES), raw.readline(LONGEST_LINE))):
                    read += len(text)
                    self.share_read = min(read / size, 1.0) if size else 0.5
                    yield text
        except OSError as error:
            raise DataError(f"{self.file}: {error.strerror}") from None

    def _plain(self, table: TextColumns) -> list[NDArray[Any]]:
        """All rows at once; raises NotPlain where they have to be read one after the other."""
        is_found = self.kind is RowKind.DETECTIONS
        if table.columns not in COLUMNS[self.kind] or (is_found and not table.is_full_L.all()):
            raise NotPlain
        keys, run_L = table.keys()
        frame_L = np.array([self._frame(key) for key in keys], np.int32)[run_L]
        if table.columns == 2:
            return self._columns([])
        frame = frame_L[table.is_full_L]
        box = np.stack([table.numbers(column) for column in range(2, 6)], axis=1)
        label = table.whole(6, MOST_ID, empty_too=is_found)
        if is_found:
            last = table.numbers(7)
        elif table.columns == 8:
            last = table.whole(7, MOST_ID, empty_too=True).astype(np.float64)
        else:
            last = np.full(len(frame), -1.0)
        return [frame, box, label.astype(np.int32), last]

    def _frame(self, text: bytes) -> int:
        frame = self._frame_of_text.get(text)
        if frame is None:
            video, time = (part.strip() for part in text.decode("utf-8", "surrogateescape").split(","))
            try:
                key = video, time_ms_of(time)
            except ValueError:
                raise NotPlain from None
            if not video:
                raise NotPlain
            frame = self._frame_of_text[text] = self.frame_of.setdefault(key, len(self.frame_of))
        return frame

    def _by_hand(self, text: bytes, first_line: int) -> list[NDArray[Any]]:
        """Rows one after the other: what is written in any way that a csv file can be, and what is wrong."""
        rows = []
        lines = text.decode("utf-8", "surrogateescape").split("\n")
        for number, line in enumerate(lines, first_line):
            fields = next(csv.reader([line], skipinitialspace=True), []) if line.strip() else []
            if not fields or (number == 1 and _is_header(fields)):
                continue
            try:
                row = self._row([field.strip() for field in fields])
            except ValueError as error:
                raise DataError(f"{self.file}, line {number}: {error}") from None
            if row is not None:
                rows.append(row)
        return self._columns(rows)

    def _row(self, fields: list[str]) -> tuple[float, ...] | None:
        """Frame, box, action id, score or person id; None where the row names a frame alone. Raises ValueError."""
        count = len(fields)
        is_frame = count >= 2 and not any(fields[2:]) and self.kind is not RowKind.DETECTIONS
        if count not in COLUMNS[self.kind] and not is_frame:
            raise ValueError(f"{counted(count, 'column')}, where a row has {self.kind.value}; commas part them")
        video, time = fields[:2]
        if not video:
            raise ValueError("the name of the video, the first column, is empty")
        frame = self.frame_of.setdefault((video, _field("time", time_ms_of, time)), len(self.frame_of))
        if is_frame:
            return None
        box = [_field(name, _number, field) for name, field in zip(BOX, fields[2:6], strict=True)]
        is_found = self.kind is RowKind.DETECTIONS
        label = -1 if is_found and not fields[6] else _field("action id", _whole, fields[6])
        if is_found:
            last = _field("score", _number, fields[7])
        else:
            last = _field("person id", _whole, fields[7]) if count == 8 and fields[7] else -1
        return (frame, *box, label, last)

    def _columns(self, rows: list[tuple[float, ...]]) -> list[NDArray[Any]]:
        table = np.array(rows, np.float64).reshape(-1, 7)
        return [table[:, 0].astype(np.int32), table[:, 1:5].copy(), table[:, 5].astype(np.int32), table[:, 6].copy()]


def _field(name: str, read: Callable[[str], _Read], text: str) -> _Read:
    try:
        return read(text)
    except ValueError:
        kind = "whole" if read is _whole else "finite"
        raise ValueError(f"the {name} is {text!r}, which is no {kind} number; {WAYS_OUT[name]}") from None


def _number(text: str, most: float = math.inf) -> float:
    number = float(text)
    if not abs(number) < most or "_" in text:
        raise ValueError
    return number


def _whole(text: str, most: float = MOST_ID) -> int:
    number = _number(text, most)
    if number != int(number):
        raise ValueError
    return int(number)


def _is_header(fields: list[str]) -> bool:
    """Whether a first line names the columns: none of them but the first, which may be a video's name, is a number."""
    for field in fields[1:]:
        try:
            float(field)
        except ValueError:
            continue
        return False
    return 1 < len(fields) <= MOST_COLUMNS
