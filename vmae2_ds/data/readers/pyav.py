"""PyAV: frames by their time stamps, or counted where a file's times cannot be trusted (frame_index.py)."""

from __future__ import annotations

import bisect
from collections import deque
from collections.abc import Iterator
from typing import Any

import numpy as np

from vmae2_ds.data.readers.common import Choose, FrameCount, Video, choose_checked, in_chosen_order
from vmae2_ds.data.readers.frame_index import FrameIndex, in_order, opened, steps
from vmae2_ds.data.readers.known_index import known_index
from vmae2_ds.errors import VideoError

# T frames asked for, H x W pixels as stored and turned upright, 3 colours (RGB).


def read_pyav(video: Video, choose: Choose) -> np.ndarray:
    """Frames of one video: uint8 (T, H, W, 3); raises VideoError. Holds no more frames than it returns."""
    return in_chosen_order(lambda noted: stream_pyav(video, noted), choose)


def stream_pyav(video: Video, choose: Choose, count: FrameCount | None = None) -> Iterator[np.ndarray]:
    """The frames chosen, each once and in their order: uint8 (H, W, 3) one by one, of which none is kept; raises VideoError.

    Between them it goes on decoding, or from a later key frame where that is nearer. `count` learns what it has fields for.
    """
    count = count or FrameCount()
    with opened(video) as (container, stream):
        index = known_index(video, container, stream)
        count.off_s = index.off_s(stream.time_base)
        indices = choose_checked(choose, len(index.times), index.fps)
        wanted = _Wanted(index, sorted(set(indices)), count)
        if len(index.points):
            yield from wanted.by_seeking(container, stream)
    if wanted.left:
        yield from wanted.from_the_start(video)


class _Wanted:
    """The frames of a video that are asked for, by number, and have not come yet."""

    def __init__(self, index: FrameIndex, numbers: list[int], count: FrameCount) -> None:
        self.index, self.left, self._count = index, deque(numbers), count
        self._points = index.points.tolist()
        self._turn = Upright()
        self._shape: tuple[int, ...] | None = None
        self._at = -1  # the frame that came last
        self._points_up_to = 0
        self._look_for_the_next()

    def by_seeking(self, container: Any, stream: Any) -> Iterator[np.ndarray]:
        """Each decoded from a key frame before it.

        Ends with some left where the container does not lead to frames as the index has them.
        """
        import av

        back, failed_at = (
            0,
            None,
        )  # key frames to step back, as a container may seek past the one asked for (MPEG-TS does)
        while self.left:
            at = self._points_up_to - 1 - back
            if at < 0:
                return
            try:
                container.seek(self._points[at], stream=stream)
            except av.FFmpegError:
                return
            stream.codec_context.reorder_depth = self.index.depth  # the seek may have made the decoder forget it
            before, landed, packet = len(self.left), None, None
            try:
                for packet, frames in steps(container, stream):
                    if landed is None:
                        if packet is None or packet.pts is None or packet.pts > self._time:
                            break
                        landed = packet.pts
                    found, goes_on = self._take(frames, landed)
                    yield from found
                    if not goes_on:
                        break
            except av.FFmpegError as error:
                where = None if packet is None else packet.dts
                if failed_at == (where,) or at == 0:
                    raise self._damaged(error) from None
                failed_at = (where,)
            if len(self.left) == before:
                back = 2 * back + 1
            elif failed_at is None:
                back = 0

    def from_the_start(self, video: Video) -> Iterator[np.ndarray]:
        """Each from a decode of the file up to the last one: by their times where these can be trusted, else by counting."""
        import av

        try:
            for number, frame in enumerate(in_order(video)):
                self._count.decoded += 1
                if frame.pts == self._time if self._points else number == self.left[0]:
                    yield self._upright(frame)
                    if not self.left:
                        return
        except av.FFmpegError as error:
            raise self._damaged(error) from None
        raise VideoError(f"frame {self.left[0]} of {len(self.index.times)} cannot be decoded")

    def _take(self, frames: list[Any], landed: int) -> tuple[list[np.ndarray], bool]:
        """Those of the decoded frames that are asked for, and whether decoding on from here is of any use."""
        found: list[np.ndarray] = []
        self._count.decoded += len(frames)
        for frame in frames:
            at = frame.pts
            if at is None or at < landed:
                continue  # of an open GOP: its references lie before the place that was found
            if at > self._time or frame.is_corrupt:
                return found, False
            if at == self._time:
                found.append(self._upright(frame))
                if not self.left or self._is_a_key_frame_nearer():
                    return found, False
        return found, True

    def _is_a_key_frame_nearer(self) -> bool:
        """Whether a seek to the key frame before the next one leaves out more frames than the decoder holds and would lose."""
        if self._points_up_to == self._points_behind:
            return False
        key_frame = int(np.searchsorted(self.index.times, self._points[self._points_up_to - 1]))
        return key_frame - self._at - 1 > self.index.depth

    def _upright(self, frame: Any) -> np.ndarray:
        pixels = self._turn.upright(frame)
        if pixels.shape != (self._shape or pixels.shape):
            raise VideoError("its frame size changes on the way; re-encode it")
        self._shape, self._at = pixels.shape, self.left.popleft()
        self._look_for_the_next()
        return pixels

    def _look_for_the_next(self) -> None:
        if self.left:
            self._points_behind = self._points_up_to
            self._time = int(self.index.times[self.left[0]])
            self._points_up_to = bisect.bisect_right(self._points, self._time)

    def _damaged(self, error: Any) -> VideoError:
        where = f"read error at or before frame {self.left[0]} of {len(self.index.times)}"
        return VideoError(f"{where}: damaged or truncated ({error.strerror})")


class Upright:
    """Turns the frames of one video upright. Their display matrices are looked at where their rotation changes."""

    def __init__(self) -> None:
        self._told: dict[int, tuple[bool, int]] = {}

    def of(self, frame: Any) -> tuple[bool, int]:
        """`orientation` of a frame."""
        told: int = frame.rotation
        if told not in self._told:
            self._told[told] = orientation(frame)
        return self._told[told]

    def upright(self, frame: Any) -> np.ndarray:
        """uint8 (H, W, 3)."""
        mirrored, quarters = self.of(frame)
        pixels = frame.to_ndarray(format="rgb24")
        return np.rot90(pixels[:, ::-1] if mirrored else pixels, k=-quarters)


def orientation(frame: Any) -> tuple[bool, int]:
    """(whether a decoded PyAV frame is to be mirrored left to right, quarter turns clockwise that follow).

    As its display matrix asks, to the nearest quarter turn; decord turns by itself, and does not mirror.
    """
    from av.sidedata.sidedata import SideDataContainer

    # frame.side_data would hold the frame, and be held by it: memory until the next collection
    told: Any = SideDataContainer(frame)  # type: ignore[call-arg]
    matrix = told.get("DISPLAYMATRIX")
    if matrix is None:
        return False, 0
    # rows (a, b, u), (c, d, v), (x, y, w) of libavutil/display.h: a pixel (p, q) goes to (a p + c q, b p + d q), q downwards
    a, b, _, c, d = (int(value) for value in np.frombuffer(bytes(matrix), np.int32)[:5])
    mirrored = a * d - b * c < 0
    if mirrored:
        a, b = -a, -b
    if not a * d - b * c:
        return False, 0  # it would squeeze the picture to nothing
    return mirrored, round(np.degrees(np.arctan2(b - c, a + d)) / 90) % 4  # the nearest turn, in the least squares
