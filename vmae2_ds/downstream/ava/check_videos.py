"""Whether the videos of a set are there, can be read, and have a frame at each key time."""

from __future__ import annotations

import contextlib
import difflib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from vmae2_ds.config.ava import VideosAre
from vmae2_ds.console.progress import Ticker, counted
from vmae2_ds.data.readers.watchdog import GuardedReader
from vmae2_ds.downstream.ava.check_rows import SetFinding, Weight
from vmae2_ds.downstream.ava.clip_files import ClipFiles
from vmae2_ds.downstream.ava.find_persons import ONE
from vmae2_ds.downstream.ava.rows import Key, seconds_of
from vmae2_ds.errors import DataError, VideoError

STARTS_S = (900.0, 902.0)
"""Where films of AVA's kind are cut."""


class Looked(NamedTuple):
    """What a video says of itself."""

    frames: int
    fps: float
    outside: list[int]
    """Key times in ms at which it has no frame."""
    fits_from: float | None
    """A second that its first frame could be at, so that it has a frame at each of them."""
    as_frames: bool
    """Whether they could be numbers of its frames."""


class _LookedAt(VideoError):
    """The video was opened, and is not read further."""


def check_videos(
    files: ClipFiles, keys: Sequence[Key], most_bad: float, timeout_s: float, tell: Callable[[int], Ticker]
) -> Iterator[SetFinding]:
    """Open each video under a time limit.

    Args:
        files: Where they are.
        keys: The key frames.
        most_bad: Share of key frames that training lets be bad.
        timeout_s: The time limit.
        tell: Number of videos -> who says how far it is.
    """
    keys_of: dict[str, list[Key]] = {}
    for key in keys:
        keys_of.setdefault(key[0], []).append(key)
    missing = {video: of for video, of in keys_of.items() if not _is_there(files, of)}
    if missing:
        yield _missing(files, keys_of, missing, len(keys), most_bad)
    looked: dict[str, Looked] = {}
    bad: dict[str, str] = {}
    ticker = tell(len(keys_of) - len(missing))
    with contextlib.closing(GuardedReader(timeout_s)) as reader:
        for video in keys_of.keys() - missing.keys() if files.kind != "clips" else ():
            try:
                looked[video] = _look(files, keys_of[video], reader)
            except VideoError as error:
                bad[video] = str(error)
            ticker.tell(len(looked) + len(bad))
    if files.kind == "clips":
        yield from _seconds(
            files, {video: of for video, of in keys_of.items() if video not in missing}, len(keys), most_bad
        )
    if bad:
        video, reason = min(bad.items())
        number = sum(len(keys_of[video]) for video in bad)
        yield SetFinding(
            _weight(number, len(keys), most_bad),
            f"{counted(len(bad), 'video')} cannot be read, with {counted(number, 'key frame')} of {len(keys)}; the first: "
            f"{video}: {reason}",
            "fetch or encode them anew (vmae2 data prepare), or take their rows out",
        )
    yield from _outside(files, keys_of, looked, len(keys), most_bad)
    rates = Counter(f"{one.fps:.4g}" for one in looked.values() if np.isfinite(one.fps))
    if len(rates) > 1 and files.kind == "movies":
        said = ", ".join(f"{rate} ({number})" for rate, number in rates.most_common(5))
        yield SetFinding(
            "tells",
            f"videos have {len(rates)} frame rates, {said}: a clip of so many frames spans another time in each",
            "--data.stride-fps gives all the same time between frames",
        )


def _look(files: ClipFiles, keys: list[Key], reader: GuardedReader) -> Looked:
    found: list[Looked] = []

    def choose(length: int, fps: float) -> NDArray[np.int64]:
        outside = []
        for key in keys:
            try:
                files.indices(key, ONE, length, fps)
            except VideoError:
                if not fps > 0:
                    raise
                outside.append(key[1])
        rate = files.frames_fps if files.kind == "frames" else fps
        times = np.array([time for _, time in keys]) / 1000
        fits = [start for start in (*STARTS_S, 0.0) if times.min() >= start and (times.max() - start) * rate < length]
        is_number = bool((times == times.round()).all() and length / rate < times.max() <= length)
        found.append(Looked(length, rate, outside, next(iter(fits), None), is_number))
        raise _LookedAt("seen")

    try:
        entry, how = files.entry_of(keys[0][0], files.file_of(keys[0]))
        reader.read(entry, how, choose)
    except VideoError:
        if not found:
            raise
    return found[0]


def _outside(
    files: ClipFiles, keys_of: dict[str, list[Key]], looked: dict[str, Looked], total: int, most_bad: float
) -> Iterator[SetFinding]:
    late = {video: one for video, one in looked.items() if one.outside}
    if not late:
        return
    number = sum(len(one.outside) for one in late.values())
    video = next(video for video in keys_of if video in late)
    one = late[video]
    starts = Counter(one.fits_from for one in late.values() if one.fits_from is not None)
    start, fitting = starts.most_common(1)[0] if starts else (None, 0)
    remedy = (
        "check the second that videos begin at (--video-starts-s), and whether they were cut, or their speed changed"
    )
    if start is not None and fitting > len(late) / 2 and start != files.starts_of(video):
        remedy = f"times count from {start:g} s, it seems: give --video-starts-s {start:g} (--data.video-starts-s in training)"
    elif sum(one.as_frames for one in late.values()) > len(late) / 2:
        remedy = "times are numbers of frames, it seems: write seconds, the number divided by the frame rate"
    yield SetFinding(
        _weight(number, total, most_bad),
        f"{counted(number, 'key time')} of {total} lie outside of their video, in {counted(len(late), 'video')}, the first "
        f"{video!r} at {seconds_of(one.outside[0])} s: it has {one.frames} frames at {one.fps:g} a second, from "
        f"{files.starts_of(video):g} s to {files.starts_of(video) + one.frames / one.fps:g} s",
        remedy,
    )


def _missing(
    files: ClipFiles, keys_of: dict[str, list[Key]], missing: dict[str, list[Key]], total: int, most_bad: float
) -> SetFinding:
    video = next(iter(missing))
    number = sum(map(len, missing.values()))
    there = {
        path.stem if path.is_file() else path.name: path
        for path in sorted(files.folder.rglob("*"))
        if not path.name.startswith(".")
    }
    close = difflib.get_close_matches(video, list(there)[:10_000], 1, 0.6)
    way_out = "fetch them, take their rows out, or see --kind"
    if video in there:
        way_out = _way_to(there[video], files.kind)
    elif close:
        way_out = f"the folder has {close[0]!r}: name videos alike"
    try:
        wanted = files.file_of(missing[video][0])
    except DataError as error:
        wanted, way_out = str(error), "give each video a name of its own"
    return SetFinding(
        "fails" if len(missing) == len(keys_of) else _weight(number, total, most_bad),
        f"{files.folder}: {len(missing)} of {counted(len(keys_of), 'video')} are missing, with "
        f"{counted(number, 'key frame')} of {total}; the first is {wanted}",
        way_out,
    )


def _way_to(path: Path, kind: VideosAre) -> str:
    """What to do about a video that is there, and not kept as videos of this kind are."""
    if path.is_file():
        return f"there is a file {path}: give --kind movies"
    if kind == "movies":
        return f"there is a folder {path}: give --kind clips, or --kind frames where it holds pictures"
    return f"{path} has a file of none of their seconds: files are called by the key times in whole seconds, such as 12.mp4"


def _seconds(files: ClipFiles, keys_of: dict[str, list[Key]], total: int, most_bad: float) -> Iterator[SetFinding]:
    absent = [key for of in keys_of.values() for key in of if not files.has(key)]
    if absent:
        yield SetFinding(
            _weight(len(absent), total, most_bad),
            f"{counted(len(absent), 'key frame')} of {total} have no file of their second, the first "
            f"{files.file_of(absent[0])}",
            "cut these seconds out of the films, or take their rows out",
        )


def _is_there(files: ClipFiles, keys: list[Key]) -> bool:
    try:
        return any(map(files.has, keys))
    except DataError:
        return False


def _weight(number: int, total: int, most_bad: float) -> Weight:
    return "fails" if number > most_bad * total else "warns"
