"""What comments and docstrings cite is there: our files, lines and tests, headings of the docs, golden files, others' sources.

Files of others are those of an installed package, or of published code that docs/PAPER.md says was read.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from fnmatch import fnmatch
from functools import cache
from importlib import metadata
from pathlib import Path

import pytest

from tests.docs_figures import ROOT
from tests.docs_names import headings, is_module_or_name
from tests.golden_data import GOLDEN

FOLDERS = ("vmae2_ds", "tests", "benchmarks", "docs", "ds_configs", "hostfiles")
FILES = {
    path.relative_to(ROOT).as_posix()
    for top in (ROOT, *(ROOT / folder for folder in FOLDERS))
    for path in (top.iterdir() if top == ROOT else top.rglob("*"))
    if path.is_file() and "__pycache__" not in path.parts
}
PLACES = FILES | {parent.as_posix() for file in FILES for parent in Path(file).parents} | {"vmae2_ds/ds_configs"}
"""Files and folders, and where setup.py puts ds_configs/."""
ENDS = {"/".join(name.split("/")[start:]) for name in FILES for start in range(name.count("/") + 1)}
"""Files as a text may name them: without the folders on the left."""
SOURCES = sorted(name for name in FILES if name.endswith(".py") and name != "tests/test_sources.py")
TEXTS = sorted(
    name for name in FILES if name.endswith((".md", ".toml", ".txt", "Makefile")) and "/reports/" not in name
)
PACKAGES = ("deepspeed", "webdataset")

PROSE = re.compile(r'''(?ms)(?P<indent>^[ \t]*)?r?"""(?P<docstring>.*?)"""|(?<!\S)# (?P<comment>[^\n]*)''')
"""A docstring begins its line, as no other string in three quotes does. Parsing would take seconds."""
CITED = re.compile(
    r"(?<![\w/.-])((?:[\w-]+/)*[\w-]+\.(?:py|md)|(?:[\w-]+/)+[\w-]+\.sh)(?::(\d+)(?:-(\d+))?)?(?:#([\w-]+))?"
)
PLACE = re.compile(rf"(?<![\w/.-])(?:{'|'.join(FOLDERS)})/[\w./*-]+\w")
GOLDEN_FILE = re.compile(r"""golden[/ ](\w+\.(?:json|npz|safetensors))|golden_json\("([^"]+)"\)|GOLDEN / "([^"]+)\"""")
MODULE = re.compile(r"(?<![\w/.])vmae2_ds((?:\.[a-z_]\w*)+)")
TEST = re.compile(r"(?<![\w/.])test_[a-z]\w+(?![\w./])")
SHEET = re.compile(
    r"\b(?:PAPER|COST|DESIGN|DEEPSPEED_CPU|PEERS|DETECTION|HOUSE|STYLE)\b,? ?(?:[A-E]?\d|[A-E]\b|section|quirk|decision)"
    r"""|shared["/ ]+(?:golden|\w+\.md)"""
)
"""Sheets of facts that lay beside the first checkouts and are in no clone."""

LINES = {
    "zero/stage_1_and_2.py:3033-3066": "is_invalid_grad_norm",
    "runtime/engine.py:4314-4315": "ds_tensor",
    "zero/stage3.py:755-759": "ds_secondary_tensor",
    "zero/stage3.py:2884-2895": "is_invalid_grad_norm",
    "zero/stage_1_and_2.py:3029-3030": "check_grad_overflow",
    "zero/stage_1_and_2.py:2752-2760": "muon_update",
    "deepspeed/utils/timer.py:231-258": "get_accelerator().synchronize()",
    "deepspeed/runtime/activation_checkpointing/checkpointing.py:1121-1130": "activation_checkpointing_config",
}
"""Lines of DeepSpeed that are cited by number, and what they have to hold."""
READ_VERSION = "0.19.8"


def prose_of(source: str) -> Iterator[str]:
    """Comments and docstrings, those below a field or a constant too."""
    for match in PROSE.finditer(source):
        if match["comment"] is not None or match["indent"] is not None:
            yield match["comment"] or match["docstring"] or ""


def missing(text: str) -> list[str]:
    """What a text cites and is not there."""
    found = [match[0] for match in SHEET.finditer(text)]
    found += [match[0] for match in CITED.finditer(text) if not is_there(*match.groups())]
    places = (re.sub(r"(?<=/)[A-Z_]+(?=/|$)", "*", match[0]) for match in PLACE.finditer(text))
    found += [place for place in places if place not in PLACES and not any(fnmatch(name, place) for name in PLACES)]
    modules = (match[0] for match in MODULE.finditer(text))
    found += [
        name for name in modules if name.replace(".", "/") not in PLACES and not is_module_or_name(name.split("."))
    ]
    names = (next(filter(None, match.groups())) for match in GOLDEN_FILE.finditer(text))
    found += [name for name in names if not (GOLDEN / name).exists()]
    return found + [match[0] for match in TEST.finditer(text) if match[0] not in all_tests()]


@cache
def is_there(path: str, first: str | None, last: str | None, anchor: str | None) -> bool:
    """Whether a file, its lines and its heading are there."""
    if path in ENDS:
        ours = [name for name in FILES if f"/{name}".endswith(f"/{path}")]
        lines = max(len((ROOT / name).read_text().splitlines()) for name in ours)
        return int(last or first or 0) <= lines and (
            not anchor or any(anchor in headings(ROOT / name) for name in ours)
        )
    if any(name.endswith(f"/{path}") for name in installed()):
        return first is None or f"{path}:{first}" + f"-{last}" * bool(last) in LINES
    return path in published() or (path.endswith(".py") and path[:-3].isupper())  # FILE.py is any file


@cache
def installed() -> dict[str, Path]:
    """Python files of the packages whose sources are cited, under names that begin with /."""
    files = [file for package in PACKAGES for file in metadata.files(package) or [] if file.suffix == ".py"]
    return {f"/{file}": Path(str(file.locate())) for file in files}


@cache
def published() -> set[str]:
    """Files of published code that docs/PAPER.md names."""
    return {match[1] for match in CITED.finditer((ROOT / "docs/PAPER.md").read_text())}


@cache
def all_tests() -> set[str]:
    texts = ((name, (ROOT / name).read_text()) for name in FILES if name.startswith("tests/") and name.endswith(".py"))
    return {word for name, text in texts for word in (Path(name).stem, *re.findall(r"def (test_\w+)", text))}


def test_what_comments_and_docstrings_cite_is_there() -> None:
    """In code, such as messages: the sheets, golden files and pages of docs/; tests name pages that they make."""
    wanting = {}
    for name in SOURCES:
        source = (ROOT / name).read_text()
        found = [cited for text in prose_of(source) for cited in missing(text)]
        in_code = [match[0] for match in SHEET.finditer(source)]
        in_code += [match[0] for match in GOLDEN_FILE.finditer(source) if missing(match[0])]
        in_code += [page for page in re.findall(r"docs/\w+\.md", source) if page not in FILES and name[:6] != "tests/"]
        if found or in_code:
            wanting[name] = sorted({*found, *in_code})
    assert not wanting


def test_no_other_text_cites_a_sheet_or_a_heading_that_is_not_there() -> None:
    """What else pages name, test_docs_names.py looks for."""
    wanting = {}
    for name in TEXTS:
        text = (ROOT / name).read_text()
        found = [match[0] for match in SHEET.finditer(text)]
        found += [match[0] for match in CITED.finditer(text) if match[4] and not is_there(*match.groups())]
        if found:
            wanting[name] = found
    assert not wanting


def test_the_cited_lines_of_deepspeed_say_what_they_are_cited_for() -> None:
    if metadata.version("deepspeed") != READ_VERSION:
        pytest.skip(f"the lines of deepspeed {READ_VERSION} are cited")
    for cited, words in LINES.items():
        path, _, lines = cited.partition(":")
        first, last = map(int, lines.split("-"))
        (file,) = (place for name, place in installed().items() if name.endswith(f"/{path}"))
        assert words in "\n".join(file.read_text().splitlines()[first - 1 : last]), cited


def test_golden_files_are_small_described_and_read() -> None:
    described = (GOLDEN / "README.md").read_text()
    code = "\n".join((ROOT / name).read_text() for name in SOURCES if name.startswith("tests/"))
    names = {path.name for path in GOLDEN.iterdir()} - {"README.md"}
    assert {name for name in names if name not in described} == {name for name in names if name not in code} == set()
    assert sum(path.stat().st_size for path in GOLDEN.rglob("*") if path.is_file()) < 2_000_000


@pytest.mark.parametrize(
    "planted",
    [
        "as train/loops.py does", "vmae2_ds/config/model.py:9999", "docs/PAPER.md#no-such-heading", "docs/NOPE.md",
        "golden nope.json", 'golden_json("nope.json")', "PAPER A8", "COST 3e", "DESIGN decision 5", "DEEPSPEED_CPU 3",
        "../shared/PAPER.md", 'shared / "golden"', "published in modeling_unheard.py:12", "zero/stage3.py:1-2",
        "held by test_that_nobody_wrote", "rows of benchmarks/results/cpu/nope.jsonl", "vmae2_ds.train.checkpoint.save",
    ],
)  # fmt: skip
def test_what_is_not_there_is_found(planted: str) -> None:
    assert missing(f"It is so ({planted}).")


def test_what_is_there_is_not() -> None:
    cited = (
        "config/model.py:1-20, docs/PAPER.md#sizes, modeling_pretrain.py:324, zero/stage3.py, benchmarks/results/*/data.jsonl,"
        " tests/golden/masks.json, vmae2_ds.tune.scaling, vmae2_ds.errors.ConfigError, test_sizes, an NVIDIA A100,"
        " arXiv 1706.03762 section 3.5, paper section 3"
    )
    assert not missing(cited)


def test_comments_and_docstrings_are_read_and_code_is_not() -> None:
    source = 'a = "b.py"  # c.py\n"""d.py"""\ndef f():\n    """e.py"""\n    return "f.py"\n'
    assert [text.strip() for text in prose_of(source)] == ["c.py", "d.py", "e.py"]
