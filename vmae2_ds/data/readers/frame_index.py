"""Which frames a video file has: one pass over its packets where their times can be trusted, a decode of the file where not.

The rule behind it: frame k is the k-th that a decode of the whole file from its start gives. What that decode drops (a head
that was cut between key frames, what an edit list hides) is no frame.
"""

from __future__ import annotations

import contextlib
import re
from array import array
from collections.abc import Iterator
from fractions import Fraction
from itertools import islice
from typing import Any, NamedTuple

import numpy as np

from vmae2_ds.data.readers.common import ENCRYPTED, Video, is_cover, is_encrypted, opened_by_libav, why_not_opened
from vmae2_ds.errors import VideoError

NO_TIME = -(2**63)
"""A time stamp that is not there, as libav writes it (AV_NOPTS_VALUE)."""
GAP = 10
"""Steps between frames longer than so many usual ones are pauses, and say nothing of the rate."""
RATE_AGREES = 0.01
"""A header's rate is taken where the times differ from it by no more than this share, or by their rounding."""
NVOP_BYTES = 19
"""MPEG-4 packets up to this size may say "no new picture" (MAX_NVOP_SIZE of libavcodec's mpeg4videodec.c)."""
FIELDS_TRIED = 24
"""Packets of an interlaced video that are decoded to see whether each is a frame, or a field of one."""
PROGRESSIVE = 1
"""AV_FIELD_PROGRESSIVE; larger ones are interlaced."""
LISTED = ("mov", "matroska", "avi", "asf", "ogg")
"""Parts of the names of libav's containers that say by themselves where a frame ends: no last one is half there unnoticed."""


class FrameIndex(NamedTuple):
    """The frames of a video's best stream."""

    times: np.ndarray
    """(frames,) int64 in units of the stream's time base: ascending where `points` has any; else as the decoder gave them, and
    NO_TIME where it gave none."""
    points: np.ndarray
    """(key frames,) int64, ascending: times that a decode may begin at. Empty: frames are found by counting from the start."""
    rate: Fraction | None
    """Frames a second while frames come; None where nothing tells."""
    depth: int
    """Frames that the decoder holds back to sort them."""
    packets: Packets

    @property
    def fps(self) -> float:
        """The rate, nan where unknown."""
        return float(self.rate or "nan")

    def off_s(self, time_base: Fraction) -> float:
        """Seconds between a frame's time and its number over the rate, at most; 0 where times or rate are not known."""
        if not len(self.points) or not self.rate:
            return 0.0
        time_s = (self.times - self.times[0]) * float(time_base)
        return float(np.abs(time_s - np.arange(len(time_s)) / self.fps).max())


class Packets(NamedTuple):
    """The packets with pictures, in the order of the file; their content is not kept."""

    pts: np.ndarray
    dts: np.ndarray
    is_key: np.ndarray
    is_shown: np.ndarray
    """An edit list hides the others."""
    counts_alone: bool
    """Each gives one frame, as far as the packets tell."""
    ends_corrupt: bool
    """The last one is cut."""
    first: int | None
    """Time of the frame that the first packet gives by itself; None where it gives none."""


@contextlib.contextmanager
def opened(video: Video) -> Iterator[tuple[Any, Any]]:
    """(container, its best video stream) of PyAV, opened again, decoding with one thread; raises VideoError with the reason."""
    import av

    try:
        # titles in odd encodings are no reason to drop a video
        container: Any = av.open(opened_by_libav(video), metadata_errors="replace")
    except (av.FFmpegError, OSError) as error:
        raise why_not_opened(video, "pyav", str(error)) from None
    with container:
        stream = container.streams.best("video")
        if stream is not None and is_cover(stream):
            stream = next((other for other in container.streams.video if not is_cover(other)), None)
        if stream is None or stream.codec_context is None:
            raise why_not_opened(video, "pyav", "no video stream")
        stream.codec_context.thread_count = 1
        yield container, stream


def steps(container: Any, stream: Any) -> Iterator[tuple[Any, list[Any]]]:
    """(packet, the frames that come out with it) from where the container stands; at the end (None, what was held back).

    Packets that fail before the first frame are passed over (a head that was cut between key frames), and so is the last one
    where a file may end anywhere; any other failure is av.FFmpegError.
    """
    import av

    found, late = False, None
    for packet in data_packets(container, stream):
        if packet is not None and late is not None:
            raise late
        try:
            frames = stream.codec_context.decode(packet)
        except av.FFmpegError as error:
            frames = []
            if found and _promises_frames(container):
                raise
            late = error if found else None
        found = found or bool(frames)
        yield packet, frames


def in_order(video: Video) -> Iterator[Any]:
    """All frames of a file opened again; raises VideoError, also where there is none, and av.FFmpegError."""
    found = False
    with opened(video) as (container, stream):
        codec = stream.codec_context.name
        for _, frames in steps(container, stream):
            found = found or bool(frames)
            yield from frames
    if not found and codec == "webp":
        raise VideoError("a moving WebP picture, which cannot be decoded; save it as a video")
    if not found:
        raise VideoError("none of its frames can be decoded: damaged, or cut off from its key frame; fetch it again")


def all_frames(video: Video, index: FrameIndex) -> Iterator[Any]:
    """All frames in order, as `in_order`, of a file whose index is known; raises VideoError if it gives others or breaks off.

    What `data prepare` writes, and what `data check --decode all` looks at.
    """
    import av

    count = 0
    try:
        for frame in in_order(video):
            count += 1
            yield frame
    except av.FFmpegError as error:
        raise VideoError(f"cannot be read to its end: damaged or truncated ({error.strerror})") from None
    if count != len(index.times):
        raise VideoError(
            f"its packets promise {len(index.times)} frames, a decode of all gives {count}: some are damaged or missing; "
            "fetch it again, or re-encode it"
        )


def index_of(video: Video) -> FrameIndex:
    """`index_frames` of a file by itself; raises VideoError."""
    with opened(video) as (container, stream):
        return index_frames(video, container, stream)


def index_frames(video: Video, container: Any, stream: Any) -> FrameIndex:
    """The frames of a stream of `opened(video)`, which stands at its start and is read to its end.

    Holds some 30 bytes a packet. Raises VideoError where there is no frame, or where they cannot be counted.
    """
    import av

    try:
        packets = _read_packets(container, stream)
        index = _by_times(video, container, stream, packets) if _is_trusted(video, container, stream, packets) else None
        return index or _by_counting(video, container, stream, packets)
    except av.FFmpegError as error:
        raise VideoError(f"its frames cannot be counted: damaged or truncated ({error.strerror})") from None


def read_first(container: Any, stream: Any) -> None:
    """Take in what a decoder needs of a file's head, before the first seek, where the file is not indexed (`_first_time`)."""
    packet = next(data_packets(container, stream))
    if packet is not None:
        _first_time(container, stream, packet)


def rate_of(steps: np.ndarray, stream: Any) -> Fraction | None:
    """Frames a second from the time between frames, pauses left out; the header's rate where it agrees, or nothing else tells.

    Args:
        steps: (frames - 1,) of the time base.
        stream: PyAV's.
    """
    header = stream.average_rate or stream.guessed_rate
    usual = steps[steps > 0]
    if not len(usual):
        return header or None
    if usual.max() > GAP * usual.min():
        usual = usual[usual <= GAP * np.median(usual)]
    span = int(usual.sum())
    measured = len(usual) / (span * stream.time_base)
    if header and abs(header / measured - 1) <= max(RATE_AGREES, 1.5 / span):
        return Fraction(header)
    return Fraction(measured).limit_denominator(1001)


# --- may the times be trusted? ----------------------------------------------------------------------------------------


def data_packets(container: Any, stream: Any) -> Iterator[Any]:
    """The stream's packets that hold data, then None. Where the container breaks off, it ends, as for ffmpeg."""
    import av

    try:
        for packet in container.demux(stream):
            if packet.size:  # AVI says "the same picture again" with an empty one, at which libav's decoders end
                yield packet
    except av.InvalidDataError:
        if _promises_frames(container):
            raise
    yield None


def _promises_frames(container: Any) -> bool:
    """Whether the container's index lists every frame, so that one that is not there is a loss, and no earlier end."""
    return "mov" in container.format.name


def _read_packets(container: Any, stream: Any) -> Packets:
    """All packets of the file."""
    pts, dts, keys, hidden = array("q"), array("q"), bytearray(), bytearray()
    codec = stream.codec_context
    may_give_none = codec.name in ("mpeg4", "vp8")
    counts_alone, first, last = True, None, None
    for packet in data_packets(container, stream):
        if packet is None:
            break
        if last is None:
            if is_encrypted(stream, packet):
                raise VideoError(ENCRYPTED)
            first = _first_time(container, stream, packet)
        for times, at in ((pts, packet.pts), (dts, packet.dts)):
            times.append(NO_TIME if at is None else at)
        keys.append(packet.is_keyframe)
        hidden.append(packet.is_discard)
        if may_give_none and counts_alone:
            counts_alone = not _gives_no_frame(codec.name, packet)
        last = packet
    if last is None:
        raise VideoError("no frames")
    is_key, is_hidden = np.frombuffer(keys, bool), np.frombuffer(hidden, bool)
    read = np.frombuffer(pts, np.int64), np.frombuffer(dts, np.int64)
    return Packets(*read, is_key, ~is_hidden, counts_alone, last.is_corrupt, first)


def _gives_no_frame(codec: str, packet: Any) -> bool:
    """Whether a packet of VP8 is for the decoder alone (show_frame of RFC 6386, 9.1), or one of MPEG-4 may be."""
    return packet.size <= NVOP_BYTES if codec == "mpeg4" else not memoryview(packet)[0] & 0x10


def _first_time(container: Any, stream: Any, packet: Any) -> int | None:
    """Time of the frame that the first packet gives by itself; None where it gives none, or where that is of no use.

    It is decoded, before any seek, also because some of what a decoder needs is in the file's head alone: tables of MJPEG, the
    name of an x264 whose 4:4:4 has to be read otherwise (behind a seek all of its frames were garbage). Where neither can
    be, it is not decoded.
    """
    codec = stream.codec_context
    if packet.pts is None or _makes_up_times(container, codec):
        return None
    if stands_alone(codec, bytes(packet)) and "444" not in (codec.pix_fmt or ""):
        return None if packet.is_discard else int(packet.pts)
    frames = _decode_alone(codec, [packet])
    return frames[0].pts if frames else None


def stands_alone(codec: Any, data: bytes) -> bool:
    """Whether a packet's bytes say that it is a picture that needs none before it; of some codecs False is all that is said.

    H.264 and HEVC: NAL unit types 5, and 16 to 21. VP8: RFC 6386, 9.1. VP9: its bitstream specification, 6.2 (profiles 0 to 2).
    MPEG-4 part 2: vop_coding_type of 6.2.5, where libav has already taken the headers out.
    """
    if codec.name in ("vp8", "libvpx"):
        return not data[0] & 1
    if codec.name in ("vp9", "libvpx-vp9"):
        return data[0] >> 6 == 2 and not data[0] & 12
    if codec.name == "mpeg4":
        picture = data.partition(b"\0\0\1\xb6")[2]
        return bool(codec.extradata) and picture[:1] != b"" and picture[0] >> 6 == 0
    if codec.name not in ("h264", "hevc"):
        return False
    sets = codec.extradata or b""
    if sets[:1] == b"\x01" and len(sets) > 22:  # ISO/IEC 14496-15: units after their lengths
        edge = 1 + (sets[4 if codec.name == "h264" else 21] & 3)
        starts, at = [], 0
        while at + edge < len(data):
            starts.append(at + edge)
            at += edge + int.from_bytes(data[at : at + edge], "big")
    else:
        starts = [found.end() for found in re.finditer(b"\0\0\1", data[:-1])]
    if codec.name == "h264":
        return any(data[start] & 31 == 5 for start in starts)
    return any(16 <= data[start] >> 1 & 63 <= 21 for start in starts)


def _makes_up_times(container: Any, codec: Any) -> bool:
    """AVI stores no times: where frames are sorted, libav's are made up."""
    return container.format.name == "avi" and codec.reorder_depth > 0


def _decode_alone(codec: Any, packets: list[Any]) -> list[Any]:
    """The frames of some packets and no others; the decoder is as before."""
    import av

    frames = []
    for packet in [*packets, None]:
        with contextlib.suppress(av.FFmpegError):
            frames += codec.decode(packet)
    codec.flush_buffers()
    return frames


def _is_trusted(video: Video, container: Any, stream: Any, packets: Packets) -> bool:
    """Whether the packets tell which frames there are, in which order, and where a decode may begin."""
    codec = stream.codec_context
    pts, dts = packets.pts, packets.dts[packets.dts != NO_TIME]
    if not packets.counts_alone or not packets.is_key.any() or not packets.is_shown.any() or (pts == NO_TIME).any():
        return False
    if (np.diff(dts) < 0).any():  # streams put end to end: the decoder does not sort across the seam
        return False
    if _makes_up_times(container, codec):
        return False
    if "pal8" in (codec.pix_fmt or ""):  # a palette may change anywhere, and holds until the next
        return False
    if codec.name == "h264" and codec.field_order > PROGRESSIVE and not _gives_whole_frames(video):
        return False
    if (np.diff(pts) > 0).all():
        return True
    order = np.argsort(pts, kind="stable")
    if (np.diff(pts[order]) == 0).any():
        return False
    ranks = np.empty(len(pts), np.int64)
    ranks[order] = np.arange(len(pts))
    return bool((np.arange(len(pts)) - ranks).max() <= codec.reorder_depth)


def _gives_whole_frames(video: Video) -> bool:
    """Whether the first packets hold a frame each, not a field."""
    with opened(video) as (container, stream):
        first = [packet for packet in islice(data_packets(container, stream), FIELDS_TRIED) if packet is not None]
        return len(_decode_alone(stream.codec_context, first)) == sum(not packet.is_discard for packet in first)


def _by_times(video: Video, container: Any, stream: Any, packets: Packets) -> FrameIndex | None:
    """The frames by their times; None where the decoder's times are not the packets'."""
    times = np.sort(packets.pts[packets.is_shown])
    first = packets.first
    if not packets.is_key[0] or first != times[0]:
        first = next(in_order(video)).pts  # what comes before it never comes
        if first is None:
            return None
        times = times[np.searchsorted(times, first) :]
    points = np.sort(packets.pts[packets.is_key])
    if packets.ends_corrupt or not any(name in container.format.name for name in LISTED):
        times = _without_a_lost_end(container, stream, times, points)
    if not len(times) or times[0] != first:
        return None
    return FrameIndex(times, points, rate_of(np.diff(times), stream), stream.codec_context.reorder_depth, packets)


def _without_a_lost_end(container: Any, stream: Any, times: np.ndarray, points: np.ndarray) -> np.ndarray:
    """The times but for frames at the end that do not come out of a file that may be cut; none where no seek leads there."""
    import av

    if _promises_frames(container):
        return times
    for back in (1, 2, 4):  # a container may seek past what is asked for (MPEG-TS does)
        if back > len(points):
            break
        try:
            container.seek(int(points[-back]), stream=stream)
            came = [frame.pts for _, frames in steps(container, stream) for frame in frames if frame.pts is not None]
        except av.FFmpegError:
            break
        if came:
            return times[(times < min(came)) | np.isin(times, came)]
    return times[:0]


def _by_counting(video: Video, container: Any, stream: Any, packets: Packets) -> FrameIndex:
    """The frames of a decode from start to end, none of which is kept."""
    known = np.fromiter((NO_TIME if frame.pts is None else frame.pts for frame in in_order(video)), np.int64)
    steps = np.diff(known[known != NO_TIME]) if container.format.name != "avi" else known[:0]  # which stores no times
    none = np.empty(0, np.int64)
    return FrameIndex(known, none, rate_of(steps, stream), stream.codec_context.reorder_depth, packets)
