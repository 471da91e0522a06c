"""Facts of one video: from its container and packets, without decoding; of a folder of frames, from its files."""

from __future__ import annotations

import hashlib
import math
import os
import statistics
from itertools import pairwise
from typing import Any, NamedTuple

from vmae2_ds.data.manifest import VideoEntry
from vmae2_ds.data.reader_common import Video, opened_by_libav, why_not_opened
from vmae2_ds.data.storage import ReadAs, fetch, frame_names
from vmae2_ds.errors import VideoError

VFR_TICKS = 2
"""Steps between frames that differ by no more than this many time base units are rounding (Matroska counts milliseconds)."""
VFR_SHARE = 0.02
"""... and by no more than this share of a step."""


class VideoFacts(NamedTuple):
    """What a container says of its best video stream."""

    frames: int
    """Packets with pictures that are shown; of AVI with packed frames, and of damaged files, an estimate."""
    width: int
    """Pixels as stored, turned upright."""
    height: int
    fps: float
    """Average; nan for folders of frames."""
    duration_s: float
    codec: str
    pixels: str
    """Pixel format."""
    gop: float
    """Frames from one key frame to the next, median."""
    longest_gop: int
    is_vfr: bool
    """The time between frames varies by more than rounding."""
    rotation: int
    """Degrees."""
    has_audio: bool
    size: int
    """Bytes."""
    digest: str
    """SHA-256 of the content, in hex; of a folder, of its files' names and sizes and its first frame."""


def probe_entry(entry: VideoEntry, how: ReadAs) -> VideoFacts:
    """Facts of the whole file behind an entry; raises VideoError with a reason."""
    return _probe_folder(entry, how.template) if how.kind == "frames" else _probe_video(fetch(entry))


def is_variable(times: list[int]) -> bool:
    """True where ascending time stamps do not keep one step, rounding aside."""
    steps = [after - before for before, after in pairwise(times)]
    if len(steps) < 2:
        return False
    spread = max(steps) - min(steps)
    return spread > VFR_TICKS and spread > VFR_SHARE * statistics.median(steps)


def _probe_video(video: Video) -> VideoFacts:
    import av

    size, digest = _digest(video)
    try:
        opened: Any = av.open(opened_by_libav(video), metadata_errors="replace")
        with opened as container:
            stream = container.streams.best("video")
            if stream is None or stream.codec_context is None:
                raise why_not_opened(video, "pyav", "no video stream")
            stored = [packet for packet in container.demux(stream) if packet.size]
            keys = [number for number, packet in enumerate(stored) if packet.is_keyframe] or [0]
            gops = [after - before for before, after in zip(keys, [*keys[1:], len(stored)], strict=True)]
            packets = [packet for packet in stored if not packet.is_discard]  # an edit list hides the others
            if not packets:
                raise VideoError("no frames")
            times = sorted(packet.pts for packet in packets if packet.pts is not None)
            fps = float(stream.average_rate or math.nan)
            codec: Any = stream.codec_context
            turned = _rotation(video)
            width, height = codec.width, codec.height
            return VideoFacts(
                frames=len(packets),
                width=height if turned % 180 else width,
                height=width if turned % 180 else height,
                fps=fps,
                duration_s=len(packets) / fps if fps > 0 else math.nan,
                codec=codec.name,
                pixels=codec.pix_fmt or "",
                gop=float(statistics.median(gops)),
                longest_gop=max(gops),
                is_vfr=container.format.name != "avi" and is_variable(times),
                rotation=turned,
                has_audio=bool(container.streams.audio),
                size=size,
                digest=digest,
            )
    except (av.FFmpegError, OSError) as error:
        raise why_not_opened(video, "pyav", str(error)) from None


def _rotation(video: Video) -> int:
    """Degrees that the display matrix asks for: 0, 90, 180 or 270. Frames tell it, so the first is decoded."""
    import av

    try:
        opened: Any = av.open(opened_by_libav(video), metadata_errors="replace")
        with opened as container:
            return int(next(container.decode(video=0)).rotation) % 360
    except (av.FFmpegError, StopIteration):
        return 0  # nothing can be decoded; reading it will say so


def _digest(video: Video) -> tuple[int, str]:
    if isinstance(video, bytes):
        return len(video), hashlib.sha256(video).hexdigest()
    digest = hashlib.sha256()
    try:
        with open(video, "rb") as file:
            while block := file.read(2**20):
                digest.update(block)
            size = file.tell()
    except (OSError, UnicodeEncodeError) as error:
        raise VideoError(f"cannot be opened: {getattr(error, 'strerror', None) or error}") from None
    if not size:
        raise VideoError("an empty file")
    return size, digest.hexdigest()


def _probe_folder(entry: VideoEntry, template: str) -> VideoFacts:
    from PIL import Image

    names = frame_names(entry.path, template, entry.start)
    if entry.frames is not None:
        names = names[: entry.frames]
    paths = [os.path.join(entry.path, name) for name in names]
    sizes = [os.stat(path).st_size for path in paths]
    digest = hashlib.sha256(repr(list(zip(names, sizes, strict=True))).encode())
    try:
        with open(paths[0], "rb") as file:
            digest.update(file.read())
        with Image.open(paths[0]) as image:
            width, height, kind, mode = *image.size, str(image.format).lower(), image.mode
    except OSError as error:
        raise VideoError(f"its frame {names[0]} cannot be read: {error.strerror or error}") from None
    return VideoFacts(
        frames=len(names), width=width, height=height, fps=math.nan, duration_s=math.nan, codec=kind, pixels=mode, gop=1.0,
        longest_gop=1, is_vfr=False, rotation=0, has_audio=False, size=sum(sizes), digest=digest.hexdigest(),
    )  # fmt: skip
