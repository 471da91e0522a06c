"""Names that the pages tell a reader, and whether the repository has them: what `test_docs_names.py` holds the pages to.

Looked at are the spans in back-ticks, the links, and every option that begins with a section of the settings. A span counts
as a name of ours where it is

- a path: it ends in `.py` or begins with a folder of the repository; from the top, from vmae2_ds/, or a file's own name;
- `FILE.py:NAME`, with a function, a class, a method (`Class.method`) or a table that the file defines;
- `vmae2_ds.MODULE.NAME`, `Class.member` of a class that is ours, `section.key` of the settings;
- a word with an underscore or with two capitals, called or not, or one that is cut short ("test_a_..."): the code then has that
  word somewhere, or a host file or a recipe has that name.

Words in capitals alone stand for what a reader puts in their place. Names of other people's are in FOREIGN.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

from pydantic import BaseModel

from tests.docs_figures import ROOT
from vmae2_ds.cli.options import model_at
from vmae2_ds.config.ava import AvaConfig
from vmae2_ds.config.distil import DistilConfig
from vmae2_ds.config.finetune import FinetuneConfig
from vmae2_ds.config.pretrain import PretrainConfig
from vmae2_ds.config.tad import TadConfig
from vmae2_ds.recipes.distil import DISTIL_RECIPES
from vmae2_ds.recipes.finetune import FINETUNE_RECIPES
from vmae2_ds.recipes.pretrain import RECIPES

PACKAGE = ROOT / "vmae2_ds"
PAGES = sorted(
    [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").glob("*.md")]
    + [ROOT / folder / "README.md" for folder in ("hostfiles", "ds_configs", "tests/golden")]
)
TOP = {path.name for path in ROOT.iterdir() if path.is_dir() and path.name not in ("runs", "build", "dist")}
KINDS: tuple[type[BaseModel], ...] = (PretrainConfig, FinetuneConfig, DistilConfig, TadConfig, AvaConfig)
SECTIONS = {name for kind in KINDS for name in kind.model_fields if model_at(kind, (name,)) is not None}

SPAN = re.compile(r"`([^`\n]+)`")
LINK = re.compile(r"\]\(([^)\s]+)(?: \"[^\"]*\")?\)")
OPTION = re.compile(rf"--((?:{'|'.join(sorted(SECTIONS))})(?:\.[a-z][a-z0-9-]*)+)")
PATH = re.compile(r"[\w.-]+(/[\w.-]+)*/?")
IN_FILE = re.compile(r"([\w./-]+\.py):([\w.]*)(?:\(\))?")
DOTTED = re.compile(r"([A-Za-z_]\w*)((?:\.[A-Za-z_]\w*)+)(?:\(\))?")
WORD = re.compile(r"_?[a-z0-9]+(?:_[a-z0-9]+)+(?:\(\))?|(?:[A-Z][a-z0-9]+){2,}(?:\(\))?")
CUT_SHORT = re.compile(r"([a-z]+_\w+)\.\.\.")
FILE = re.compile(r".*\.(csv|jsonl?|safetensors|pth|md|txt|yaml|html)")
FOREIGN = {"PreemptMode": "SLURM", "max_live_parameters": "DeepSpeed", "max_reuse_distance": "DeepSpeed"}
PLACEHOLDER = re.compile(r"(^|/)[A-Z][A-Z_]*(/|$)|[A-Z]{3,}$|stepN|rankR")


def missing(page: str) -> Iterator[str]:
    """What a page names and the repository does not have."""
    for option in OPTION.findall(page):
        if not is_setting(option.replace("-", "_")):
            yield f"--{option}"
    for span in SPAN.findall(re.sub(r"```.*?```", "", page, flags=re.DOTALL)):
        if not is_there(span.strip()):
            yield span


def is_there(span: str) -> bool:
    """Whether the repository has what a span names, or the span is no name of ours."""
    if found := IN_FILE.fullmatch(span):
        return any(found[2] in defined(path) for path in files_called(found[1]))
    if PATH.fullmatch(span) and ("/" in span or span.endswith(".py")) and not PLACEHOLDER.search(span):
        first = span.partition("/")[0]
        return bool(files_called(span)) or not (span.endswith(".py") or first in TOP)
    if found := DOTTED.fullmatch(span):
        first, rest = found[1], found[2][1:]
        if first in ("vmae2_ds", "tests", "benchmarks"):
            return is_module_or_name([first, *rest.split(".")])
        if first in SECTIONS:
            return is_setting(span) or FILE.fullmatch(span) is not None or PLACEHOLDER.search(rest) is not None
        members = members_of().get(first)
        return members is None or rest in members
    if found := CUT_SHORT.fullmatch(span):
        return any(word.startswith(found[1]) for word in words_of_code())
    return WORD.fullmatch(span) is None or span in FOREIGN or span.removesuffix("()") in words_of_code()


def files_called(name: str) -> list[Path]:
    """The files or folders that a path means: from the top or the package, or the tests called so."""
    beside = list((ROOT / "tests").rglob(name)) if "/" not in name.rstrip("/") else []
    return [path for path in (ROOT / name, PACKAGE / name, *beside) if path.exists()]


def is_setting(name: str) -> bool:
    """Whether `section.key...` is a setting of a stage."""
    *path, key = name.split(".")
    sections = (model_at(kind, path) for kind in KINDS)
    return any(section is not None and key.removeprefix("no_") in section.model_fields for section in sections)


def is_module_or_name(parts: list[str]) -> bool:
    """Whether a dotted name is a module, or defined in one."""
    for length in range(len(parts), 0, -1):
        base, name = ROOT.joinpath(*parts[:length]), ".".join(parts[length:])
        for file in (base.with_suffix(".py"), base / "__init__.py"):
            if file.is_file():
                return not name or name in defined(file)
    return False


@cache
def defined(path: Path) -> frozenset[str]:
    """What a file defines: functions, classes, methods and fields as `Class.name`, tables, and what a package hands on."""
    names: set[str] = set()

    def walk(nodes: list[ast.stmt], before: str) -> None:
        for node in nodes:
            if isinstance(node, ast.FunctionDef | ast.ClassDef):
                names.add(before + node.name)
                if isinstance(node, ast.ClassDef):
                    walk(node.body, f"{before}{node.name}.")
            elif isinstance(node, ast.Assign | ast.AnnAssign):
                targets = node.targets if isinstance(node, ast.Assign) else [node.target]
                names.update(before + target.id for target in targets if isinstance(target, ast.Name))
            elif isinstance(node, ast.If):
                walk(node.body, before)
            elif isinstance(node, ast.ImportFrom) and path.name == "__init__.py":
                names.update(alias.name for alias in node.names)

    if path.suffix == ".py":
        walk(ast.parse(path.read_text()).body, "")
    return frozenset(names)


@cache
def members_of() -> dict[str, set[str]]:
    """What each class of the package has, by the class's name; classes of one name, and bases, together."""
    found: dict[str, set[str]] = {}
    for path in PACKAGE.rglob("*.py"):
        for name in defined(path):
            owner, _, member = name.partition(".")
            if owner[:1].isupper() and not owner.isupper():
                found.setdefault(owner, set()).add(member)
    return found


@cache
def words_of_code() -> frozenset[str]:
    """Every word of the repository's code, and of the settings that lie in files."""
    kinds = ("*.py", "*.json", "*.html", "*.yaml", "*.toml", "*.txt", "Makefile")
    folders = (PACKAGE, ROOT / "tests", ROOT / "benchmarks", ROOT / "ds_configs")
    files = [
        path for folder in folders for kind in kinds for path in folder.rglob(kind) if "docs_names" not in path.name
    ]
    files += [ROOT / "setup.py", ROOT / "Makefile"]
    words = {word for path in files for word in re.findall(r"\w+", path.read_text(errors="ignore"))}
    return frozenset(
        words | {path.name for path in (ROOT / "hostfiles").iterdir()} | {*RECIPES, *FINETUNE_RECIPES, *DISTIL_RECIPES}
    )


def broken_links(page: Path) -> Iterator[str]:
    """Links of a page to files and headings that are not there."""
    for target in LINK.findall(page.read_text()):
        name, _, heading = target.partition("#")
        if "://" in target:
            continue
        file = page.parent / name if name else page
        if not file.exists() or (heading and heading not in headings(file)):
            yield target


@cache
def headings(page: Path) -> frozenset[str]:
    """The headings of a page as GitHub writes them in links."""
    lines = re.findall(r"^#+ (.+)$", page.read_text(), flags=re.MULTILINE)
    return frozenset(re.sub(r"[^\w\- ]", "", line.lower()).replace(" ", "-") for line in lines)
