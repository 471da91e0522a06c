"""`vmae2 tad show`: what is drawn, written and refused; only the frames that are shown are read, and nobody's file is lost."""

from __future__ import annotations

import logging
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.cli.lines import answer, refusal
from tests.data.odd_videos import encoded, number_of
from tests.data.stand_in import StandInReader
from tests.downstream.tad.show_files import Written, write_files
from vmae2_ds.data.readers.watchdog import Watchdog
from vmae2_ds.downstream.features.sidecar import FeatureInfo, VideoFeatures, claim_folder, write_features
from vmae2_ds.downstream.tad import show as show_module
from vmae2_ds.downstream.tad.feature_change import read_change
from vmae2_ds.downstream.tad.page import page_of
from vmae2_ds.downstream.tad.show import show
from vmae2_ds.downstream.tad.shown_set import read_files
from vmae2_ds.downstream.tad.thumbnails import read_thumbnails
from vmae2_ds.downstream.tad.timelines import Drawn
from vmae2_ds.draw.sheet import Picture, Sheet
from vmae2_ds.errors import ConfigError, DataError, VideoError


@pytest.fixture
def files(tmp_path: Path) -> Written:
    (tmp_path / "in").mkdir()
    return write_files(tmp_path / "in")


@pytest.fixture
def sheets(monkeypatch: pytest.MonkeyPatch) -> list[Sheet]:
    """The sheets that are drawn, in the place of files."""
    drawn: list[Sheet] = []
    monkeypatch.setattr(show_module, "write_sheet", lambda sheet, path, software: drawn.append(sheet))
    return drawn


def pictures(sheet: Sheet) -> list[Picture]:
    return [shape for shape in sheet.shapes if isinstance(shape, Picture)]


# --- frames ----------------------------------------------------------------------------------------------------------


def stand_in(length: int, fps: float) -> Any:
    return StandInReader(lambda entry, index_T: np.zeros((len(index_T), 30, 40, 3), np.uint8), length, fps)


def test_only_the_middles_of_even_parts_are_decoded() -> None:
    reader = stand_in(1000, 25.0)
    found = read_thumbnails("v.mp4", 4, 40.0, "pyav", reader)
    assert reader.chosen == [[125, 375, 625, 875]]  # the frames that are shown at 5, 15, 25 and 35 s
    assert found.frames.time_s == pytest.approx((5.02, 15.02, 25.02, 35.02))
    assert found.duration_s == 40.0


def test_a_video_shorter_than_its_annotations_has_no_frames_behind_its_end() -> None:
    reader = stand_in(500, 25.0)  # 20 s
    assert len(read_thumbnails("v.mp4", 4, 40.0, "pyav", reader).frames.time_s) == 2
    with pytest.raises(VideoError, match=r"it has 1 of 40 s"):
        read_thumbnails("v.mp4", 4, 40.0, "pyav", stand_in(25, 25.0))


def test_lengths_and_rates_that_nobody_tells_are_the_others() -> None:
    assert read_thumbnails("v.mp4", 2, None, "pyav", stand_in(100, 25.0)).duration_s == 4.0
    reader = stand_in(100, float("nan"))
    read_thumbnails("v.mp4", 2, 50.0, "pyav", reader)
    assert reader.chosen == [[25, 75]]
    with pytest.raises(VideoError, match="how long it is"):
        read_thumbnails("v.mp4", 2, None, "pyav", stand_in(100, float("nan")))
    few = stand_in(3, 1.0)
    read_thumbnails("v.mp4", 10, None, "pyav", few)
    assert few.chosen == [[0, 1, 2]]  # none twice


def test_the_frames_of_a_real_file_are_those_of_their_times(tmp_path: Path) -> None:
    video = encoded(tmp_path / "v.mkv", range(40))  # 25 frames a second, their numbers on them
    with Watchdog(60) as watchdog:
        found = read_thumbnails(str(video), 4, None, "pyav", watchdog)
    assert [number_of(pixels) for pixels in found.frames.pixels_NHWC] == [5, 15, 25, 35]
    assert found.duration_s == pytest.approx(1.6)


# --- pictures --------------------------------------------------------------------------------------------------------


def test_a_picture_has_its_rows_and_its_frames(files: Written, tmp_path: Path, sheets: list[Sheet]) -> None:
    (tmp_path / "deep" / "er").mkdir(parents=True)
    encoded(tmp_path / "deep" / "er" / "two words.mkv", range(40), rate=1, ticks=lambda k: 3 * k)  # 120 s
    show(files.asking(tmp_path / "x.png", "two words", videos=tmp_path / "deep", frames=5, min_score=0.0))
    said = [text.text for text in sheets[0].texts]
    assert {"two words", "jump", "run", "0.60 · 1.00", "wrong label 1", "truth missed 1"} <= set(said)
    assert len(pictures(sheets[0])) == 5
    show(files.asking(tmp_path / "x.png", str(tmp_path / "deep" / "er" / "two words.mkv"), frames=3))
    assert len(pictures(sheets[1])) == 3
    show(files.asking(tmp_path / "x.png", "two words", videos=tmp_path / "deep", frames=0))
    assert not pictures(sheets[2])


def test_a_video_that_cannot_be_read_costs_its_frames_and_one_warning(
    files: Written, tmp_path: Path, sheets: list[Sheet], caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "good.mp4").write_bytes(b"no video")
    with caplog.at_level(logging.WARNING):
        show(files.asking(tmp_path / "x.png", str(tmp_path / "good.mp4")))
        show(files.asking(tmp_path / "x.png", str(tmp_path / "gone" / "good.mp4")))
        show(files.asking(tmp_path / "x.png", "two words", videos=tmp_path))
    assert [record.message for record in caplog.records] == [
        f"{tmp_path / 'good.mp4'}: text, not a video; its timeline has no frames",
        f"{tmp_path / 'gone' / 'good.mp4'}: cannot be opened: No such file or directory; its timeline has no frames",
        "two words: no video of this name in --videos; its timeline has no frames",
    ]
    assert [len(sheet.texts) > 5 and len(pictures(sheet)) == 0 for sheet in sheets] == [True] * 3


def test_truth_alone_and_predictions_alone_are_drawn(files: Written, tmp_path: Path) -> None:
    for name, more in {"gt.png": {"pred": None}, "pred.png": {"gt": None}}.items():
        assert show(files.asking(tmp_path / name, "two words", **more)) == tmp_path / name
        picture = Image.open(tmp_path / name).convert("RGB")
        assert picture.width == 2200
        assert len(picture.reduce(4).getcolors(1 << 20)) > 10


def feature_folder(folder: Path, rows: np.ndarray, fps: float | None = 10.0, **more: Any) -> Path:
    """Features of the video "two words": windows of 16 frames, 4 frames apart."""
    told = {
        "model": "m", "weights": "w", "grid": "opengvlab", "window": 16, "stride": 4, "interval": 1, "offset_frames": 8,
        "pixels": "imagenet", "resize": "crop", "size": 32, "precision": "fp32", "width": 2,
    }  # fmt: skip
    folder.mkdir()
    claim_folder(folder, FeatureInfo(**{**told, **more}))
    write_features(folder, "two words", rows.astype(np.float32), VideoFeatures(frames=100, fps=fps, rows=len(rows)))
    return folder


def test_the_change_of_features_is_one_less_their_cosine_between_their_times(tmp_path: Path) -> None:
    rows = np.array([[1, 0], [2, 0], [0, 1], [1, 1]])  # no change, a right angle, half of one
    change = read_change(feature_folder(tmp_path / "f", rows), "two words", 100.0)
    np.testing.assert_allclose(change.time_S, [(2 + 8) / 10, (6 + 8) / 10, (10 + 8) / 10])
    np.testing.assert_allclose(change.change_S, [0, 1, 1 - np.sqrt(0.5)], atol=1e-6)
    spread = read_change(feature_folder(tmp_path / "g", rows, fps=None), "two words", 100.0)
    np.testing.assert_allclose(spread.time_S, [25, 50, 75])


def test_features_lie_under_a_picture_and_bad_ones_are_one_line(
    files: Written, tmp_path: Path, sheets: list[Sheet]
) -> None:
    folder = feature_folder(tmp_path / "f", np.eye(2))
    show(files.asking(tmp_path / "x.png", "two words", features=folder))
    assert "change" in [text.text for text in sheets[0].texts]
    with pytest.raises(DataError, match="there are no features of this video"):
        show(files.asking(tmp_path / "x.png", "good", features=folder))
    with pytest.raises(ConfigError, match="name a VIDEO"):
        show(files.asking(tmp_path / "x.html", features=folder))
    one = feature_folder(tmp_path / "one", np.eye(2)[:1])
    with pytest.raises(DataError, match="has 1 features, of which none follows another"):
        show(files.asking(tmp_path / "x.png", "two words", features=one))


def test_a_video_of_which_nothing_is_known_is_refused_until_its_length_is(
    files: Written, tmp_path: Path, sheets: list[Sheet]
) -> None:
    with pytest.raises(DataError, match="nothing is known of it"):
        show(files.asking(tmp_path / "x.png", "идти <b>", gt=None))
    encoded(tmp_path / "идти <b>.mkv", range(40))
    show(files.asking(tmp_path / "x.png", "идти <b>", gt=None, videos=tmp_path))
    assert "1.6 s." in [text.text for text in sheets[0].texts]


# --- the page --------------------------------------------------------------------------------------------------------


class Elements(HTMLParser):
    """Tags with their attributes, and all text."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attributes)))

    def handle_data(self, data: str) -> None:
        self.text += data


def test_the_page_has_every_video_and_needs_no_other_file(files: Written, tmp_path: Path) -> None:
    encoded(tmp_path / "two words.mkv", range(40), rate=1, ticks=lambda k: 3 * k)
    page = show(files.asking(tmp_path / "page.html", videos=tmp_path)).read_text()
    found = Elements(page)
    headings = [line.strip() for line in page.splitlines() if line.startswith("<h3>")]
    assert headings == [
        "<h3>1. two words: 3 mistakes</h3>", "<h3>2. идти &lt;b&gt;: 1 mistake</h3>", "<h3>3. good: 0 mistakes</h3>",
    ]  # fmt: skip
    assert "60 s; 1 of 1 truth missed; 0 predictions." in found.text
    assert "No frames: no video of this name in --videos." in found.text
    assert sum(tag == "image" for tag, _ in found.tags) == 10
    outside = [value for _, told in found.tags for key, value in told.items() if key in ("src", "href")]
    assert all(value is not None and value.startswith("data:") for value in outside)
    assert not any(tag in ("script", "link", "iframe") for tag, _ in found.tags)


def test_the_figures_of_a_page_are_those_by_hand(files: Written) -> None:
    read = read_files(files.gt, files.pred, None)
    page = page_of(read, read.shown(None, (0.5,), 0.5), Drawn(0.7, 50, 0.5), 2)
    assert {figure.name: figure.value for figure in page.figures} == {
        "Average mAP": "62.50%", "Videos": "3", "Truth found": "3 of 6", "Predictions right": "3 of 4",
    }  # fmt: skip
    tables = {table.title: table.rows for table in page.tables}
    # without its double jump stays at 1 of 3; without the run on nothing run has 3 of 3 right
    assert [(row.name, *row.values[:2]) for row in tables["What went wrong"]] == [
        ("correct", "3", ""), ("double", "1", "+0.00"), ("wrong label", "0", "+0.00"), ("localisation", "0", "+0.00"),
        ("background", "0", "+4.17"), ("truth missed", "3", ""),
    ]  # fmt: skip
    assert [(row.name, row.values[0]) for row in tables["Truth that was never found"]] == [
        ("taken", "0"), ("wrong label", "0"), ("localisation", "1"), ("nothing near", "1"),
    ]  # fmt: skip
    assert sum(int(row.values[1]) for row in tables["Sensitivity to length"]) == 6
    # jump: 1 of 3 truths, at once; run: 0.95 and 0.7 right, then one wrong, then 3 of 4: 2/3 + 1/3 * 3/4
    assert [(row.name, *row.values) for row in tables["Classes, the worst first"]] == [
        ("jump", "33.33%", "3", "2", "2"), ("run", "91.67%", "3", "1", "2"),
    ]  # fmt: skip
    assert "1 video with as many mistakes or fewer left out" in page.left_out


def test_a_page_of_the_worst_video_alone_says_how_many_are_left_out(files: Written, tmp_path: Path) -> None:
    page = show(files.asking(tmp_path / "page.html", most_videos=1, frames=0)).read_text()
    assert page.count("<h3>") == 1
    assert "2 videos with as many mistakes or fewer left out; --most-videos sets how many are shown." in page


# --- refusals --------------------------------------------------------------------------------------------------------


def test_another_s_file_is_not_replaced_and_one_s_own_is(files: Written, tmp_path: Path) -> None:
    Image.new("RGB", (4, 4)).save(tmp_path / "x.png")
    (tmp_path / "x.html").write_text("<!doctype html><title>mine</title>")
    before = [(tmp_path / name).read_bytes() for name in ("x.png", "x.html")]
    for out, video in ((tmp_path / "x.png", "good"), (tmp_path / "x.html", None)):
        with pytest.raises(ConfigError, match="a file of something else"):
            show(files.asking(out, video, frames=0))
    assert [(tmp_path / name).read_bytes() for name in ("x.png", "x.html")] == before
    for out, video in ((tmp_path / "y.png", "good"), (tmp_path / "y.html", None)):
        show(files.asking(out, video, frames=0))
        once = out.read_bytes()
        show(files.asking(out, video, frames=0))
        assert out.read_bytes() == once  # and the same again


@pytest.mark.parametrize(("more", "said"), [
    ({"video": "good", "gt": None, "pred": None}, "nothing to draw: give --gt FILE, --pred FILE, or both"),
    ({"gt": None}, "takes both --gt and --pred"),
    ({"out": "x.png"}, "without a VIDEO, a page of the set is written; name a file that ends in .html"),
    ({"video": "good", "out": "x.html"}, "with a VIDEO, a picture is written; name a file that ends in .png"),
    ({"videos": Path("nowhere")}, "--videos nowhere is no folder"),
    ({"pred": Path("nowhere.json")}, "nowhere.json: there is no such file or folder"),
    ({"video": "bad name", "out": "x.png"}, "no video 'bad name'"),
    ({"subset": ("testing",)}, "has no video of subset 'testing'; it has 'training', 'validation'"),
    ({"subset": ("training",)}, "have no video in common"),
])  # fmt: skip
def test_what_cannot_be_drawn_is_one_line(files: Written, tmp_path: Path, more: dict[str, Any], said: str) -> None:
    out = tmp_path / str(more.pop("out", "x.png" if more.get("video") else "x.html"))
    with pytest.raises((ConfigError, DataError)) as refused:
        show(files.asking(**{"out": out, **more}))
    assert said in str(refused.value)
    assert "\n" not in str(refused.value)
    assert not out.exists()


def test_files_of_two_sets_are_refused(files: Written, tmp_path: Path) -> None:
    (tmp_path / "other.json").write_text('{"results": {"elsewhere": []}}')
    with pytest.raises(DataError, match="no video in common"):
        show(files.asking(tmp_path / "x.html", pred=tmp_path / "other.json"))


def test_a_file_without_any_prediction_is_told_and_a_subset_shows_all_of_it_as_missed(
    files: Written, tmp_path: Path
) -> None:
    (tmp_path / "none.json").write_text('{"results": {}}')
    with pytest.raises(DataError, match=r"none\.json has no video; with --subset, all truth .* missed"):
        show(files.asking(tmp_path / "x.html", pred=tmp_path / "none.json"))
    page = show(files.asking(tmp_path / "x.html", pred=tmp_path / "none.json", subset=("validation",)))
    assert "0 of 0" in page.read_text()


def test_a_folder_without_videos_is_refused(files: Written, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no file in it is named like a video"):
        show(files.asking(tmp_path / "x.html", videos=tmp_path / "in"))


def test_the_verb_says_which_file_it_wrote_and_refuses_in_one_line(
    files: Written, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line = ["tad", "show", "good", "--gt", str(files.gt), "--pred", str(files.pred), "--out", str(tmp_path / "x.png")]
    assert answer(line, capsys)[:2] == (0, f"{tmp_path / 'x.png'}\n")
    assert "--right-at" in refusal([*line, "--right-at", "0"], capsys)
    assert "which is read" in refusal([*line[:-1], str(files.gt)], capsys)
