"""Words: docstrings, which are also help texts, have a subject and end like a sentence; a class's name is its own alone."""

from __future__ import annotations

import ast
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
NO_SUBJECT = re.compile(r"(Of|As|By|Beside|Its|Their|What becomes of|What became of)\b(?! default)")
"""How a text begins that only its neighbour explains."""


def texts_in(source: str) -> Iterator[tuple[int, str]]:
    """(line, text) of each docstring, and of each string below a field or a constant."""
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef)):
            continue
        if (text := ast.get_docstring(node)) is not None:
            yield getattr(node, "lineno", 1), text
        for statement, below in zip(node.body, node.body[1:], strict=False):
            is_named = isinstance(statement, (ast.AnnAssign, ast.Assign))
            if is_named and isinstance(below, ast.Expr) and isinstance(below.value, ast.Constant):
                yield below.lineno, str(below.value.value)


def faults(source: str) -> list[str]:
    """What is wrong with each text, after its line."""
    found = []
    for line, text in texts_in(source):
        first = " ".join(text.split("\n\n")[0].split())
        if NO_SUBJECT.match(first):
            found.append(f"{line}: no subject: {first[:60]}")
        if not first.endswith((".", "?", ":")):
            found.append(f"{line}: no end: ...{first[-60:]}")
    return found


@pytest.mark.parametrize("folder", sorted({path.parent for path in (ROOT / "vmae2_ds").rglob("*.py")}), ids=str)
def test_every_text_has_a_subject_and_an_end(folder: Path) -> None:
    found = {path.name: faults(path.read_text()) for path in sorted(folder.glob("*.py"))}
    assert not {name: lines for name, lines in found.items() if lines}


def test_a_text_without_subject_or_end_is_found() -> None:
    source = (
        'class Pair:\n    """Two numbers."""\n    seed: int = 0\n    """Of the order."""\n    size: int\n    """"""\n'
    )
    assert [line.partition(":")[0] for line in faults(source)] == ["4", "6"]


def shared_names(sources: Iterable[tuple[str, str]]) -> dict[str, list[str]]:
    """Class -> the files that define one of that name, where there are several."""
    found: dict[str, list[str]] = defaultdict(list)
    for file, source in sources:
        for node in ast.parse(source).body:
            if isinstance(node, ast.ClassDef):
                found[node.name.lstrip("_")].append(file)
    return {name: files for name, files in found.items() if len(files) > 1}


def test_no_two_classes_share_a_name() -> None:
    files = sorted((ROOT / "vmae2_ds").rglob("*.py"))
    assert not shared_names((str(file.relative_to(ROOT)), file.read_text()) for file in files)


def test_classes_that_share_a_name_are_found() -> None:
    assert shared_names([("a.py", "class Shard: ..."), ("b.py", "class _Shard: ...")]) == {"Shard": ["a.py", "b.py"]}
