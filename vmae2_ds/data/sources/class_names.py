"""Class names: a file with a name a line, whose number, from 0, is the label."""

from __future__ import annotations

import difflib
import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from vmae2_ds.errors import ConfigError

NAMES_SHOWN = 8


@dataclass(frozen=True)
class ClassNames:
    """The names of all classes, in the order of their labels."""

    file: Path
    names: tuple[str, ...]

    @cached_property
    def numbers(self) -> Mapping[str, int]:
        """Label by name."""
        return {name: number for number, name in enumerate(self.names)}

    @property
    def digest(self) -> str:
        """SHA-256 of the names, in hex."""
        return hashlib.sha256(self.text.encode()).hexdigest()

    @property
    def text(self) -> str:
        """The names as the file has them."""
        return "".join(f"{name}\n" for name in self.names)

    def label_of(self, cell: str) -> int | None:
        """The label that a cell of a list means: a name, or else a whole number; None where it is neither.

        Raises ConfigError for a number that is also the name of another class.
        """
        number = int(cell) if is_whole_number(cell) else None
        named = self.numbers.get(cell)
        if number is not None and named is not None and number != named:
            raise ConfigError(
                f"{cell} is a number, and in {self.file} also the name of class {named}; write names that are no numbers, or "
                "leave the file out"
            )
        return named if number is None else number

    def describe_unknown(self, unknown: Counter[str]) -> str:
        """Names that this file lacks, how often each, and what they may have been meant to be."""
        shown = []
        for name, count in unknown.most_common(NAMES_SHOWN):
            near = difflib.get_close_matches(name, self.names, n=1)
            hint = f", meant {near[0]!r}?" if near else ""
            shown.append(f"{name!r} ({count} row{'' if count == 1 else 's'}{hint})")
        more = f" and {len(unknown) - NAMES_SHOWN} more" if len(unknown) > NAMES_SHOWN else ""
        return f"labels that {self.file} ({len(self.names)} names) does not name: {', '.join(shown)}{more}"


def is_whole_number(cell: str) -> bool:
    """Digits of ASCII alone, few enough for a file offset; `int` takes more than that."""
    return cell.isascii() and cell.isdigit() and len(cell) < 20


def implied_names(names: Sequence[str] | None, source: Path) -> ClassNames | None:
    """The names that a model knows, for lists that use them; None where one is a number, which in a list is a label."""
    if names is None or len(set(names)) < len(names) or any(map(is_whole_number, names)):
        return None
    return ClassNames(source, tuple(names))


def read_class_names(file: Path, option: str = "--labels") -> ClassNames:
    """Raises ConfigError where the file cannot be read, names a class twice, has an empty line between names, or none."""
    said = f"{option} {file}".strip()
    try:
        lines = [line.strip() for line in file.read_text(encoding="utf-8-sig").splitlines()]
    except OSError as error:
        raise ConfigError(f"{said}: {error.strerror}; give a text file with one class name a line") from None
    except UnicodeDecodeError:
        raise ConfigError(f"{said}: not UTF-8 text; give a text file with one class name a line") from None
    while lines and not lines[-1]:
        lines.pop()
    if not lines:
        raise ConfigError(f"{said} names no class; it needs one name a line, in the order of the labels")
    if "" in lines:
        raise ConfigError(f"{said}: line {lines.index('') + 1} is empty; a class's line number is its label")
    if twice := [name for name, count in Counter(lines).items() if count > 1]:
        raise ConfigError(f"{said}: class {twice[0]!r} is named twice; a class's line number is its label")
    return ClassNames(file, tuple(lines))
