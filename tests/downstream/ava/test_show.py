"""`vmae2 ava show`: sheets, animations and pages of real files; frames of their times, boxes between key frames, refusals."""

from __future__ import annotations

import itertools
import logging
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from PIL import Image

from tests.cli.lines import answer, refusal
from tests.data.odd_videos import encoded, number_of
from vmae2_ds.data.readers.watchdog import GuardedReader
from vmae2_ds.data.tools.encode import write_video
from vmae2_ds.downstream.ava import show as show_module
from vmae2_ds.downstream.ava.animation import Board, moment_at, stretch_of, times_of
from vmae2_ds.downstream.ava.clip_files import ClipFiles
from vmae2_ds.downstream.ava.compared import Compared, alone
from vmae2_ds.downstream.ava.page import page_of
from vmae2_ds.downstream.ava.people import frames_of
from vmae2_ds.downstream.ava.pictures import Pictures
from vmae2_ds.downstream.ava.rows import make_rows
from vmae2_ds.downstream.ava.sheets import Look
from vmae2_ds.downstream.ava.show import AvaShowArguments, show
from vmae2_ds.downstream.ava.shown_set import read_set
from vmae2_ds.draw.looks import KINDS
from vmae2_ds.draw.sheet import Picture, Sheet, made_by, pixels_of
from vmae2_ds.errors import ConfigError, DataError

LEFT, RIGHT = (0.1, 0.2, 0.3, 0.8), (0.6, 0.2, 0.9, 0.8)
TRUTH = """\
good,0,0.1,0.2,0.3,0.8,1,0
good,1,0.1,0.2,0.3,0.8,1,0
идти <b>,0,0.1,0.2,0.3,0.8,1,0
идти <b>,0,0.6,0.2,0.9,0.8,2,1
идти <b>,1,0.1,0.2,0.3,0.8,2,0
bad,0,0.1,0.2,0.3,0.8,1,0
bad,0,0.6,0.2,0.9,0.8,1,1
bad,1,0.6,0.2,0.9,0.8,1,1
"""
FOUND = """\
good,0,0.1,0.2,0.3,0.8,1,0.9
good,1,0.1,0.2,0.3,0.8,1,0.9
good,1,0.1,0.2,0.3,0.8,2,0.1
идти <b>,0,0.1,0.2,0.3,0.8,1,0.9
идти <b>,1,0.1,0.2,0.3,0.8,1,0.6
bad,0,0.1,0.2,0.3,0.8,2,0.9
bad,1,0.0,0.0,0.05,0.1,1,0.8
"""
"""By hand, from a score of 0.5 on. good: no mistake. идти <b>: 2 missed, 1 wrong label. bad: 3 missed, 1 wrong label, 1 on
nobody."""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Truth, detections, actions and people's boxes."""
    (tmp_path / "gt.csv").write_text(TRUTH)
    (tmp_path / "det.csv").write_text(FOUND)
    (tmp_path / "map.txt").write_text("1: sit\n2: eat\n")
    (tmp_path / "boxes.csv").write_text(
        "good,0,0.1,0.2,0.3,0.8,,0.9\nbad,0,0.1,0.2,0.3,0.8,,0.7\nbad,0,0,0,0.05,0.1,,0.6\n"
    )
    return tmp_path


def asking(folder: Path, out: str, video: str | None = None, **more: Any) -> AvaShowArguments:
    files = {"gt": folder / "gt.csv", "det": folder / "det.csv", "labelmap": folder / "map.txt", "threshold": 0.5}
    return AvaShowArguments(**{"video": video, "out": folder / out, **files, **more})


@pytest.fixture
def sheets(monkeypatch: pytest.MonkeyPatch) -> list[Sheet]:
    """The sheets that are drawn, in the place of files."""
    drawn: list[Sheet] = []
    monkeypatch.setattr(show_module, "write_sheet", lambda sheet, path, software: drawn.append(sheet))
    return drawn


def pictures_on(sheet: Sheet) -> list[Picture]:
    return [shape for shape in sheet.shapes if isinstance(shape, Picture)]


# --- frames ----------------------------------------------------------------------------------------------------------


def test_frames_are_those_of_their_times_and_others_are_counted_in_one_line(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    encoded(tmp_path / "v.mkv", range(50))  # 25 a second, their numbers on them: 2 s
    pictures = Pictures(ClipFiles(tmp_path), GuardedReader(0))
    found = [pictures.at(("v", time_ms)) for time_ms in (0, 200, 1600)]
    assert [number_of(frame) for frame in found if frame is not None] == [0, 5, 40]
    between = list(pictures.from_to("v", 0.4, 7, 5))
    assert [number_of(frame) for frame in between if frame is not None] == [10, 15, 20, 25, 30, 35, 40]
    assert pictures.at(("v", 9000)) is None
    assert pictures.at(("gone", 0)) is None
    with caplog.at_level(logging.WARNING):
        pictures.warn(logging.getLogger("test"))
    assert len(caplog.messages) == 1
    assert caplog.messages[0].endswith("(--video-starts-s)")
    assert caplog.messages[0].startswith(
        "2 of 12 frames are drawn grey, the first of v at 0009 s: it has no frame at the key time"
    )


def test_a_large_frame_is_made_smaller_and_without_videos_all_is_grey(tmp_path: Path) -> None:
    write_video(tmp_path / "v.mp4", [np.full((1200, 1600, 3), 90, np.uint8)] * 2, 1)
    frame = Pictures(ClipFiles(tmp_path), GuardedReader(0)).at(("v", 0))
    assert frame is not None
    assert frame.shape == (825, 1100, 3)
    assert Pictures(None, GuardedReader(0)).at(("v", 0)) is None


# --- animations ------------------------------------------------------------------------------------------------------


def walking() -> Compared:
    """Somebody goes right from 1 s to 3 s; another one is there at 1 s; at 9 s there is somebody else."""
    boxes = [LEFT, (0.2, 0.2, 0.4, 0.8), (0.27, 0.2, 0.47, 0.8)]
    keys = [("v", 1000 * second) for second in (1, 2, 3)]
    truth = make_rows([*keys, keys[0], ("v", 9000)], [*boxes, RIGHT, LEFT], [1] * 5)
    return alone(truth, truth=True, threshold=None)


def test_boxes_move_between_key_frames_for_people_in_both_and_stand_still_else() -> None:
    frames = frames_of(walking(), "v")
    at = {time_s: moment_at(frames, time_s) for time_s in (1.0, 1.25, 1.75, 3.4, 6.0, 9.0, 0.6)}
    assert at[1.0].truth == {"1": LEFT, "2": RIGHT}
    assert at[1.25].truth["1"] == pytest.approx((0.125, 0.2, 0.325, 0.8))
    assert at[1.25].truth["2"] == RIGHT
    assert at[1.75].nearest == 1
    assert set(at[1.75].truth) == {"1"}
    assert at[1.75].truth["1"] == pytest.approx((0.175, 0.2, 0.375, 0.8))
    assert at[3.4].truth["1"] == (0.27, 0.2, 0.47, 0.8)
    assert at[6.0].nearest is None
    assert at[9.0].truth == {"3": LEFT}
    assert at[0.6].truth["1"] == LEFT


def test_a_moment_is_drawn_where_its_boxes_are_on_sheets_of_one_size() -> None:
    compared = walking()
    frames = frames_of(compared, "v")
    board = Board("v", compared, frames, Look(None, 5), 4 / 3)
    grey = np.full((240, 320, 3), 128, np.uint8)
    sizes = set()
    for time_s in (1.0, 1.25, 2.0, 6.0):
        sheet = board.sheet(moment_at(frames, time_s), grey)
        sizes.add((sheet.width, sheet.height))
        pixels = pixels_of(sheet, 2, board.families).astype(int)
        (frame,) = pictures_on(sheet)
        for right, is_there in ((0.1, time_s == 1.0), (0.125, time_s == 1.25), (0.2, time_s == 2.0)):
            x, y = frame.x + right * frame.width, frame.y + 0.65 * frame.height
            colour = [int(KINDS["truth"].colour[place : place + 2], 16) for place in (1, 3, 5)]
            assert (np.abs(pixels[int(2 * y), int(2 * x)] - colour).max() < 30) == is_there, (time_s, right)
    assert len(sizes) == 1
    assert "Boxes between key frames are interpolated" in " ".join(text.text for text in sheet.texts)
    assert "6.00 s, no key frame near" in [text.text for text in sheet.texts]


def test_an_animation_spans_its_key_frames_at_its_pace() -> None:
    frames = frames_of(walking(), "v")[:3]
    np.testing.assert_allclose(times_of(frames, 4), 0.5 + np.arange(12) / 4)
    quarter = make_rows([("v", 1000 * second) for second in range(900)], [LEFT] * 900, [1] * 900)
    long = frames_of(alone(quarter, truth=True, threshold=None), "v")
    assert len(times_of(long, 10)) == 1200
    assert times_of(long, 10)[-1] == pytest.approx(899.5, abs=1)


def test_the_worst_stretch_of_key_frames_is_the_one_with_most_mistakes(folder: Path) -> None:
    rows = [f"v,{second},0.1,0.2,0.3,0.8,1" for second in range(6)]
    (folder / "gt.csv").write_text("\n".join(rows))
    (folder / "det.csv").write_text("\n".join(f"{row},0.9" for row in (rows[0], rows[1], rows[2], rows[5])))
    compared = read_set(
        folder / "gt.csv", folder / "det.csv", None, folder / "map.txt", None, "activitynet", 0.5, 0.5
    ).compared
    frames = frames_of(compared, "v")
    assert [frame.time_s for frame in stretch_of(compared, frames, 2, worst=True)] == [3, 4]
    assert [frame.time_s for frame in stretch_of(compared, frames, 2, worst=False)] == [0, 1]
    assert len(stretch_of(compared, frames, 9, worst=True)) == 6


@pytest.mark.parametrize("kind", ["mp4", "gif"])
def test_an_animation_is_a_whole_file_with_all_its_frames(kind: str, folder: Path) -> None:
    write_video(folder / "good.mp4", [np.full((48, 64, 3), 128, np.uint8)] * 6, 3)
    out = show(asking(folder, f"x.{kind}", "good", videos=folder, fps=2))
    if kind == "mp4":
        with av.open(str(out)) as container:
            assert len(list(container.decode(video=0))) == 4
            assert container.streams.video[0].average_rate == 2
    else:
        with Image.open(out) as image:
            assert (image.n_frames, image.info["duration"]) == (4, 500)
    assert made_by(out, "vmae2 ava show")
    assert [path.name for path in folder.iterdir() if path.name.startswith(".")] == []


# --- sheets ----------------------------------------------------------------------------------------------------------


def test_a_sheet_has_every_key_frame_twice_and_the_frames_of_their_times(folder: Path, sheets: list[Sheet]) -> None:
    encoded(folder / "good.mkv", range(60))
    for more in ({"video": "good", "videos": folder}, {"video": str(folder / "good.mkv")}):
        show(asking(folder, "x.png", **more))
        assert [number_of(shape.pixels_HWC) for shape in pictures_on(sheets[-1])] == [0, 0, 25, 25]
    (folder / "starts.csv").write_text("good,-1\n")
    show(asking(folder, "x.png", "good", videos=folder, video_starts=folder / "starts.csv"))
    assert [number_of(shape.pixels_HWC) for shape in pictures_on(sheets[-1])] == [25, 25, 50, 50]
    show(asking(folder, "x.png", "good"))
    assert not pictures_on(sheets[-1])
    assert [text.text for text in sheets[-1].texts].count("no frame") == 4


def test_people_s_boxes_are_drawn_as_found_and_missed_people(folder: Path, sheets: list[Sheet]) -> None:
    show(asking(folder, "x.png", "bad", det=None, boxes=folder / "boxes.csv"))
    texts = {text.text for text in sheets[0].texts}
    assert {
        "truth found 1",
        "truth missed 2",
        "correct 1",
        "background 1",
        "0 s: 2 mistakes",
        "1 s: 1 mistake",
    } <= texts
    show(asking(folder, "x.png", "bad", gt=None, det=None, boxes=folder / "boxes.csv", labelmap=None, threshold=None))
    assert "1 of 1 key frame; 2 predicted labels." in {text.text for text in sheets[1].texts}


def test_sheets_are_written_as_png_and_svg_and_again_over_themselves(folder: Path) -> None:
    for suffix, head in ((".png", b"\x89PNG"), (".svg", b"<?xml")):
        for _ in range(2):
            out = show(asking(folder, f"x{suffix}", "идти <b>"))
            assert out.read_bytes().startswith(head)
    with Image.open(folder / "x.png") as image:
        assert image.width == 2200


# --- the page --------------------------------------------------------------------------------------------------------


class Elements(HTMLParser):
    """Tags with their attributes, and all text."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attributes)))

    def handle_data(self, data: str) -> None:
        self.text.append(data)


def test_the_page_has_the_worst_first_and_pictures_of_those_alone(folder: Path) -> None:
    encoded(folder / "bad.mkv", range(40))
    out = show(asking(folder, "x.html", most_videos=2, videos=folder))
    page = out.read_text()
    headings = [line.strip() for line in page.splitlines() if line.startswith("<h3>")]
    assert headings == ["<h3>1. bad: 5 mistakes</h3>", "<h3>2. идти &lt;b&gt;: 3 mistakes</h3>"]
    found = Elements(page)
    assert sum(tag == "image" for tag, _ in found.tags) == 4  # of bad's two key frames; there is no file of the other
    links = [str(told["href"]) for tag, told in found.tags if tag == "a"]
    assert links == ["#video1", "#video2"]
    assert {told.get("id") for tag, told in found.tags if tag == "section"} == {"video1", "video2"}
    assert "good" in found.text
    outside = [value for _, told in found.tags for key, value in told.items() if key in ("src", "href")]
    assert all(str(value).startswith(("data:", "#")) for value in outside)
    assert "http" not in page.replace("http://www.w3.org/2000/svg", "")


def test_the_figures_of_a_page_are_those_worked_out_by_hand(folder: Path) -> None:
    files = asking(folder, "x.html")
    shown = read_set(files.gt, files.det, None, files.labelmap, None, "activitynet", 0.5, 0.5)
    page = page_of(shown)
    assert [(row["name"], row["numbers"]) for row in page["rows"]] == [
        ("bad", (5, 3, 3, 2, 2, 2)), ("идти <b>", (3, 3, 2, 2, 1, 2)), ("good", (0, 2, 0, 2, 0, 2)),
    ]  # fmt: skip
    figures = {figure.name: figure.value for figure in page["figures"]}
    # sit: truths 6; by score 0.9, 0.9, 0.9 right, then 0.8 and 0.6 wrong: 3 / 6. eat: truths 2, none found: 0
    assert figures == {"Frame mAP": "25.00%", "Videos": "3", "Truth found": "3 of 8", "Predictions right": "3 of 6"}
    kinds, classes = page["tables"]
    assert {row.name: row.values[0] for row in kinds.rows} == {
        "correct": "3", "double": "0", "wrong label": "2", "localisation": "0", "background": "1",
        "truth found": "3", "truth missed": "5",
    }  # fmt: skip
    assert [(row.name, list(row.values)) for row in classes.rows] == [
        ("eat", ["0.00%", "2", "2", "1", "1"]), ("sit", ["50.00%", "6", "3", "5", "2"]),
    ]  # fmt: skip


# --- refusals --------------------------------------------------------------------------------------------------------


def test_nothing_of_somebody_else_s_is_overwritten(folder: Path) -> None:
    for name in ("x.png", "x.svg", "x.mp4", "x.gif", "x.webp", "x.html"):
        (folder / name).write_bytes(b"\x89PNG GIF89a RIFF <?xml ftyp somebody's")
        with pytest.raises(ConfigError, match="a file of something else"):
            show(asking(folder, name, None if name == "x.html" else "good"))
        assert (folder / name).read_bytes().endswith(b"somebody's")


@pytest.mark.parametrize(("more", "said"), [
    ({"video": "good", "gt": None, "det": None}, "nothing to draw: give --gt FILE, --det FILE or --boxes FILE"),
    ({"gt": None}, "a page tells what went wrong: give --gt and --det"),
    ({"labelmap": None}, "compared action by action, which takes --labelmap FILE"),
    ({"boxes": Path("boxes.csv")}, "one of both is drawn beside the truth"),
    ({"out": "x.png"}, "without a VIDEO, a page of the set is written; name a file that ends in .html"),
    ({"video": "good", "out": "x.html"}, "with a VIDEO, a sheet or an animation is written; name a file that ends in .png or"),
    ({"videos": Path("nowhere")}, "nowhere: there is no such folder of videos"),
    ({"det": Path("nowhere.csv")}, "nowhere.csv: there is no such file or folder"),
    ({"video": "goood", "out": "x.png"}, "no video 'goood' in"),
    ({"video": "elsewhere/good.mp4", "out": "x.png"}, "elsewhere/good.mp4: there is no such file or folder"),
])  # fmt: skip
def test_what_cannot_be_drawn_is_one_line(folder: Path, more: dict[str, Any], said: str) -> None:
    out = str(more.pop("out", "x.png" if more.get("video") else "x.html"))
    with pytest.raises((ConfigError, DataError)) as refused:
        show(asking(folder, out, **more))
    assert said in str(refused.value)
    assert "\n" not in str(refused.value)
    assert not (folder / out).exists()


def test_an_empty_file_is_told(folder: Path) -> None:
    (folder / "none.csv").write_text("")
    with pytest.raises(DataError, match="names no key frame; there is nothing to draw"):
        show(asking(folder, "x.png", "good", gt=None, det=folder / "none.csv"))
    page = show(asking(folder, "x.html", det=folder / "none.csv", threshold=None)).read_text()
    assert "0 of 8" in page
    assert "inf" not in Elements(page).text
    assert "by scores of 0.00 and above" in Elements(page).text
    assert "3 without a prediction; 6 key frames scored" in Elements(page).text


def test_the_verb_says_which_file_it_wrote_and_refuses_in_one_line(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = {"--gt": "gt.csv", "--det": "det.csv", "--labelmap": "map.txt", "--out": "x.png"}
    line = ["ava", "show", "good", *itertools.chain(*((option, str(folder / name)) for option, name in files.items()))]
    assert answer(line, capsys)[:2] == (0, f"{folder / 'x.png'}\n")
    assert "--iou" in refusal([*line, "--iou", "0"], capsys)
    assert "which is read" in refusal([*line[:-1], str(folder / "gt.csv")], capsys)
    (folder / "gt.csv").write_text("good,0,0.1,nonsense")
    assert "gt.csv, line 1" in refusal(line, capsys)
