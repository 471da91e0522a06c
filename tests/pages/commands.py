"""The commands of the pages' shell blocks, and what each is: ours, of benchmarks, or of another program."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from tests.docs_figures import ROOT
from tests.docs_names import PAGES

BLOCK = re.compile(r"^ *```bash\n(.*?)^ *```$", re.MULTILINE | re.DOTALL)
OURS = re.compile(r"(?:^|.* )(?:--module vmae2_ds|-m vmae2_ds|vmae2)(?: +(.*))?")
BENCHMARKS = re.compile(r"(?:\w+=\S+ )*(?:python3?|deepspeed) .*?(?:-m|--module) benchmarks (.*)")
PLACEHOLDERS = {"C": "12", "D": "192", "N": "2", "SEED": "1", "RECIPE": "vit_ti_pretrain_desk"}
"""What a page writes for a number or a name of the reader's own."""


class Command(NamedTuple):
    """A command of a page; what is after `<<` belongs to it."""

    page: str
    line: int
    text: str

    @property
    def place(self) -> str:
        """Where it stands."""
        return f"{self.page}:{self.line}"

    @property
    def ours(self) -> list[str] | None:
        """The words behind `vmae2`, whatever starts it."""
        found = None if self.benchmark else OURS.fullmatch(self.text)
        return words_of(found[1] or "") if found else None

    @property
    def benchmark(self) -> list[str] | None:
        """The words behind `python -m benchmarks`."""
        found = BENCHMARKS.fullmatch(self.text)
        return words_of(found[1]) if found else None


def words_of(text: str) -> list[str]:
    """A command's words: without where its output goes and without `...`; what may be left out is there, of a|b the first."""
    text = re.sub(r"\[(.*?)\]", lambda found: found[1].partition(" | ")[0], text.partition(" > ")[0])
    words = [PLACEHOLDERS.get(word, word) for word in shlex.split(text) if word != "..."]
    words = [word.partition("|")[0] if re.fullmatch(r"[\w|]+", word) else word for word in words]
    return [*words, PLACEHOLDERS["RECIPE"]] if words == ["pretrain"] else words


def commands_of(page: Path) -> Iterator[Command]:
    """The commands of a page's blocks in order, each once."""
    text, name = page.read_text(), str(page.relative_to(ROOT))
    for block in BLOCK.finditer(text):
        lines = enumerate(block[1].splitlines(), start=text.count("\n", 0, block.start(1)) + 1)
        for number, first in lines:
            line = first.strip()
            if not line or line.startswith("#"):
                continue
            while line.endswith("\\"):
                line = f"{line[:-1].rstrip()} {next(lines)[1].strip()}"
            if document := re.search(r"<<'?(\w+)'?", line):
                for _, more in lines:
                    line += f"\n{more}"
                    if more == document[1]:
                        break
            else:
                line = without_comment(line)
            yield Command(name, number, line)


def without_comment(line: str) -> str:
    """A line up to its comment."""
    return re.sub(r"\s+# .*$", "", line)


def all_commands() -> list[Command]:
    """Those of all pages, a text once: where it stands first."""
    found: dict[str, Command] = {}
    for page in PAGES:
        for command in commands_of(page):
            found.setdefault(command.text, command)
    return list(found.values())
