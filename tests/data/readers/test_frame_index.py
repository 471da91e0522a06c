"""One rule for every file: the reader, the probe, `data check --decode all` and `data prepare` have the frames that a decode of
the whole file from its start has, in number and to the last bit.

That decode is done here, in the plainest way, by PyAV from a container opened again. What the made files show is known besides:
their frames carry numbers.
"""

from __future__ import annotations

import collections
import subprocess
import sys
from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from tests.data.frames import read_frames
from tests.data.odd_videos import FRAMES, ODD_VIDEOS, encoded, number_of, pieces_of, rewritten
from tests.data.readers.test_table import LIMIT_S
from vmae2_ds.data.entry import ReadAs, VideoEntry
from vmae2_ds.data.readers import known_index
from vmae2_ds.data.readers.frame_index import index_frames
from vmae2_ds.data.readers.table import read_clip
from vmae2_ds.data.readers.watchdog import Watchdog
from vmae2_ds.data.tools.encode import reencode
from vmae2_ds.data.tools.scan import decode_all
from vmae2_ds.data.tools.video_facts import VideoFacts, probe_entry
from vmae2_ds.errors import VideoError

SHARED = Path(__file__).parents[4] / "shared"


def whole_decode(path: Path) -> Iterator[Any]:
    """Every frame of a decode from start to end. What fails before the first one, and last of all, is passed over."""
    with av.open(str(path), metadata_errors="replace") as container:
        stream: Any = container.streams.best("video")
        stream.codec_context.thread_count = 1
        packets = [packet for packet in container.demux(stream) if packet.size]
        found = False
        for number, packet in enumerate([*packets, None]):
            try:
                frames = stream.codec_context.decode(packet)
            except av.FFmpegError:
                assert not found or number >= len(packets) - 1, "damaged in between: not a case for this test"
                continue
            found = found or bool(frames)
            yield from frames


def rgb(path: Path) -> np.ndarray:
    """(T, H, W, 3), not turned."""
    return np.stack([frame.to_ndarray(format="rgb24") for frame in whole_decode(path)])


def facts_of(path: Path) -> VideoFacts:
    return probe_entry(VideoEntry(str(path), None, "", 0, None), ReadAs())


def count_all(path: Path) -> int:
    """What `data check --decode all` counts."""
    return collections.deque(decode_all(VideoEntry(str(path), None, "", 0, None)), maxlen=1)[0]


def length_of(path: Path, clip: int = 1) -> int:
    """What the reader tells when it reads so many frames, or a few more, from all over the file."""
    lengths = []

    def choose(length: int, fps: float) -> np.ndarray:
        lengths.append(length)
        return np.arange(length)[:: max(1, length // clip)]

    read_clip(path, choose)
    return lengths[0]


# --- made files -------------------------------------------------------------------------------------------------------

SHOWN: dict[str, list[int]] = {
    "one_frame.mp4": [0],
    "two_frames.mkv": [0, 1],
    # 40 numbers of one file, then 100 to 139 of another
    "overlap.ts": [*range(40), *range(100, 140)],
    "overlap_by_one.ts": [*range(40), *range(100, 140)],
    "from_nought_again.ts": [*range(40), *range(100, 140)],
    "continued.ts": [*range(40), *range(100, 140)],
    "long_pause.ts": [*range(40), *range(100, 140)],
    # cut three packets behind a key frame: nothing until the next one, 12 (of HEVC 10) frames on
    "cut_head.mkv": [*range(12, 40)],
    "cut_head.mp4": [*range(12, 40)],
    "cut_head.ts": [*range(12, 40)],
    "cut_head.flv": [*range(12, 40)],
    "cut_head_vp8.webm": [*range(12, 40)],
    "cut_head_mpeg2.ts": [*range(12, 40)],
    "cut_head_hevc.ts": [*range(10, 40)],
    # cut at the key frame of an open GOP: the frames before it that need the GOP before are gone
    "starts_open.mkv": [*range(12, 40)],
    "starts_open.ts": [*range(12, 40)],
    "starts_open_mpeg2.ts": [*range(12, 40)],
    "starts_open_hevc.mkv": [*range(10, 40)],
    # every fifth of a second a stripe is refreshed; a cut waits for the end of the next sweep
    "starts_in_refresh.mkv": [*range(22, 40)],
    "negative_edit_list.mp4": [*range(18, 40)],  # 700 ms at 25 a second: 17.5 frames lie before nought
    "dropped.avi": [n for n in range(40) if n not in (22, 23, 34, 35)],
    "hidden_frames.webm": [n for n in range(40) if n not in (5, 17)],
    "cut_head_bytes.ts": [*range(12, 40)],
    "cut_both.ts": [*range(12, 28)],
    "cut_tail.mkv": [*range(28)],
    "cut_tail_vp9.webm": [*range(33)],
    "cut_tail_mpeg4.avi": [*range(17)],
    "cut_tail.mjpeg": [*range(33)],
    "cut_tail.ivf": [*range(33)],
    "cut_head.mpg": [*range(12, 40)],
}
"""Numbers of the frames that come; all 40 of the others. A half frame at a cut tail may show anything: see HALF."""
HALF = {"cut_tail.ts", "cut_tail.flv", "cut_tail.avi", "cut_tail.h264", "cut_tail.m2v", "cut_tail.mpg", "cut_tail.gif"}
"""Cut inside a frame: their pictures are those of the whole decode, whatever these are."""
GREY = {"cut_head_mpeg4.mkv", "cut_head_mpeg4.avi"}
"""MPEG-4 part 2 decodes from grey where its key frame is missing, and so does ffmpeg."""
REFUSED = {
    "cut_head_vp9.webm": "none of its frames can be decoded",  # it has one key frame
    "lost_key.mkv": "cannot be decoded|its packets promise 39 frames, a decode of all gives 31",
    "lost_key.ts": "cannot be decoded|its packets promise 39 frames, a decode of all gives 31",
    "cut_tail_fragments.mp4": "damaged or truncated",  # its index promises what is not there
}


def test_there_are_enough_of_them() -> None:
    assert len(ODD_VIDEOS) >= 100
    assert {*SHOWN, *HALF, *GREY, *REFUSED} <= ODD_VIDEOS.keys()


@pytest.mark.parametrize("name", [name for name in ODD_VIDEOS if name not in REFUSED])
def test_frames_are_those_of_a_whole_decode_for_reader_probe_check_and_prepare(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = ODD_VIDEOS[name](tmp_path)
    expected = rgb(path)
    length = len(expected)
    if name not in HALF | GREY:
        assert [number_of(frame) for frame in expected] == SHOWN.get(name, [*range(FRAMES)])
    assert length_of(path) == length
    np.testing.assert_array_equal(read_frames(path, np.arange(length)), expected)
    for number in {0, 1, length // 3, length // 2, 2 * length // 3, length - 2, length - 1} & set(range(length)):
        np.testing.assert_array_equal(read_frames(path, np.array([number]))[0], expected[number], err_msg=f"{number}")
    monkeypatch.setattr(known_index, "LONG", 1)  # the first of these reads keeps the file's index for the others
    for number in (length // 2, length - 1, 0, length // 3):
        np.testing.assert_array_equal(read_frames(path, np.array([number]))[0], expected[number], err_msg=f"{number}")
    clip = np.arange(length // 4, length, 3)
    np.testing.assert_array_equal(read_frames(path.read_bytes(), clip), expected[clip])
    facts = facts_of(path)
    assert (facts.frames, facts.width, facts.height) == (length, 64, expected.shape[1])
    assert count_all(path) == length
    copy = tmp_path / "prepared.mp4"
    assert reencode(str(path), str(copy), 256, 8, 12).frames == length
    copied = read_frames(copy, np.arange(length))
    assert [number_of(frame) for frame in copied] == [number_of(frame) for frame in expected]


def test_a_long_file_is_gone_through_once_until_it_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    passes = []

    def noted(*given: Any) -> Any:
        passes.append(given[0])
        return index_frames(*given)

    monkeypatch.setattr(known_index, "index_frames", noted)
    monkeypatch.setattr(known_index, "LONG", 40)
    monkeypatch.setattr(known_index, "MOST_FRAMES", 100)
    path, others = encoded(tmp_path / "a.mp4"), [encoded(tmp_path / f"{name}.mp4") for name in "bc"]

    def read(file: Path, number: int) -> int:
        return number_of(read_frames(file, np.array([number]))[0])

    assert [read(path, number) for number in (30, 3)] == [30, 3]
    assert len(passes) == 1
    encoded(path, range(10, 60))
    assert [read(path, number) for number in (30, 3)] == [40, 13]
    assert len(passes) == 2, "it is another file now"
    for other in others:
        read(other, 3)
    read(path, 3)
    assert len(passes) == 5, "two of 40 frames were read since, and 100 are kept"


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_damaged_in_between_is_refused_by_all(tmp_path: Path, name: str) -> None:
    path = ODD_VIDEOS[name](tmp_path)
    with pytest.raises(VideoError, match=REFUSED[name]):
        read_clip(path, lambda length, fps: np.arange(length))
    with pytest.raises(VideoError, match=REFUSED[name]):
        count_all(path)
    with pytest.raises(VideoError, match=REFUSED[name]):
        reencode(str(path), str(tmp_path / "prepared.mp4"), 256, 8, 20)


@pytest.mark.slow
@pytest.mark.parametrize("folder", ["data/clips", "data/broken", "data/actions", "cases"])
def test_every_file_at_hand_has_one_number_of_frames(shared: Path, folder: str, tmp_path: Path) -> None:
    """Reader, probe, check and prepare; damaged ones are refused by those that decode all of it."""
    videos = [
        path for path in sorted((shared / folder).rglob("*")) if path.suffix not in (".csv", ".md", ".py", ".json")
    ]
    videos = [path for path in videos if path.is_file()][:: 30 if folder == "data/actions" else 1]
    assert videos
    with Watchdog(LIMIT_S) as watchdog:  # a process of its own: codecs of the made files have left threads in this one
        for path in videos:
            told = watchdog.call(_numbers_of_frames, path, tmp_path / "copy.mp4")
            assert len(set(told)) == 1, f"{path}: {told}"


LONG = 250
"""Frames from which on the whole of a file is decoded once alone; those at hand are of kinds that are made above too."""


def _numbers_of_frames(path: Path, copy: Path) -> list[int | str]:
    try:
        plain = sum(1 for _ in whole_decode(path))
    except (av.FFmpegError, AssertionError, AttributeError, StopIteration):
        plain = 0  # no video, or a damaged one
    told: list[int | str] = [plain or "refused"]
    counts: list[Callable[[], int]] = [lambda: length_of(path, clip=20), lambda: facts_of(path).frames]
    if plain < LONG:
        counts += [lambda: count_all(path), lambda: reencode(str(path), str(copy), 32, 16, 40).frames]
    for count in counts:
        try:
            told.append(count())
        except VideoError:
            told.append("refused")
    if told[0] == "refused" and told[3:] == ["refused"] * 2:
        return ["refused"]  # its packets may promise frames, and clips before the damage can be read
    if path.name == "truncated_faststart_60pct.mp4":
        return told[3:]  # only its last packet is half there: ffmpeg gives 91 frames of the 150 its index lists
    return told


# --- which way up -----------------------------------------------------------------------------------------------------

ONE = 1 << 16
DIHEDRAL = {
    "as it is": (1, 0, 0, 1),
    "a quarter turn": (0, 1, -1, 0),
    "a half turn": (-1, 0, 0, -1),
    "three quarters": (0, -1, 1, 0),
    "left to right": (-1, 0, 0, 1),
    "upside down": (1, 0, 0, -1),
    "transposed": (0, 1, 1, 0),
    "transposed the other way": (0, -1, -1, 0),
}
"""(a, b, c, d) of libavutil/display.h: the pixel at (x, y) goes to (a x + c y, b x + d y), y downwards."""


def mapped(image_HWC: np.ndarray, a: int, b: int, c: int, d: int) -> np.ndarray:
    """Every pixel put where the matrix says, one by one."""
    y, x = np.mgrid[: image_HWC.shape[0], : image_HWC.shape[1]]
    across, down = a * x + c * y, b * x + d * y
    across, down = across - across.min(), down - down.min()
    out = np.zeros((down.max() + 1, across.max() + 1, 3), np.uint8)
    out[down, across] = image_HWC
    return out


def matrix_of(a: float, b: float, c: float, d: float) -> list[int]:
    return [round(a * ONE), round(b * ONE), 0, round(c * ONE), round(d * ONE), 0, 0, 0, 1 << 30]


def turned_by(degrees: float) -> tuple[float, float, float, float]:
    """Clockwise."""
    cos, sin = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    return cos, sin, -sin, cos


@pytest.mark.parametrize(
    ("matrix", "like"),
    [
        *((DIHEDRAL[name], name) for name in DIHEDRAL),
        (turned_by(10), "as it is"),
        (turned_by(-44), "as it is"),
        (turned_by(80), "a quarter turn"),
        (turned_by(89.99), "a quarter turn"),
        (turned_by(-89.99), "three quarters"),
        (turned_by(179.5), "a half turn"),
        ((0, 0, 0, 0), "as it is"),
        ((2, 0, 0, -2), "upside down"),
        ((-0.98, 0.17, 0.17, 0.98), "left to right"),  # a mirror, then 10 degrees
    ],
)
def test_display_matrices_turn_and_mirror_to_the_nearest_quarter(
    tmp_path: Path, matrix: tuple[float, float, float, float], like: str
) -> None:
    path = encoded(tmp_path / "turned.mp4", numbers=[0b10010110, 0b01], matrix=matrix_of(*matrix))
    stored = rgb(path)
    expected = np.stack([mapped(frame, *DIHEDRAL[like]) for frame in stored])
    np.testing.assert_array_equal(read_frames(path, np.arange(2)), expected)
    facts = facts_of(path)
    assert (facts.height, facts.width) == expected.shape[1:3]
    reencode(str(path), str(tmp_path / "copy.mp4"), 256, 4, 10)
    copied = read_frames(tmp_path / "copy.mp4", np.arange(2)).astype(int)
    assert np.abs(copied - expected).mean() < 6  # a mirror or a turn missed is off by over 80


# --- frames a second --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "rate"),
    [
        ("base.mp4", Fraction(25)),
        ("header_1000.mkv", Fraction(1000, 33)),
        ("header_1000.mp4", Fraction(1000, 33)),
        ("variable.mp4", Fraction(39 * 1000, 20 * 33 + 19 * 100)),  # its 39 steps, in milliseconds
        ("gap.mkv", Fraction(25)),  # a pause of 20 s in 1.6 s says nothing of the rate
        ("offset.ts", Fraction(25)),
        ("overlap.ts", Fraction(25)),
        ("mpeg4_b_frames.avi", Fraction(25)),
        ("raw.h264", Fraction(25)),
    ],
)
def test_frames_a_second_come_from_the_times_in_reader_probe_and_copy(
    tmp_path: Path, name: str, rate: Fraction
) -> None:
    path = ODD_VIDEOS[name](tmp_path)
    told = []

    def choose(length: int, fps: float) -> np.ndarray:
        told.append(fps)
        return np.zeros(1, np.int64)

    read_clip(path, choose)
    assert told == [pytest.approx(float(rate), rel=1e-3)]
    facts = facts_of(path)
    assert facts.fps == told[0]
    if name == "header_1000.mkv":
        assert facts.duration_s == pytest.approx(FRAMES * 0.033)
        assert not facts.is_vfr
    reencode(str(path), str(tmp_path / "copy.mp4"), 256, 8, 20)
    read_clip(tmp_path / "copy.mp4", choose)
    assert told[1] == pytest.approx(told[0], rel=1e-3)


# --- films ------------------------------------------------------------------------------------------------------------

BIG = 60_000
"""Bytes of a packet."""


def write_film(folder: Path, packets: int) -> Path:
    """Frames whose packets are large, by padding behind their end, which decoders of MJPEG pass over."""
    source = encoded(folder / "short.mkv", range(4), codec="mjpeg", pix_fmt="yuvj420p")
    pieces = [piece._replace(data=piece.data.ljust(BIG, b"\0")) for piece in pieces_of(source)]
    film = (pieces[n % 4]._replace(pts=40 * n, dts=40 * n) for n in range(packets))
    return rewritten(source, folder / f"film_{packets}.mkv", film)


def write_counted_film(folder: Path, frames: int) -> Path:
    """Frames with a palette, large, which are counted by decoding them."""
    path = folder / f"counted_{frames}.avi"
    with av.open(str(path), "w") as container:
        stream: Any = container.add_stream("rawvideo", rate=25)
        stream.width, stream.height, stream.pix_fmt = 320, 192, "pal8"
        pixels, palette = np.full((192, 320), 7, np.uint8), np.full((256, 4), 255, np.uint8)
        for _ in range(frames):
            container.mux(stream.encode(av.VideoFrame.from_ndarray((pixels, palette), format="pal8")))
    return path


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs /proc, for a process's own peak of memory")
@pytest.mark.parametrize("write", [write_film, write_counted_film])
def test_a_clip_of_a_film_takes_the_memory_of_a_clip(tmp_path: Path, write: Any) -> None:
    program = """
import sys
import numpy as np
from vmae2_ds.data.readers.table import read_clip
from vmae2_ds.data.readers.watchdog import Watchdog
assert len(read_clip(sys.argv[1], lambda length, fps: np.arange(16) * (length // 16))) == 16
print(next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM")))
"""  # getrusage's peak would begin at that of the process that started this one
    peaks_kib = []
    for frames in (20, 2000):  # 1 and 120 MB
        command = [sys.executable, "-c", program, str(write(tmp_path, frames))]
        peaks_kib.append(int(subprocess.run(command, check=True, capture_output=True, text=True).stdout))
    assert peaks_kib[1] - peaks_kib[0] < 40_000  # 100 MB is promised, and 120 would be all packets or frames
