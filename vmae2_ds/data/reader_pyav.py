"""PyAV: frames by their time stamps, or counted where a container's times cannot be trusted."""

from __future__ import annotations

import bisect
import contextlib
from collections.abc import Iterator
from typing import Any

import numpy as np

from vmae2_ds.data.reader_common import Choose, Video, choose_checked, opened_by_libav, why_not_opened
from vmae2_ds.errors import VideoError

# T frames asked for, H x W pixels as stored and turned upright, 3 colours (RGB).


def read_pyav(video: Video, choose: Choose) -> np.ndarray:
    """Frames of one video: uint8 (T, H, W, 3); raises VideoError."""
    import av

    try:
        container = av.open(
            opened_by_libav(video), metadata_errors="replace"
        )  # titles in odd encodings are no reason to drop a video
    except (av.FFmpegError, OSError) as error:
        raise why_not_opened(video, "pyav", str(error)) from None
    with container:
        stream = container.streams.best("video")
        if stream is None or stream.codec_context is None:
            raise why_not_opened(video, "pyav", "no video stream")
        stream.codec_context.thread_count = 1
        try:
            timeline = _Timeline.of(container, stream)
        except av.FFmpegError as error:
            raise VideoError(f"its frames cannot be counted: damaged or truncated ({error.strerror})") from None
        indices = choose_checked(choose, len(timeline.keys), float(stream.average_rate or "nan"))
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
        self._show_the_encoder()
        back = 0  # key frames to step back, because a container may seek past the one asked for (MPEG-TS does)
        while left:
            at = self._count_points(left[0]) - 1 - back
            before = len(left)
            try:
                for key, frame in self._decode_from(self.seek_points[at] if at >= 0 else self.start):
                    if key == left[0]:
                        found[key] = upright(frame)
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

    def _show_the_encoder(self) -> None:
        """Let the decoder see the first packet of 4:4:4 H.264 before a seek.

        x264 wrote some of it wrongly up to build 150, and libavcodec makes up for that once it has read the encoder's name
        there. Without it every frame behind a seek is garbage, with no error.
        """
        import av

        codec = self.stream.codec_context
        if self.seek_points and codec.name == "h264" and "444" in (codec.pix_fmt or ""):
            with contextlib.suppress(av.FFmpegError, StopIteration):
                self.container.seek(self.start, stream=self.stream)
                next(self.container.decode(self.stream))

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


def upright(frame: Any) -> np.ndarray:
    """uint8 (H, W, 3), turned as the container's display matrix asks; decord does the same by itself."""
    return np.rot90(frame.to_ndarray(format="rgb24"), k=frame.rotation // 90 % 4)
