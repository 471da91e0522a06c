"""Rows read all at once: the same bits as `float` gives field by field, and the same rows as one after the other gives."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from vmae2_ds.downstream.ava import row_files
from vmae2_ds.downstream.ava.row_columns import NotPlain, TextColumns
from vmae2_ds.downstream.ava.row_files import RowFile, RowKind
from vmae2_ds.errors import DataError

WAYS: dict[str, Callable[[random.Random], str]] = {
    "six decimals": lambda draw: f"{draw.random():.6f}",
    "three decimals": lambda draw: f"{draw.random():.3f}",
    "up to fifteen decimals": lambda draw: f"{draw.random():.{draw.randrange(16)}f}",
    "many digits before the point": lambda draw: f"{draw.random() * 10 ** draw.randrange(12):.{draw.randrange(4)}f}",
    "all digits": lambda draw: repr(draw.random()),
    "more digits than a float has": lambda draw: f"{draw.random():.{draw.randrange(15, 22)}f}",
    "halfway between two floats": lambda draw: (
        f"{(2 * draw.randrange(2**10) + 1) / 2**11:.17f}"[:-1] + draw.choice("01")
    ),
    "single precision": lambda draw: str(np.float32(draw.random())),
    "small ones, with exponents": lambda draw: repr(draw.random() ** 40),
    "signs": lambda draw: f"{draw.uniform(-9, 9):+.4f}",
    "whole ones": lambda draw: str(draw.randrange(10 ** draw.randrange(1, 17))),
    "without a zero": lambda draw: f"{draw.random():.5f}".lstrip("0"),
    "a point at the end": lambda draw: f"{draw.randrange(1000)}.",
    "zeros in front": lambda draw: f"{draw.randrange(1000):09d}.{draw.randrange(1000):03d}",
    "near 2**53": lambda draw: str(2**53 + draw.randrange(-2000, 2000)),
    "near 2**53, as decimals": lambda draw: f"0.{2**53 + draw.randrange(-2000, 2000)}",
    "spaces": lambda draw: f" {draw.random():.3f} ",
}


@pytest.mark.parametrize("way", WAYS)
def test_numbers_have_the_bits_that_float_gives(way: str) -> None:
    draw = random.Random(way)
    fields = [WAYS[way](draw) for _ in range(500)]
    for mixed in (fields, [field if draw.random() < 0.7 else f"{draw.random():.6f}" for field in fields]):
        text = "".join(f"v,1,{field}\n" for field in mixed).encode()
        assert TextColumns(text, 8).numbers(2).tolist() == [float(field) for field in mixed]


def test_what_is_no_number_is_left_to_who_reads_row_by_row() -> None:
    for field in (
        "",
        ".",
        "-",
        "1_0",
        "0x1",
        "1e",
        "1..2",
        "1.2.3",
        "a",
        "nan",
        "inf",
        "1e999",
        "1/2",
        "\u0661",
        "\x00",
        "9" * 400,
    ):
        for text in (f"v,1,{field}\nv,1,0.5\n", f"v,1,0.5\nv,1,{field}\n"):
            with pytest.raises(NotPlain):
                TextColumns(text.encode(), 8).numbers(2)
    for text in ("", "\n", "v\n", 'v,"1",2\n', "v,1,2\nv,1,2,3\n", "v,1,2\n\nv,1,2\n", "1," * 9):
        with pytest.raises(NotPlain):
            TextColumns(text.encode(), 8)
    for field in ("0.5", "", "3000000000"):
        with pytest.raises(NotPlain):
            TextColumns(f"v,1,{field}\n".encode(), 8).whole(2, 2**31, empty_too=False)


def test_a_line_may_end_as_it_does_on_windows() -> None:
    text = b"v,1,\r\nv,1,7\r\nv,1\r\n"
    assert TextColumns(text, 8).whole(2, 2**31, empty_too=True).tolist() == [-1, 7]
    assert TextColumns(text, 8).keys() == ([b"v,1"], pytest.approx([0, 0, 0]))


VIDEOS = ["v", "w w", "é", "-x_y", "a.mp4", "long" * 9, "long" * 9 + "!", "first_of_all", "worst_of_all", "v1", "1v"]


def made_up(draw: random.Random, *, wrong: bool) -> str:
    """A file of truth or detections, a little of everything in it."""
    lines = []
    video, time = "v", "0902"
    for _ in range(draw.randrange(1, 60)):
        if draw.random() < 0.5:
            video = draw.choice(
                [
                    "v",
                    "w w",
                    "é",
                    "-x_y",
                    "a.mp4",
                    "long" * 9,
                    "long" * 9 + "!",
                    "first_of_all",
                    "worst_of_all",
                    "v1",
                    "1v",
                ]
            )
            time = draw.choice(["0902", "902", "902.0", "0903", "12.5", "12.50", "1", "11"])
        box = [draw.choice([f"{draw.random():.3f}", f"{draw.random():.6f}", "0", "1", "1.0", "0.5"]) for _ in range(4)]
        action = draw.choice(["1", "12", "80", "3.0", "007"])
        last = draw.choice(["0", "3", "11", ""])
        lines.append(",".join([video, time, *box, action, last]))
        if draw.random() < 0.1:
            lines.append(f"{video},{time}")
        if wrong and draw.random() < 0.05:
            lines.append(
                draw.choice(["v", "v,1,2", f"{video},x,0,0,1,1,1,1", f"{video},1,0,0,1,1,1,z", "", f'"{video}",5'])
            )
    return draw.choice(["\n", "\r\n"]).join(lines) + draw.choice(["", "\n", "\n\n"])


def read(file: Path) -> tuple[list[object], list[object]] | str:
    rows = RowFile(file, RowKind.TRUTH)
    try:
        pieces = list(rows.pieces())
    except DataError as error:
        return str(error)
    return list(rows.frame_of), [np.concatenate(column).tolist() for column in zip(*pieces, strict=True)]


@pytest.mark.parametrize("wrong", [False, True])
def test_rows_read_at_once_are_those_read_one_after_the_other(
    wrong: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    at_once = RowFile._plain
    lengths = []

    def noted(rows: RowFile, table: TextColumns) -> object:
        piece = at_once(rows, table)
        lengths.append(table.lines)
        return piece

    def never(rows: RowFile, table: TextColumns) -> object:
        raise NotPlain

    for seed in range(150):
        draw = random.Random(seed)
        file = tmp_path / "rows.csv"
        file.write_text(made_up(draw, wrong=wrong), newline="")
        monkeypatch.setattr(row_files, "PIECE_BYTES", draw.choice([40, 200, 1000, 1 << 20]))
        monkeypatch.setattr(RowFile, "_plain", noted)
        found = read(file)
        monkeypatch.setattr(RowFile, "_plain", never)
        assert read(file) == found, seed
    assert len(lengths) > 500
