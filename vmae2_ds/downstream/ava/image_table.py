"""Which key frame an image is, and how large: the `images` of COCO's and of VideoMAE-Action-Detection's JSON files.

Boxes of these files are in pixels and name their image by a number or a text; nothing else in them tells video, time and size.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, TypeGuard

from vmae2_ds.downstream.ava.row_files import time_ms_of
from vmae2_ds.downstream.ava.rows import Key, seconds_of
from vmae2_ds.downstream.json_files import read_json
from vmae2_ds.errors import DataError

PICTURES = (".jpg", ".jpeg", ".png", ".bmp", ".webp")
LARGEST = 1e6
Size = tuple[float, float]
"""Width and height in pixels."""


@dataclass(frozen=True)
class ImageTable:
    """The images of a file."""

    source: str
    """The file, for messages."""
    key_of: dict[int | str, Key]
    """Key frame by the id that boxes name it by."""
    size_of: dict[Key, Size]

    @property
    def id_of(self) -> dict[Key, int | str]:
        """The other way round."""
        return {key: image for image, key in self.key_of.items()}

    def rows(self, keys: Iterable[Key]) -> list[dict[str, Any]]:
        """Entries of `images` for some key frames: COCO's fields, and VideoMAE-Action-Detection's movie and timestamp."""
        entries, ids = [], self.id_of
        for video, time in keys:
            width, height = self.size_of[video, time]
            name = f"{video}/{seconds_of(time)}.jpg"
            entries.append(
                {
                    "id": ids[video, time],
                    "file_name": name,
                    "movie": video,
                    "timestamp": time / 1000,
                    "width": width,
                    "height": height,
                }
            )
        return entries


def read_image_table(file: Path) -> ImageTable:
    """The `images` of a JSON file.

    Raises:
        DataError: One line with the file and the image: it has no id, no key frame or no size, or an id comes twice.
    """
    found = read_json(file)
    table = image_table(found.get("images") if isinstance(found, dict) else None, str(file))
    if table is None:
        raise DataError(f'{file} has no list of "images" with id, width, height, and movie and timestamp or file_name')
    return table


def image_table(entries: Any, source: str) -> ImageTable | None:
    """The images of a list of entries; None where it is no list. Raises as `read_image_table`."""
    if not isinstance(entries, list):
        return None
    key_of: dict[int | str, Key] = {}
    size_of: dict[Key, Size] = {}
    for number, entry in enumerate(entries, 1):
        at = f"{source}: image {number}"
        if not isinstance(entry, dict) or not isinstance(entry.get("id"), int | str):
            raise DataError(f"{at} has no id")
        width, height = entry.get("width"), entry.get("height")
        if not (_is_length(width) and _is_length(height)):
            raise DataError(f"{at}, id {entry['id']!r}: width {width!r} and height {height!r} are no size in pixels")
        if entry["id"] in key_of:
            raise DataError(f"{at}: the id {entry['id']!r} comes twice")
        key = _key_of_entry(entry, at)
        if key in size_of:
            raise DataError(f"{at}: video {key[0]!r} at {seconds_of(key[1])} s comes twice")
        key_of[entry["id"]] = key
        size_of[key] = float(width), float(height)
    return ImageTable(source, key_of, size_of)


def table_of_size(keys: Iterable[Key], size: Size) -> ImageTable:
    """Images of one size, numbered from 1."""
    keys = list(keys)
    return ImageTable("images of one size", dict(enumerate(keys, 1)), dict.fromkeys(keys, size))


def key_of_name(name: str) -> Key:
    """The key frame that the name of an image tells: VIDEO,0902 or VIDEO/0902, with an ending or without.

    Raises:
        ValueError: It tells none.
    """
    path = PurePosixPath(name.replace("\\", "/"))
    if path.suffix.lower() in PICTURES:
        path = path.with_suffix("")
        name = path.name if "," in path.name else f"{path.parent.name},{path.name}"
    elif "," not in name:
        name = f"{path.parent.name},{path.name}"
    video, _, time = name.rpartition(",")
    if not video:
        raise ValueError(name)
    return video, time_ms_of(time)


def _is_length(value: Any) -> TypeGuard[float]:
    return isinstance(value, int | float) and 0 < value < LARGEST


def _key_of_entry(entry: dict[str, Any], at: str) -> Key:
    movie, time = entry.get("movie"), entry.get("timestamp")
    try:
        if movie is not None and time is not None:
            return str(movie), time_ms_of(str(time))
        return key_of_name(str(entry["file_name"]))
    except (KeyError, ValueError):
        told = {name: entry.get(name) for name in ("movie", "timestamp", "file_name") if name in entry}
        raise DataError(
            f"{at}, id {entry['id']!r}: {told} tell no video and time; give movie and timestamp, or a file_name such as "
            "VIDEO/0902.jpg"
        ) from None
