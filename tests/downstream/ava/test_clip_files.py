"""Which frames a clip has, from movies, seconds and folders alike; each of them is asked for once, and no other."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.downstream.ava.made_up import ava_config, grey, numbers_in, write_video
from vmae2_ds.data.entry import ReadAs, VideoEntry
from vmae2_ds.data.readers.watchdog import GuardedReader
from vmae2_ds.downstream.ava.clip_files import ClipFiles, Span, list_of, read_starts
from vmae2_ds.downstream.ava.key_frames import make_key_frames
from vmae2_ds.downstream.ava.label_map import LabelMap
from vmae2_ds.downstream.ava.rows import make_rows
from vmae2_ds.errors import DataError, VideoError

MAP = LabelMap(Path("map.txt"), (1,), ("sit",))


class Noting(GuardedReader):
    """A reader that notes which frames of which file it was asked for."""

    def __init__(self) -> None:
        super().__init__(0)
        self.asked: dict[str, list[int]] = {}

    def read(self, entry: VideoEntry, how: ReadAs, choose: Callable[[int, float], np.ndarray]) -> np.ndarray:
        """As the reader does."""

        def noted(length: int, fps: float) -> np.ndarray:
            chosen = choose(length, fps)
            self.asked.setdefault(Path(entry.path).name, []).extend(chosen.tolist())
            return chosen

        return super().read(entry, how, noted)


@pytest.mark.parametrize(("num_frames", "stride"), [(16, 4), (8, 8), (4, 16), (32, 2), (16, 1)])
def test_clips_lie_around_the_key_frame_as_the_two_published_rules_put_them(num_frames: int, stride: int) -> None:
    """VideoMAE-AD reads two equal halves, the key frame first in the right one, and takes a middle part of them; PySlowFast
    walks from half a span before the key frame to half a span behind it."""
    span, half = num_frames * stride, 90
    frames = list(range(-half, half))
    first = (len(frames) - span) // 2 + (stride - 1) // 2
    assert Span(num_frames, stride).offsets(30).tolist() == frames[first : first + span : stride]
    assert Span(num_frames, stride, "pyslowfast").offsets(30).tolist() == list(range(-(span // 2), span // 2, stride))


def test_a_stride_meant_for_another_rate_keeps_its_time() -> None:
    at_30 = Span(16, 4, "pyslowfast", stride_fps=30).offsets(30)
    assert Span(16, 4, "pyslowfast", stride_fps=30).offsets(15).tolist() == (at_30 // 2).tolist()
    at_25 = Span(16, 4, "pyslowfast", stride_fps=30).offsets(25) / 25
    assert np.abs(at_25 - at_30 / 30).max() <= 0.5 / 25 + 1e-9
    assert Span(16, 4, "pyslowfast").offsets(15).tolist() == at_30.tolist()


def write_three_ways(folder: Path) -> dict[str, ClipFiles]:
    """Seconds 900 to 904 of one video, 10 frames a second: a movie, files of a second, pictures."""
    pictures = grey(range(40))
    write_video(folder / "movies" / "train" / "vid.mp4", pictures)
    for second in range(4):
        write_video(folder / "clips" / "vid" / f"{900 + second}.mp4", pictures[10 * second : 10 * second + 10])
    (folder / "frames" / "vid").mkdir(parents=True)
    for number, picture in enumerate(pictures, 1):
        Image.fromarray(picture).save(folder / "frames" / "vid" / f"vid_{number:06}.png")
    return {
        kind: ClipFiles(folder / kind, kind, starts_s=900, frames_fps=10)
        for kind in ("movies", "clips", "frames")
    }  # fmt: skip


def test_a_movie_seconds_and_pictures_give_the_same_clip_and_only_its_frames_are_asked_for(tmp_path: Path) -> None:
    ways = write_three_ways(tmp_path)
    for time_ms in (900000, 901000, 902000, 902500, 903900):
        centre = (time_ms - 900000) // 100
        expected = np.clip(np.arange(centre - 12, centre + 12, 3), 0, 39)
        for kind, files in ways.items():
            reader = Noting()
            clip = files.read(reader, ("vid", time_ms), Span(8, 3, "pyslowfast"))
            assert numbers_in(clip) == expected.tolist(), (kind, time_ms)
            asked = [(file, frame) for file, frames in reader.asked.items() for frame in frames]
            assert len(asked) == 8, (kind, time_ms)
            if kind == "movies":
                assert asked == [("vid.mp4", frame) for frame in expected]
            if kind == "clips":
                assert set(asked) == {(f"{900 + frame // 10}.mp4", frame % 10) for frame in expected}


def test_time_outside_of_a_video_is_one_line_with_the_numbers(tmp_path: Path) -> None:
    ways = write_three_ways(tmp_path)
    reader = GuardedReader(0)
    for kind in ("movies", "frames"):
        for time_ms, frame in ((904000, 40), (899900, -1)):
            with pytest.raises(VideoError) as refused:
                ways[kind].read(reader, ("vid", time_ms), Span(8, 3))
            assert f"frame {frame} of 40 at 10 a second, the first of which is at 900 s (--data.video-starts-s)" in str(
                refused.value
            )
            assert "\n" not in str(refused.value)
    with pytest.raises(VideoError, match="no file of second 904"):
        ways["clips"].read(reader, ("vid", 904000), Span(8, 3))


def test_where_a_neighbouring_second_is_not_there_its_edge_is_repeated_and_a_bad_one_is_named(tmp_path: Path) -> None:
    files = write_three_ways(tmp_path)["clips"]
    folder = tmp_path / "clips" / "vid"
    (folder / "901.mp4").unlink()
    clip = ClipFiles(tmp_path / "clips", "clips").read(GuardedReader(0), ("vid", 902000), Span(8, 3, "pyslowfast"))
    assert numbers_in(clip) == [20, 20, 20, 20, 20, 23, 26, 29]
    (folder / "901.mp4").write_text("no video")
    with pytest.raises(VideoError, match=r"901\.mp4: text, not a video"):
        files.read(GuardedReader(0), ("vid", 902000), Span(8, 3, "pyslowfast"))


def test_videos_are_found_by_name_at_any_depth_or_by_their_path(tmp_path: Path) -> None:
    for file in ("a/x.mp4", "b/y.avi", "c/z.mp4", "d/z.mp4", "e/with.dot.mp4"):
        (tmp_path / file).parent.mkdir(exist_ok=True)
        (tmp_path / file).touch()
    files = ClipFiles(tmp_path)
    assert [files.file_of((name, 0)) for name in ("x", "y", "d/z", "with.dot", "b/y.avi")] == [
        *("a/x.mp4", "b/y.avi", "d/z.mp4", "e/with.dot.mp4", "b/y.avi"),
    ]
    with pytest.raises(DataError, match=r"c/z.mp4 and d/z.mp4, both of video 'z'"):
        files.file_of(("z", 0))
    assert not files.has(("unknown", 0))
    (tmp_path / "frames" / "trainval" / "w").mkdir(parents=True)
    assert ClipFiles(tmp_path / "frames", "frames").file_of(("w", 0)) == "trainval/w"
    with pytest.raises(DataError, match="no such folder"):
        ClipFiles(tmp_path / "nowhere")


def test_the_first_second_of_single_videos_comes_from_a_file(tmp_path: Path) -> None:
    (tmp_path / "starts.csv").write_text("vid,900\n\nb,-2.5\n")
    starts = read_starts(tmp_path / "starts.csv")
    assert starts == {"vid": 900.0, "b": -2.5}
    write_video(tmp_path / "m" / "vid.mp4", grey(range(40)))
    clip = ClipFiles(tmp_path / "m", starts_s_of=starts).read(
        GuardedReader(0), ("vid", 902000), Span(4, 1, "pyslowfast")
    )
    assert numbers_in(clip) == [18, 19, 20, 21]
    (tmp_path / "starts.csv").write_text("vid,900\nvid\n")
    with pytest.raises(DataError, match=r"starts.csv:2: 'vid' is not"):
        read_starts(tmp_path / "starts.csv")


@pytest.mark.parametrize(
    ("names", "found"),
    [
        (["img_{:05}.png", "flow_x_{:05}.png"], True),
        (["{}.png"], True),
        (["a_{:03}.png", "b_{:03}.png"], False),
        (["thumbs.txt"], False),
    ],
)
def test_pictures_are_told_by_their_names(tmp_path: Path, names: list[str], found: bool) -> None:
    (tmp_path / "vid").mkdir()
    for number, picture in enumerate(grey(range(12))):
        for name in names:
            if "{" in name:
                Image.fromarray(picture).save(tmp_path / "vid" / name.format(number))
    files = ClipFiles(tmp_path, "frames", frames_fps=10)

    def read() -> Any:
        return files.read(GuardedReader(0), ("vid", 600), Span(4, 2, "pyslowfast"))

    if found:
        assert numbers_in(read()) == [2, 4, 6, 8]
    else:
        with pytest.raises(VideoError, match=r"several kinds of pictures|no numbered pictures"):
            read()


def test_a_list_has_a_row_for_each_key_frame_and_its_digest_covers_what_is_learnt(tmp_path: Path) -> None:
    write_video(tmp_path / "vid.mp4", grey(range(4)))
    lists = []
    for box in ((0, 0, 0.5, 1), (0, 0, 0.5, 0.9)):
        rows = make_rows([("vid", 0), ("vid", 100), ("gone", 0)], [box] * 3, [1] * 3, source="truth.csv")
        lists.append(list_of(make_key_frames([rows], MAP), ClipFiles(tmp_path)))
    assert [Path(entry.path).name for entry in lists[0]] == ["gone.mp4", "vid.mp4", "vid.mp4"]
    assert lists[0].rows.digest != lists[1].rows.digest
    rows = make_rows([("gone", 0)], [(0, 0, 1, 1)], [1], source="truth.csv")
    with pytest.raises(DataError, match=r"has none of the 1 video that truth.csv names, gone.mp4 for example"):
        list_of(make_key_frames([rows], MAP), ClipFiles(tmp_path))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"kind": "clips", "video_starts": "starts.csv"}, "with kind=clips the names of files say their seconds"),
        ({"keep_unmatched": True}, "about detected people, of which train_on=truth sees none"),
    ],
)
def test_settings_that_would_have_no_effect_are_refused(tmp_path: Path, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ava_config(tmp_path, **settings)
