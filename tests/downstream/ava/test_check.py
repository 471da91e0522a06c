"""`vmae2 ava check` names each planted fault in a line of its own, and nothing in a sound set."""

from __future__ import annotations

import json
import pickle
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest

from tests.cli.lines import answer
from vmae2_ds.data.tools.encode import write_frames
from vmae2_ds.downstream.ava.check import SHEET, AvaCheckArguments, CheckedSet, ava_check

FPS, FRAMES = 10, 45
TRAIN, VAL = ("ann", "ben", "cléo"), ("dan",)


class Made(NamedTuple):
    """A sound set: rows as lists, so that a test can spoil them."""

    folder: Path
    train: list[list[Any]]
    val: list[list[Any]]
    boxes: dict[str, np.ndarray]

    def write(self) -> AvaCheckArguments:
        for name, rows in (("train.csv", self.train), ("val.csv", self.val)):
            (self.folder / name).write_text("".join(",".join(map(str, row)) + "\n" for row in rows))
        (self.folder / "boxes.pkl").write_bytes(pickle.dumps(self.boxes))
        return AvaCheckArguments(
            truth=(self.folder / "train.csv",), val_truth=(self.folder / "val.csv",), boxes=(self.folder / "boxes.pkl",),
            label_map=self.folder / "labels.txt", videos=self.folder / "videos",
        )  # fmt: skip

    def count_boxes_otherwise(self, second: Callable[[int], int]) -> None:
        """Another second for each key frame with boxes."""
        before = dict(self.boxes)
        self.boxes.clear()
        self.boxes.update({f"{key[:-4]}{second(int(key[-4:])):04d}": array for key, array in before.items()})

    def count_otherwise(self, second: Callable[[int], int]) -> None:
        """Another second for each key frame."""
        for row in (*self.train, *self.val):
            row[1] = second(row[1])
        self.count_boxes_otherwise(second)

    def check(self, **more: Any) -> CheckedSet:
        return ava_check(self.write().model_copy(update=more))


@pytest.fixture(scope="module")
def films(tmp_path_factory: pytest.TempPathFactory) -> Path:
    import av

    folder = tmp_path_factory.mktemp("films")
    for name in (*TRAIN, *VAL):
        frames = np.random.default_rng(0).integers(0, 255, (FRAMES, 32, 48, 3), dtype=np.uint8)
        write_frames(
            folder / f"{name}.mp4", [av.VideoFrame.from_ndarray(one, format="rgb24") for one in frames], FPS, 12, crf=20
        )
    return folder


@pytest.fixture
def made(films: Path, tmp_path: Path) -> Made:
    (tmp_path / "videos").mkdir()
    for film in films.iterdir():
        (tmp_path / "videos" / film.name).symlink_to(film)
    (tmp_path / "labels.txt").write_text("sit\nstand\nwave\n")

    def rows(videos: tuple[str, ...]) -> list[list[Any]]:
        return [
            [video, second, 0.1 + 0.4 * person, 0.2, 0.4 + 0.4 * person, 0.9, action, person]
            for video in videos
            for second in range(4)
            for person in range(2)
            for action in (1, 2, 3)
        ]

    train, val = rows(TRAIN), rows(VAL)
    boxes = {f"{row[0]},{row[1]:04d}": np.array([[*row[2:6], 0.95]]) for row in [*train, *val]}
    return Made(tmp_path, train, val, boxes)


def wrong(result: CheckedSet) -> list[str]:
    """What is not as it should be, a line each."""
    return [str(one) for one in result.findings if one.weight != "tells"]


def test_nothing_is_found_in_a_sound_set(made: Made) -> None:
    result = made.check()
    assert wrong(result) == []
    assert not result.would_fail
    text = str(result)
    assert text.startswith("looked at 96 rows at 16 key frames of 4 videos\n")
    assert text.endswith("nothing found that is wrong")
    assert "72 rows of 3 classes, from 24 of 'wave' to 24 of 'sit'; 0 have fewer than 10" in text


def spoil(rows: list[list[Any]], column: int, value: Any, which: slice) -> None:
    for row in rows[which]:
        row[column] = value(row[column]) if callable(value) else value


ONE, ALL = slice(5, 6), slice(None)
FAULTS: dict[str, tuple[Callable[[Made], Any], str]] = {
    "an id outside of the map": (
        lambda made: spoil(made.train, 6, 9, ONE),
        r"warns: {train}: 1 of 72 rows have action ids outside of the label map: 9 (1 row); training leaves these rows out",
    ),
    "ids from 0": (
        lambda made: spoil(made.train, 6, lambda action: action - 1, ALL),
        "fails: {train}: 24 of 72 rows have action ids outside of the label map: 0 (24 rows); the file counts actions from 0",
    ),
    "no id in the map": (
        lambda made: spoil(made.val, 6, lambda action: action + 80, ALL),
        "fails: {val}: 24 of 24 rows have action ids outside of the label map: 81 (8 rows), 82 (8 rows), 83 (8 rows)",
    ),
    "pixels": (
        lambda made: [
            spoil(made.train, c, lambda x, by=by: x * by, ALL) for c, by in ((2, 640), (3, 480), (4, 640), (5, 480))
        ],
        "fails: {train}: 72 of 72 rows have boxes far outside of 0..1, up to 512, the first 64, 96, 256, 432 of video 'ann' at "
        "0000 s: they are in pixels, it seems; boxes are x1, y1, x2, y2 in parts of the picture: divide x by its width",
    ),
    "over the edge": (
        lambda made: spoil(made.train, 4, 1.25, ONE),
        "warns: {train}: 1 of 72 rows have boxes that reach over the edge of the picture, by up to 0.25 of it",
    ),
    "inside out": (
        lambda made: spoil(made.train, 5, 0.1, ONE),
        "warns: {train}: 1 of 72 rows have boxes inside out, whose x2 or y2 lies before x1 or y1, the first ",
    ),
    "width and height": (
        lambda made: [row.__setitem__(slice(4, 6), [0.3, 0.7]) for row in made.train],
        "boxes inside out, whose x2 or y2 lies before x1 or y1, the first 0.5, 0.2, 0.3, 0.7 of video 'ann' at 0000 s; they "
        "are x, y, width, height, it seems: write x1, y1, x2, y2",
    ),
    "no area": (
        lambda made: spoil(made.train, 5, 0.2, ONE),
        "warns: {train}: 1 of 72 rows have boxes without an area, the first ",
    ),
    "double rows": (
        lambda made: made.train.append(list(made.train[7])),
        "warns: {train}: 1 of 73 rows repeat another: the same key frame, box and action; the first is video 'ann' at 0001 s; ",
    ),
    "no number": (lambda made: spoil(made.val, 3, "nan", ONE), "fails: {val}, line 6: the y1 is 'nan'"),
    "a late key time": (
        lambda made: spoil(made.val, 1, 5, slice(18, 24)),
        "warns: 1 key time of 16 lie outside of their video, in 1 video, the first 'dan' at 0005 s: it has 45 frames at 10 a "
        "second, from 0 s to 4.5 s; ",
    ),
    "times from 900": (
        lambda made: made.count_otherwise(lambda second: second + 900),
        "fails: 16 key times of 16 lie outside of their video, in 4 videos, the first 'ann' at 0900 s: it has 45 frames at 10 "
        "a second, from 0 s to 4.5 s; times count from 900 s, it seems: give --video-starts-s 900",
    ),
    "numbers of frames": (
        lambda made: made.count_otherwise(lambda second: second * 10),
        "times are numbers of frames, it seems: write seconds, the number divided by the frame rate",
    ),
    "a missing video": (
        lambda made: (made.folder / "videos" / "dan.mp4").rename(made.folder / "videos" / "dann.mp4"),
        "fails: {folder}/videos: 1 of 4 videos are missing, with 4 key frames of 16; the first is dan.mp4; the folder has "
        "'dann': name videos alike",
    ),
    "a missing video that is a folder": (
        lambda made: ((path := made.folder / "videos" / "dan.mp4").unlink(), path.with_suffix("").mkdir()),
        "fails: {folder}/videos: 1 of 4 videos are missing, with 4 key frames of 16; the first is dan.mp4; there is a folder "
        "{folder}/videos/dan: give --kind clips, or --kind frames where it holds pictures",
    ),
    "an unreadable video": (
        lambda made: (
            (made.folder / "videos" / "dan.mp4").unlink(),
            (made.folder / "videos" / "dan.mp4").write_text("no film"),
        ),
        "fails: 1 video cannot be read, with 4 key frames of 16; the first: dan: text, not a video; fetch or encode",
    ),
    "a video in both parts": (
        lambda made: made.val.extend(row for row in made.train if row[0] == "ben"),
        "warns: training and validation share 1 of 2 videos, such as 'ben'; what is measured is then not",
    ),
    "an action that is never learnt": (
        lambda made: spoil(made.train, 6, lambda action: min(action, 2), ALL),
        "warns: validation has 1 action that training has no row of: ids 3; their AP stays near 0",
    ),
    "a key frame without a person": (
        lambda made: made.boxes.pop("ann,0002"),
        "warns: {boxes}: 1 of 12 key frames of {train} have no box with a score of 0.8, the first video 'ann' at 0002 s; ",
    ),
    "scores too low": (
        lambda made: [array.__setitem__((0, 4), 0.5) for array in made.boxes.values()],
        "fails: {boxes}: none of 16 boxes has a score of 0.8, the best has 0.5; lower --box-threshold",
    ),
    "boxes from another second": (
        lambda made: made.count_boxes_otherwise(lambda second: second + 900),
        "fails: {boxes} and {train} have no key frame in common (video 'ann' at 0900 s, ... and video 'ann' at 0000 s, ...); "
        "times of the boxes are 900 s behind those of the truth: count both alike",
    ),
    "boxes in pixels": (
        lambda made: [array.__imul__([[640, 480, 640, 480, 1]]) for array in made.boxes.values()],
        "fails: {boxes}: video 'ann' at 0000 s, box 1: x1 ",
    ),
    "code in a pickle": (
        lambda made: made.boxes.update(bad=print),  # type: ignore[call-overload]
        "print, which is not plain data; no code in a file is run",
    ),
    "an empty file": (lambda made: made.val.clear(), "fails: {val} has no row with a box"),
    "no label map": (lambda made: (made.folder / "labels.txt").unlink(), "fails: {folder}/labels.txt: No such file"),
}


OF_VIDEOS = {
    "a late key time", "times from 900", "numbers of frames", "a missing video", "a missing video that is a folder",
    "an unreadable video",
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
def test_each_fault_is_told_in_a_line_of_its_own(made: Made, fault: str) -> None:
    plant, wanted = FAULTS[fault]
    plant(made)
    result = made.check() if fault in OF_VIDEOS else made.check(videos=None)
    names = {
        name: str(made.folder / file)
        for name, file in (("train", "train.csv"), ("val", "val.csv"), ("boxes", "boxes.pkl"))
    }
    wanted = wanted.format(**names, folder=made.folder)
    told = [line for line in wrong(result) if wanted in line]
    assert len(told) == 1, f"{wanted}\nis not among\n" + "\n".join(wrong(result))
    assert "\n" not in told[0]
    assert result.would_fail == any(line.startswith("fails") for line in wrong(result))
    if wanted.startswith("fails"):
        assert result.would_fail


def test_exclusions_that_leave_nothing_or_name_nothing_are_told(made: Made) -> None:
    keys = {f"{row[0]},{row[1]}" for row in made.train}
    file = made.folder / "excluded.csv"
    file.write_text("\n".join(sorted(keys)))
    told = wrong(made.check(excluded=(file,), videos=None))
    assert (
        f"fails: {made.folder}/train.csv: all 12 key frames are excluded by {file}: nothing is left; give the "
        in told[0]
    )
    file.write_text("eve,0001\n")
    told = wrong(made.check(excluded=(file,), videos=None))
    assert told[0].startswith(
        f"warns: {file}: none of 1 exclusion names a key frame of {made.folder}/train.csv; they are those"
    )
    assert len(told) == 2  # of both files
    file.write_text("ann,0001\n")
    assert made.check(excluded=(file,), val_truth=(), videos=None).key_frames == 11


def test_a_file_says_when_single_videos_begin(made: Made) -> None:
    starts = made.folder / "starts.csv"
    starts.write_text("ann,900\n")
    (told,) = wrong(made.check(video_starts=starts))
    assert told.startswith("fails: 4 key times of 16 lie outside of their video, in 1 video, the first 'ann' at 0000 s")
    starts.write_text("ann\n")
    pictures = made.folder / "pictures"  # which are drawn all the same
    assert wrong(made.check(video_starts=starts, pictures=pictures)) == [
        f"fails: {starts}:1: 'ann' is not `video,seconds`"
    ]


def test_videos_of_another_kind_are_told_with_the_kind_that_they_are(made: Made) -> None:
    for kind in ("clips", "frames"):
        (told,) = wrong(made.check(kind=kind))
        assert told.endswith(f"; there is a file {made.folder}/videos/ann.mp4: give --kind movies")


def test_seconds_that_have_no_file_are_told(made: Made) -> None:
    for name in (*TRAIN, *VAL):
        film = made.folder / "videos" / f"{name}.mp4"
        film.unlink()
        (made.folder / "videos" / name).mkdir()
        for second in range(4):
            (made.folder / "videos" / name / f"{second}.mp4").write_text("not opened")
    assert wrong(made.check(kind="clips")) == []
    for second in range(4):
        file = made.folder / "videos" / "dan" / f"{second}.mp4"
        file.rename(file.with_name(f"{900 + second}.mp4"))
    (told,) = wrong(made.check(kind="clips"))
    assert told.endswith(
        "videos/dan has a file of none of their seconds: files are called by the key times in whole "
        "seconds, such as 12.mp4"
    )
    for second in range(4):
        file.with_name(f"{900 + second}.mp4").rename(file.with_name(f"{second}.mp4"))
    (made.folder / "videos" / "ben" / "2.mp4").unlink()
    (told,) = wrong(made.check(kind="clips"))
    assert told.startswith(
        "warns: 1 key frame of 16 have no file of their second, the first ben/2.mp4; cut these seconds"
    )


def test_the_verb_tells_it_all_and_ends_with_2_where_training_would_fail(
    made: Made, capsys: pytest.CaptureFixture[str]
) -> None:
    made.write()
    line = ["ava", "check", "--truth", str(made.folder / "train.csv"), "--label-map", str(made.folder / "labels.txt")]
    code, out, _ = answer(
        [*line, "--videos", str(made.folder / "videos"), "--pictures", str(made.folder / "drawn")], capsys
    )
    assert code == 0
    assert f"nothing found that is wrong\npictures: {made.folder / 'drawn' / SHEET}" in out
    from PIL import Image

    with Image.open(made.folder / "drawn" / SHEET) as picture:
        assert picture.size[0] > 500
    (made.folder / "labels.txt").write_text("9: other\n")
    code, out, _ = answer([*line, "--json"], capsys)
    told = json.loads(out)
    assert (code, told["would_fail"]) == (2, True)
    assert [one["weight"] for one in told["findings"]].count("fails") == 1


def test_published_and_custom_rows_of_others_are_looked_at_whole() -> None:
    folder = Path(__file__).parents[4] / "shared" / "data" / "annotations" / "ava"
    if not folder.is_dir():
        pytest.skip("the annotations of others are not here")
    label_map = folder / "ava_action_list_v2.1_for_activitynet_2018.pbtxt.txt"
    for name in ("ava_val_excerpt.csv", "custom_ethereal_ava_val_v2.2.csv", "custom_jetsql_ava_val_v2.1.csv"):
        result = ava_check(AvaCheckArguments(truth=(folder / name,), label_map=label_map))
        actions = [int(line.split(",")[6]) for line in (folder / name).read_text().splitlines()]
        known = {int(number) for number in re.findall(r"id: (\d+)", label_map.read_text())}
        (said,) = [one.what for one in result.findings if "outside of the label map" in one.what]
        assert f": {sum(action not in known for action in actions)} of {len(actions)} rows have action ids" in said
