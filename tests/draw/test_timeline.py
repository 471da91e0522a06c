"""Timelines: bars lie at their times, nothing that is written touches anything else, and kinds differ by more than colour."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vmae2_ds.draw.looks import KINDS, MARKS
from vmae2_ds.draw.sheet import Box, Mark, Picture, Sheet, Text, svg_of_sheet, text_width, write_sheet
from vmae2_ds.draw.timeline import (
    THINNEST,
    Bar,
    ChangeStrip,
    ClassRow,
    FrameStrip,
    Timeline,
    lanes_of,
    sheet_of,
    time_text,
)

Extent = tuple[float, float, float, float]


def extent_of(shape: Box | Text | Picture) -> Extent:
    """Left, top, right, bottom; of text the height of its capitals."""
    if not isinstance(shape, Text):
        return shape.x, shape.y, shape.x + shape.width, shape.y + shape.height
    width = text_width(shape.text, shape.size, shape.bold)
    left = shape.x - {"start": 0, "middle": 0.5, "end": 1}[shape.anchor] * width
    return left, shape.y - 0.4 * shape.size, left + width, shape.y + 0.4 * shape.size


def touch(one: Extent, other: Extent) -> bool:
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]


def bars_on(sheet: Sheet) -> list[Box]:
    """What `about` tells from the sheet itself, the legend and what lies under a text."""
    return [shape for shape in sheet.shapes if isinstance(shape, Box) and shape.about]


def drawn(seed: int, duration_s: float, classes: int, predictions: int, longest: float = 0.1) -> Timeline:
    """A timeline of random bars."""
    rng = np.random.default_rng(seed)
    kinds = [name for name in KINDS if not name.startswith("truth")]

    def bars(count: int, names: list[str]) -> tuple[Bar, ...]:
        starts = rng.uniform(-0.02, 1.02, count) * duration_s
        ends = starts + rng.uniform(0, longest, count) * duration_s
        texts = [str(rng.choice(["0.93 · 0.71", "0.004 · 0", "found at 0.21 only", ""])) for _ in starts]
        return tuple(
            Bar(float(start), float(end), str(rng.choice(names)), text, "told")
            for start, end, text in zip(starts, ends, texts, strict=True)
        )

    names = [f"class {number} " + "of something with a long name " * (number % 3) for number in range(classes)]
    rows = tuple(
        ClassRow(name, bars(3, ["truth found", "truth missed"]), bars(predictions // classes, kinds)) for name in names
    )
    frames = FrameStrip(
        tuple(float(time) for time in (np.arange(8) + 0.5) / 8 * duration_s), np.zeros((8, 30, 40, 3), np.uint8)
    )
    return Timeline("a video " + "with quite a name " * (seed % 8), ("a note", "b " * 200), duration_s, rows, frames)


@pytest.mark.parametrize(("duration_s", "classes", "predictions"), [
    (0.7, 1, 4), (75, 3, 30), (119.9, 2, 12), (3600, 5, 60), (3700, 20, 200), (90_000, 8, 80)])  # fmt: skip
def test_what_is_written_touches_nothing_and_is_not_cut_off(duration_s: float, classes: int, predictions: int) -> None:
    for seed in range(3 if predictions < 100 else 1):
        sheet = sheet_of(drawn(seed, duration_s, classes, predictions))
        texts = sheet.texts
        for text in texts:
            left, top, right, bottom = extent_of(text)
            assert min(left, top) >= 0, text
            assert right <= sheet.width, text
            assert bottom <= sheet.height, text
        for one, other in itertools.combinations(texts, 2):
            assert not touch(extent_of(one), extent_of(other)), (one, other)
        solid = [shape for shape in sheet.shapes[1:] if isinstance(shape, Box | Picture)]
        for text, box in itertools.product(texts, solid):
            assert not touch(extent_of(text), extent_of(box)), (text, box)


def test_bars_of_a_lane_and_marks_do_not_touch_each_other() -> None:
    sheet = sheet_of(drawn(1, 3700, 20, 200))
    for one, other in itertools.combinations(bars_on(sheet), 2):
        assert not touch(extent_of(one), extent_of(other)), (one, other)
    corners = [np.concatenate(mark.polygons) for mark in sheet.shapes if isinstance(mark, Mark)]
    marks = [(*corner.min(axis=0), *corner.max(axis=0)) for corner in corners]
    for one, other in itertools.combinations(marks, 2):
        assert not touch(one, other)
    for mark, bar in itertools.product(marks, bars_on(sheet)):
        assert not touch(mark, extent_of(bar)), (mark, bar)


def test_a_bar_begins_and_ends_at_its_times() -> None:
    bars = (Bar(0, 10, "truth", "", "a"), Bar(25, 50, "truth", "", "b"), Bar(99, 100, "truth", "", "c"))
    first, second, last = bars_on(sheet_of(Timeline("", (), 100, (ClassRow("x", bars, ()),))))
    left, right = first.x, last.x + last.width
    assert second.x == pytest.approx(left + 0.25 * (right - left))
    assert second.width == pytest.approx(0.25 * (right - left))
    assert first.width == pytest.approx(0.1 * (right - left))
    assert first.y == second.y == last.y  # one lane, for none is in the way of another


def test_a_bar_without_length_is_seen_and_one_beyond_the_axis_ends_with_it() -> None:
    bars = (Bar(5, 5, "truth", "", "a"), Bar(100, 100, "truth", "", "b"), Bar(90, 1e9, "truth", "", "c"))
    none, at_end, beyond = bars_on(sheet_of(Timeline("", (), 100, (ClassRow("x", bars, ()),))))
    assert none.width == pytest.approx(THINNEST)
    assert at_end.width == pytest.approx(THINNEST)
    assert at_end.x + at_end.width == pytest.approx(beyond.x + beyond.width)


def test_a_bar_over_the_whole_video_has_its_words_on_itself_on_white() -> None:
    sheet = sheet_of(Timeline("", (), 10, (ClassRow("x", (), (Bar(0, 10, "correct", "0.93 · 1.00", "a"),)),)))
    said = next(text for text in sheet.texts if text.text == "0.93 · 1.00")
    under = [box for box in bars_on(sheet) if touch(extent_of(box), extent_of(said))]
    assert [box.fill for box in under] == [KINDS["correct"].colour, "#ffffff"]
    left, top, right, bottom = extent_of(under[1])
    assert left <= extent_of(said)[0]
    assert extent_of(said)[2] <= right
    assert top <= extent_of(said)[1]
    assert extent_of(said)[3] <= bottom


def test_kinds_are_told_apart_without_their_colours_too() -> None:
    looks = [(kind.mark, kind.hollow) for name, kind in KINDS.items() if name not in ("truth", "prediction")]
    assert len(set(looks)) == len(looks)
    assert {kind.mark for kind in KINDS.values()} == set(MARKS)
    assert len(set(MARKS.values())) == len(MARKS)


@pytest.mark.parametrize("matrix", [
    ((0.152286, 1.052583, -0.204868), (0.114503, 0.786281, 0.099216), (-0.003882, -0.048116, 1.051998)),
    ((0.367322, 0.860646, -0.227968), (0.280085, 0.672501, 0.047413), (-0.011820, 0.042940, 0.968881)),
], ids=["protanopia", "deuteranopia"])  # fmt: skip
def test_colours_of_predictions_stay_apart_for_the_colour_blind(matrix: tuple[tuple[float, ...], ...]) -> None:
    """Machado, Oliveira and Fernandes 2009, severity 1, in linear RGB: no two of the colours come near each other."""
    names = ("correct", "double", "localisation", "wrong label", "background")
    seen = []
    for name in names:
        rgb = np.array([int(KINDS[name].colour[place : place + 2], 16) / 255 for place in (1, 3, 5)])
        linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
        mixed = np.clip(np.array(matrix) @ linear, 0, 1)
        seen.append(np.where(mixed <= 0.0031308, 12.92 * mixed, 1.055 * mixed ** (1 / 2.4) - 0.055) * 255)
    for (one, a), (other, b) in itertools.combinations(zip(names, seen, strict=True), 2):
        assert np.linalg.norm(a - b) > 40, (one, other)


def test_the_legend_counts_what_is_drawn() -> None:
    bars = (Bar(0, 1, "truth found"), Bar(2, 3, "truth missed"), Bar(4, 5, "truth missed"))
    sheet = sheet_of(Timeline("", (), 10, (ClassRow("x", bars, (Bar(0, 1, "double", "0.5"),)),)))
    assert [text.text for text in sheet.texts][-3:] == ["truth found 1", "truth missed 2", "double 1"]


def test_lanes_are_the_uppermost_that_are_free() -> None:
    assert lanes_of([(0, 2), (1, 3), (2, 4), (0, 4), (3, 5)]) == [0, 1, 0, 2, 1]
    assert lanes_of([]) == []


@pytest.mark.parametrize(("time_s", "duration_s", "text"), [(12.5, 74.9, "12.5 s"), (0.05, 0.7, "0.05 s"), (0, 130, "0:00"),
                         (200, 1000, "3:20"), (3750, 9000, "1:02:30"), (600, 3600, "0:10:00")])  # fmt: skip
def test_times_are_told_as_the_length_of_the_video_asks(time_s: float, duration_s: float, text: str) -> None:
    assert time_text(time_s, duration_s) == text


def test_frames_lie_around_their_times_in_their_own_shape() -> None:
    frames = FrameStrip((10.0, 50.0, 99.9), np.zeros((3, 90, 160, 3), np.uint8))
    sheet = sheet_of(Timeline("", (), 100, (ClassRow("x", (Bar(0, 100, "truth", "", "a"),), ()),), frames))
    axis, pictures = bars_on(sheet)[0], [shape for shape in sheet.shapes if isinstance(shape, Picture)]
    for picture in pictures:
        assert picture.width / picture.height == pytest.approx(160 / 90)
    assert pictures[1].x + pictures[1].width / 2 == pytest.approx(axis.x + axis.width / 2)
    assert pictures[2].x + pictures[2].width == pytest.approx(axis.x + axis.width)  # kept on the sheet


def test_a_strip_of_change_is_dark_where_much_changes_and_white_where_nothing_is_known() -> None:
    change = ChangeStrip(np.array([30.0, 50.0, 70.0]), np.array([1.0, 0.0, 0.5]))
    sheet = sheet_of(Timeline("", (), 100, (ClassRow("x", (Bar(0, 100, "truth", "", "a"),), ()),), None, change))
    (strip,) = [shape for shape in sheet.shapes if isinstance(shape, Picture)]
    axis = bars_on(sheet)[0]
    assert (strip.x, strip.width) == (axis.x, axis.width)
    blue_1X = strip.pixels_HWC[0, :, 0]  # red is what blue has none of
    at = {time_s: int(blue_1X[round(time_s / 100 * len(blue_1X))]) for time_s in (5, 15, 25, 35, 45, 55, 65, 75, 85)}
    assert at == {5: 255, 15: 255, 25: 0, 35: 0, 45: 255, 55: 255, 65: 128, 75: 128, 85: 255}


def test_the_largest_of_many_changes_in_one_column_is_seen() -> None:
    change = np.zeros(100_000)
    change[50_000] = 1.0
    strip = ChangeStrip((np.arange(100_000) + 0.5) / 1000, change)
    sheet = sheet_of(Timeline("", (), 100, (), None, strip))
    (picture,) = [shape for shape in sheet.shapes if isinstance(shape, Picture)]
    assert picture.pixels_HWC[0, :, 0].min() == 0


def test_both_files_are_written_and_show_something(tmp_path: Path) -> None:
    sheet = sheet_of(drawn(0, 75, 2, 8))
    write_sheet(sheet, tmp_path / "x.png", "test")
    picture = Image.open(tmp_path / "x.png").convert("RGB").reduce(4)
    assert abs(2 * sheet.width - 4 * picture.width) <= 4
    assert abs(2 * sheet.height - 4 * picture.height) <= 4
    assert len(picture.getcolors(1 << 20)) > 10
    assert svg_of_sheet(sheet).count("<rect") > 10
