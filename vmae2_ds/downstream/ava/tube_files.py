"""Files of action tubes: annotations of UCF101-24, JHMDB and MultiSports, AVA csv files of dense key frames, what was found.

In the three sets' files frames count from 1 and boxes are in pixels from 0; here boxes keep the unit of the truth: pixels, or
shares of a frame for AVA csv (docs/PAPER.md#tubes). T tubes, N boxes, V videos.
"""

from __future__ import annotations

import math
import pickle
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from vmae2_ds.console.progress import counted
from vmae2_ds.disk import whole_file
from vmae2_ds.downstream.ava.label_map import LabelMap
from vmae2_ds.downstream.ava.linking import FoundBoxes
from vmae2_ds.downstream.ava.plain_pickle import load_plain_pickle
from vmae2_ds.downstream.ava.rows import BoxRows, read_detections, read_truth
from vmae2_ds.downstream.ava.tubes import Floats, Ints, Tubes, make_tubes
from vmae2_ds.errors import DataError

Part = Literal["train", "test"]
KEYS = ("labels", "gttubes", "nframes", "resolution", "train_videos", "test_videos")
LAST_FRAME = 10**9
A_MS = 1.0
"""How far a time may lie from its frame: files round it to a millisecond or a microsecond."""


class Clock(NamedTuple):
    """How times in AVA csv files stand for frames."""

    fps: float
    """Frames, or key frames, a second."""
    first_frame: int = 1
    """Number of the frame at time 0."""

    def frames(self, time_ms_N: Ints, said: str) -> Ints:
        """Numbers of the frames at these times; raises DataError for one that lies between frames, after `said`."""
        frame_N = np.rint(time_ms_N * (self.fps / 1000)).astype(np.int64)
        off = np.flatnonzero(np.abs(time_ms_N - frame_N * (1000 / self.fps)) > A_MS)
        if len(off):
            time, near = time_ms_N[off[0]] / 1000, frame_N[off[0]] / self.fps
            raise DataError(
                f"{said}: {counted(len(off), 'time')} between frames at {self.fps:g} a second, first {time:.3f} s (nearest "
                f"frame {near:.3f} s); give --fps as many frames, or key frames, as the set has in a second"
            )
        late = np.flatnonzero(np.abs(frame_N) > LAST_FRAME)
        if len(late):
            raise DataError(
                f"{said}: a time of {time_ms_N[late[0]] / 1000:g} s is beyond all videos; times are seconds"
            )
        return frame_N + self.first_frame

    def time_ms(self, frame: int) -> int:
        """The time of a frame, to the millisecond."""
        return round((frame - self.first_frame) * (1000 / self.fps))


@dataclass(frozen=True)
class TubeSet:
    """True tubes of a set, and its videos that are scored."""

    source: str
    labels: LabelMap
    truth: Tubes
    """Over `truth.videos`, the scored ones; boxes in pixels where `size_V2` is known, else in shares of a frame."""
    frames_V: Ints
    """How many frames a video has; 0: not known."""
    size_V2: Floats | None
    """Width and height in pixels."""
    num_unknown: int = 0
    """True boxes of actions that are not in the label map, which are left out."""


def is_pickle(file: Path) -> bool:
    """Whether a file is taken for a pickle: by its name."""
    return file.suffix in (".pkl", ".pickle")


def read_tube_pickle(file: Path, part: Part = "test", split: int = 1) -> TubeSet:
    """The annotations of UCF101-24, JHMDB or MultiSports: one pickle for all videos.

    It holds the names of the classes, for each video tubes by class (arrays of frame, x1, y1, x2, y2), its number of frames and
    its height and width, and for each split the videos of both parts. Action ids count from 1 in the order of the names.

    Raises:
        DataError: It is no such file, lacks what it should have of a video, or is more than plain data.
    """
    data = load_plain_pickle(file)
    missing = [key for key in KEYS if not isinstance(data, dict) or key not in data]
    if missing:
        raise DataError(
            f"{file}: no {', '.join(missing)}; the annotations of UCF101-24, JHMDB and MultiSports are a dict of "
            f"{', '.join(KEYS)}"
        )
    for key in KEYS:
        _check_is(file, key, data[key], list if key in ("labels", "train_videos", "test_videos") else dict)
    names = tuple(map(str, data["labels"]))
    splits = data[f"{part}_videos"]
    if not 1 <= split <= len(splits):
        raise DataError(f"{file}: there is no split {split} of {part} videos; it has {len(splits)}")
    videos = tuple(map(str, splits[split - 1]))
    for key in ("gttubes", "nframes", "resolution"):
        lost = [video for video in videos if video not in data[key]]
        if lost:
            raise DataError(f"{file}: {key} lacks {len(lost)} of the {len(videos)} {part} videos, {lost[0]!r} first")
    found = list(_true_tubes(file, data["gttubes"], videos, len(names)))
    arrays = [array for _, _, array in found]
    table_F5 = np.concatenate([np.zeros((0, 5)), *arrays])
    truth = make_tubes(
        videos,
        np.array([video for video, _, _ in found], np.int64),
        np.array([klass for _, klass, _ in found], np.int64),
        np.ones(len(found)),
        np.repeat(np.arange(len(found)), [len(array) for array in arrays]),
        table_F5[:, 0].astype(np.int64),
        table_F5[:, 1:],
        str(file),
    )
    size_V2 = np.zeros((len(videos), 2))
    for place, video in enumerate(videos):
        try:
            height, width = data["resolution"][video]
            size_V2[place] = width, height
        except (TypeError, ValueError):
            raise DataError(f"{file}: the resolution of {video!r} is no height and width in pixels") from None
    frames_V = np.array([int(data["nframes"][video]) for video in videos], np.int64)
    if not (size_V2 > 0).all():
        raise DataError(f"{file}: {videos[int((size_V2 <= 0).any(axis=1).argmax())]!r} has a resolution without pixels")
    labels = LabelMap(file, tuple(range(1, len(names) + 1)), names)
    return TubeSet(str(file), labels, truth, frames_V, size_V2)


def _true_tubes(
    file: Path, gttubes: Any, videos: tuple[str, ...], num_classes: int
) -> Iterator[tuple[int, int, Floats]]:
    """(video, class, frames and boxes) of each tube."""
    for place, video in enumerate(videos):
        _check_is(file, f"gttubes of {video!r}", gttubes[video], dict)
        for klass, tubes in gttubes[video].items():
            if not 0 <= int(klass) < num_classes:
                raise DataError(f"{file}: {video!r} has a tube of class {klass}; its {num_classes} labels count from 0")
            for tube in tubes:
                yield place, int(klass), _table(tube, 5, f"{file}: a tube of {video!r}")


def _check_is(file: Path, name: str, value: Any, kind: type) -> None:
    if not isinstance(value, kind) and not (kind is list and isinstance(value, tuple)):
        raise DataError(f"{file}: {name} is {_kind(value)}, and should be a {kind.__name__}")


def _table(array: Any, columns: int, said: str) -> Floats:
    """An array of frames and boxes as float64, at least so many columns."""
    try:
        table = np.asarray(array, np.float64)
    except (TypeError, ValueError):
        raise DataError(f"{said} is no array of numbers") from None
    if table.ndim != 2 or not len(table) or table.shape[1] < columns:
        raise DataError(f"{said} has the shape {table.shape}; it is a row for each frame: frame, x1, y1, x2, y2")
    frame = table[:, 0]
    if not np.isfinite(table).all() or (frame != np.rint(frame)).any() or (np.abs(frame) > LAST_FRAME).any():
        raise DataError(
            f"{said} has a number that is not finite, or a frame that is no whole number up to {LAST_FRAME}"
        )
    return table[:, :columns]


def read_tube_csv(file: Path, labels: LabelMap, clock: Clock) -> TubeSet:
    """AVA csv truth whose key frames follow each other: boxes of one person and action in successive key frames are a tube.

    Raises:
        DataError: As `read_truth`; a row has no person id; nobody is in two successive key frames; no action is known.
    """
    rows = read_truth(file)
    frame_F = clock.frames(rows.time_ms_F, str(file))
    nobody = np.flatnonzero(rows.person_N < 0)
    if len(nobody):
        time = rows.time_ms_N[nobody[0]] / 1000
        raise DataError(
            f"{file}: {len(nobody)} of {len(rows)} rows have no person id, the first in "
            f"{rows.videos[rows.video_N[nobody[0]]]!r} at {time:g} s; tubes are a person's boxes: "
            "truth needs 8 columns, the last the person's number"
        )
    class_N = _classes(rows.label_N, labels)
    known = np.flatnonzero(class_N >= 0)
    if not len(known):
        raise DataError(f"{file}: none of its {len(rows)} rows has an action of {labels.file}")
    video_N, person_N, class_N = rows.video_N[known].astype(np.int64), rows.person_N[known], class_N[known]
    frame_N = frame_F[rows.frame_N[known]]
    order = np.lexsort((frame_N, class_N, person_N, video_N))
    key_N3 = np.stack((video_N, person_N, class_N), axis=1)[order]
    goes_on = (key_N3[1:] == key_N3[:-1]).all(axis=1) & (np.diff(frame_N[order]) <= 1)
    if len(known) > 1 and not goes_on.any():
        raise DataError(
            f"{file}: no person has an action in two key frames that follow each other at {clock.fps:g} a second; give --fps "
            "as many key frames as lie in a second, or score its frames with vmae2 ava score"
        )
    tube_N = np.r_[0, np.cumsum(~goes_on)]
    first_T = order[np.flatnonzero(np.r_[True, ~goes_on])]
    truth = make_tubes(
        rows.videos,
        video_N[first_T],
        class_N[first_T],
        np.ones(len(first_T)),
        tube_N,
        frame_N[order],
        rows.box_N4[known][order],
        str(file),
    )
    frames_V = np.zeros(len(rows.videos), np.int64)
    return TubeSet(str(file), labels, truth, frames_V, None, len(rows) - len(known))


def _classes(label_N: Any, labels: LabelMap) -> Ints:
    """Class columns of action ids; -1: not in the map."""
    ids = np.array(labels.ids)
    order = np.argsort(ids)
    place_N = np.minimum(np.searchsorted(ids[order], label_N), len(ids) - 1)
    return np.where(ids[order][place_N] == label_N, order[place_N], -1)


class FoundInFrames(NamedTuple):
    """Boxes of single frames that were found, and how many belong to videos or actions that are not scored."""

    boxes: FoundBoxes
    num_elsewhere: int
    num_unknown: int


def read_found(file: Path, truth: TubeSet, clock: Clock) -> FoundInFrames:
    """Boxes found in single frames, in the unit of the truth.

    AVA csv: times and shares of a frame. Pickle, as MultiSports's scorer takes it: rows of video (its place in the scored
    videos), frame, class from 0, score, x1, y1, x2, y2 in pixels.

    Raises:
        DataError: As `read_detections`; times between frames; another pickle; pixels where the truth has none; boxes of another
            set.
    """
    videos = truth.truth.videos
    if is_pickle(file):
        table = _frame_table(file, truth)
        video_N, frame_N, class_N = table[:, :3].astype(np.int64).T
        box_N4, score_N = table[:, 4:8], table[:, 3]
        is_here = (video_N >= 0) & (video_N < len(videos))
        is_known = (class_N >= 0) & (class_N < len(truth.labels))
    else:
        rows = read_detections(file)
        place_of = {video: place for place, video in enumerate(videos)}
        video_N = np.array([place_of.get(video, -1) for video in rows.videos], np.int64)[rows.video_N]
        frame_N, class_N = clock.frames(rows.time_ms_F, str(file))[rows.frame_N], _classes(rows.label_N, truth.labels)
        box_N4, score_N = rows.box_N4, rows.score_N
        is_here, is_known = video_N >= 0, class_N >= 0
        if truth.size_V2 is not None:
            box_N4 = box_N4 * np.tile(truth.size_V2[np.maximum(video_N, 0)], 2)
    kept = np.flatnonzero(is_here & is_known)
    boxes = FoundBoxes(videos, video_N, frame_N, class_N, score_N, box_N4).some(kept)
    num_elsewhere, num_unknown = int((~is_here).sum()), int((is_here & ~is_known).sum())
    if len(is_here) and not len(kept):
        raise DataError(
            f"{file}: none of its {len(is_here)} boxes can be scored: {num_elsewhere} are in videos that {truth.source} does "
            f"not score (it has {videos[0]!r} and {len(videos) - 1} more), {num_unknown} of actions that it does not have"
        )
    return FoundInFrames(boxes, num_elsewhere, num_unknown)


def boxes_of(tubes: Tubes) -> FoundBoxes:
    """Every box of tubes, with its tube's score."""
    tube_F = np.repeat(np.arange(len(tubes)), np.diff(tubes.start_T1))
    frame_F = np.arange(len(tube_F)) - tubes.start_T1[tube_F] + tubes.first_T[tube_F]
    return FoundBoxes(
        tubes.videos, tubes.video_T[tube_F], frame_F, tubes.class_T[tube_F], tubes.score_T[tube_F], tubes.box_F4
    )


def rows_of(boxes: FoundBoxes, labels: LabelMap) -> BoxRows:
    """The boxes as what frame mAP is counted of; a key frame's time is the number of its frame."""
    span = int(boxes.frame_N.max(initial=0)) + 1
    keys, frame_N = np.unique(boxes.video_N * span + boxes.frame_N, return_inverse=True)
    return BoxRows(
        "boxes of frames",
        boxes.videos,
        (keys // span).astype(np.int32),
        keys % span,
        frame_N.astype(np.int32),
        boxes.box_N4,
        np.array(labels.ids, np.int32)[boxes.class_N],
        boxes.score_N,
        np.broadcast_to(np.int64(-1), boxes.frame_N.shape),
    )


def _frame_table(file: Path, truth: TubeSet) -> Floats:
    data = load_plain_pickle(file)
    if isinstance(data, list):
        data = np.stack(data) if data else np.zeros((0, 8))
    if not isinstance(data, np.ndarray) or data.ndim != 2 or data.shape[1] != 8:
        raise DataError(
            f"{file}: boxes of frames are an array of 8 columns (video, frame, class, score, x1, y1, x2, y2), this is "
            f"{_kind(data)}; ready tubes are given by --tubes"
        )
    if truth.size_V2 is None:
        raise DataError(f"{file} has boxes in pixels and {truth.source} in shares of a frame; give both as AVA csv")
    return _table(data[:, [1, 0, *range(2, 8)]], 8, str(file))[:, [1, 0, *range(2, 8)]] if len(data) else data


def read_found_tubes(file: Path, truth: TubeSet) -> tuple[Tubes, int]:
    """Ready tubes, as MultiSports's scorer takes them: class from 0 -> (video, score, rows of frame, x1, y1, x2, y2, ...).

    Returns them, boxes as they are in the file, and the number of those in videos that are not scored.

    Raises:
        DataError: Another pickle, or a tube that is none.
    """
    data = load_plain_pickle(file)
    videos = {video: place for place, video in enumerate(truth.truth.videos)}
    if not isinstance(data, dict) or not all(isinstance(tubes, list | tuple) for tubes in data.values()):
        raise DataError(
            f"{file}: ready tubes are a dict of class -> list of (video, score, boxes), this is {_kind(data)}"
        )
    found: list[tuple[int, int, float, Floats]] = []
    elsewhere = 0
    for klass, tubes in data.items():
        if not isinstance(klass, int) or not 0 <= klass < len(truth.labels):
            raise DataError(f"{file}: class {klass!r}; the {len(truth.labels)} labels of {truth.source} count from 0")
        for tube in tubes:
            if not isinstance(tube, list | tuple) or len(tube) != 3 or not isinstance(tube[1], int | float):
                raise DataError(f"{file}: a tube of class {klass} is not (video, score, boxes)")
            if tube[0] not in videos:
                elsewhere += 1
                continue
            if not math.isfinite(tube[1]):
                raise DataError(f"{file}: a tube of class {klass} has the score {tube[1]}")
            table = _table(tube[2], 5, f"{file}: a tube of class {klass} in {tube[0]!r}")
            found.append((videos[tube[0]], klass, float(tube[1]), table))
    video, klass_of, score, tables = zip(*found, strict=True) if found else ((), (), (), ())
    table_F5 = np.concatenate([np.zeros((0, 5)), *tables])
    made = make_tubes(
        truth.truth.videos,
        np.array(video, np.int64),
        np.array(klass_of, np.int64),
        np.array(score, np.float64),
        np.repeat(np.arange(len(tables)), [len(table) for table in tables]),
        table_F5[:, 0].astype(np.int64),
        table_F5[:, 1:],
        str(file),
    )
    return made, elsewhere


def write_found_tubes(tubes: Tubes, num_classes: int, file: Path) -> None:
    """Write tubes as `read_found_tubes` and MultiSports's scorer read them; the whole file or none."""
    data: dict[int, list[tuple[str, float, Floats]]] = {klass: [] for klass in range(num_classes)}
    for place in range(len(tubes)):
        boxes = tubes.box_F4[tubes.start_T1[place] : tubes.start_T1[place + 1]]
        frames = tubes.first_T[place] + np.arange(len(boxes))
        row = (tubes.videos[tubes.video_T[place]], float(tubes.score_T[place]), np.c_[frames, boxes])
        data[int(tubes.class_T[place])].append(row)
    with whole_file(file) as part:
        part.write_bytes(pickle.dumps(data, protocol=4))


def are_found_tubes(file: Path) -> bool:
    """Whether a file has the form that `write_found_tubes` writes, and may be written anew."""
    try:
        data = load_plain_pickle(file)
    except DataError:
        return False
    return isinstance(data, dict) and all(
        isinstance(klass, int) and isinstance(tubes, list) and all(isinstance(tube, tuple) for tube in tubes)
        for klass, tubes in data.items()
    )


def _kind(data: Any) -> str:
    if isinstance(data, np.ndarray):
        return f"an array of shape {data.shape}"
    return f"an {type(data).__name__}" if isinstance(data, int) else f"a {type(data).__name__}"
