"""What the readers share: how frames are chosen, and why a file could not be opened, told from its bytes and streams."""

from __future__ import annotations

import io
import os
from collections.abc import Callable

import numpy as np

from vmae2_ds.errors import VideoError

Video = str | bytes
"""A file's path, or its content."""
Choose = Callable[[int, float], np.ndarray]
"""(frames in the video, its frames a second, nan where unknown) -> (T,) indices of those to read; may raise VideoError.
Called once a video."""

_MAGIC = (
    (b"version https://git-lfs", "a git-lfs pointer, not the video; run git lfs pull"),
    (b"\x1f\x8b", "gzip data; unpack it"),
    (b"PK\x03\x04", "a zip archive; unpack it"),
    (b"\xff\xd8\xff", "a JPEG picture, not a video"),
    (b"\x89PNG", "a PNG picture, not a video"),
)


def choose_checked(choose: Choose, length: int, fps: float) -> list[int]:
    """The indices chosen; raises VideoError where the video has no such frame."""
    if length < 1:
        raise VideoError("no frames")
    indices = [int(index) for index in choose(length, fps)]
    if not indices or min(indices) < 0 or max(indices) >= length:
        raise VideoError(f"frame {max(indices, default=0)} asked for; the video has {length} frames")
    return indices


def check_is_file(path: str) -> None:
    """Raises VideoError for what no reader has to look at."""
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


def opened_by_libav(video: Video) -> str | io.BytesIO:
    """What `av.open` takes."""
    return io.BytesIO(video) if isinstance(video, bytes) else video


def why_not_opened(video: Video, reader: str, message: str) -> VideoError:
    """The reason behind a reader's complaint."""
    import av

    head = _head(video)
    for magic, reason in _MAGIC:
        if head.startswith(magic):
            return VideoError(reason)
    if all(byte in b"\t\n\r" or 32 <= byte < 127 for byte in head):
        return VideoError("text, not a video")
    try:
        with av.open(opened_by_libav(video), metadata_errors="replace") as container:
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


def _head(video: Video) -> bytes:
    if isinstance(video, bytes):
        return video[:512]
    with open(video, "rb") as file:
        return file.read(512)
