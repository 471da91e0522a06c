"""H.264 files that are cheap to read: short GOPs, even sizes, one after another frame. The only encoder."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from fractions import Fraction
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from vmae2_ds.data.readers.frame_index import all_frames, index_of
from vmae2_ds.data.readers.pyav import Upright
from vmae2_ds.errors import VideoError

FALLBACK_FPS = Fraction(25)
"""Frame rate taken for a video that does not tell its own."""


X264 = {"preset": "veryfast", "threads": "1", "x264-params": "mbtree=0"}
"""One thread; and no macroblock tree, for which libx264 reads memory that it has not written (seen with MALLOC_PERTURB_)."""


class Encoded(NamedTuple):
    """What `reencode` wrote."""

    frames: int
    size: int
    """Bytes."""
    height: int
    width: int


def write_frames(
    path: Path,
    frames: Iterable[Any],
    fps: Fraction | int,
    gop: int,
    crf: int,
    kind: str | None = None,
    index_first: bool = False,
    comment: str = "",
) -> int:
    """Encode equally large PyAV frames of even size as H.264 4:2:0, a key frame every `gop` at most; returns how many.

    The same frames give the same bytes with the same build of libx264: see X264. `kind` is the container, by default what
    the suffix says; `index_first` puts an mp4's index in front of its frames.
    """
    import av

    frames = iter(frames)
    first = next(frames, None)
    if first is None:
        raise VideoError("no frames")
    count = 0
    with av.open(str(path), "w", format=kind, options={"movflags": "+faststart"} if index_first else {}) as container:
        if comment:
            container.metadata["comment"] = comment
        stream: Any = container.add_stream("libx264", rate=fps)
        stream.height, stream.width = first.height, first.width
        stream.pix_fmt = "yuv420p"
        stream.options = {"crf": str(crf), "g": str(gop), **X264}
        for frame in chain((first,), frames):
            frame.pts, frame.time_base = count, 1 / Fraction(fps)  # numbers stay what they were, whatever the times
            container.mux(stream.encode(frame))
            count += 1
        container.mux(stream.encode())
    return count


def write_video(
    path: Path,
    images: Iterable[np.ndarray],
    fps: Fraction | int,
    gop: int = 16,
    kind: str | None = None,
    comment: str = "",
) -> None:
    """H.264 of uint8 (H, W, 3) images of one even size, a key frame every `gop` at most; the rest as `write_frames` has it."""
    import av

    frames = (av.VideoFrame.from_ndarray(image, format="rgb24") for image in images)
    write_frames(path, frames, fps, gop, crf=20, kind=kind, comment=comment)


def reencode(source: str | bytes, target: str, short_side: int, gop: int, crf: int) -> Encoded:
    """Every frame of a video (frame_index.py), upright, at its rate, no sound; made smaller to `short_side`, never larger.

    Raises VideoError where the source cannot be read to its end, or gives other frames than its reader counts.
    """
    import av

    index = index_of(source)
    turn = Upright()
    shown: list[tuple[int, int]] = []

    def frames() -> Iterator[Any]:
        for frame in all_frames(source, index):
            smaller = _fitted(frame, turn, short_side)
            if not shown:
                shown.append((smaller.height, smaller.width))
            if (smaller.height, smaller.width) != shown[0]:
                raise VideoError("its frame size changes on the way")
            yield smaller

    try:
        count = write_frames(Path(target), frames(), index.rate or FALLBACK_FPS, gop, crf, kind="mp4", index_first=True)
    except (av.FFmpegError, OSError) as error:
        if getattr(error, "errno", None) in (27, 28, 122):  # the disk is full: no fault of this video
            raise
        raise VideoError(f"cannot be re-encoded ({getattr(error, 'strerror', error)})") from None
    return Encoded(count, Path(target).stat().st_size, *shown[0])


def _fitted(frame: Any, turn: Upright, short_side: int) -> Any:
    """Upright, even, and not larger than asked for."""
    import av

    if turn.of(frame) != (False, 0):
        frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(turn.upright(frame)), "rgb24")
    scale = min(1.0, short_side / min(frame.height, frame.width))
    height, width = (max(2, 2 * round(edge * scale / 2)) for edge in (frame.height, frame.width))
    return frame.reformat(width=width, height=height, format="yuv420p", interpolation="AREA")
