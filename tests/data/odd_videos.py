"""Small videos made by code, each with an odd property, whose frames carry their numbers as bright and dark squares.

`ODD_VIDEOS[name](folder)` writes one and returns its path. PyAV's own encoders make them; oddities of containers come from
writing packets anew, with other times, flags or order.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import av
import numpy as np

HEIGHT, WIDTH, SQUARE = 32, 64, 16
"""Eight squares: the bits of a number below 256."""
FRAMES = 40
ALL = range(FRAMES)


def picture(number: int, height: int = HEIGHT) -> np.ndarray:
    """(H, 64, 3) uint8: bit k of the number is square k, from the upper left on."""
    image = np.full((height, WIDTH, 3), 40, np.uint8)
    for bit in range(8):
        if number >> bit & 1:
            row, column = divmod(bit, WIDTH // SQUARE)
            image[row * SQUARE : (row + 1) * SQUARE, column * SQUARE : (column + 1) * SQUARE] = 210
    return image


def number_of(frame_HWC: np.ndarray) -> int:
    """The number that an upright frame carries."""
    total = 0
    for bit in range(8):
        row, column = divmod(bit, WIDTH // SQUARE)
        square = frame_HWC[row * SQUARE + 4 : (row + 1) * SQUARE - 4, column * SQUARE + 4 : (column + 1) * SQUARE - 4]
        total |= int(square.mean() > 125) << bit
    return total


def coloured(number: int, pix_fmt: str, height: int) -> av.VideoFrame:
    """A frame of the picture of a number."""
    return av.VideoFrame.from_ndarray(picture(number, height), format="rgb24").reformat(format=pix_fmt)


def paletted(number: int, height: int, swap: int) -> av.VideoFrame:
    """The same with a palette, in which dark is colour 3 and bright colour 200; from number `swap` on the other way round."""
    palette = np.zeros((256, 4), np.uint8)
    palette[:, 3] = 255
    dark, bright = (3, 200) if number < swap else (200, 3)
    palette[dark, :3], palette[bright, :3] = 40, 210
    chosen = np.where(picture(number, height)[..., 0] > 125, bright, dark).astype(np.uint8)
    return av.VideoFrame.from_ndarray((chosen, palette), format="pal8")


class Piece(NamedTuple):
    """One packet to be written."""

    data: bytes
    pts: int | None
    dts: int | None
    is_key: bool


@contextlib.contextmanager
def ordinary_priority() -> Iterator[None]:
    """Run by root, SVT-AV1 makes the thread that opens it a real-time one, of priority 99, and leaves it so.

    Ranks started later inherit that: on two cores their gloo threads then keep everything else from running.
    """
    policy, parameters = os.sched_getscheduler(0), os.sched_getparam(0)
    try:
        yield
    finally:
        os.sched_setscheduler(0, policy, parameters)


def encoded(path: Path, numbers: Iterable[int] = ALL, codec: str = "libx264", gop: int = 12, **told: Any) -> Path:
    """Encode the numbers at 25 frames a second. `told`: options of the codec, and what is popped here; `ticks`: pts of k."""
    ticks: Callable[[int], int] = told.pop("ticks", lambda k: k)
    matrix, form = told.pop("matrix", None), told.pop("form", None)
    pix_fmt, rate, muxer = told.pop("pix_fmt", "yuv420p"), told.pop("rate", 25), told.pop("muxer", {})
    height, swap = told.pop("height", HEIGHT), told.pop("swap", 1000)
    with ordinary_priority(), av.open(str(path), "w", format=form, options=muxer) as container:
        stream: Any = container.add_stream(codec, rate=rate)
        stream.width, stream.height, stream.pix_fmt = WIDTH, height, pix_fmt
        stream.gop_size, stream.bit_rate = gop, 1_000_000
        stream.codec_context.thread_count = 1
        stream.options = told
        if matrix is not None:
            stream.set_display_matrix(matrix)
        for count, number in enumerate(numbers):
            frame = paletted(number, height, swap) if pix_fmt == "pal8" else coloured(number, pix_fmt, height)
            frame.pts = ticks(count)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def pieces_of(path: Path) -> list[Piece]:
    """The packets of a file."""
    with av.open(str(path)) as container:
        return [Piece(bytes(p), p.pts, p.dts, p.is_keyframe) for p in container.demux(video=0) if p.size]


def rewritten(source: Path, target: Path, pieces: Iterable[Piece], **muxer: str) -> Path:
    """Packets of `source` as another file, not encoded again; times in the source's time base."""
    with av.open(str(source)) as template, av.open(str(target), "w", options=muxer) as container:
        stream: Any = container.add_stream_from_template(template.streams.video[0], opaque=True)
        for piece in pieces:
            packet = av.Packet(piece.data)
            packet.stream, packet.time_base = stream, template.streams.video[0].time_base
            packet.pts, packet.dts, packet.is_keyframe = piece.pts, piece.dts, piece.is_key
            container.mux(packet)
    return target


Maker = Callable[[Path], Path]
ODD_VIDEOS: dict[str, Maker] = {}


def plain(name: str, **told: Any) -> None:
    """A file that an encoder writes like this by itself."""
    ODD_VIDEOS[name] = lambda folder: encoded(folder / name, **told)


def odd(name: str, source: str = "base.mkv", **muxer: str) -> Callable[[Callable[[list[Piece]], list[Piece]]], Any]:
    """A file whose packets are those of another one of ODD_VIDEOS, changed by the function."""

    def register(change: Callable[[list[Piece]], list[Piece]]) -> Any:
        def make(folder: Path) -> Path:
            (folder / "source").mkdir(exist_ok=True)
            made = ODD_VIDEOS[source](folder / "source")
            return rewritten(made, folder / name, change(pieces_of(made)), **muxer)

        ODD_VIDEOS[name] = make
        return change

    return register


def cut_bytes(name: str, source: str, start: float = 0.0, end: float = 1.0) -> None:
    """A file that is another one's bytes from one share of it to another."""

    def make(folder: Path) -> Path:
        (folder / "source").mkdir(exist_ok=True)
        data = ODD_VIDEOS[source](folder / "source").read_bytes()
        (folder / name).write_bytes(data[int(start * len(data)) : int(end * len(data))])
        return folder / name

    ODD_VIDEOS[name] = make


# --- encoders and containers ------------------------------------------------------------------------------------------

OPEN = {"bf": "3", "x264-params": "open-gop=1:scenecut=0"}
plain("base.mkv", bf="2")
plain("base.mp4", bf="2")
plain("no_b_frames.mp4", bf="0")
plain("pyramid.mp4", bf="5", **{"x264-params": "b-pyramid=normal:b-adapt=0:scenecut=0"})
plain("open_gop.mkv", **OPEN)
plain("open_gop.mp4", **OPEN)
plain("open_gop.ts", **OPEN)
plain("intra_refresh.mkv", bf="0", **{"x264-params": "intra-refresh=1:keyint=10"})
plain("interlaced.mkv", bf="2", **{"x264-params": "tff=1"})
plain("444.mp4", bf="2", pix_fmt="yuv444p")
plain("transport.ts", bf="2")
plain("flash.flv", bf="2")
plain("fragments.mp4", bf="2", muxer={"movflags": "frag_keyframe+empty_moov"})
plain("raw.h264", bf="2")
plain("raw.hevc", codec="libx265", **{"x265-params": "log-level=none"})
plain(
    "hevc_open.mkv", codec="libx265", **{"x265-params": "log-level=none:open-gop=1:keyint=10:min-keyint=10:bframes=3"}
)
plain("hevc.ts", codec="libx265", **{"x265-params": "log-level=none:open-gop=1:keyint=10:min-keyint=10:bframes=3"})
plain("h264.avi", bf="0")
plain("h264_b_frames.avi", bf="2")
plain("mpeg4.avi", codec="mpeg4")
plain("mpeg4_b_frames.avi", codec="mpeg4", bf="2")
plain("mpeg4_b_frames.mp4", codec="mpeg4", bf="2")
plain("mpeg4.m4v", codec="mpeg4", form="m4v")
plain("mjpeg.avi", codec="mjpeg", pix_fmt="yuvj420p")
plain("mjpeg.mjpeg", codec="mjpeg", pix_fmt="yuvj420p", form="mjpeg")
plain("mpeg2.ts", codec="mpeg2video", bf="2")
plain("mpeg2.mpg", codec="mpeg2video", bf="2", form="mpeg")
plain("mpeg2.m2v", codec="mpeg2video", bf="2", form="mpeg2video")
plain("mpeg1.mpg", codec="mpeg1video", form="mpeg")
plain("vp8.webm", codec="libvpx", deadline="realtime", **{"cpu-used": "8"})
plain("vp8.ivf", codec="libvpx", form="ivf", deadline="realtime", **{"cpu-used": "8"})
plain(
    "vp9.webm",
    codec="libvpx-vp9",
    **{"auto-alt-ref": "1", "lag-in-frames": "16", "deadline": "realtime", "cpu-used": "8"},
)
plain("av1.mkv", codec="libsvtav1", height=64, preset="12")
plain("ffv1.mkv", codec="ffv1")
plain("huffyuv.avi", codec="huffyuv", pix_fmt="rgb24")
plain("wmv2.asf", codec="wmv2", form="asf")
plain("msmpeg4.avi", codec="msmpeg4")
plain("flv1.flv", codec="flv", form="flv")
plain("h263.avi", codec="h263p")
plain("rv20.rm", codec="rv20", form="rm")
plain("svq1.mov", codec="svq1", pix_fmt="yuv410p")
plain("qtrle.mov", codec="qtrle", pix_fmt="rgb24")
plain("zmbv.avi", codec="zmbv", pix_fmt="bgr0")
plain("flashsv.flv", codec="flashsv", pix_fmt="bgr24", form="flv")
plain("cinepak.avi", codec="cinepak", pix_fmt="rgb24")
plain("msrle.avi", codec="msrle", pix_fmt="pal8")
plain("palette.avi", codec="rawvideo", pix_fmt="pal8")
plain("palette_changes.avi", codec="rawvideo", pix_fmt="pal8", swap=20)
plain("palette.nut", codec="rawvideo", pix_fmt="pal8", form="nut")
plain("palette.mov", codec="rawvideo", pix_fmt="pal8")
plain("rgb.avi", codec="rawvideo", pix_fmt="bgr24")
plain("moving.gif", codec="gif", pix_fmt="rgb8", form="gif")
plain("y4m.y4m", codec="rawvideo", form="yuv4mpegpipe")
plain("mxf.mxf", codec="mpeg2video", form="mxf")
plain("png.mov", codec="png", pix_fmt="rgb24")


# --- times ------------------------------------------------------------------------------------------------------------


def with_times(piece: Piece, change: Callable[[int], int]) -> Piece:
    """The same with both its times changed, where it has them."""
    return piece._replace(
        pts=None if piece.pts is None else change(piece.pts), dts=None if piece.dts is None else change(piece.dts)
    )


def moved(pieces: list[Piece], ticks: int) -> list[Piece]:
    """Later by so many ticks of the file's time base."""
    return [with_times(piece, lambda at: at + ticks) for piece in pieces]


odd("offset.mkv")(lambda pieces: moved(pieces, 10_000))
odd("offset.mp4")(lambda pieces: moved(pieces, 10_000))
odd("offset.ts")(lambda pieces: moved(pieces, 10_000))
odd("negative.mkv", avoid_negative_ts="disabled")(lambda pieces: moved(pieces, -700))
odd("negative_edit_list.mp4")(lambda pieces: moved(pieces, -700))
odd("negative_avoided.mkv")(lambda pieces: moved(pieces, -700))
odd("gap.mkv")(lambda pieces: pieces[:24] + moved(pieces[24:], 20_000))
odd("gap.mp4")(lambda pieces: pieces[:24] + moved(pieces[24:], 20_000))
odd("gap.ts")(lambda pieces: pieces[:24] + moved(pieces[24:], 20_000))
odd("gap.avi", "h264.avi")(lambda pieces: pieces[:24] + moved(pieces[24:], 8))
odd("dropped.avi", "h264.avi")(lambda pieces: [p for n, p in enumerate(pieces) if n not in (22, 23, 34, 35)])
odd("repeated.mkv", "no_b_frames.mkv")(lambda pieces: [with_times(p, lambda at: at - at % 80) for p in pieces])
plain("no_b_frames.mkv", bf="0")
plain("variable.mkv", bf="2", rate=1000, ticks=lambda k: 40 * k + k * k % 17)
plain("variable.mp4", bf="2", rate=1000, ticks=lambda k: 33 * k if k < 20 else 660 + 100 * (k - 20))
plain("header_1000.mkv", bf="0", rate=1000, ticks=lambda k: 33 * k)
plain("header_1000.mp4", bf="2", rate=1000, ticks=lambda k: 33 * k)
plain("one_frame.mp4", numbers=range(1))
plain("two_frames.mkv", numbers=range(2))


def joined(name: str, source: str, shift: int) -> None:
    """Two files' bytes put end to end; the times of the second start `shift` ticks of 1/90000 s after those of the first."""

    def make(folder: Path) -> Path:
        (folder / "source").mkdir(exist_ok=True)
        first = ODD_VIDEOS[source](folder / "source")
        second = encoded(folder / "source" / f"second_{source}", range(100, 140), bf="2")
        moved_second = rewritten(second, folder / "source" / f"moved_{source}", moved(pieces_of(second), shift))
        (folder / name).write_bytes(first.read_bytes() + moved_second.read_bytes())
        return folder / name

    ODD_VIDEOS[name] = make


joined("overlap.ts", "transport.ts", 50_400)
joined("overlap_by_one.ts", "transport.ts", 38 * 3600 + 1800)
joined("from_nought_again.ts", "transport.ts", 0)
joined("continued.ts", "transport.ts", 40 * 3600)
joined("long_pause.ts", "transport.ts", 900_000)

# --- heads, tails, flags ----------------------------------------------------------------------------------------------


def without_head(pieces: list[Piece]) -> list[Piece]:
    """Cut inside the first group of pictures."""
    return pieces[3:]


odd("cut_head.mkv")(without_head)
odd("cut_head.mp4")(without_head)
odd("cut_head.ts")(without_head)
odd("cut_head.flv", "flash.flv")(without_head)
odd("cut_head_mpeg4.mkv", "mpeg4.mkv")(without_head)
odd("cut_head_mpeg4.avi", "mpeg4.avi")(without_head)
odd("cut_head_vp8.webm", "vp8.webm")(without_head)
odd("cut_head_vp9.webm", "vp9.webm")(without_head)
odd("cut_head_hevc.ts", "hevc.ts")(without_head)
odd("cut_head_mpeg2.ts", "mpeg2.ts")(without_head)
odd("starts_open.mkv", "open_gop.mkv")(lambda pieces: pieces[[n for n, p in enumerate(pieces) if p.is_key][1] :])
odd("starts_open.ts", "open_gop.ts")(lambda pieces: pieces[[n for n, p in enumerate(pieces) if p.is_key][1] :])
odd("starts_open_hevc.mkv", "hevc_open.mkv")(lambda pieces: pieces[[n for n, p in enumerate(pieces) if p.is_key][1] :])
odd("starts_open_mpeg2.ts", "mpeg2.ts")(lambda pieces: pieces[[n for n, p in enumerate(pieces) if p.is_key][1] :])
odd("starts_in_refresh.mkv", "intra_refresh.mkv")(lambda pieces: pieces[12:])
odd("no_key_flags.mkv")(lambda pieces: [p._replace(is_key=False) for p in pieces])
odd("all_key_flags.mkv")(lambda pieces: [p._replace(is_key=True) for p in pieces])
odd("all_key_flags.mp4")(lambda pieces: [p._replace(is_key=True) for p in pieces])
odd("all_key_flags_vp9.webm", "vp9.webm")(lambda pieces: [p._replace(is_key=True) for p in pieces])
odd("one_key_flag.mkv")(lambda pieces: [p._replace(is_key=n == 0) for n, p in enumerate(pieces)])
odd("late_key_flag.mkv")(lambda pieces: [p._replace(is_key=n == 24) for n, p in enumerate(pieces)])
odd("lost_key.mkv")(lambda pieces: pieces[:12] + pieces[13:])
odd("lost_key.ts", "transport.ts")(lambda pieces: pieces[:12] + pieces[13:])


@odd("hidden_frames.webm", "vp8.webm")
def hide_two(pieces: list[Piece]) -> list[Piece]:
    """VP8 says in bit 4 of a packet whether its picture is shown."""
    return [
        p._replace(data=bytes([p.data[0] & ~0x10]) + p.data[1:]) if n in (5, 17) else p for n, p in enumerate(pieces)
    ]


plain("mpeg4.mkv", codec="mpeg4")
cut_bytes("cut_tail.ts", "transport.ts", end=0.83)
cut_bytes("cut_head_bytes.ts", "transport.ts", start=0.21)
cut_bytes("cut_both.ts", "mpeg2.ts", 0.17, 0.71)
cut_bytes("cut_tail.mkv", "base.mkv", end=0.83)
cut_bytes("cut_tail.flv", "flash.flv", end=0.83)
cut_bytes("cut_tail.avi", "h264.avi", end=0.83)
cut_bytes("cut_tail_mpeg4.avi", "mpeg4.avi", end=0.83)
cut_bytes("cut_tail_fragments.mp4", "fragments.mp4", end=0.83)
cut_bytes("cut_tail.h264", "raw.h264", end=0.83)
cut_bytes("cut_head.h264", "raw.h264", 0.2)
cut_bytes("cut_tail.m2v", "mpeg2.m2v", end=0.83)
cut_bytes("cut_tail.mjpeg", "mjpeg.mjpeg", end=0.83)
cut_bytes("cut_tail.ivf", "vp8.ivf", end=0.83)
cut_bytes("cut_tail.mpg", "mpeg2.mpg", end=0.83)
cut_bytes("cut_head.mpg", "mpeg2.mpg", 0.2)
cut_bytes("cut_tail.gif", "moving.gif", end=0.83)
cut_bytes("cut_tail_vp9.webm", "vp9.webm", end=0.83)
