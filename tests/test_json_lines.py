"""Rows of JSON lines: a kill at any byte costs the last row, and none that is added later."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from vmae2_ds.json_lines import adding_rows, rows_of

ROWS = [{"step": 1, "name": "caf\u00e9"}, [1, None, "a\nb"], {"step": 2}]


def test_a_kill_at_any_byte_costs_the_last_row_alone(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    whole = "".join(json.dumps(row) + "\n" for row in ROWS).encode()
    for left in range(len(whole) + 1):
        file.write_bytes(whole[:left])
        expected = [row for row, end in zip(ROWS, ends(whole), strict=True) if end <= left + 1]
        assert list(rows_of(file)) == expected, whole[:left]
        with adding_rows(file) as add:
            add({"step": 3}, {"step": 4})
            assert list(rows_of(file)) == [*expected, {"step": 3}, {"step": 4}], "before the file is closed"


def ends(text: bytes) -> list[int]:
    """Bytes up to each end of a line, that included."""
    return [at + 1 for at, byte in enumerate(text) if byte == ord("\n")]


def test_a_file_that_is_not_there_has_no_rows_and_begins_with_the_first(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    assert list(rows_of(file)) == []
    with adding_rows(file) as add:
        add({"loss": 0.5})
    assert file.read_text() == '{"loss": 0.5}\n'


def test_bytes_that_are_no_text_are_no_row(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_bytes(b'{"a": "\xff"}\n\x00\x00\n{"a": 1}\n')
    assert list(rows_of(tmp_path / "rows.jsonl")) == [{"a": 1}]


@pytest.mark.parametrize("kind", ["folder", "nothing"])
def test_what_cannot_be_written_is_the_system_s_error(tmp_path: Path, kind: str) -> None:
    with (
        pytest.raises(OSError, match="directory"),
        adding_rows(tmp_path if kind == "folder" else tmp_path / "no" / "x"),
    ):
        raise AssertionError("nothing to add to")
