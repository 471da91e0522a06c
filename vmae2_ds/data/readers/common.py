"""What the readers share: how frames are chosen, and why a file could not be opened, told from its bytes and streams."""

from __future__ import annotations

import codecs
import contextlib
import io
import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

from vmae2_ds.errors import VideoError

Video = str | bytes
"""A file's path, or its content."""
Choose = Callable[[int, float], np.ndarray]
"""(frames in the video, its frames a second, nan where unknown) -> (T,) indices of those to read; may raise VideoError.
Called once a video."""

_MAGIC = (
    (0, b"version https://git-lfs", "a git-lfs pointer, not the video; run git lfs pull"),
    (0, b"\x1f\x8b", "gzip data (.gz, .tar.gz); unpack it"),
    (0, b"PK\x03\x04", "a zip archive; unpack it"),
    (257, b"ustar", "a tar archive; unpack it, or index it with vmae2 data index-shards"),
    (0, b"7z\xbc\xaf\x27\x1c", "a 7z archive; unpack it"),
    (0, b"Rar!\x1a\x07", "a rar archive; unpack it"),
    (0, b"BZh", "bzip2 data; unpack it"),
    (0, b"\xfd7zXZ\x00", "xz data; unpack it"),
    (0, b"\x28\xb5\x2f\xfd", "zstd data; unpack it"),
    (0, b"\xff\xd8\xff", "a JPEG picture, or a bare stream of them, not a video; take it off the list"),
    (0, b"\x89PNG", "a PNG picture, not a video; take it off the list"),
    (0, b"\x89HDF", "an HDF5 file, not a video; write its clips as videos or folders of frames"),
    (0, b"\x93NUMPY", "a numpy array, not a video; write it as a video or a folder of frames"),
    (0, b"%PDF", "a PDF document, not a video; take it off the list"),
)
"""(place, bytes there, what they say)."""
ENCRYPTED = "encrypted; decrypt it first, or take it off the list"
RAW_STREAMS = {"h264", "hevc", "m4v", "mpeg", "mpegvideo", "mjpeg", "ivf", "obu", "vc1", "h261", "h263"}
"""libav's names of what holds a video and no index."""


def choose_checked(choose: Choose, length: int, fps: float) -> list[int]:
    """The indices chosen; raises VideoError where the video has no such frame."""
    if length < 1:
        raise VideoError("no frames")
    indices = [int(index) for index in choose(length, fps)]
    if not indices or min(indices) < 0 or max(indices) >= length:
        raise VideoError(f"frame {max(indices, default=0)} asked for; the video has {length} frames")
    return indices


@dataclass
class FrameCount:
    """What a stream tells beside its frames."""

    decoded: int = 0
    """Frames that came out of the decoder, also on the way to one that was asked for."""
    off_s: float = 0.0
    """Seconds between a frame's time and its number over the rate, at most: more than rounding where the rate varies."""


def in_chosen_order(stream: Callable[[Choose], Iterable[np.ndarray]], choose: Choose) -> np.ndarray:
    """The frames that `choose` picks, in its order: uint8 (T, H, W, 3), of a stream that gives each once, ascending."""
    chosen: list[int] = []

    def noted(length: int, fps: float) -> np.ndarray:
        chosen.extend(choose_checked(choose, length, fps))
        return np.unique(chosen)

    frames = list(stream(noted))
    return np.stack([frames[place] for place in np.searchsorted(np.unique(chosen), chosen)])


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
    for place, magic, reason in _MAGIC:
        if head[place:].startswith(magic):
            return VideoError(reason)
    if _is_text(head):
        if head.lstrip()[:14].lower().startswith((b"<!doctype html", b"<html")):
            return VideoError("a web page, not a video; fetch the video again")
        return VideoError("text, not a video")
    try:
        with av.open(opened_by_libav(video), metadata_errors="replace") as container:
            kinds, form = {stream.type for stream in container.streams}, container.format.name
            covers = [is_cover(stream) for stream in container.streams.video]
            codec = next(
                (stream.codec_context.name for stream in container.streams.video if stream.codec_context), None
            )
    except (av.FFmpegError, OSError):
        if head[4:8] == b"ftyp":
            return VideoError("an MP4 file without a readable index (moov): truncated or damaged; fetch it again")
        return VideoError("not a video file, or its header is damaged")
    if covers and all(covers):
        return VideoError("audio only, with a cover picture; take it off the list")
    if codec is None:
        if kinds == {"audio"}:
            return VideoError("audio only, no picture; take it off the list")
        return VideoError("no video stream that can be decoded")
    if form in RAW_STREAMS:
        return VideoError(
            f"a bare {codec} stream, in which {reader} cannot seek; --data.reader pyav or vmae2 data prepare can"
        )
    if codec == "gif":
        return VideoError(f"a GIF, which {reader} does not read; try --data.reader pyav, or vmae2 data prepare")
    if reader == "decord" and "cannot find video stream" in message:
        return VideoError(f"decord cannot decode its codec ({codec}); try --data.reader pyav, or re-encode it")
    return why_not_read(video, f"{reader} cannot index it ({codec}): truncated or damaged; try --data.reader pyav")


def is_cover(stream: Any) -> bool:
    """Whether a PyAV stream is the picture on the cover of a sound file."""
    import av

    return bool(stream.disposition & av.stream.Disposition.attached_pic)


def is_encrypted(stream: Any, packet: Any) -> bool:
    """Whether a stream's packets are encrypted (MP4's common encryption, WebM's), told from PyAV's first one."""
    return packet.has_sidedata("encryption_info") or "enc_key_id" in stream.metadata


def why_not_read(video: Video, reason: str) -> VideoError:
    """`reason`, or that the video is encrypted: readers that do not look at it take it for damaged."""
    import av

    with contextlib.suppress(av.FFmpegError, OSError), av.open(opened_by_libav(video), "r") as container:
        for packet in container.demux(video=0):
            return VideoError(ENCRYPTED if is_encrypted(packet.stream, packet) else reason)
    return VideoError(reason)


def _is_text(head: bytes) -> bool:
    """Whether the first bytes of a file are UTF-8 without control characters; a character may be cut at their end."""
    try:
        text = codecs.getincrementaldecoder("utf-8")().decode(head)
    except UnicodeDecodeError:
        return False
    return all(character in "\t\n\r\f" or character >= " " for character in text) and "\x7f" not in text


def _head(video: Video) -> bytes:
    if isinstance(video, bytes):
        return video[:512]
    with open(video, "rb") as file:
        return file.read(512)
