"""What a model refuses, in the words of whoever typed it: the option, its value, the limit, and how to switch it off."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from pydantic import BaseModel, ValidationError


def refused(error: ValidationError, name_of: Callable[[tuple[str, ...]], str], model: type[BaseModel]) -> str:
    """What a model refuses, in words: `--nodes 0: at least 1`, one after another where there are several.

    Args:
        name_of: what the user calls the field at a path of names, `--train.epochs` say; of an empty path, nothing.
        model: the class that was to be made.
    """
    found: dict[str, list[str]] = {}
    for one in error.errors():
        wrong: dict[str, Any] = {**one}
        path, off = _fields_on(wrong["loc"], model)
        words = _in_words(wrong)
        if wrong["type"] == "finite_number" and off:
            words += f"; {off} switches it off"
        found.setdefault(_subject(name_of(path), wrong), []).append(words)
    # a type of several kinds refuses for each of them
    return "; ".join(f"{subject}{', or '.join(dict.fromkeys(words))}" for subject, words in found.items())


def _subject(name: str, wrong: dict[str, Any]) -> str:
    shown = wrong["input"]
    if not name:
        return ""
    is_value = wrong["type"] not in ("missing", "value_error") and isinstance(shown, int | float | str)
    return f"{name} {shown}: " if is_value else f"{name}: "


def _fields_on(loc: tuple[int | str, ...], model: type[BaseModel]) -> tuple[tuple[str, ...], str]:
    """The names of a location that are fields (unions and positions add others), and how the last one is switched off."""
    path: list[str] = []
    off = ""
    here: Any = model
    for part in map(str, loc):
        if not (isinstance(here, type) and issubclass(here, BaseModel)):
            break
        field = here.model_fields.get(part)
        if field is None:  # a key that is no field
            return (*path, part), ""
        path.append(part)
        extra = field.json_schema_extra
        off = str(extra.get("off", "")) if isinstance(extra, dict) else ""
        here = field.annotation
    return tuple(path), off


_WORDS = {
    "greater_than": "more than {gt}",
    "greater_than_equal": "at least {ge}",
    "less_than": "less than {lt}",
    "less_than_equal": "at most {le}",
    "finite_number": "a finite number is needed",
    "extra_forbidden": "no such setting",
    "missing": "is needed",
    "literal_error": "{expected}",
    "string_pattern_mismatch": "of the form {pattern}",
}


def _in_words(wrong: dict[str, Any]) -> str:
    limits = {name: _number(value) for name, value in wrong.get("ctx", {}).items()}
    if (words := _WORDS.get(wrong["type"])) is not None:
        return words.format(**limits)
    said = str(wrong["msg"]).removeprefix("Value error, ")
    return said[:1].lower() + said[1:] if said.startswith(("Input ", "Field ")) else said


def _number(value: object) -> str:
    if isinstance(value, float) and value == math.floor(value) and abs(value) < 1e16:
        value = int(value)
    if isinstance(value, float):
        return f"{value:g}"
    return f"{value:,}" if isinstance(value, int) else str(value)
