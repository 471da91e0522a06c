"""The order in which test files start."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

from tests.longest_first import LONGEST, longest_first

TESTS = Path(__file__).parent


class Item(NamedTuple):
    nodeid: str
    slow: bool = False

    def get_closest_marker(self, name: str) -> bool:
        return name == "slow" and self.slow


def test_files_that_are_named_exist_and_are_named_once() -> None:
    assert [name for name in LONGEST if not (TESTS / name).is_file()] == []
    assert len({*LONGEST}) == len(LONGEST)


def test_named_files_come_first_then_those_with_a_slow_test_and_a_file_stays_together() -> None:
    first, second = (f"tests/{name}" for name in LONGEST[:2])
    items: list[Any] = [
        Item("tests/test_a.py::b"),
        Item(f"{second}::b"),
        Item("tests/test_b.py::z"),
        Item("tests/test_b.py::a", slow=True),
        Item(f"{first}::z", slow=True),
        Item(f"{first}::a"),
    ]
    longest_first(items)
    assert [item.nodeid for item in items] == [
        f"{first}::z",
        f"{first}::a",
        f"{second}::b",
        "tests/test_b.py::z",
        "tests/test_b.py::a",
        "tests/test_a.py::b",
    ]
