"""Rows of AVA's csv files as columns: truth with and without person ids, frames without a row, detections, exclusions.

N rows, F key frames. A key frame is known by (video, time in ms), however the file writes the time: 0902, 902, 902.0.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from vmae2_ds.disk import whole_file
from vmae2_ds.downstream.ava.row_files import RowFile, RowKind
from vmae2_ds.errors import DataError

Key = tuple[str, int]
"""Name of the video, time in ms."""
WRITTEN_AT_ONCE = 1 << 16
"""Rows that are turned into text together."""
ROOM = 1.03
"""How much longer columns are made than the rows so far make expect of the whole file; what stays empty takes no memory."""


@dataclass(frozen=True)
class BoxRows:
    """N rows: a box and an action each, in the order of their file."""

    source: str
    """The file, for messages."""
    videos: tuple[str, ...]
    video_F: NDArray[np.int32]
    """Index into `videos` of every key frame that the file names, with rows or without, in the order of the file."""
    time_ms_F: NDArray[np.int64]
    frame_N: NDArray[np.int32]
    """Index into the key frames."""
    box_N4: NDArray[np.float64]
    """x1, y1, x2, y2 as shares of the frame's width and height, as the file has them: beyond 0..1 or inside out too."""
    label_N: NDArray[np.int32]
    """Action id; -1: none."""
    score_N: NDArray[np.float64]
    """1 for truth."""
    person_N: NDArray[np.int64]
    """-1: none."""

    def __len__(self) -> int:
        return len(self.frame_N)

    @property
    def video_N(self) -> NDArray[np.int32]:  # noqa: N802 (a column)
        """Index into `videos`."""
        return self.video_F[self.frame_N]

    @property
    def time_ms_N(self) -> NDArray[np.int64]:  # noqa: N802 (a column)
        """Time of the key frame."""
        return self.time_ms_F[self.frame_N]

    @property
    def keys(self) -> tuple[Key, ...]:
        """The key frames."""
        return tuple(
            (self.videos[video], time) for video, time in zip(self.video_F, self.time_ms_F.tolist(), strict=True)
        )

    def of(self, chosen: NDArray[np.bool_] | NDArray[np.integer[Any]]) -> BoxRows:
        """Some of the rows; all key frames stay."""
        columns = ("frame_N", "box_N4", "label_N", "score_N", "person_N")
        return replace(self, **{name: getattr(self, name)[chosen] for name in columns})


def make_rows(
    keys: Sequence[Key],
    box_N4: ArrayLike,
    label_N: ArrayLike,
    score_N: ArrayLike | None = None,
    person_N: ArrayLike | None = None,
    *,
    frames: Sequence[Key] = (),
    source: str = "these rows",
) -> BoxRows:
    """Rows of what is at hand: the key frame of each row, boxes (N, 4), action ids, scores (1), person ids (-1).

    frames: key frames to name beside those of the rows, such as those without any.
    """
    frame_of: dict[Key, int] = {}
    frame_N = np.fromiter((frame_of.setdefault(key, len(frame_of)) for key in keys), np.int32, len(keys))
    for key in frames:
        frame_of.setdefault(key, len(frame_of))
    return _rows(
        source,
        frame_of,
        frame_N,
        np.array(box_N4, np.float64).reshape(-1, 4),
        np.array(label_N, np.int32),
        None if score_N is None else np.array(score_N, np.float64),
        None if person_N is None else np.array(person_N, np.int64),
    )


def read_truth(file: Path) -> BoxRows:
    """Truth: video, time, x1, y1, x2, y2, action id, and a person id where there is one; rows of 2 columns name a frame alone.

    Raises:
        DataError: One line with the file, the line, and what is wrong in it: the number of columns, a field that is no number.
    """
    return _read(file, RowKind.TRUTH)


def read_detections(file: Path) -> BoxRows:
    """Detections: video, time, x1, y1, x2, y2, action id (empty: a person's box without one), score. Raises as `read_truth`."""
    return _read(file, RowKind.DETECTIONS)


def read_excluded(file: Path) -> frozenset[Key]:
    """Key frames that are left out of scoring: video, time. Raises as `read_truth`."""
    return frozenset(_read(file, RowKind.FRAMES).keys)


def write_detections(rows: BoxRows, file: Path) -> None:
    """Write detections as AVA csv: boxes and scores with 6 digits, the whole file or none.

    Raises:
        DataError: The name of a video that no csv file can hold.
    """
    with whole_file(file) as part, part.open("w", encoding="utf-8", errors="surrogateescape", newline="") as out:
        out.writelines(_lines(rows))


def seconds_of(time_ms: int) -> str:
    """The time as AVA's files write it: 0902, and 12.5 where it is no whole second."""
    whole, rest = divmod(time_ms, 1000)
    return f"{whole:04d}" if not rest else f"{time_ms / 1000:.3f}".rstrip("0")


def names_in_csv(videos: Sequence[str]) -> list[str]:
    """Names of videos as csv files hold them: in quotes where they have a comma.

    Raises:
        DataError: A name that no csv file can hold.
    """
    for video in videos:
        if any(character in video for character in '\n\r"') or video != video.strip():
            raise DataError(
                f"the video {video!r} has a name that no csv file can hold: rename it without quotes and breaks"
            )
    return [f'"{video}"' if "," in video else video for video in videos]


def _lines(rows: BoxRows) -> Iterator[str]:
    names = names_in_csv(rows.videos)
    heads = [
        f"{names[video]},{seconds_of(time)}" for video, time in zip(rows.video_F, rows.time_ms_F.tolist(), strict=True)
    ]
    for start in range(0, len(rows), WRITTEN_AT_ONCE):
        some = slice(start, start + WRITTEN_AT_ONCE)
        columns = (rows.frame_N[some], *rows.box_N4[some].T, rows.label_N[some], rows.score_N[some])
        for frame, x1, y1, x2, y2, label, score in zip(*(column.tolist() for column in columns), strict=True):
            action = label if label >= 0 else ""
            yield f"{heads[frame]},{x1:.6f},{y1:.6f},{x2:.6f},{y2:.6f},{action},{score:.6f}\n"


def _read(file: Path, kind: RowKind) -> BoxRows:
    rows = RowFile(file, kind)
    columns: list[NDArray[Any]] = []
    end = 0
    for piece in rows.pieces():
        start, end = end, end + len(piece[0])
        if not columns or end > len(columns[0]):  # room for all of the file, should its rows stay as long as they are
            columns = _with_room(columns or piece, start, math.ceil(end * ROOM / rows.share_read))
        for column, part in zip(columns, piece, strict=True):
            column[start:end] = part
    frame_N, box_N4, label_N, last_N = (column[:end] for column in columns)
    score, person = (last_N, None) if kind is RowKind.DETECTIONS else (None, last_N.astype(np.int64))
    return _rows(str(file), rows.frame_of, frame_N, box_N4, label_N, score, person)


def _with_room(columns: list[NDArray[Any]], filled: int, length: int) -> list[NDArray[Any]]:
    """Longer columns with what is filled of these, one after the other: at 26 million rows the boxes alone are 0.8 GB."""
    longer = []
    for column in columns:
        longer.append(np.empty((length, *column.shape[1:]), column.dtype))
        longer[-1][:filled] = column[:filled]
    return longer


def _rows(
    source: str,
    frame_of: dict[Key, int],
    frame_N: NDArray[np.int32],
    box_N4: NDArray[np.float64],
    label_N: NDArray[np.int32],
    score_N: NDArray[np.float64] | None,
    person_N: NDArray[np.int64] | None,
) -> BoxRows:
    video_of: dict[str, int] = {}
    video_F = np.fromiter((video_of.setdefault(video, len(video_of)) for video, _ in frame_of), np.int32, len(frame_of))
    time_ms_F = np.fromiter((time for _, time in frame_of), np.int64, len(frame_of))
    every = frame_N.shape
    score_N = np.broadcast_to(np.float64(1), every) if score_N is None else score_N
    person_N = np.broadcast_to(np.int64(-1), every) if person_N is None else person_N
    return BoxRows(source, tuple(video_of), video_F, time_ms_F, frame_N, box_N4, label_N, score_N, person_N)
