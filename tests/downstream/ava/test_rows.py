"""Rows of AVA's files: every way that a csv file is found in says the same, and what cannot be meant is refused in one line."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from tests.golden_data import GOLDEN
from vmae2_ds.downstream.ava.label_map import read_label_map
from vmae2_ds.downstream.ava.row_files import time_ms_of
from vmae2_ds.downstream.ava.rows import (
    BoxRows,
    make_rows,
    read_detections,
    read_excluded,
    read_truth,
    seconds_of,
    write_detections,
)
from vmae2_ds.errors import DataError

REAL = Path(__file__).parents[4] / "shared/data/annotations/ava"
needs_real = pytest.mark.skipif(not REAL.is_dir(), reason="the real rows of AVA are not here (../shared)")

PLAIN = "a b,0902,0.1,0.25,0.5,1,12,0\nй,12.5,-0.1,0,1.5,0.3333333333333333,80,7\na b,0903,0,0,1,1,3,1\n"


def write(folder: Path, text: str | bytes, name: str = "rows.csv") -> Path:
    file = folder / name
    file.write_bytes(text.encode() if isinstance(text, str) else text)
    return file


def as_lists(rows: BoxRows) -> list[object]:
    columns = (rows.frame_N, rows.box_N4, rows.label_N, rows.score_N, rows.person_N)
    return [rows.keys, *(column.tolist() for column in columns)]


def test_truth_is_read_as_it_stands(tmp_path: Path) -> None:
    rows = read_truth(write(tmp_path, PLAIN))
    assert rows.keys == (("a b", 902_000), ("й", 12_500), ("a b", 903_000))
    assert rows.videos == ("a b", "й")
    assert rows.video_N.tolist() == [0, 1, 0]
    assert rows.time_ms_N.tolist() == [902_000, 12_500, 903_000]
    assert rows.box_N4.tolist() == [[0.1, 0.25, 0.5, 1], [-0.1, 0, 1.5, 0.3333333333333333], [0, 0, 1, 1]]
    assert rows.label_N.tolist() == [12, 80, 3]
    assert rows.person_N.tolist() == [0, 7, 1]
    assert rows.score_N.tolist() == [1, 1, 1]
    assert (rows.label_N.dtype, rows.frame_N.dtype, rows.person_N.dtype) == (np.int32, np.int32, np.int64)


WRITTEN: dict[str, Callable[[str], str | bytes]] = {
    "CRLF": lambda text: text.replace("\n", "\r\n"),
    "no last line end": lambda text: text.rstrip(),
    "a mark of byte order": lambda text: text.encode("utf-8-sig"),
    "a header": lambda text: "video,time,x1,y1,x2,y2,action_id,person_id\n" + text,
    "a header after a byte-order mark, with CRLF": lambda text: (
        ("video,time,x1,y1,x2,y2,a,p\n" + text).replace("\n", "\r\n").encode("utf-8-sig")
    ),
    "empty lines": lambda text: "\n" + text.replace("\n", "\n\n") + " \n",
    "spaces about commas": lambda text: text.replace(",", " , "),
    "quotes": lambda text: "\n".join(",".join(f'"{field}"' for field in line.split(",")) for line in text.splitlines()),
    "times without zeros": lambda text: text.replace("0902", "902").replace("0903", "903"),
    "times as floats": lambda text: text.replace("0902", "902.000").replace("0903", "9.03e2"),
    "ids as floats": lambda text: text.replace(",12,0\n", ",12.0,0.0\n").replace(",3,1\n", ",3.0,1.\n"),
    "numbers without a zero": lambda text: text.replace(",0.", ",.").replace("-0.", "-."),
    "exponents": lambda text: text.replace(",0.1,", ",1e-1,").replace(",0.25,", ",+2.5E-01,"),
}


@pytest.mark.parametrize("way", WRITTEN)
def test_rows_are_read_alike_however_they_are_written(way: str, tmp_path: Path) -> None:
    plain = read_truth(write(tmp_path, PLAIN))
    assert as_lists(read_truth(write(tmp_path, WRITTEN[way](PLAIN), "other.csv"))) == as_lists(plain)


def test_a_quoted_name_may_hold_a_comma_and_is_written_so_again(tmp_path: Path) -> None:
    rows = read_detections(write(tmp_path, '"one, two",1,0,0,1,1,5,0.5\n'))
    assert rows.videos == ("one, two",)
    write_detections(rows, tmp_path / "again.csv")
    assert read_detections(tmp_path / "again.csv").videos == ("one, two",)


def test_rows_of_two_columns_name_a_frame_and_rows_of_seven_have_no_person(tmp_path: Path) -> None:
    rows = read_truth(write(tmp_path, "v,0902\nv,0903,0,0,1,1,5\nv,0904,,,,,,\nv,0905,0,0,1,1,5,\n"))
    assert rows.keys == (("v", 902_000), ("v", 903_000), ("v", 904_000), ("v", 905_000))
    assert rows.frame_N.tolist() == [1, 3]
    assert rows.person_N.tolist() == [-1, -1]


def test_a_detection_without_an_action_is_a_box_alone(tmp_path: Path) -> None:
    rows = read_detections(write(tmp_path, "v,902,0,0,1,1,,0.98\n"))
    assert rows.label_N.tolist() == [-1]
    assert rows.score_N.tolist() == [0.98]


def test_an_empty_file_has_no_rows(tmp_path: Path) -> None:
    for text in ("", "\n", "\ufeff", "video,time,x1,y1,x2,y2,action,score\n"):
        rows = read_detections(write(tmp_path, text))
        assert len(rows) == 0
        assert rows.keys == ()
        assert rows.box_N4.shape == (0, 4)
        assert read_excluded(write(tmp_path, text)) == frozenset()


BAD = {
    "six columns": ("v,1,0,0,1,1\n", "line 2: 6 columns, where a row has 8 columns"),
    "one column": ("v;1;0;0;1;1;2;0.5\n", "line 2: 1 column, where a row has 8 columns"),
    "seven columns": ("v,1,0,0,1,1,2\n", "line 2: 7 columns"),
    "two columns": ("v,1\n", "line 2: 2 columns"),
    "no name": (",1,0,0,1,1,2,0.5\n", "line 2: the name of the video, the first column, is empty"),
    "a time that is none": ("v,0x1,0,0,1,1,2,0.5\n", "line 2: the time is '0x1', which is no finite number"),
    "no time": ("v,,0,0,1,1,2,0.5\n", "line 2: the time is ''"),
    "an endless time": ("v,inf,0,0,1,1,2,0.5\n", "line 2: the time is 'inf'"),
    "a corner that is none": ("v,1,0,zero,1,1,2,0.5\n", "line 2: the y1 is 'zero', which is no finite number"),
    "a corner that is nan": ("v,1,0,0,nan,1,2,0.5\n", "line 2: the x2 is 'nan'"),
    "a score that is nan": ("v,1,0,0,1,1,2,nan\n", "line 2: the score is 'nan', which is no finite number"),
    "an endless score": ("v,1,0,0,1,1,2,-inf\n", "line 2: the score is '-inf'"),
    "a score too great": ("v,1,0,0,1,1,2,1e999\n", "line 2: the score is '1e999'"),
    "no score": ("v,1,0,0,1,1,2,\n", "line 2: the score is ''"),
    "half an action": ("v,1,0,0,1,1,2.5,0.5\n", "line 2: the action id is '2.5', which is no whole number"),
    "a named action": ("v,1,0,0,1,1,sit,0.5\n", "line 2: the action id is 'sit'"),
    "an action too great": ("v,1,0,0,1,1,99999999999,0.5\n", "line 2: the action id is '99999999999'"),
    "two numbers in one": ("v,1,0,0 1,1,1,2,0.5\n", "line 2: the y1 is '0 1'"),
    "two points": ("v,1,0,0.1.2,1,1,2,0.5\n", "line 2: the y1 is '0.1.2'"),
    "an underscore": ("v,1,0,1_0,1,1,2,0.5\n", "line 2: the y1 is '1_0'"),
}


@pytest.mark.parametrize("what", BAD)
@pytest.mark.parametrize("is_last", [False, True])
def test_a_bad_row_is_refused_with_its_file_and_line(what: str, is_last: bool, tmp_path: Path) -> None:
    text, said = BAD[what]
    good = "v,1,0,0,1,1,2,0.5\n"
    file = write(tmp_path, good + text + ("" if is_last else 3 * good))
    with pytest.raises(DataError) as caught:
        read_detections(file)
    assert str(caught.value).startswith(f"{file}, {said}")
    assert "\n" not in str(caught.value)


def test_what_is_no_csv_file_is_refused(tmp_path: Path) -> None:
    for file, said in (
        (tmp_path / "none.csv", "No such file"),
        (tmp_path, "Is a directory"),
        (write(tmp_path, PLAIN.encode("utf-16"), "wide.csv"), "no csv file of UTF-8 text"),
        (write(tmp_path, b"\x80\x04\0\0", "file.pkl"), "no csv file of UTF-8 text"),
        (write(tmp_path, "v," * 100_000, "long.csv"), "columns, where a row has"),
    ):
        with pytest.raises(DataError, match=said) as caught:
            read_truth(file)
        assert str(caught.value).startswith(str(file))
        assert len(str(caught.value)) < 400


def test_detections_are_written_with_six_digits_and_read_again(tmp_path: Path) -> None:
    keys = [("й b", 902_000), ("-x", 12_500), ("-x", -1_000), ("й b", 902_000)]
    boxes = np.random.default_rng(0).random((4, 4))
    rows = make_rows(keys, boxes, [1, 80, 3, -1], [0.1234567, 1e-9, 2, 0.5], frames=[("never seen", 1_000)])
    file = tmp_path / "out.csv"
    write_detections(rows, file)
    again = read_detections(file)
    assert [again.keys[frame] for frame in again.frame_N] == keys
    np.testing.assert_allclose(again.box_N4, boxes, rtol=0, atol=5e-7)
    assert again.label_N.tolist() == [1, 80, 3, -1]
    assert again.score_N.tolist() == [0.123457, 0, 2, 0.5]
    assert file.read_text().splitlines()[0].startswith("й b,0902,")
    assert ",0.123457" in file.read_text()
    assert len(again.of(again.label_N > 2)) == 2
    assert again.of(again.label_N > 2).keys == again.keys
    with pytest.raises(DataError, match="no csv file can hold"):
        write_detections(make_rows([("a\nb", 0)], [[0, 0, 1, 1]], [1]), tmp_path / "bad.csv")
    assert not (tmp_path / "bad.csv").exists()


def test_a_time_is_a_number_of_milliseconds_however_it_is_written() -> None:
    for text in ("0902", "902", "902.0", "902.00", "9.02e2", "902.0001"):
        assert time_ms_of(text) == 902_000
    assert [time_ms_of(text) for text in ("12.5", "0.033", "0", "-1")] == [12_500, 33, 0, -1_000]
    assert [seconds_of(time) for time in (902_000, 12_500, 33, 1_798_000, 10_000_033)] == [
        *("0902", "12.5", "0.033", "1798", "10000.033")
    ]


@needs_real
def test_real_files_are_read_or_refused_in_a_line() -> None:
    truth = read_truth(REAL / "ava_val_excerpt.csv")
    assert (len(truth), len(truth.keys), len(truth.videos)) == (14_781, 3_970, 5)
    known = read_label_map(REAL / "ava_action_list_v2.1_for_activitynet_2018.pbtxt.txt")
    assert len(set(truth.label_N.tolist()) - set(known.ids)) == 5
    assert len(set(truth.label_N.tolist())) == 57
    assert read_label_map(REAL / "mmaction2_ava_label_map.txt").ids == known.ids
    assert len(read_excluded(REAL / "ava_val_excluded_timestamps_v2.1.csv")) == 37
    sevens = REAL / "ava_val_v2.1_pose_only_7col_head3000.csv"
    assert (read_truth(sevens).person_N == -1).all()
    assert len(read_truth(sevens)) == 3_000
    with pytest.raises(DataError, match="line 1: 7 columns, where a row has 8 columns"):
        read_detections(sevens)
    custom = read_truth(REAL / "custom_ethereal_ava_val_v2.2.csv")  # CRLF, no last line end, 16 digits
    assert len(custom) == 44
    assert custom.box_N4[4, 2] == 0.9583333333333334
    assert len(read_truth(REAL / "custom_jetsql_ava_val_v2.1.csv")) == 225


def test_label_maps_of_each_form_say_the_same(tmp_path: Path) -> None:
    pbtxt = 'item {\n  name: "sit; \\"down\\" {x}"\n  id: 11\n}\nitem {\n  id: 12\n  name: \'stand\'\n}\n'
    old = 'label { name: "sit; \\"down\\" {x}" label_id: 11 label_type: X }\nlabel{name:"stand" label_id:12}\n'
    for text in (pbtxt.replace("{x}", "x"), old.replace("{x}", "x"), '11: sit; "down" x\n\n 12:stand \r\n'):
        found = read_label_map(write(tmp_path, text.encode("utf-8-sig"), "map"))
        assert (found.ids, found.names) == ((11, 12), ('sit; "down" x', "stand"))
    assert found.class_of == {11: 0, 12: 1}
    assert len(found) == 2
    names = read_label_map(write(tmp_path, "run\nfall over, badly\n", "names.txt"))
    assert (names.ids, names.names) == ((1, 2), ("run", "fall over, badly"))
    assert len(read_label_map(GOLDEN / "ava/protocols_labelmap.pbtxt")) == 15


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "holds no action"),
        ("item { name: 'a' id: 1 } item { name: 'b' id: 1 }", "has the id 1 twice"),
        ("a\nb\na\n", "has the name 'a' twice"),
        ("item { name: 'a' }", "item 1 has no id"),
        ("item { id: 3 }", "item 1 has no name"),
        ("item { name: 'a' id: 1 } item { name: 'b'", "belongs to no item"),
        ("1: a\nb\n", "line 2: 'b' is not `id: name`"),
        ("v,0902,0.1,0.2,0.3,0.4,1,0\n", "line 1: .* is a row of a key frame"),
        ("v,0902\n", "line 1: .* is a row of a key frame"),
        (b"\xff\xfe\0a", "no text"),
    ],
)
def test_a_label_map_that_cannot_be_meant_is_refused(text: str | bytes, said: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=said):
        read_label_map(write(tmp_path, text, "map"))
    with pytest.raises(DataError, match="No such file"):
        read_label_map(tmp_path / "none")
