"""Frames that stream by: those of a plain read, each decoded once, and a child that may hang or die on the way."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from tests.data.frames import read_frames
from vmae2_ds.data.entry import ReadAs, VideoEntry
from vmae2_ds.data.readers import pyav, storage
from vmae2_ds.data.readers.common import Choose, FrameCount
from vmae2_ds.data.readers.storage import read_entry, stream_entry
from vmae2_ds.data.readers.watchdog import Watchdog
from vmae2_ds.errors import VideoError

FRAMES, GOP = 60, 12


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sixty frames with a key frame every twelve, without and with frames that are sorted; or all of them key frames."""
    where = tmp_path_factory.mktemp("streams")
    rng = np.random.default_rng(0)
    ground = rng.integers(0, 255, (48, 64, 3), np.uint8)
    for name, codec in (("plain", {"bf": "0"}), ("sorted", {"bf": "2"}), ("keys", {"g": "1"})):
        with av.open(str(where / f"{name}.mp4"), "w") as file:
            stream = file.add_stream("libx264", rate=20, options={"g": str(GOP), "sc_threshold": "0", **codec})
            stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
            for number in range(FRAMES):
                picture = np.roll(ground, number, axis=1)
                picture[:12, :12] = 4 * number
                for packet in stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")):
                    file.mux(packet)
            for packet in stream.encode():
                file.mux(packet)
    return where


def entry_of(path: Path) -> VideoEntry:
    return VideoEntry(str(path), None, "default", 0, None)


def write_at(path: Path, times_ms: list[int]) -> Path:
    """A video with a frame at each of these times."""
    with av.open(str(path), "w") as file:
        stream = file.add_stream("libx264", rate=1000, options={"bf": "0"})
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for number, time_ms in enumerate(times_ms):
            frame = av.VideoFrame.from_ndarray(np.full((48, 64, 3), number, np.uint8), format="rgb24")
            frame.pts, frame.time_base = time_ms, Fraction(1, 1000)
            for packet in stream.encode(frame):
                file.mux(packet)
        for packet in stream.encode():
            file.mux(packet)
    return path


def streamed(path: Path, wanted: list[int]) -> tuple[np.ndarray, int]:
    """The frames, and how many were decoded."""
    count = FrameCount()
    frames = list(stream_entry(entry_of(path), ReadAs(), lambda length, fps: np.array(wanted), count))
    return np.stack(frames), count.decoded


ASKED = {
    "all": list(range(FRAMES)),
    "the first": [0],
    "a part in the middle": list(range(15, 33)),
    "every third": list(range(0, FRAMES, 3)),
    "with gaps": [*range(3, 8), *range(27, 31), 59],
}


@pytest.mark.parametrize("asked", ASKED)
@pytest.mark.parametrize("name", ["plain", "sorted", "keys"])
def test_frames_are_those_of_a_decode_of_all(folder: Path, name: str, asked: str) -> None:
    with av.open(str(folder / f"{name}.mp4")) as file:
        every = [frame.to_ndarray(format="rgb24") for frame in file.decode(video=0)]
    found, _ = streamed(folder / f"{name}.mp4", ASKED[asked])
    assert np.array_equal(found, np.stack([every[number] for number in ASKED[asked]]))


@pytest.mark.parametrize("name", ["plain", "sorted"])
def test_each_frame_is_decoded_once_and_none_behind_the_last(folder: Path, name: str) -> None:
    assert streamed(folder / f"{name}.mp4", ASKED["all"])[1] == FRAMES
    for last in (0, 20, 37):
        assert last + 1 <= streamed(folder / f"{name}.mp4", list(range(last + 1)))[1] <= last + 3, (
            "a frame is sorted behind"
        )
    # up to 57, but frames 10 and 11 of each twelve where the decoder would lose fewer than these two by a seek
    skipped = 2 * (FRAMES // GOP - 1) if name == "plain" else 0
    assert streamed(folder / f"{name}.mp4", ASKED["every third"])[1] == FRAMES - 2 - skipped


def test_a_rate_that_varies_is_told_by_how_far_times_are_off(watchdog: Watchdog, folder: Path, tmp_path: Path) -> None:
    """Fifty frames at 10 a second, then 150 at 30: at 20 a second the fiftieth would come after 2.5 s instead of 5."""
    slow_first = write_at(
        tmp_path / "varies.mp4", [*range(0, 5000, 100), *(5000 + 100 * step // 3 for step in range(150))]
    )
    pauses = write_at(tmp_path / "pauses.mp4", [*range(0, 2000, 40), *range(60000, 62000, 40)])
    for path, off_s in ((slow_first, 2.5), (pauses, 58), (folder / "sorted.mp4", 0), (folder / "plain.mp4", 0)):
        for stream in (watchdog.stream, stream_entry):
            count = FrameCount()
            list(stream(entry_of(path), ReadAs(), lambda length, fps: np.arange(length), count))  # type: ignore[operator]
            assert count.off_s == pytest.approx(off_s, abs=0.1 if off_s else 1e-6)


def test_what_no_one_needs_is_left_out_from_key_frame_to_key_frame(folder: Path) -> None:
    """Of `with gaps` the decoder needs frames from the key frame before each run on: 0 to 7, 24 to 30 and 48 to 59."""
    assert streamed(folder / "plain.mp4", ASKED["with gaps"])[1] == 8 + 7 + 12
    assert streamed(folder / "keys.mp4", ASKED["with gaps"])[1] == len(ASKED["with gaps"])


@pytest.fixture
def watchdog() -> Iterator[Watchdog]:
    with Watchdog(timeout_s=30) as made:
        yield made


def pieces_of(watchdog: Watchdog, entry: VideoEntry, how: ReadAs, choose: Choose) -> tuple[list[np.ndarray], int]:
    count = FrameCount()
    return [piece.copy() for piece in watchdog.stream(entry, how, choose, count)], count.decoded


def test_a_child_streams_the_same_frames_in_pieces(watchdog: Watchdog, folder: Path, tmp_path: Path) -> None:
    wide = np.random.default_rng(1).integers(0, 255, (700, 1400, 3), np.uint8)
    for number in range(8):  # 2.9 MB each: five in a piece of 16 MiB
        Image.fromarray(np.roll(wide, number, axis=0)).save(tmp_path / f"{number:03}.png", compress_level=0)
    folders = ReadAs("frames", "{:03}.png")
    cases: list[tuple[VideoEntry, ReadAs, list[int], list[int]]] = [
        (entry_of(folder / "plain.mp4"), ReadAs(), list(range(5, 45)), [40]),
        (entry_of(tmp_path), folders, list(range(8)), [5, 3]),
        (entry_of(folder / "sorted.mp4"), ReadAs(), [2, 50], [2]),
    ]
    for entry, how, wanted, sizes in cases:
        pieces, _ = pieces_of(watchdog, entry, how, lambda length, fps, wanted=wanted: np.array(wanted))  # type: ignore[misc]
        assert [len(piece) for piece in pieces] == sizes
        plain = read_entry(entry, how, lambda length, fps, wanted=wanted: np.array(wanted))  # type: ignore[misc]
        assert np.array_equal(np.concatenate(pieces), plain)
    child = watchdog.pid
    for _ in watchdog.stream(entry_of(tmp_path), folders, lambda length, fps: np.arange(length), FrameCount()):
        break  # nobody wants the rest: the child is not left with it
    assert np.array_equal(
        watchdog.read(entry_of(folder / "plain.mp4"), ReadAs(), lambda length, fps: np.arange(3)),
        read_frames(folder / "plain.mp4", np.arange(3)),
    )
    assert watchdog.pid != child


def test_a_stream_that_hangs_or_dies_costs_its_video_alone(watchdog: Watchdog, folder: Path) -> None:
    good, how = entry_of(folder / "plain.mp4"), ReadAs()
    before, _ = pieces_of(watchdog, good, how, lambda length, fps: np.arange(9))
    watchdog.timeout_s = 1
    for misdeed, said in (("sleeps", "no answer within 1 s"), ("crashes", r"crashed its reader \(signal 11")):
        watchdog.call(misbehave, misdeed)
        with pytest.raises(VideoError, match=said):
            pieces_of(watchdog, good, how, lambda length, fps: np.arange(length))
    watchdog.timeout_s = 30
    after, _ = pieces_of(watchdog, good, how, lambda length, fps: np.arange(9))
    assert np.array_equal(before[0], after[0])
    with pytest.raises(VideoError, match="cannot be opened: No such file"):
        pieces_of(watchdog, entry_of(folder / "none.mp4"), how, lambda length, fps: np.arange(9))
    child = watchdog.pid

    def refuse(length: int, fps: float) -> np.ndarray:
        raise VideoError(f"{length} are too few")

    with pytest.raises(VideoError, match="60 are too few"):
        pieces_of(watchdog, good, how, refuse)
    assert watchdog.pid == child


def misbehave(misdeed: str) -> None:
    """In the child: from the thirtieth frame on its decoder hangs, or the process dies."""
    from tests.data.readers import bad_readers

    plain: Callable[..., Iterator[np.ndarray]] = pyav.stream_pyav

    def stream(*asked: object) -> Iterator[np.ndarray]:
        for number, frame in enumerate(plain(*asked)):
            if number == 30:
                getattr(bad_readers, misdeed)("bad.mp4", None)
            yield frame

    storage.stream_pyav = stream  # type: ignore[attr-defined]
