"""Boxes of persons at key frames, and the four kinds of files that the field keeps them in.

N boxes, F key frames. A file's kind is read off its content. What cannot be meant is refused with the file, the key frame and
the numbers; what detectors do write, a box that reaches over the edge of its picture, is cut, and told.
"""

from __future__ import annotations

import pickle
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from vmae2_ds.console.progress import counted
from vmae2_ds.disk import write_whole
from vmae2_ds.downstream.ava.box_json import from_json, json_rows
from vmae2_ds.downstream.ava.image_table import ImageTable, key_of_name
from vmae2_ds.downstream.ava.plain_pickle import load_plain_pickle
from vmae2_ds.downstream.ava.rows import Key, make_rows, read_detections, seconds_of, write_detections
from vmae2_ds.errors import DataError

Floats = NDArray[np.float64]
FormatName = Literal["coco", "videomae_ad", "pyslowfast", "mmaction2"]
COLUMNS = ("x1", "y1", "x2", "y2", "score")
FAR_OUT = 1.0
"""Past so many widths or heights outside of the picture a box is in another unit, or of another picture."""
MOST_SHARED = 64
"""Arrays of a pickle may be so many times as large as its file, when it names one for several key frames."""


@dataclass(frozen=True, eq=False)
class PersonBoxes(Mapping[Key, Floats]):
    """Key frame (video, time in ms) -> float64 (n, 5): x1, y1, x2, y2 in 0..1 of the picture's width and height, and score.

    Key frames are in the order of their file, and so are the boxes of each.
    """

    file: Path
    format: FormatName
    keys_F: tuple[Key, ...]
    first_F: NDArray[np.int64]
    """Where the boxes of each key frame begin, and the number of all: F + 1 values."""
    box_N5: Floats
    images: ImageTable | None = None
    """Sizes and ids of the pictures, where boxes are in pixels."""
    notes: tuple[str, ...] = ()
    """What was left out or cut, a line each."""

    @cached_property
    def _place_of(self) -> dict[Key, int]:
        return {key: place for place, key in enumerate(self.keys_F)}

    def __getitem__(self, key: Key) -> Floats:
        place = self._place_of[key]
        return self.box_N5[self.first_F[place] : self.first_F[place + 1]]

    def __iter__(self) -> Iterator[Key]:
        return iter(self.keys_F)

    def __len__(self) -> int:
        return len(self.keys_F)

    @property
    def frame_N(self) -> NDArray[np.int64]:  # noqa: N802 (a column)
        """Index of each box's key frame."""
        return np.repeat(np.arange(len(self)), np.diff(self.first_F))

    def of(self, chosen_N: NDArray[np.bool_]) -> PersonBoxes:
        """Some of the boxes; a key frame without any goes."""
        return _grouped(self, self.keys_F, self.frame_N[chosen_N], self.box_N5[chosen_N])


def make_person_boxes(boxes: Mapping[Key, ArrayLike], file: Path, images: ImageTable | None = None) -> PersonBoxes:
    """The same of arrays (n, 5) by key frame; those without a box are left out."""
    arrays = [np.asarray(array, np.float64).reshape(-1, 5) for array in boxes.values()]
    frame_N = np.repeat(np.arange(len(arrays)), [len(array) for array in arrays])
    return _grouped(_empty(file, "mmaction2", images), tuple(boxes), frame_N, np.concatenate([_NONE, *arrays]))


def read_person_boxes(file: Path, images: Path | None = None, *, category: int | None = None) -> PersonBoxes:
    """Boxes of a file: results in COCO's form or VideoMAE-Action-Detection's, PySlowFast's csv, or mmaction2's pickle.

    Args:
        file: The file.
        images: JSON file with the `images` that a file of boxes in pixels names; it may hold them itself.
        category: Id of persons in COCO's form; default: of the category named person, else 1.

    Raises:
        DataError: One line: none of these, a key frame that cannot be told, a number that is none, a score beyond 0..1, a box
            inside out or far outside of its picture.
    """
    return checked(read_as_written(file, images, category=category))


def read_as_written(file: Path, images: Path | None = None, *, category: int | None = None) -> PersonBoxes:
    """Boxes of a file with the numbers that it has, whatever they are. Raises DataError where they cannot be told at all."""
    try:
        with file.open("rb") as opened:
            start = opened.read(64).removeprefix(b"\xef\xbb\xbf").lstrip()
    except OSError as error:
        raise DataError(f"{file}: {error.strerror}") from None
    if start.startswith((b"[", b"{")):
        found = from_json(file, images, category)
        empty = replace(_empty(file, found.format, found.images), notes=found.notes)
        return _grouped(empty, found.keys, found.frame_N, found.box_N5)
    if start.startswith((b"\x80", b"}", b"(")):
        return _from_pickle(file)
    return _from_csv(file)


def write_person_boxes(
    boxes: Mapping[Key, ArrayLike], file: Path, format: FormatName, images: ImageTable | None = None
) -> None:
    """Write boxes, the whole file or none; a key frame without boxes has no place in any of the forms.

    Digits that stay: all of float64 in mmaction2; 6 after the point in pyslowfast; 6 of a pixel and all of the score in coco
    and videomae_ad.

    Args:
        boxes: By key frame; PersonBoxes, or any such mapping.
        file: Where to; what is there is replaced.
        format: Whose form.
        images: Sizes and ids of the pictures, for coco and videomae_ad; default: those that the boxes came with.

    Raises:
        DataError: Sizes are asked for and not known, or a name that the form cannot hold.
    """
    held = boxes if isinstance(boxes, PersonBoxes) else make_person_boxes(boxes, file)
    _WRITERS[format](held, file, images or held.images)


def checked(boxes: PersonBoxes) -> PersonBoxes:
    """Boxes within their pictures; raises DataError as `read_person_boxes`."""
    box_N5 = boxes.box_N5
    corner_N4 = box_N5[:, :4]
    faults: tuple[tuple[Any, str], ...] = (
        (~np.isfinite(box_N5).all(1), "is no box of finite numbers"),
        (~((box_N5[:, 4] >= 0) & (box_N5[:, 4] <= 1)), "has a score beyond 0..1; are these boxes of detected persons?"),
        ((corner_N4[:, 2:] < corner_N4[:, :2]).any(1), "is inside out: it ends before it begins"),
        ((np.abs(corner_N4 - 0.5) > 0.5 + FAR_OUT).any(1), _far_out(boxes)),
    )
    for is_bad_N, why in faults:
        if is_bad_N.any():
            raise DataError(_told(boxes, is_bad_N, why))
    is_over_N: Any = ((corner_N4 < 0) | (corner_N4 > 1)).any(1)
    if not is_over_N.any():
        return boxes
    cut_N5 = np.clip(box_N5, 0, 1)
    is_left_N = ~is_over_N | (cut_N5[:, 2:4] > cut_N5[:, :2]).all(1)
    beyond = max(corner_N4.max() - 1, -corner_N4.min())
    note = (
        f"{boxes.file}: {counted(int(is_over_N.sum()), 'box', 'boxes')} of {len(box_N5)} reach over the edge, by up to "
        f"{beyond:.3g} of the picture, and are cut; {int((~is_left_N).sum())} with nothing inside are left out"
    )
    return replace(boxes, box_N5=cut_N5, notes=(*boxes.notes, note)).of(is_left_N)


def _far_out(boxes: PersonBoxes) -> str:
    if boxes.images is None:
        return "is in pixels, it seems; a file of this form has parts of the picture's width and height, 0 to 1"
    return f"lies far outside of its picture; are the sizes in {boxes.images.source} those that the detector saw?"


def _told(boxes: PersonBoxes, is_bad_N: NDArray[np.bool_], why: str) -> str:
    """The first box of which something is wrong, in one line."""
    first = int(is_bad_N.argmax())
    place = int(np.searchsorted(boxes.first_F, first, "right")) - 1
    video, time = boxes.keys_F[place]
    values = ", ".join(f"{name} {value:.6g}" for name, value in zip(COLUMNS, boxes.box_N5[first], strict=True))
    more = f" ({int(is_bad_N.sum())} of {len(is_bad_N)} boxes)" if is_bad_N.sum() > 1 else ""
    number = first - int(boxes.first_F[place]) + 1
    return f"{boxes.file}: video {video!r} at {seconds_of(time)} s, box {number}: {values} {why}{more}"


_NONE = np.zeros((0, 5))


def _empty(file: Path, format: FormatName, images: ImageTable | None = None) -> PersonBoxes:
    return PersonBoxes(file, format, (), np.zeros(1, np.int64), _NONE, images)


def _grouped(like: PersonBoxes, keys: Iterable[Key], frame_N: NDArray[Any], box_N5: Floats) -> PersonBoxes:
    """Boxes in any order as those of their key frames; key frames without a box are left out."""
    keys = tuple(keys)
    order_N = np.argsort(frame_N, kind="stable")
    count_F = np.bincount(frame_N, minlength=len(keys))
    first_F = np.concatenate([[0], np.cumsum(count_F[count_F > 0])]).astype(np.int64)
    kept = tuple(key for key, count in zip(keys, count_F.tolist(), strict=True) if count)
    return replace(like, keys_F=kept, first_F=first_F, box_N5=np.ascontiguousarray(box_N5[order_N]))


def _from_csv(file: Path) -> PersonBoxes:
    """PySlowFast's columns: AVA's, with an empty action for a person's box; files to train on repeat a box for each action."""
    rows = read_detections(file)
    if len(rows) and (rows.label_N >= 0).all() and (rows.score_N == np.round(rows.score_N)).all():
        raise DataError(
            f"{file} has actions and whole numbers behind them, as truth with person ids has, and no scores"
        )
    box_N5 = np.column_stack([rows.box_N4, rows.score_N])
    boxes = _grouped(_empty(file, "pyslowfast"), rows.keys, rows.frame_N, box_N5)
    if not (rows.label_N >= 0).any():
        return boxes
    table_N6 = np.column_stack([rows.frame_N, box_N5])
    is_first_N = np.zeros(len(rows), bool)
    is_first_N[np.unique(table_N6, axis=0, return_index=True)[1]] = True
    return _grouped(boxes, rows.keys, rows.frame_N[is_first_N], box_N5[is_first_N])


def _from_pickle(file: Path) -> PersonBoxes:
    """mmaction2's: "VIDEO,0902" -> array (n, 5), or (n, 4) without scores, which then are 1."""
    found = load_plain_pickle(file)
    if not isinstance(found, dict):
        raise DataError(f'{file} holds a {type(found).__name__}, where boxes by "VIDEO,0902" are looked for')
    keys: list[Key] = []
    arrays = [_NONE]
    room = MOST_SHARED * file.stat().st_size
    for name, value in found.items():
        at = f"{file}: entry {str(name)[:100]!r}"
        try:
            keys.append(key_of_name(name if isinstance(name, str) else name.decode()))
            array = np.asarray(value) if len(value) else _NONE
        except (AttributeError, TypeError, ValueError):
            raise DataError(f'{at}: no array by a name such as "VIDEO,0902"') from None
        if array.ndim != 2 or array.shape[1] not in (4, 5) or array.dtype.kind not in "fiu":
            raise DataError(
                f"{at}: an array {array.shape} of {array.dtype}, where n boxes are (n, 5) or (n, 4) numbers"
            )
        room -= 40 * len(array)
        if room < 0:
            raise DataError(
                f"{at}: the arrays are more than {MOST_SHARED} times as large as the file; it is no file of boxes"
            )
        arrays.append(array if array.shape[1] == 5 else np.column_stack([array, np.ones(len(array))]))
    (video, time), times = Counter(keys).most_common(1)[0] if keys else (("", 0), 0)
    if times > 1:
        raise DataError(f"{file}: video {video!r} at {seconds_of(time)} s comes {times} times, written in two ways")
    frame_N = np.repeat(np.arange(len(keys)), [len(array) for array in arrays[1:]])
    return _grouped(_empty(file, "mmaction2"), keys, frame_N, np.concatenate(arrays, dtype=np.float64))


def _write_csv(boxes: PersonBoxes, file: Path, images: ImageTable | None) -> None:
    del images
    per_row = chain.from_iterable([key] * len(boxes[key]) for key in boxes)
    box_N5, none_N = boxes.box_N5, np.full(len(boxes.box_N5), -1)
    write_detections(make_rows(list(per_row), box_N5[:, :4], none_N, box_N5[:, 4]), file)


def _write_pickle(boxes: PersonBoxes, file: Path, images: ImageTable | None) -> None:
    del images
    arrays = {f"{video},{seconds_of(time)}": boxes[video, time] for video, time in boxes}
    # numpy 1 does not know the name that numpy 2 gives its module, and both know the one that numpy 1 gives it
    here, everywhere = (f"cnumpy.{core}.multiarray\n".encode() for core in ("_core", "core"))
    write_whole(file, pickle.dumps(arrays, protocol=3).replace(here, everywhere, 1))


def _write_json(boxes: PersonBoxes, file: Path, images: ImageTable | None, *, is_coco: bool) -> None:
    write_whole(file, json_rows(boxes.keys_F, boxes.frame_N, boxes.box_N5, images, is_coco=is_coco))


_WRITERS: dict[str, Callable[[PersonBoxes, Path, ImageTable | None], None]] = {
    "coco": lambda *asked: _write_json(*asked, is_coco=True),
    "videomae_ad": lambda *asked: _write_json(*asked, is_coco=False),
    "pyslowfast": _write_csv,
    "mmaction2": _write_pickle,
}
