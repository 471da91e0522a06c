"""Frames with boxes: they lie where their numbers say, names neither overlap nor leave their frame, lists are whole."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vmae2_ds.draw.frames import (
    EDGE,
    BoxLabel,
    FrameBox,
    FramePicture,
    Panel,
    draw_list,
    grid_of,
    place_chips,
    place_of,
    sheet_of_frames,
)
from vmae2_ds.draw.looks import KINDS
from vmae2_ds.draw.sheet import Picture, Shape, Sheet, Text, text_width, write_sheet

Extent = tuple[float, float, float, float]
LONG = "take (an object) from (a person) who does not want to give it and says so at length"


def grey(height: int, width: int, level: int = 128) -> np.ndarray:
    return np.full((height, width, 3), level, np.uint8)


def picture(boxes: list[FrameBox], pixels: np.ndarray | None, title: str = "3 s") -> FramePicture:
    return FramePicture(title, (Panel("truth", pixels, tuple(boxes)),))


def crowd(count: int, seed: int = 0, labels: int = 3, text: str = LONG) -> list[FrameBox]:
    rng = np.random.default_rng(seed)
    found = []
    for number in range(count):
        corner, size = rng.uniform(0, 0.85, 2), rng.uniform(0.05, 0.5, 2)
        box = (*corner, *np.minimum(corner + size, 1))
        said = tuple(BoxLabel(f"{text} {place}", "correct", f"{0.9 - place / 10:.2f}") for place in range(labels))
        found.append(FrameBox(box, "correct", str(number + 1), said))
    return found


def overlap(one: Extent, other: Extent) -> bool:
    return min(one[2], other[2]) - max(one[0], other[0]) > 1e-6 and min(one[3], other[3]) - max(one[1], other[1]) > 1e-6


def text_extent(text: Text) -> Extent:
    left = text.x - {"start": 0, "middle": 0.5, "end": 1}[text.anchor] * text_width(text.text, text.size, text.bold)
    return (
        left,
        text.y - 0.45 * text.size,
        left + text_width(text.text, text.size, text.bold),
        text.y + 0.45 * text.size,
    )


def inside(one: Extent, room: Extent) -> bool:
    return (
        one[0] >= room[0] - 1e-6 and one[1] >= room[1] - 1e-6 and one[2] <= room[2] + 1e-6 and one[3] <= room[3] + 1e-6
    )


def check_texts(sheet: Sheet) -> None:
    """No text leaves the sheet, and no two texts overlap."""
    extents = [text_extent(text) for text in sheet.texts]
    for text, extent in zip(sheet.texts, extents, strict=True):
        assert inside(extent, (0, 0, sheet.width, sheet.height)), text
    for (one, first), (other, second) in itertools.combinations(zip(sheet.texts, extents, strict=True), 2):
        assert not overlap(first, second), (one, other)


def test_edges_of_boxes_have_their_kinds_colours_at_their_places(tmp_path: Path) -> None:
    boxes = [FrameBox((0.25, 0.5, 0.5, 0.9), "correct", "a"), FrameBox((0.6, 0.3, 0.9, 0.8), "background", "b")]
    sheet = sheet_of_frames("v", (), [picture(boxes, grey(240, 320))])
    write_sheet(sheet, tmp_path / "x.png", "test")
    pixels = np.asarray(Image.open(tmp_path / "x.png").convert("RGB")).astype(int)
    (frame,) = (shape for shape in sheet.shapes if isinstance(shape, Picture))
    assert frame.width / frame.height == pytest.approx(4 / 3)
    for box in boxes:
        colour = [int(KINDS[box.kind].colour[place : place + 2], 16) for place in (1, 3, 5)]
        x1, x2 = (2 * (frame.x + share * frame.width) for share in (box.box[0], box.box[2]))
        y1, y2 = (2 * (frame.y + share * frame.height) for share in (box.box[1], box.box[3]))
        middle_x, middle_y = (x1 + x2) / 2, (y1 + y2) / 2
        for x, y in ((x1, middle_y), (x2, middle_y), (middle_x, y1), (middle_x, y2)):
            assert np.abs(pixels[int(y), int(x)] - colour).max() < 40, (box.name, x, y)
        assert np.abs(pixels[int(middle_y), int(middle_x)] - 128).max() < 3  # nothing is filled
        halo = pixels[int(middle_y), int(x1) - 3]
        assert halo.min() > 200, "a white line around it, for dark frames"


def test_a_box_beyond_the_frame_or_inside_out_is_drawn_in_the_frame() -> None:
    room = (100.0, 50.0, 300.0, 150.0)
    assert place_of((0.5, 0.25, 0.75, 0.5), room) == (200, 75, 250, 100)
    assert place_of((0.75, 0.5, 0.5, 0.25), room) == (200, 75, 250, 100)
    assert place_of((-3, -3, 7, 7), room) == (101, 51, 299, 149)
    x1, y1, x2, y2 = place_of((2, 2, 3, 3), room)
    assert inside((x1, y1, x2, y2), room)


@pytest.mark.parametrize(
    ("count", "size"), [(1, (240, 320)), (4, (120, 640)), (12, (240, 320)), (12, (640, 200)), (40, (32, 32))]
)
def test_names_in_a_frame_neither_overlap_nor_leave_it(count: int, size: tuple[int, int]) -> None:
    boxes = crowd(count, seed=count)
    sheet = sheet_of_frames("v", ("a note",), [picture(boxes, grey(*size)), picture(boxes, grey(*size, 0), "4 s")])
    check_texts(sheet)
    frames = [shape for shape in sheet.shapes if isinstance(shape, Picture)]
    for frame in frames:
        room = (frame.x, frame.y, frame.x + frame.width, frame.y + frame.height)
        chips = place_chips(boxes, [place_of(box.box, room) for box in boxes], room)
        assert [chip.box.name for chip in chips] == [str(number + 1) for number in range(count)]
        for chip in chips:
            assert inside(chip.extent, room)
        for written in map(text_extent, sheet.texts):
            assert not overlap(written, room) or any(inside(written, chip.extent) for chip in chips)
        for one, other in itertools.combinations(chips, 2):
            assert not overlap(one.extent, other.extent)


def test_the_list_has_every_label_in_full_however_narrow_it_is() -> None:
    for width in (60.0, 165.0, 530.0):
        shapes: list[Shape] = []
        boxes = [box._replace(note="on 2") for box in crowd(3)]
        end = draw_list(boxes, 10, 20, width, shapes)
        texts = [shape for shape in shapes if isinstance(shape, Text)]
        assert all(inside(text_extent(text), (10, 20, 10 + width, end)) for text in texts), width
        values = (f"{LONG} {place} {0.9 - place / 10:.2f}" for place in range(3))
        person = f"on 2 {' '.join(values)}"
        whole = "".join(f"{number} {person}" for number in (1, 2, 3))
        assert "".join(text.text for text in texts).replace(" ", "") == whole.replace(" ", "")


def test_a_name_stands_at_its_box_and_one_person_has_all_labels_beside_it() -> None:
    room = (0.0, 0.0, 300.0, 200.0)
    box = FrameBox((0.4, 0.4, 0.6, 0.8), "correct", "1", tuple(BoxLabel(text, "correct") for text in ("sit", "eat")))
    place = place_of(box.box, room)
    (chip,) = place_chips([box], [place], room)
    assert [label.text for label in chip.labels] == ["sit", "eat"]
    assert not overlap(chip.extent, place)
    gap = max(
        place[0] - chip.extent[2], chip.extent[0] - place[2], place[1] - chip.extent[3], chip.extent[1] - place[3]
    )
    assert gap <= 2


def test_names_go_with_their_boxes_and_find_new_places_where_they_would_touch() -> None:
    def names(*boxes: FrameBox) -> list[Text]:
        sheet = sheet_of_frames("v", (), [picture(list(boxes), grey(300, 300))])
        bottom = max(shape.y + shape.height for shape in sheet.shapes if isinstance(shape, Picture))
        return [text for text in sheet.texts if text.bold and text.text in "12" and text.y < bottom]

    apart = [FrameBox((left, 0.4, left + 0.2, 0.9), "correct", name) for left, name in ((0.1, "1"), (0.6, "2"))]
    still = names(*apart)
    gone = [one._replace(box=(one.box[0] + 0.1, 0.35, one.box[2] + 0.1, 0.85), named_at=one.box) for one in apart]
    size = 420.0  # the height that is kept to
    for before, after in zip(still, names(*gone), strict=True):
        assert (after.x - before.x, after.y - before.y) == pytest.approx((0.1 * size, -0.05 * size))
    above = [apart[0], apart[1]._replace(box=(0.1, 0.05, 0.3, 0.38))]
    kept = [one._replace(named_at=before.box) for one, before in zip(above, apart, strict=True)]
    assert names(*kept)[0] == still[0], "it stays where it was, though below it would hide less"
    assert names(*above)[0].y > still[0].y
    together = [one._replace(box=apart[0].box, named_at=one.box) for one in apart]
    first, second = names(*together)
    assert abs(first.x - second.x) > 5 or abs(first.y - second.y) > 5


def test_names_that_fit_nowhere_are_left_to_the_list() -> None:
    boxes = [FrameBox((0, 0, 1, 1), "truth", str(number)) for number in range(200)]
    room = (0.0, 0.0, 60.0, 60.0)
    chips = place_chips(boxes, [place_of(box.box, room) for box in boxes], room)
    assert 5 < len(chips) < 200
    for one, other in itertools.combinations(chips, 2):
        assert not overlap(one.extent, other.extent)


def test_a_frame_that_is_not_there_is_grey_and_said_so() -> None:
    sheet = sheet_of_frames("v", (), [picture(crowd(2, text="sit"), None)])
    assert "no frame" in [text.text for text in sheet.texts]
    assert not [shape for shape in sheet.shapes if isinstance(shape, Picture)]
    check_texts(sheet)


def test_an_empty_sheet_has_its_title_and_notes() -> None:
    sheet = sheet_of_frames("nothing", ("no key frame",), [])
    assert [text.text for text in sheet.texts] == ["nothing", "no key frame"]


def test_frames_stand_in_the_order_given_and_within_the_sheet() -> None:
    for size in ((240, 320), (200, 800), (640, 200), (16, 16)):
        pictures = [picture(crowd(2, seed, text="sit"), grey(*size), f"frame {seed}") for seed in range(7)]
        sheet = sheet_of_frames("v", (), pictures)
        titles = {text.text: text for text in sheet.texts}
        at = [(round(titles[f"frame {number}"].y), titles[f"frame {number}"].x) for number in range(7)]
        assert at == sorted(at)
        for shape in sheet.shapes:
            if isinstance(shape, Picture):
                assert inside((shape.x, shape.y, shape.x + shape.width, shape.y + shape.height),
                              (EDGE, 0, sheet.width - EDGE + 1e-6, sheet.height))  # fmt: skip
                assert shape.width / shape.height == pytest.approx(size[1] / size[0])
        check_texts(sheet)


def test_wide_frames_get_more_room_than_narrow_ones() -> None:
    def columns(height: int, width: int) -> int:
        pictures = [picture([], grey(height, width)) for _ in range(12)]
        return grid_of(pictures, 1076).columns

    assert columns(240, 320) == 4
    assert columns(100, 600) < columns(240, 320) <= columns(640, 360) <= columns(640, 200)
    assert grid_of([picture([], grey(9, 9))], 1076).columns == 1
