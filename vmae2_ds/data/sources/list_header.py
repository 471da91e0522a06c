"""The first line of a CSV list: which columns it has, and what is wrong where it names none."""

from __future__ import annotations

import difflib
import logging
import os
import shlex
from collections.abc import Callable
from pathlib import Path

from vmae2_ds.errors import DataError

log = logging.getLogger(__name__)

COLUMNS = ("path", "label", "source", "start", "frames", "shard", "offset", "bytes")
PACKED = ("shard", "offset", "bytes")
"""Columns of a list of tar shards: all of them or none."""
VIDEO_SUFFIXES = (
    ".mp4", ".avi", ".mkv", ".webm", ".mov", ".ts", ".m4v", ".mpg", ".mpeg", ".flv", ".wmv", ".ogv", ".3gp", ".video",
    ".3g2", ".asf", ".divx", ".f4v", ".m2ts", ".m2v", ".mpe", ".mts", ".mxf", ".nut", ".qt", ".vob", ".y4m",
    ".h264", ".264", ".h265", ".265", ".hevc", ".ivf",
)  # fmt: skip
"""What files of videos are called, in shards and out of them."""
_SEPARATORS = {";": "';'", "\t": "tabs", "|": "'|'", " ": "spaces"}
_KNOWN = f"the first line must name the columns, separated by commas, out of {', '.join(COLUMNS)}"


def columns_of(
    path: Path, header: list[str], ignore: tuple[str, ...] | None, error: Callable[[str, str], DataError]
) -> dict[str, int]:
    """Position of each known column: {name: position}.

    Args:
        path: The list, for the log.
        header: Cells of its first line.
        ignore: Columns to leave out; empty: all that are none of ours; None: further columns are refused.
        error: Makes the error of a problem and its way out.
    """
    names = [cell.strip() for cell in header]
    if not any(name in COLUMNS for name in names):
        _refuse_other_forms(header, names, error)
    unknown = [name for name in names if name not in COLUMNS]
    left_out = [name for name in names if ignore is not None and name in (ignore or unknown)]
    if refused := [name for name in unknown if name not in left_out]:
        raise _unknown(names, refused, error)
    kept = [name for name in names if name not in left_out]
    if twice := [name for name in kept if kept.count(name) > 1]:
        raise error(f"column {twice[0]!r} given twice", "name each column once")
    if "path" not in kept:
        raise error("no column 'path'", "name the column that holds the videos 'path'")
    if 0 < sum(name in kept for name in PACKED) < len(PACKED):
        raise error("tar shards half described", f"they need all of {', '.join(PACKED)}")
    if left_out:
        log.info("%s: columns left out: %s", path, ", ".join(map(repr, left_out)))
    return {name: at for at, name in enumerate(names) if name in kept}


def _unknown(names: list[str], unknown: list[str], error: Callable[[str, str], DataError]) -> DataError:
    """All of them at once; a name of ours is guessed where the list lacks it."""
    absent = [name for name in COLUMNS if name not in names]
    near = {name: difflib.get_close_matches(name.lower(), absent, n=1, cutoff=0.7) for name in unknown}
    hints = [f"did you mean {found[0]!r} by {name!r}? " for name, found in near.items() if found]
    if len(unknown) == 1 and hints:
        hints = [f"did you mean {near[unknown[0]][0]!r}? "]
    options = " ".join(shlex.quote(name) for name in unknown)
    pathless = "" if "path" in names else "; and no column 'path'"
    many = "s" if len(unknown) > 1 else ""
    return error(
        f"unknown column{many} {', '.join(map(repr, unknown))}{pathless}",
        f"{''.join(hints)}remove {'them' if many else 'it'}, or give --data.ignore-columns {options}; {_KNOWN}",
    )


def _refuse_other_forms(header: list[str], names: list[str], error: Callable[[str, str], DataError]) -> None:
    """Other separators, and lists that begin with their first video."""
    text = ",".join(header).strip()
    for separator, said in _SEPARATORS.items():
        cells = [cell.strip().strip('"') for cell in text.split(separator)]
        if len(cells) < 2 or len(names) > 1:
            continue
        if any(cell.lower() in COLUMNS for cell in cells):
            raise error(
                f"columns separated by {said}, not by commas", f"save it with commas: {','.join(cells)}; {_KNOWN}"
            )
        if _has_suffix(cells[0]) and not (separator == " " and _has_suffix(text)):
            raise error(
                f"no header line, and cells separated by {said}", f"save it with commas and a first line; {_KNOWN}"
            )
    if any(looks_like_a_video(name) for name in names):
        guess = ["path" if looks_like_a_video(name) else "label" if name.isdigit() else "?" for name in names]
        first = "a first line" if "?" in guess or guess.count("path") > 1 else f"the first line {','.join(guess)!r}"
        raise error("no header line: the first line is already a video", f"put {first} on top; {_KNOWN}")


def videos_below(folder: str | Path) -> list[str]:
    """The files in a folder, at any depth, that are called like videos, in order."""
    return sorted(
        os.path.join(place, name)
        for place, _, names in os.walk(folder)
        for name in names
        if name.lower().endswith(VIDEO_SUFFIXES) and not name.startswith(".")
    )


def looks_like_a_video(cell: str) -> bool:
    """A path, or a URL, more likely than the name of a column."""
    return "/" in cell or "\\" in cell or _has_suffix(cell)


def _has_suffix(cell: str) -> bool:
    return os.path.splitext(cell)[1].lower() in VIDEO_SUFFIXES
