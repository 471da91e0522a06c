"""Sheets: shapes come out as SVG and as PNG, text keeps within its room, and letters without a font are told once."""

from __future__ import annotations

import logging
import xml.etree.ElementTree as ET
from pathlib import Path

import numpy as np
import pytest
from matplotlib import font_manager
from PIL import Image

from vmae2_ds.draw.pictures import save_animation
from vmae2_ds.draw.sheet import (
    FONT,
    Box,
    Line,
    Mark,
    Picture,
    Sheet,
    Text,
    families_of,
    made_by,
    pixels_of,
    readable,
    shortened,
    svg_of_sheet,
    text_width,
    wrapped,
    write_sheet,
)
from vmae2_ds.errors import ConfigError

RED = np.broadcast_to(np.array([255, 0, 0], np.uint8), (6, 8, 3))
SHEET = Sheet(
    100, 50, 'a <b> & "c"',
    (
        Box(0, 0, 100, 50, "#ffffff"),
        Box(10, 10, 30, 10, "#0072B2", about="blue & wide"),
        Line(0, 45, 100, 45, "#222222"),
        Mark((((60, 10), (70, 10), (70, 20), (60, 20)),), "#009E73", "#009E73"),
        Text(10, 30, "a < b", 8, "#222222"),
        Picture(80, 5, 16, 12, RED, "a frame"),
    ),
)  # fmt: skip
SVG = "{http://www.w3.org/2000/svg}"


def test_every_shape_is_in_the_svg_where_it_should_be() -> None:
    root = ET.fromstring(svg_of_sheet(SHEET))
    assert root.get("viewBox") == "0 0 100 50"
    assert root.get("aria-label") == 'a <b> & "c"'
    blue = root.findall(f"{SVG}rect")[1]
    assert [blue.get(name) for name in ("x", "y", "width", "height", "fill")] == ["10", "10", "30", "10", "#0072B2"]
    assert blue.findtext(f"{SVG}title") == "blue & wide"
    assert root.findtext(f"{SVG}text") == "a < b"
    assert root.find(f"{SVG}path").get("d") == "M60,10 70,10 70,20 60,20Z"
    assert root.find(f"{SVG}image").get("href").startswith("data:image/jpeg;base64,")


def test_the_png_has_its_colours_where_the_shapes_are(tmp_path: Path) -> None:
    write_sheet(SHEET, tmp_path / "deep" / "sheet.png", "this test")
    pixels = np.asarray(Image.open(tmp_path / "deep" / "sheet.png").convert("RGB"))
    assert pixels.shape == (100, 200, 3)  # two dots a point
    for (x, y), colour in {
        (25, 15): (0, 114, 178),
        (65, 15): (0, 158, 115),
        (88, 11): (255, 0, 0),
        (5, 5): (255,) * 3,
    }.items():
        assert tuple(pixels[2 * y, 2 * x]) == colour, (x, y)
    assert made_by(tmp_path / "deep" / "sheet.png", "this test")
    assert not made_by(tmp_path / "deep" / "sheet.png", "another")


def test_a_sheet_that_is_too_tall_for_a_png_is_refused_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"would be 40,000 points long, and 20,000 is the most: draw less on it"):
        write_sheet(Sheet(90, 40_000, "", ()), tmp_path / "x.png", "test")
    assert not (tmp_path / "x.png").exists()
    write_sheet(Sheet(9, 20_000, "", ()), tmp_path / "x.png", "test")


def test_text_is_never_wider_than_it_is_taken_for() -> None:
    """Measured with the font itself, at its real widths: what is taken for free of text must be."""
    font = font_manager.get_font(font_manager.findfont(FONT))
    font.set_size(9, 72)
    for text in (
        "tIoU 0.71 · 12:05",
        "Clean and Jerk",
        "HammerThrow_WWWMMM",
        "iiiillll",
        "Прыжок в воду",
        "Ünïcödé Ørsted",
        "0123456789 %",
        "Q&A_@#",
    ):
        font.set_text(text)
        assert font.get_width_height()[0] / 64 <= text_width(text, 9), text


def test_long_text_is_broken_at_words_and_ends_in_an_ellipsis() -> None:
    lines = wrapped("throw the discus as far as you can and then some more", 100, 9, most=3)
    assert len(lines) == 3
    assert all(text_width(line, 9) <= 100 for line in lines)
    assert lines[0] == "throw the discus"
    assert lines[2].endswith("…")
    assert "".join(wrapped("nospaceatall" * 3, 100, 9, most=9)) == "nospaceatall" * 3
    assert wrapped("short", 100, 9, most=2) == ["short"]
    assert wrapped("", 100, 9, most=2) == [""]
    assert shortened("wide 字字字字", 50, 9) == "wide 字…"


def test_bytes_that_are_no_text_and_control_characters_are_question_marks() -> None:
    assert readable("a\udcffb\n\0") == "a?b??"
    assert ET.fromstring(svg_of_sheet(Sheet(9, 9, "\0", (Text(1, 1, "\udcff\x1b", 8, "#222222"),)))) is not None


def test_letters_that_no_font_has_are_told_in_one_line(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    unknown = "\U0001f9ff\u0e00"  # one that few fonts have, and one that is no letter
    with caplog.at_level(logging.WARNING):
        write_sheet(
            Sheet(90, 20, "", (Text(1, 9, f"yes {unknown}", 8, "#222222", bold=True),)), tmp_path / "x.png", "test"
        )
    assert len([one for one in caplog.records if "no font on this machine" in one.message]) == 1
    assert len(caplog.records) == 1


def test_a_sheet_is_written_as_svg_where_the_path_says_so(tmp_path: Path) -> None:
    write_sheet(SHEET, tmp_path / "sheet.svg", "this test")
    root = ET.fromstring((tmp_path / "sheet.svg").read_bytes())
    assert root.tag == f"{SVG}svg"
    assert root.findtext(f"{SVG}text") == "a < b"
    assert made_by(tmp_path / "sheet.svg", "this test")
    assert not made_by(tmp_path / "sheet.svg", "another")
    (tmp_path / "other.svg").write_text("<svg/> this test")
    assert not made_by(tmp_path / "other.svg", "this test")


def test_pixels_of_a_sheet_are_those_of_its_png(tmp_path: Path) -> None:
    write_sheet(SHEET, tmp_path / "sheet.png", "test")
    written = np.asarray(Image.open(tmp_path / "sheet.png").convert("RGB"))
    np.testing.assert_array_equal(pixels_of(SHEET, 2, families_of(SHEET)), written)


@pytest.mark.parametrize("kind", ["gif", "webp"])
def test_an_animation_has_its_pictures_its_pace_and_its_maker(kind: str, tmp_path: Path) -> None:
    pictures = [np.full((20, 30, 3), level, np.uint8) for level in (20, 120, 220)]
    save_animation(pictures, tmp_path / f"x.{kind}", kind, 4, "this test")
    with Image.open(tmp_path / f"x.{kind}") as image:
        assert image.n_frames == 3
        for place, level in enumerate((20, 120, 220)):
            image.seek(place)
            assert np.abs(np.asarray(image.convert("RGB")).astype(int) - level).max() < 8
            assert image.info["duration"] == 250
    assert made_by(tmp_path / f"x.{kind}", "this test")
    assert not made_by(tmp_path / f"x.{kind}", "another")
