"""Where the frames around a key frame are: in whole movies, in files of one second, or in folders of frames.

Frames are counted in the video's own rate, so that key times stay where they are however a movie was encoded.
"""

from __future__ import annotations

import glob
import math
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache, lru_cache
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from vmae2_ds.config.ava import AvaDataConfig, ClipAround, VideosAre
from vmae2_ds.console.progress import counted
from vmae2_ds.data.entry import ReadAs, VideoEntry
from vmae2_ds.data.readers.watchdog import GuardedReader
from vmae2_ds.data.sources.list_formats import ListedVideo
from vmae2_ds.data.sources.list_header import videos_below
from vmae2_ds.data.sources.manifest import Manifest, manifest_of
from vmae2_ds.downstream.ava.key_frames import KeyFrames
from vmae2_ds.downstream.ava.rows import Key, seconds_of
from vmae2_ds.downstream.ava.second_files import read_seconds, seconds_in
from vmae2_ds.errors import DataError, VideoError

# T frames of a clip, H x W pixels.

FIRST: Mapping[ClipAround, Callable[[int, int], int]] = {
    "videomae_ad": lambda span, stride: (stride - 1) // 2 - (span + 1) // 2,
    "pyslowfast": lambda span, stride: -(span // 2),
}
"""(frames spanned, stride) -> the first frame of a clip, counted from the key frame. VideoMAE-AD's clips of 16 frames, 4 apart,
begin 31 frames before it and do not hold it; PySlowFast's and mmaction2's begin 32 before, and their ninth is the key frame."""
PICTURE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp")
NUMBERED = re.compile(r"(.*?)(\d+)(\.\w+)")


@dataclass(frozen=True)
class Span:
    """Which frames around a key frame make its clip."""

    num_frames: int
    stride: int
    around: ClipAround = "videomae_ad"
    stride_fps: float | None = None
    """Rate that the stride is meant for: a video of another one has the same time between frames; None: the same number."""

    @classmethod
    def of(cls, data: AvaDataConfig) -> Span:
        """The one that a run's settings ask for."""
        return cls(data.num_frames, data.stride, data.clip_around, data.stride_fps)

    def offsets(self, fps: float) -> NDArray[np.int64]:
        """(T,) frames counted from the key frame, ascending, in a video of that rate."""
        first = FIRST[self.around](self.num_frames * self.stride, self.stride)
        offset_T = first + self.stride * np.arange(self.num_frames, dtype=np.int64)
        return offset_T if self.stride_fps is None else np.rint(offset_T * fps / self.stride_fps).astype(np.int64)


class Folder(NamedTuple):
    """The pictures of one video: `before` + number + `after`, from number `first` to `last`."""

    before: str
    digits: int
    """How many a number is filled up to with zeros; 0: none are put before it."""
    after: str
    first: int
    last: int

    @property
    def template(self) -> str:
        """The name of a picture as a Python format of its number."""
        return f"{self.before}{{:0{self.digits}}}{self.after}" if self.digits else f"{self.before}{{}}{self.after}"


class HowVideosAreKept(Protocol):
    """Settings of a run, or options of a verb, that tell of a folder of videos; config/ava.py explains them."""

    @property
    def kind(self) -> VideosAre: ...
    @property
    def video_starts_s(self) -> float: ...
    @property
    def video_starts(self) -> Path | None: ...
    @property
    def frames_fps(self) -> float: ...
    @property
    def reader(self) -> str: ...


class ClipFiles:
    """The videos below a folder, of one kind.

    A movie is found by its name without ending, at any depth, or by its path below the folder; a folder of seconds or of frames
    is `VIDEO` or `ANYTHING/VIDEO`.
    """

    def __init__(
        self,
        folder: Path,
        kind: VideosAre = "movies",
        *,
        starts_s: float = 0.0,
        starts_s_of: Mapping[str, float] | None = None,
        frames_fps: float = 30.0,
        reader: str = "pyav",
    ) -> None:
        """
        Args:
            folder: Where the videos are.
            kind: How they are kept.
            starts_s: Time of the first frame of movies and of folders of frames, on the clock of the key frames.
            starts_s_of: The same for single videos.
            frames_fps: Pictures a second of folders of frames.
            reader: A reader of videos.

        Raises DataError where there is no such folder.
        """
        if not folder.is_dir():
            raise DataError(f"{folder}: there is no such folder of videos")
        self.folder, self.kind, self.starts_s, self.frames_fps = folder, kind, starts_s, frames_fps
        self._starts_s_of = starts_s_of or {}
        self._reader = reader
        self._movies = _movies(folder) if kind == "movies" else {}
        # what a set of movies has is looked up once in each process
        self._folder_of = cache(self._find_folder)
        self._seconds, self._pictures = lru_cache(1024)(seconds_in), lru_cache(1024)(_pictures_in)

    @classmethod
    def of(cls, asked: HowVideosAreKept, folder: Path) -> ClipFiles:
        """The videos of a folder as a run's settings, or the options of a verb, tell of them. Raises DataError."""
        return cls(
            folder,
            asked.kind,
            starts_s=asked.video_starts_s,
            starts_s_of=None if asked.video_starts is None else read_starts(asked.video_starts),
            frames_fps=asked.frames_fps,
            reader=asked.reader,
        )

    def file_of(self, key: Key) -> str:
        """The movie, second or folder that holds a key frame, relative to the folder; a name that it could have if none does.

        Raises DataError for a name that two movies have.
        """
        video = key[0]
        if self.kind == "movies":
            files = self._movies.get(video, ())
            if len(files) > 1:
                raise DataError(
                    f"{self.folder} has {files[0]} and {files[1]}, both of video {video!r}; move one of them away"
                )
            return files[0] if files else f"{video}.mp4"
        place = self._folder_of(video)
        if self.kind == "frames":
            return place
        second = key[1] // 1000
        return f"{place}/{self._seconds(self.folder / place).get(second, f'{second}.mp4')}"

    def has(self, key: Key) -> bool:
        """Whether there is a file, or a folder of frames, for a key frame."""
        return (self.folder / self.file_of(key)).exists()

    @property
    def streams(self) -> bool:
        """Whether the clips of several key frames can be decoded in one go, from one file or folder."""
        return self.kind == "frames" or (self.kind == "movies" and self._reader == "pyav")

    def starts_of(self, video: str) -> float:
        """Time in seconds of the first frame of a movie or of a folder of frames."""
        return self._starts_s_of.get(video, self.starts_s)

    def read(self, reader: GuardedReader, key: Key, span: Span) -> np.ndarray:
        """The clip around a key frame: uint8 (T, H, W, 3), valid until the reader's next read.

        No other frames are asked for; before a video's first frame and behind its last one these are repeated.
        Raises VideoError, also where the video has no frame at that time.
        """
        if self.kind == "clips":
            folder = self.folder / self._folder_of(key[0])
            return read_seconds(folder, self._seconds(folder), reader, self._reader, key[1], span.offsets)
        entry, how = self.entry_of(key[0], self.file_of(key))

        def choose(length: int, fps: float) -> np.ndarray:
            return self.indices(key, span, length, fps)

        return reader.read(entry, how, choose)

    def entry_of(self, video: str, file: str) -> tuple[VideoEntry, ReadAs]:
        """What a reader is asked for of a movie or of a folder of frames, whose file is known. Raises VideoError."""
        path = str(self.folder / file)
        if self.kind != "frames":
            return VideoEntry(path, None, "", 0, None), ReadAs(reader=self._reader)
        pictures = self._pictures_of(video, path)
        frames = pictures.last + 1 - pictures.first
        return VideoEntry(path, None, "", pictures.first, frames), ReadAs("frames", pictures.template)

    def indices(self, key: Key, span: Span, length: int, fps: float) -> NDArray[np.int64]:
        """(T,) numbers, as the reader has them, of the frames of a clip in a movie or folder. Raises VideoError."""
        first = 0
        if self.kind == "frames":  # they are numbered from 0, or else from 1; `length` is behind the last number
            first, fps = (
                min(1, self._pictures(self.folder / self.file_of(key), os.path.basename(key[0])).first),
                self.frames_fps,
            )
        if not (math.isfinite(fps) and fps > 0):
            raise VideoError("does not tell its frame rate, and key frames are known by their time")
        starts_s = self.starts_of(key[0])
        centre = round((key[1] / 1000 - starts_s) * fps)
        if not 0 <= centre < length - first:
            raise VideoError(
                f"it has no frame at the key time {seconds_of(key[1])} s: that would be frame {centre} of {length - first} at "
                f"{fps:g} a second, the first of which is at {starts_s:g} s (--data.video-starts-s)"
            )
        return first + np.clip(centre + span.offsets(fps), 0, length - first - 1)

    def _pictures_of(self, video: str, folder: str) -> Folder:
        return self._pictures(folder, os.path.basename(video))

    def _find_folder(self, video: str) -> str:
        if (self.folder / video).is_dir():
            return video
        found = sorted(path for path in self.folder.glob(f"*/{_escaped(video)}") if path.is_dir())
        return str(found[0].relative_to(self.folder)) if found else video


@dataclass(frozen=True)
class KeyFrameList(Manifest):
    """Key frames as the videos of a run: a row for each, and where their frames are."""

    key_frames: KeyFrames
    files: ClipFiles


def list_of(key_frames: KeyFrames, files: ClipFiles) -> KeyFrameList:
    """The list of a run's key frames; its digest covers their moments, boxes, scores and actions.

    One whose video is not there is listed as well: it is named when it is to be read.

    Raises DataError where none of their videos is there.
    """
    keys = [key_frames.key(row) for row in range(len(key_frames))]
    first_of = {video: (video, time_ms) for video, time_ms in reversed(keys)}
    if not any(map(files.has, reversed(first_of.values()))):
        raise DataError(
            f"{files.folder} has none of the {counted(len(first_of), 'video')} that {key_frames.files[0]} names, "
            f"{files.file_of(keys[0])} for example; name the folder that holds them, or another --data.kind"
        )
    listed = manifest_of(
        Path(key_frames.files[0]), files.folder, map(ListedVideo, map(files.file_of, keys)), key_frames.digest
    )
    return KeyFrameList(**vars(listed), key_frames=key_frames, files=files)


def read_starts(file: Path) -> dict[str, float]:
    """Times of first frames: a line `video,seconds` for each. Raises DataError."""
    try:
        lines = file.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{file}: {getattr(error, 'strerror', None) or 'not UTF-8 text'}") from None
    starts: dict[str, float] = {}
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        video, _, seconds = line.rpartition(",")
        try:
            starts[video.strip()] = float(seconds)
        except ValueError:
            raise DataError(f"{file}:{number}: {line!r} is not `video,seconds`") from None
        if not (video.strip() and math.isfinite(starts[video.strip()])):
            raise DataError(f"{file}:{number}: {line!r} is not `video,seconds`")
    return starts


def _movies(folder: Path) -> dict[str, tuple[str, ...]]:
    """The files of each name: without folder and ending, with the folder, with both."""
    found: dict[str, tuple[str, ...]] = {}
    for path in videos_below(folder):
        file = os.path.relpath(path, folder)
        for name in {Path(file).stem, os.path.splitext(file)[0], file}:
            found[name] = (*found.get(name, ()), file)
    return found


def _pictures_in(folder: str, video: str) -> Folder:
    """What the pictures of a folder are called: VIDEO_000001.jpg, img_00001.jpg, 00001.jpg. Raises VideoError."""
    try:
        names = [name for name in os.listdir(folder) if name.lower().endswith(PICTURE_SUFFIXES)]
    except OSError as error:
        raise VideoError(f"its folder of frames cannot be read: {error.strerror}") from None
    kinds: dict[tuple[str, str], list[str]] = {}
    for name in names:
        if match := NUMBERED.fullmatch(name):
            kinds.setdefault((match[1], match[3]), []).append(match[2])
    if not kinds:
        raise VideoError(f"{folder} holds no numbered pictures, such as {video}_000001.jpg or img_00001.jpg")
    known = [kind for kind in kinds if kind[0] in (f"{video}_", "img_", "")] or list(kinds)
    if len(known) > 1:
        named = " and ".join(f"{before}{kinds[before, after][0]}{after}" for before, after in sorted(known)[:2])
        raise VideoError(f"{folder} holds several kinds of pictures, {named}: keep one in it")
    before, after = known[0]
    digits = kinds[known[0]]
    width = len(digits[0]) if len({len(text) for text in digits}) == 1 else 0
    numbers = [int(text) for text in digits]
    return Folder(_plain(before), width, _plain(after), min(numbers), max(numbers))


def _plain(text: str) -> str:
    return text.replace("{", "{{").replace("}", "}}")


def _escaped(name: str) -> str:
    return "/".join(glob.escape(part) for part in Path(name).parts)
