"""Facts of one video: from its packets, decoded where these do not tell; of a folder of frames, from its files."""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from vmae2_ds.data.entry import ReadAs, VideoEntry
from vmae2_ds.data.readers.common import Video
from vmae2_ds.data.readers.frame_index import in_order, index_frames, opened
from vmae2_ds.data.readers.pyav import orientation
from vmae2_ds.data.readers.storage import fetch, frame_names
from vmae2_ds.disk import sha256_of
from vmae2_ds.errors import VideoError

VFR_TICKS = 2
"""Steps between frames that differ by no more than this many time base units are rounding (Matroska counts milliseconds)."""
VFR_SHARE = 0.02
"""... and by no more than this share of a step."""


class VideoFacts(NamedTuple):
    """What a container says of its best video stream."""

    frames: int
    """Number of frames, as the reader counts them (frame_index.py)."""
    width: int
    """Pixels as stored, turned upright."""
    height: int
    fps: float
    """From the times of the frames, pauses left out; nan for folders of frames, and where nothing tells."""
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


def is_variable(times: Sequence[int] | np.ndarray) -> bool:
    """True where ascending time stamps do not keep one step, rounding aside."""
    steps = np.diff(times)
    if len(steps) < 2:
        return False
    spread = int(steps.max() - steps.min())
    return spread > VFR_TICKS and bool(spread > VFR_SHARE * np.median(steps))


def _probe_video(video: Video) -> VideoFacts:
    size, digest = _digest(video)
    with opened(video) as (container, stream):
        index = index_frames(video, container, stream)
        times, codec, is_avi = index.times, stream.codec_context, container.format.name == "avi"
        is_sorted = bool((np.diff(times) > 0).all())
        span_s = float((times[-1] - times[0]) * stream.time_base) if is_sorted else math.nan
        keys = np.flatnonzero(index.packets.is_key).tolist() or [0]
        gops = np.diff([*keys, len(index.packets.pts)])
        turned = _rotation(video)
        width, height = codec.width, codec.height
        return VideoFacts(
            frames=len(times),
            width=height if turned % 180 else width,
            height=width if turned % 180 else height,
            fps=index.fps,
            duration_s=span_s + 1 / index.fps if is_sorted and not is_avi else len(times) / index.fps,
            codec=codec.name,
            pixels=codec.pix_fmt or "",
            gop=float(np.median(gops)),
            longest_gop=int(gops.max()),
            is_vfr=is_sorted and not is_avi and is_variable(times),
            rotation=turned,
            has_audio=bool(container.streams.audio),
            size=size,
            digest=digest,
        )


def _rotation(video: Video) -> int:
    """Degrees, anticlockwise, that the display matrix asks for, after a mirroring if any: 0, 90, 180 or 270.

    Frames tell it, so the first is decoded.
    """
    return -90 * orientation(next(in_order(video)))[1] % 360


def _digest(video: Video) -> tuple[int, str]:
    if isinstance(video, bytes):
        return len(video), hashlib.sha256(video).hexdigest()
    try:
        size, digest = os.path.getsize(video), sha256_of(Path(video))
    except (OSError, UnicodeEncodeError) as error:
        raise VideoError(f"cannot be opened: {getattr(error, 'strerror', None) or error}") from None
    if not size:
        raise VideoError("an empty file")
    return size, digest


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
