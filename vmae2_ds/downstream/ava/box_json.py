"""Persons' boxes as JSON: results in COCO's form, as any detector writes them, and VideoMAE-Action-Detection's.

Both are lists of {"image_id", "bbox": [x, y, width, height] in pixels, "score"}; COCO's have a "category_id" as well.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from vmae2_ds.downstream.ava.image_table import ImageTable, image_table, key_of_name, read_image_table
from vmae2_ds.downstream.ava.rows import Key, seconds_of
from vmae2_ds.downstream.json_files import read_json
from vmae2_ds.errors import DataError

PERSON = 1
"""The category of persons in COCO, and in results of detectors that were trained on it."""
DECIMALS = 6
"""Digits of a pixel behind the point that are written."""


class JsonBoxes(NamedTuple):
    """What a file says, in its order."""

    format: Literal["coco", "videomae_ad"]
    keys: tuple[Key, ...]
    frame_N: NDArray[np.int64]
    box_N5: NDArray[np.float64]
    """x1, y1, x2, y2 in parts of the picture, and score."""
    images: ImageTable
    notes: tuple[str, ...]


def from_json(file: Path, images: Path | None, category: int | None) -> JsonBoxes:
    """Boxes of a file; arguments and errors as `person_boxes.read_person_boxes`."""
    found = read_json(file)
    rows = found.get("annotations") if isinstance(found, dict) else found
    if not isinstance(rows, list):
        raise DataError(f'{file} is no list of results, and has no "annotations": these are no boxes')
    own = image_table(found.get("images"), str(file)) if isinstance(found, dict) else None
    table = read_image_table(images) if images is not None else own
    is_coco = isinstance(found, dict) or any(isinstance(row, dict) and "category_id" in row for row in rows)
    rows, notes = _of_persons(file, rows, found, category)
    ids = _column(file, rows, "image_id")
    if table is None and rows:
        raise DataError(
            f"{file}: boxes are in pixels, and nothing tells the sizes of the pictures (the first is image {ids[0]!r}); "
            'give --images FILE, a JSON file with "images" of id, width, height, and movie and timestamp or file_name'
        )
    table = table or ImageTable("no images", {}, {})
    keys, frame_N = _frames(file, ids, table)
    box_N5 = np.column_stack([_boxes(file, rows), _scores(file, rows, notes)])
    size_F2 = np.array([table.size_of[key] for key in keys], np.float64).reshape(-1, 2)
    box_N5[:, 2:4] += box_N5[:, :2]
    box_N5[:, :4] /= np.tile(size_F2, 2)[frame_N]
    return JsonBoxes("coco" if is_coco else "videomae_ad", keys, frame_N, box_N5, table, tuple(notes))


def json_rows(
    keys: Sequence[Key],
    frame_N: NDArray[np.int64],
    box_N5: NDArray[np.float64],
    images: ImageTable | None,
    *,
    is_coco: bool,
) -> str:
    """The text of a file: COCO's form holds its own `images`, VideoMAE-Action-Detection's refers to those of its annotations.

    Raises:
        DataError: A key frame without a size.
    """
    missing = [key for key in keys if images is None or key not in images.size_of]
    if missing or images is None:
        video, time = missing[0] if missing else ("", 0)
        raise DataError(
            f"{'coco' if is_coco else 'videomae_ad'} has boxes in pixels, and {len(missing)} of {len(keys)} key frames have no "
            f"size, the first video {video!r} at {seconds_of(time)} s; give --images FILE with their sizes and ids"
            + (", or --size WIDTHxHEIGHT" if is_coco else "")
        )
    id_of = images.id_of
    ids = [id_of[key] for key in keys]
    size_F2 = np.array([images.size_of[key] for key in keys], np.float64).reshape(-1, 2)
    pixel_N4 = box_N5[:, :4] * np.tile(size_F2, 2)[frame_N]
    pixel_N4[:, 2:] -= pixel_N4[:, :2]
    rows: list[dict[str, Any]] = [
        {"image_id": ids[frame], "bbox": box, "score": score}
        for frame, box, score in zip(
            frame_N.tolist(), pixel_N4.round(DECIMALS).tolist(), box_N5[:, 4].tolist(), strict=True
        )
    ]
    if not is_coco:
        return json.dumps(rows)
    for row in rows:
        row["category_id"] = PERSON
    persons = [{"id": PERSON, "name": "person"}]
    return json.dumps({"images": images.rows(keys), "categories": persons, "annotations": rows})


def _of_persons(
    file: Path, rows: list[Any], found: Any, category: int | None
) -> tuple[list[dict[str, Any]], list[str]]:
    """The rows of persons, and what is said of the others."""
    for number, row in enumerate(rows, 1):
        if not isinstance(row, dict):
            raise DataError(f"{file}: box {number} is {str(row)[:60]!r}, where image_id, bbox and score are looked for")
    named = found.get("categories") if isinstance(found, dict) else None
    if category is None:
        entries = [entry for entry in named if isinstance(entry, dict)] if isinstance(named, list) else []
        persons = [entry.get("id") for entry in entries if str(entry.get("name")).lower() == "person"]
        category = persons[0] if len(persons) == 1 else PERSON
    kept = [row for row in rows if row.get("category_id", category) == category]
    if len(kept) == len(rows):
        return rows, []
    others = Counter(str(row["category_id"]) for row in rows if row.get("category_id", category) != category)
    said = ", ".join(f"{count} of {name}" for name, count in others.most_common(3))
    if not kept:
        raise DataError(
            f"{file}: none of {len(rows)} boxes is of category {category}, a person; the categories are {said}; name that of "
            "persons by --category"
        )
    return kept, [
        f"{file}: {len(rows) - len(kept)} of {len(rows)} boxes are of other categories than {category}: left out"
    ]


def _column(file: Path, rows: list[dict[str, Any]], name: str) -> list[Any]:
    try:
        return [row[name] for row in rows]
    except KeyError:
        number = next(number for number, row in enumerate(rows, 1) if name not in row)
        raise DataError(f"{file}: box {number} has no {name}; it has {', '.join(map(str, rows[number - 1]))}") from None


def _frames(file: Path, ids: list[Any], table: ImageTable) -> tuple[tuple[Key, ...], NDArray[np.int64]]:
    """The key frames that are named, and which of them each box is of."""
    frame_of: dict[Key, int] = {}
    frame_of_id: dict[Any, int] = {}
    for number, image in enumerate(ids, 1):
        if not isinstance(image, int | str):
            raise DataError(f"{file}: box {number} has image_id {str(image)[:60]!r}, which is no number and no text")
        if image not in frame_of_id:
            frame_of_id[image] = frame_of.setdefault(_key(file, number, image, table), len(frame_of))
    return tuple(frame_of), np.fromiter((frame_of_id[image] for image in ids), np.int64, len(ids))


def _key(file: Path, number: int, image: int | str, table: ImageTable) -> Key:
    key = table.key_of.get(image)
    if key is None and isinstance(image, str):
        try:
            key = key_of_name(image)
        except ValueError:
            key = table.key_of.get(int(image)) if image.isascii() and image.isdigit() else None
    if key is None:
        raise DataError(
            f"{file}: box {number} is of image {image!r}, which {table.source} does not have, and which is no VIDEO,0902"
        )
    if key not in table.size_of:
        raise DataError(
            f"{file}: box {number} is of video {key[0]!r} at {seconds_of(key[1])} s, whose size {table.source} does not have"
        )
    return key


def _boxes(file: Path, rows: list[dict[str, Any]]) -> NDArray[np.float64]:
    """x, y, width, height in pixels."""
    boxes = _column(file, rows, "bbox")
    try:
        return _numbers(boxes).reshape(len(boxes), 4)
    except (TypeError, ValueError, OverflowError):
        for number, box in enumerate(boxes, 1):
            try:
                _numbers(box).reshape(4)
            except (TypeError, ValueError, OverflowError):
                raise DataError(
                    f"{file}: box {number} has bbox {str(box)[:80]}, where x, y, width, height in pixels are looked for"
                ) from None
        raise


def _scores(file: Path, rows: list[dict[str, Any]], notes: list[str]) -> NDArray[np.float64]:
    if rows and not any("score" in row for row in rows):
        notes.append(f"{file}: no box has a score, so that each counts as 1")
        return np.ones(len(rows))
    scores = _column(file, rows, "score")
    try:
        return _numbers(scores).reshape(len(scores))
    except (TypeError, ValueError, OverflowError):
        bad = next((number for number, score in enumerate(scores, 1) if not isinstance(score, int | float)), 1)
        raise DataError(f"{file}: box {bad} has the score {str(scores[bad - 1])[:60]!r}, which is no number") from None


def _numbers(values: list[Any]) -> NDArray[np.float64]:
    """Raises ValueError where there is a text or nothing instead, which numpy would take for a number or for nan."""
    numbers = np.array(values)
    if numbers.size and numbers.dtype.kind not in "fiu":
        raise ValueError
    return numbers.astype(np.float64)
