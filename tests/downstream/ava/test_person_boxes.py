"""Boxes of persons in the four forms of the field: read as their readers do, the same after any other form, faults named."""

from __future__ import annotations

import itertools
import json
import pickle
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from vmae2_ds.downstream.ava.image_table import ImageTable, key_of_name, read_image_table, table_of_size
from vmae2_ds.downstream.ava.person_boxes import (
    FormatName,
    PersonBoxes,
    make_person_boxes,
    read_person_boxes,
    write_person_boxes,
)
from vmae2_ds.downstream.ava.rows import Key
from vmae2_ds.errors import DataError

FORMATS: dict[FormatName, str] = {"coco": "json", "videomae_ad": "json", "pyslowfast": "csv", "mmaction2": "pkl"}

# The same three persons as each published reader takes them: two at second 902 of a film of 640 x 480, one 12.5 s into another
# of 320 x 240 pixels.
WANTED = {
    ("-5KQ66BBWC4", 902_000): [[0.1, 0.2, 0.5, 0.9, 0.995], [0.55, 0.25, 0.75, 1.0, 0.31]],
    ("пешеход", 12_500): [[0.0, 0.0, 1.0, 0.5, 0.8]],
}
IMAGES = [
    {"id": 902, "movie": "-5KQ66BBWC4", "timestamp": 902, "width": 640, "height": 480},
    {"id": 10012, "movie": "пешеход", "timestamp": "12.5", "width": 320, "height": 240},
    {"id": 10013, "movie": "пешеход", "timestamp": 13, "width": 320, "height": 240},
]
RESULTS: list[dict[str, Any]] = [
    {"image_id": 902, "bbox": [64.0, 96.0, 256.0, 336.0], "score": 0.995},
    {"image_id": 10012, "bbox": [0, 0, 320, 120], "score": 0.8},
    {"image_id": 902, "bbox": [352, 120, 128, 360], "score": 0.31},
]
CSV = (
    "-5KQ66BBWC4,0902,0.1,0.2,0.5,0.9,,0.995000\n"
    "-5KQ66BBWC4,902.0,0.55,0.25,0.75,1.0,,0.31\r\n"
    "пешеход,12.5,0,0,1,0.5,,0.8\n"
)
DENSE = {
    "-5KQ66BBWC4,0902": np.array(WANTED["-5KQ66BBWC4", 902_000]),
    "пешеход,12.5": np.array(WANTED["пешеход", 12_500]),
}


def put(folder: Path, name: str, content: Any) -> Path:
    file = folder / name
    if not isinstance(content, str | bytes):
        content = json.dumps(content)
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    return file


def check(boxes: PersonBoxes, format: FormatName, wanted: Any = None) -> None:
    wanted = wanted or WANTED
    assert boxes.format == format
    assert list(boxes) == list(wanted)
    for key, array in boxes.items():
        assert array.dtype == np.float64
        np.testing.assert_allclose(array, wanted[key], rtol=0, atol=1e-12)


def test_pyslowfasts_csv_is_read(tmp_path: Path) -> None:
    check(read_person_boxes(put(tmp_path, "a.csv", CSV)), "pyslowfast")


def test_pyslowfasts_boxes_to_train_on_are_one_box_however_many_actions_it_has(tmp_path: Path) -> None:
    text = (
        "v,0902,0.1,0.2,0.5,0.9,12,0.99\nv,0902,0.1,0.2,0.5,0.9,79,0.99\nv,0902,0.3,0.2,0.5,0.9,,0.99\n"
        "v,0902,0.1,0.2,0.5,0.9,80,0.99\nw,0902,0.1,0.2,0.5,0.9,12,0.99\n"
    )
    one = [0.1, 0.2, 0.5, 0.9, 0.99]
    wanted = {("v", 902_000): [one, [0.3, 0.2, 0.5, 0.9, 0.99]], ("w", 902_000): [one]}
    check(read_person_boxes(put(tmp_path, "a.csv", text)), "pyslowfast", wanted)


def test_truth_is_not_taken_for_boxes_with_scores(tmp_path: Path) -> None:
    text = "v,0902,0.1,0.2,0.5,0.9,12,1\nv,0902,0.1,0.2,0.5,0.9,79,0\n"
    with pytest.raises(DataError, match="as truth with person ids has, and no scores"):
        read_person_boxes(put(tmp_path, "a.csv", text))


@pytest.mark.parametrize("protocol", [2, 4, 5])
def test_mmaction2s_pickle_is_read_with_and_without_scores(tmp_path: Path, protocol: int) -> None:
    check(read_person_boxes(put(tmp_path, "a.pkl", pickle.dumps(DENSE, protocol))), "mmaction2")
    unscored = {name: array[:, :4] for name, array in DENSE.items()} | {
        "nobody,0001": np.zeros((0, 5)),
        "none,0001": [],
    }
    wanted = {key: [[*row[:4], 1.0] for row in rows] for key, rows in WANTED.items()}
    check(read_person_boxes(put(tmp_path, "b.pkl", pickle.dumps(unscored, protocol))), "mmaction2", wanted)


def test_videomae_action_detections_json_is_read_with_the_images_of_its_annotations(tmp_path: Path) -> None:
    boxes = put(tmp_path, "ava_val_det_person_bbox.json", RESULTS)
    images = put(tmp_path, "ava_val_v2.2_min.json", {"images": IMAGES, "annotations": [], "categories": []})
    check(read_person_boxes(boxes, images), "videomae_ad")
    with pytest.raises(
        DataError, match=r"nothing tells the sizes of the pictures \(the first is image 902\); give --images"
    ):
        read_person_boxes(boxes)


@pytest.mark.parametrize(
    "names", ["{movie},{time}", "{movie}/{time}.jpg", "frames/{movie}/{time}", "{movie},{time}.png"]
)
def test_cocos_results_name_their_pictures_by_a_text_as_well(tmp_path: Path, names: str) -> None:
    name_of = {
        902: names.format(movie="-5KQ66BBWC4", time="0902"),
        10012: names.format(movie="пешеход", time="12.5" if "." not in names[-4:-3] else "0012.500"),
    }
    rows = [row | {"image_id": name_of[row["image_id"]], "category_id": 1} for row in RESULTS]
    images = put(tmp_path, "images.json", {"images": IMAGES})
    check(read_person_boxes(put(tmp_path, "a.json", rows), images), "coco")


def test_cocos_form_with_its_own_images_needs_no_other_file(tmp_path: Path) -> None:
    images = [
        {"id": "a", "file_name": "-5KQ66BBWC4/0902.jpg", "width": 640, "height": 480},
        {"id": "b", "file_name": "пешеход,12.5.jpg", "width": 320, "height": 240},
    ]
    rows = [row | {"image_id": "a" if row["image_id"] == 902 else "b", "category_id": 7} for row in RESULTS]
    ball = {"image_id": "a", "bbox": [0, 0, 9, 9], "score": 1.0, "category_id": 37}
    categories = [{"id": 37, "name": "sports ball"}, {"id": 7, "name": "Person"}]
    whole = {"images": images, "annotations": [ball, *rows], "categories": categories}
    read = read_person_boxes(put(tmp_path, "a.json", whole))
    check(read, "coco")
    assert [note.split(": ", 1)[1] for note in read.notes] == ["1 of 4 boxes are of other categories than 7: left out"]
    with pytest.raises(DataError, match=r"none of 4 boxes is of category 1, .* are 3 of 7, 1 of 37; .*--category"):
        read_person_boxes(put(tmp_path, "b.json", whole | {"categories": []}))
    check(read_person_boxes(tmp_path / "b.json", category=7), "coco")


def made(rng: np.random.Generator, frames: int = 40) -> dict[Key, np.ndarray[Any, Any]]:
    """Boxes of 6 digits, as the verb writes them, in frames of many names and times; equal boxes among them."""
    boxes: dict[Key, np.ndarray[Any, Any]] = {}
    for frame in range(frames):
        corner_G22 = np.sort(rng.random((rng.integers(1, 6), 2, 2)), axis=1).round(6)
        scored = np.column_stack([corner_G22.reshape(-1, 4), rng.random(len(corner_G22)).round(6)])
        time = int(rng.integers(0, 2_000_000)) if frame % 2 else 1000 * frame
        boxes[("-x_y", "имя", "a/b", "v 1")[frame % 4], time] = np.concatenate([scored, scored[:1]])
    return boxes


@pytest.mark.parametrize(("first", "second"), itertools.product(FORMATS, FORMATS))
def test_the_same_boxes_come_back_through_any_two_forms(tmp_path: Path, first: FormatName, second: FormatName) -> None:
    boxes = made(np.random.default_rng(3))
    table = table_of_size(boxes, (1920, 817))
    images = put(tmp_path, "images.json", {"images": table.rows(boxes)})
    one, two = tmp_path / f"one.{FORMATS[first]}", tmp_path / f"two.{FORMATS[second]}"
    write_person_boxes(boxes, one, first, table)
    middle = read_person_boxes(one, images if first == "videomae_ad" else None)
    write_person_boxes(middle, two, second, read_image_table(images))
    again = read_person_boxes(two, images if second == "videomae_ad" else None)
    assert (middle.format, again.format) == (first, second)
    assert list(again) == list(boxes)
    for key, array in boxes.items():
        np.testing.assert_allclose(again[key], array, rtol=0, atol=2e-9)  # two pixel roundings of 5e-7 over 817
    assert not again.notes


def test_each_form_keeps_the_digits_that_it_says(tmp_path: Path) -> None:
    key = ("v", 1000)
    exact = np.array([[1 / 3, 0.1234567891, 2 / 3, 0.9876543219, 0.123456789]])
    limit = {"mmaction2": 0.0, "pyslowfast": 5.0e-7, "coco": 1.1e-6 / 480, "videomae_ad": 1.1e-6 / 480}
    for format, most in limit.items():
        write_person_boxes({key: exact}, tmp_path / "f", format, ImageTable("t", {5: key}, {key: (640, 480)}))
        images = put(tmp_path, "i", {"images": [{"id": 5, "movie": "v", "timestamp": 1, "width": 640, "height": 480}]})
        error = np.abs(read_person_boxes(tmp_path / "f", images)[key] - exact).max()
        assert error <= most
        assert most == 0 or error > most / 100  # the claim is no wider than it need be


def test_the_pickle_is_one_that_numpy_1_reads_by_its_own_names(tmp_path: Path) -> None:
    write_person_boxes(WANTED, tmp_path / "a.pkl", "mmaction2")
    content = (tmp_path / "a.pkl").read_bytes()
    assert content.count(b"cnumpy.core.multiarray\n_reconstruct") == 1
    assert b"numpy._core" not in content
    code = "import pickle, sys; x = pickle.load(open(sys.argv[1], 'rb')); print({k: v.tolist() for k, v in x.items()})"
    ran = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code, tmp_path / "a.pkl"], capture_output=True, text=True, check=True
    )
    assert ran.stdout.strip() == str({name: array.tolist() for name, array in DENSE.items()})


def test_boxes_over_the_edge_are_cut_and_told(tmp_path: Path) -> None:
    rows = [
        {"image_id": 902, "bbox": [-6.4, 470, 12.8, 48], "score": 0.5},
        {"image_id": 902, "bbox": [-64, 0, 32, 48], "score": 0.5},
        {"image_id": 902, "bbox": [64, 48, 64, 0], "score": 0.5},
    ]
    read = read_person_boxes(put(tmp_path, "a.json", {"images": IMAGES, "annotations": rows}))
    wanted = [[0, 470 / 480, 0.01, 1, 0.5], [0.1, 0.1, 0.2, 0.1, 0.5]]  # a line is a box as its file says
    check(read, "coco", {("-5KQ66BBWC4", 902_000): wanted})
    (note,) = read.notes
    assert note.endswith(
        "2 boxes of 3 reach over the edge, by up to 0.1 of the picture, and are cut; 1 with nothing inside are left out"
    )


ROW = {"image_id": 902, "bbox": [64, 96, 256, 336], "score": 0.9}
FAULTS: dict[str, Any] = {
    "v,1,0.1,0.2,0.5,0.9,,1.5\n": "score 1.5 has a score beyond 0..1",
    "v,1,64,96,256,336,,0.9\n": r"x2 256, y2 336, score 0.9 is in pixels, it seems; .* parts of the picture's width and height",
    "v,1,0.5,0.2,0.1,0.9,,0.9\n": r"video 'v' at 0001 s, box 1: x1 0.5, .* is inside out: it ends before it begins",
    "v,1,0.1,0.2,0.5,0.9,,0.9\nv,1,0.5,0.2,0.1,0.9,,0.9\nw,1,0.5,0.2,0.1,0.9,,1\n": r"box 2: .*inside out.* \(2 of 3 boxes\)",
    "v,1,nan,0.2,0.5,0.9,,0.9\n": "line 1: the x1 is 'nan'",
    "v,1,1e400,0.2,0.5,0.9,,0.9\n": "line 1: the x1 is '1e400'",
    "v,1,0.1,0.2,0.5,0.9,0.9\n": "line 1: 7 columns",
    pickle.dumps({"v": np.ones((1, 5))}): "'v'",
    pickle.dumps({"v,1": np.ones((1, 6))}): "'v,1': an array (1, 6) of float64, where n boxes are (n, 5) or (n, 4)",
    pickle.dumps({"v,1": np.array([["a"] * 5])}): "'v,1': an array (1, 5) of <U1",
    pickle.dumps(
        {"v,1": np.full((1, 5), np.nan)}
    ): "x1 nan, y1 nan, x2 nan, y2 nan, score nan is no box of finite numbers",
    pickle.dumps({"v,1": np.full((1, 5), 1e300)}): "score 1e+300 has a score beyond 0..1",
    pickle.dumps({"v,1": np.ones((1, 5)), "v,0001": np.ones((1, 5))}): "video 'v' at 0001 s comes 2 times",
    pickle.dumps([1]): 'holds a list, where boxes by "VIDEO,0902" are looked for',
    pickle.dumps(
        {"v,1": subprocess.run}
    ): "refers to subprocess.run, which is not plain data; no code in a file is run",
    "{": "is no JSON",
    '{"boxes": 1}': 'is no list of results, and has no "annotations"',
    "[3]": "box 1 is '3', where image_id, bbox and score are looked for",
    json.dumps([ROW, {"image_id": 902, "score": 0.9}]): "box 2 has no bbox; it has image_id, score",
    json.dumps([ROW, ROW | {"bbox": [1, 2, 3]}]): r"box 2 has bbox \[1, 2, 3\], where x, y, width, height",
    json.dumps([ROW, ROW | {"bbox": [1, 2, 3, "4"]}]): "box 2 has bbox",
    json.dumps([ROW, ROW | {"bbox": [1, 2, 3, None]}]): "box 2 has bbox",
    json.dumps([ROW, ROW | {"bbox": [10**400, 2, 3, 4]}]): "box 2 has bbox",
    json.dumps([ROW, ROW | {"bbox": [float("nan"), 2, 3, 4]}]): "box 2: x1 nan, .* is no box of finite numbers",
    json.dumps([ROW, ROW | {"score": "high"}]): "box 2 has the score 'high', which is no number",
    json.dumps([ROW, ROW | {"score": None}]): "box 2 has the score 'None', which is no number",
    json.dumps([ROW, ROW | {"bbox": [64, 96, -5, 9]}]): "box 2: .* is inside out",
    json.dumps([ROW, ROW | {"bbox": [64, 96, 5000, 9]}]): r"box 2: .* lies far outside .* sizes in .*images.json those",
    json.dumps([ROW, ROW | {"image_id": 903}]): r"box 2 is of image 903, which .*images.json does not have",
    json.dumps(
        [ROW, ROW | {"image_id": "w,903"}]
    ): r"box 2 is of video 'w' at 0903 s, whose size .*images.json does not have",
    json.dumps([ROW, ROW | {"image_id": [902]}]): r"box 2 has image_id '\[902\]', which is no number and no text",
}


@pytest.mark.parametrize("content", FAULTS, ids=[str(number) for number in range(len(FAULTS))])
def test_a_fault_is_one_line_with_the_file_the_place_and_the_numbers(tmp_path: Path, content: str | bytes) -> None:
    images = put(tmp_path, "images.json", {"images": IMAGES})
    with pytest.raises(DataError) as told:
        read_person_boxes(put(tmp_path, "boxes.x", content), images)
    assert str(tmp_path / "boxes.x") in str(told.value)
    assert "\n" not in str(told.value)
    wanted = FAULTS[content]
    assert wanted in str(told.value) or re.search(wanted, str(told.value))


@pytest.mark.parametrize(
    ("entry", "said"),
    [
        ({"id": 902}, "the id 902 comes twice"),
        ({"movie": "-5KQ66BBWC4", "timestamp": "0902"}, "video '-5KQ66BBWC4' at 0902 s comes twice"),
        ({"width": 0}, "width 0 and height 480 are no size in pixels"),
        ({"height": None}, "height None are no size"),
        ({"id": None}, "image 2 has no id"),
        ({"timestamp": "soon"}, "'timestamp': 'soon'} tell no video and time; give movie and timestamp"),
    ],
)
def test_a_table_of_images_with_a_fault_is_refused(tmp_path: Path, entry: dict[str, Any], said: str) -> None:
    good = {"id": 902, "movie": "-5KQ66BBWC4", "timestamp": 902, "width": 640, "height": 480}
    other = good | {"id": 7, "timestamp": 7}
    file = put(tmp_path, "images.json", {"images": [good, other | entry]})
    with pytest.raises(DataError, match=re.escape(said)):
        read_image_table(file)
    with pytest.raises(DataError, match='has no list of "images"'):
        read_image_table(put(tmp_path, "none.json", {"annotations": []}))


def test_what_a_form_cannot_hold_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    out = tmp_path / "out"
    with pytest.raises(
        DataError, match=r"2 of 2 key frames have no size, the first video '-5KQ66BBWC4' at 0902 s; .*--size"
    ):
        write_person_boxes(WANTED, out, "coco")
    table = table_of_size([("-5KQ66BBWC4", 902_000)], (640, 480))
    with pytest.raises(DataError, match=r"1 of 2 key frames have no size, the first video 'пешеход' at 12.5 s"):
        write_person_boxes(WANTED, out, "videomae_ad", table)
    with pytest.raises(DataError, match="no csv file can hold"):
        write_person_boxes({("a\nb", 0): WANTED["пешеход", 12_500]}, out, "pyslowfast")
    assert not out.exists()


def test_no_boxes_are_none_in_every_form(tmp_path: Path) -> None:
    for format, ending in FORMATS.items():
        file = tmp_path / f"{format}.{ending}"
        write_person_boxes({("v", 0): np.zeros((0, 5))}, file, format, ImageTable("t", {}, {}))
        assert len(read_person_boxes(file)) == 0
    assert len(read_person_boxes(put(tmp_path, "empty.csv", ""))) == 0


def test_one_array_for_many_key_frames_does_not_fill_the_memory(tmp_path: Path) -> None:
    array = np.ones((20_000, 5))
    many = {f"v,{second}": array for second in range(5_000)}
    file = put(tmp_path, "bomb.pkl", pickle.dumps(many))
    assert file.stat().st_size < 1_000_000
    with pytest.raises(DataError, match="the arrays are more than 64 times as large as the file"):
        read_person_boxes(file)


def test_a_name_tells_video_and_time() -> None:
    assert key_of_name("a,b,0902") == ("a,b", 902_000)
    assert key_of_name("set/v1/12.5.jpg") == ("v1", 12_500)
    for name in ("0902", "v1", "v,", ",0902", "v/img_00001.jpg"):
        with pytest.raises(ValueError, match=r"."):
            key_of_name(name)


def test_boxes_made_in_memory_are_those_of_their_key_frames() -> None:
    boxes = make_person_boxes({("a", 1): np.zeros((0, 5)), **WANTED}, Path("none"))
    assert dict.fromkeys(boxes, 1) == dict.fromkeys(WANTED, 1)
    some = boxes.of(boxes.box_N5[:, 4] >= 0.8)
    assert {key: array.tolist() for key, array in some.items()} == {
        ("-5KQ66BBWC4", 902_000): [[0.1, 0.2, 0.5, 0.9, 0.995]],
        ("пешеход", 12_500): [[0.0, 0.0, 1.0, 0.5, 0.8]],
    }
