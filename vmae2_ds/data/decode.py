"""The only door to decord and PyAV for reading: frames of one video, or a VideoError with a short reason.

Both readers give the same frames to the last bit except where docs/DATA.md says otherwise. Frames come upright
(rotation metadata applied), in stored pixels (no sample aspect ratio), counted in the order in which they are shown.
"""

from __future__ import annotations

import bisect
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from vmae2_ds.errors import ConfigError, VideoError

# T frames asked for, H x W pixels as stored and turned upright, 3 colours (RGB).

Choose = Callable[[int], np.ndarray]
"""Number of frames in the video -> (T,) indices of those to read; may raise VideoError. Called once a video."""


def read_clip(path: str | Path, choose: Choose, reader: str = "decord") -> np.ndarray:
    """Open a video once, let `choose` pick frames by the video's length, decode only those: uint8 (T, H, W, 3).

    Raises VideoError with a reason without the path, ConfigError for an unknown reader.
    """
    if reader not in READERS:
        raise ConfigError(f"unknown reader {reader!r}; choose one of {sorted(READERS)}")
    path = str(path)
    try:
        path.encode()
        size = os.stat(path).st_size
    except UnicodeEncodeError:
        raise VideoError("its name is not valid UTF-8; rename the file") from None
    except OSError as error:
        raise VideoError(f"cannot be opened: {error.strerror}") from None
    if os.path.isdir(path):
        raise VideoError("a directory, not a video")
    if size == 0:
        raise VideoError("an empty file")
    return READERS[reader](path, choose)


def read_frames(path: str | Path, indices: np.ndarray, reader: str = "decord") -> np.ndarray:
    """The frames at `indices`: uint8 (T, H, W, 3). Raises VideoError, also where the video is shorter."""
    return read_clip(path, lambda length: indices, reader)


def _choose_checked(choose: Choose, length: int) -> list[int]:
    if length < 1:
        raise VideoError("no frames")
    indices = [int(index) for index in choose(length)]
    if not indices or min(indices) < 0 or max(indices) >= length:
        raise VideoError(f"frame {max(indices, default=0)} asked for; the video has {length} frames")
    return indices


# --- decord ----------------------------------------------------------------------------------------------------------


def _read_decord(path: str, choose: Choose) -> np.ndarray:
    import decord

    decord.logging.set_level(decord.logging.QUIET)  # libav's complaints: what matters of them is in the VideoError
    try:
        video = decord.VideoReader(path, ctx=decord.cpu(0), num_threads=1)
        length = len(video)
    except (decord.DECORDError, RuntimeError) as error:
        raise _why_not_opened(path, "decord", str(error)) from None
    indices = _choose_checked(choose, length)
    try:
        return video.get_batch(indices).asnumpy()
    except (decord.DECORDError, RuntimeError) as error:
        # a reader that has failed once may hang (dmlc/decord#375), so it is not asked which frame it was
        if "avcodec_" in str(error):
            raise VideoError(
                f"read error at or before frame {max(indices)} of {length}: damaged or truncated"
            ) from None
        told = str(error).partition("\n")[0].rpartition("Check failed: ")[2]
        raise VideoError(f"decord failed ({told[:120]}); try --data.reader pyav, or re-encode it") from None


# --- PyAV ------------------------------------------------------------------------------------------------------------


def _read_pyav(path: str, choose: Choose) -> np.ndarray:
    import av

    try:
        container = av.open(path, metadata_errors="replace")  # titles in odd encodings are no reason to drop a video
    except (av.FFmpegError, OSError) as error:
        raise _why_not_opened(path, "pyav", str(error)) from None
    with container:
        stream = container.streams.best("video")
        if stream is None or stream.codec_context is None:
            raise _why_not_opened(path, "pyav", "no video stream")
        stream.codec_context.thread_count = 1
        try:
            timeline = _Timeline.of(container, stream)
        except av.FFmpegError as error:
            raise VideoError(f"its frames cannot be counted: damaged or truncated ({error.strerror})") from None
        indices = _choose_checked(choose, len(timeline.keys))
        found = timeline.pick({timeline.keys[index]: index for index in sorted(set(indices))})
    frames = [found[timeline.keys[index]] for index in indices]
    if len({frame.shape for frame in frames}) > 1:
        raise VideoError("its frame size changes on the way; re-encode it")
    return np.stack(frames)


class _Timeline:
    """The frames of a video stream by key: their time stamp, or their count where time stamps cannot be trusted."""

    def __init__(self, container: Any, stream: Any, keys: list[int], seek_points: list[int], start: int) -> None:
        self.container, self.stream = container, stream
        self.keys = keys
        """One a frame, in the order of showing."""
        self.seek_points = seek_points
        """Keys of the key frames, ascending; empty where frames are counted from the start."""
        self.start = start
        """Where to seek for the first frame."""

    @classmethod
    def of(cls, container: Any, stream: Any) -> _Timeline:
        """Read the packets (no decoding) for the times of the frames that are shown.

        AVI stores no presentation times (with B-frames those offered are made up), and a stream may lack or repeat
        some: there, frames are counted by decoding all of them.
        """
        packets = [packet for packet in container.demux(stream) if packet.size]
        times = [packet.pts for packet in packets if not packet.is_discard]  # an edit list hides the discarded ones
        start = min((at for packet in packets for at in (packet.pts, packet.dts) if at is not None), default=0)
        if container.format.name != "avi" and None not in times and len(set(times)) == len(times):
            points = [packet.pts for packet in packets if packet.is_keyframe and packet.pts is not None]
            return cls(container, stream, sorted(times), sorted(points), start)
        timeline = cls(container, stream, [], [], start)
        timeline.keys = [key for key, _ in timeline._decode_from(start)]
        return timeline

    def pick(self, wanted: dict[int, int]) -> dict[int, np.ndarray]:
        """Decode the frames of the `wanted` keys (ascending; values are frame indices): {key: uint8 (H, W, 3)}."""
        import av

        found: dict[int, np.ndarray] = {}
        left = list(wanted)
        back = 0  # key frames to step back, because a container may seek past the one asked for (MPEG-TS does)
        while left:
            at = self._count_points(left[0]) - 1 - back
            before = len(left)
            try:
                for key, frame in self._decode_from(self.seek_points[at] if at >= 0 else self.start):
                    if key == left[0]:
                        found[key] = _upright(frame)
                        left.pop(0)
                        if not left or self._count_points(left[0]) > self._count_points(key):
                            break  # done, or a later key frame is nearer to the next one
                    elif key > left[0]:
                        break
            except av.FFmpegError as error:
                where = f"read error at or before frame {wanted[left[0]]} of {len(self.keys)}"
                raise VideoError(f"{where}: damaged or truncated ({error.strerror})") from None
            if len(left) < before:
                back = 0
            elif at >= 0:
                back += 1
            else:
                raise VideoError(f"frame {wanted[left[0]]} of {len(self.keys)} cannot be decoded")
        return found

    def _count_points(self, key: int) -> int:
        return bisect.bisect_right(self.seek_points, key)

    def _decode_from(self, target: int) -> Iterator[tuple[int, Any]]:
        """(key, frame) from the key frame that the container finds for `target`; counted keys only from the start."""
        self.container.seek(target, stream=self.stream)
        for count, frame in enumerate(self.container.decode(self.stream)):
            if not self.seek_points:
                yield count, frame
            elif frame.pts is not None:
                yield frame.pts, frame


def _upright(frame: Any) -> np.ndarray:
    """uint8 (H, W, 3), turned as the container's display matrix asks; decord does the same by itself."""
    return np.rot90(frame.to_ndarray(format="rgb24"), k=frame.rotation // 90 % 4)


READERS: dict[str, Callable[[str, Choose], np.ndarray]] = {"decord": _read_decord, "pyav": _read_pyav}
"""(path, choose) -> uint8 (T, H, W, 3), by DataConfig.reader."""


# --- reasons ---------------------------------------------------------------------------------------------------------

_MAGIC = (
    (b"version https://git-lfs", "a git-lfs pointer, not the video; run git lfs pull"),
    (b"\x1f\x8b", "gzip data; unpack it"),
    (b"PK\x03\x04", "a zip archive; unpack it"),
    (b"\xff\xd8\xff", "a JPEG picture, not a video"),
    (b"\x89PNG", "a PNG picture, not a video"),
)


def _why_not_opened(path: str, reader: str, message: str) -> VideoError:
    """The reason behind a reader's complaint, from the file's first bytes and its streams."""
    import av

    with open(path, "rb") as file:
        head = file.read(512)
    for magic, reason in _MAGIC:
        if head.startswith(magic):
            return VideoError(reason)
    if all(byte in b"\t\n\r" or 32 <= byte < 127 for byte in head):
        return VideoError("text, not a video")
    try:
        with av.open(path, metadata_errors="replace") as container:
            kinds = {stream.type for stream in container.streams}
            codec = next((stream.codec_context.name for stream in container.streams.video), None)
    except (av.FFmpegError, OSError):
        if head[4:8] == b"ftyp":
            return VideoError("an MP4 file without a readable index (moov): truncated or damaged")
        return VideoError("not a video file, or its header is damaged")
    if codec is None:
        return VideoError("audio only, no picture" if kinds == {"audio"} else "no video stream that can be decoded")
    if reader == "decord" and "cannot find video stream" in message:
        return VideoError(f"decord cannot decode its codec ({codec}); try --data.reader pyav, or re-encode it")
    return VideoError(f"{reader} cannot index it ({codec}): truncated or damaged")
