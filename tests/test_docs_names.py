"""What the pages name is there; the map's numbers and lists are those of the code; docs_names.py: what counts as a name."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.docs_figures import ROOT
from tests.docs_names import PAGES, broken_links, files_called, is_there, missing
from tests.pages import pages, text
from tests.test_layering import LAYERS, PACKAGE

MAP = ROOT / "docs" / "ARCHITECTURE.md"
FOLDERS = "## The folders, a phrase each"
SPARE = 0.15
"""Files grow: "lines, about" may be off by this share, or by ten lines."""


@pytest.mark.parametrize("page", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_path_name_and_setting_on_a_page_exists(page: Path) -> None:
    assert sorted(set(missing(page.read_text()))) == [], f"{page.name}: fix the name, or see tests/docs_names.py"
    assert sorted(set(broken_links(page))) == [], f"{page.name}: links that lead nowhere"


def in_picture(page: str) -> tuple[set[str], set[int]]:
    """What the map's picture names, and in which columns its longer line down stands."""
    picture = page.split("```")[1]
    columns = {line.index("|", 50) for line in picture.splitlines() if "|" in line[50:]}
    return set(re.findall(r"(?:\w+/)+(?:\w+\.py(?::[\w.]+)?)?|\w+\.py(?::\w+)?", picture)), columns


def test_the_map_s_picture_names_what_is_there_and_its_line_is_straight() -> None:
    names, columns = in_picture(MAP.read_text())
    assert {"masking.py", "data/readers/", "train/loop.py:train"} < names
    assert {name for name in names if not (is_there(name) and files_called(name.partition(":")[0]))} == set()
    assert len(columns) == 1


def heart(page: str) -> dict[str, int]:
    """The rows of the map's reading order: lines by file."""
    return {
        file: int(lines)
        for file, lines in re.findall(r"^\| \d+ \| \[([\w/.]+)\]\(\S+\) \| (\d+) \|", page, re.MULTILINE)
    }


def wrong_lengths(page: str) -> dict[str, int]:
    found = {file: len((PACKAGE / file).read_text().splitlines()) for file in heart(page)}
    return {file: found[file] for file, told in heart(page).items() if abs(found[file] - told) > max(10, SPARE * told)}


def test_the_map_s_line_counts_are_true() -> None:
    page = MAP.read_text()
    assert {f"model/{name}.py" for name in ("embed", "attention", "block", "encoder", "mae")} < set(heart(page))
    assert wrong_lengths(page) == {}, "docs/ARCHITECTURE.md: these files have so many lines now"


def test_the_map_lists_the_layers_as_they_are() -> None:
    told = MAP.read_text().rpartition("```\n")[0].rpartition("```\n")[2].splitlines()
    assert [set(line.split()) for line in told] == [names for names in LAYERS if names != {"__main__"}]


def tree(page: str) -> set[str]:
    """The folders and files of the map's tree, from the repository's top."""
    found, parent = set(), ""
    for line in page.partition(FOLDERS)[2].split("```")[1].splitlines():
        listed, _, phrase = line.strip().partition("  ")
        names = listed.split()
        if line and not line.startswith(" "):
            parent = names[0] if len(names) == 1 else ""
            found |= set(names)
        else:
            found |= {parent + name for name in names}
        inner = re.findall(r"(?<![\w/])[\w/]+/(?![\w/])", phrase)
        found |= {name if (ROOT / name).exists() or not parent else parent + names[0] + name for name in inner}
    return found


def folders() -> set[str]:
    """Those that a stranger sees: of the repository, and of the package."""
    kept = {path.relative_to(ROOT).parts[0] for path in PAGES} | {
        "vmae2_ds",
        "tests",
        "benchmarks",
        "hostfiles",
        "ds_configs",
    }
    inside = {f"vmae2_ds/{path.name}/" for path in PACKAGE.iterdir() if path.is_dir() and path.name != "__pycache__"}
    return {f"{name}/" for name in kept if (ROOT / name).is_dir()} | inside


def test_the_map_s_tree_has_every_folder_and_nothing_else() -> None:
    told = tree(MAP.read_text())
    assert folders() - told == set(), "folders that the tree leaves out"
    assert {name for name in told if not (ROOT / name).exists()} == set()


@pytest.mark.parametrize("page", pages.PAGES, ids=lambda path: path.name)
def test_a_page_that_is_made_from_the_code_is_as_the_code_makes_it(page: Path) -> None:
    assert page.read_text() == pages.PAGES[page](), f"run: {text.COMMAND}"


# --- that the checks themselves can fail ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("there", "gone"),
    [
        ("`masking.py:make_masks`", "`masking.py:make_no_masks`"),
        ("`disk.py`", "`disc.py`"),
        ("`masking.py:CELL`", "`masking.py:`"),
        ("`model/encoder.py:Encoder.forward`", "`model/encoder.py:Encoder.backward`"),
        ("`data/readers/`, `cost/`", "`vmae2_ds/data/writers/`"),
        ("`tests/test_cli.py`, `test_order.py`", "`test_no_order.py`"),
        ("`vmae2_ds.load_classifier`, `vmae2_ds.errors.DataError`", "`vmae2_ds.load_nothing`"),
        ("`Engine.micro_step()`", "`Engine.nano_step()`"),
        ("`train.keep_best`, `train.csv`", "`train.keep_worst`"),
        ("--train.ds-zero-init and --train.no-ds-zero-init", "--train.ds-one-init"),
        ("--model.encoder.width", "--model.encoder.girth"),
        ("`data_wait_share`, `StepResult`, `torch.no_grad`", "`data_wait_" + "part`"),
        ("`pictures/STEP`, `runs/RECIPE`, `test_a_...`", "`Step" + "Outcome`"),
    ],
)
def test_a_name_that_is_gone_is_found_and_one_that_is_there_is_not(there: str, gone: str) -> None:
    assert list(missing(f"Look at {there}.")) == []
    assert list(missing(f"Look at {gone}.")) == [gone.strip("`")]


def test_a_link_to_nowhere_is_found(tmp_path: Path) -> None:
    (tmp_path / "other.md").write_text("# A b, c-d?\n")
    page = tmp_path / "page.md"
    page.write_text("[a](other.md#a-b-c-d) [b](other.md#b) [c](gone.md) [d](https://x.org/y) [e](#here)\n## Here\n")
    assert list(broken_links(page)) == ["other.md#b", "gone.md"]


def test_a_wrong_length_and_a_tree_s_folders_are_read() -> None:
    assert list(wrong_lengths("| 1 | [masking.py](x) | 30 | masks |\n| 2 | [disk.py](y) | 240 | files |")) == [
        "masking.py"
    ]
    page = f"{FOLDERS}\n```\ntop/     a\n  one/ two.py  both, in/ too\nREADME.md docs/  as tests/\n```\n"
    assert tree(page) == {"top/", "top/one/", "top/two.py", "top/one/in/", "README.md", "docs/", "tests/"}
