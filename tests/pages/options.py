"""Options as rows of a page: name, what each takes with its limits, its default and its help, read off the models' fields."""

from __future__ import annotations

import sys
import types
import typing
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import annotated_types
import tyro
from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from tests.docs_figures import ROOT
from vmae2_ds.cli.options import model_at, options_of
from vmae2_ds.config.strict import AtOnce

KINDS: dict[Any, str] = {int: "whole number", float: "number", str: "text", Path: "path"}
CORES = typing.get_args(AtOnce)[1].metadata[-1].le
"""A limit that depends on the machine."""
BOUNDS = ("ge", "gt", "le", "lt")
LARGE = 1e6
NEEDED = "needed"


class Option(NamedTuple):
    """A row."""

    name: str
    takes: str
    default: str
    help: str


def options_in(model: type[BaseModel]) -> Iterator[Option]:
    """The options of a model, arguments without a name first; a switch is one row."""
    for name, field in model.model_fields.items():
        if tyro.conf.Positional in field.metadata:
            yield Option(positional_name(name, field), takes(field), default_of(field), help_of(field))
    for option, path in options_of(model).items():
        section = model_at(model, path[:-1])
        assert section is not None, f"{option} leads to no field"
        field = section.model_fields[path[-1]]
        last = option.rpartition(".")[2].removeprefix("--")
        if field.annotation is bool and last.startswith("no-") and not path[-1].startswith("no_"):
            continue  # of the switch before it
        yield Option(option, takes(field), default_of(field), help_of(field))


def positional_name(name: str, field: FieldInfo) -> str:
    """What stands for an argument without a name in the help."""
    said = next((each.metavar for each in field.metadata if getattr(each, "metavar", None)), None)
    return said or name.upper()


def help_of(field: FieldInfo) -> str:
    """The help text."""
    return escaped(field.description or "")


def escaped(text: str) -> str:
    """A plain text as Markdown that shows it as it is, also in a cell of a table."""
    parts = text.split("`")
    for number in range(0, len(parts), 2):
        for sign, instead in (("&", "&amp;"), ("<", "&lt;"), ("*", "\\*")):
            parts[number] = parts[number].replace(sign, instead)
    return "`".join(parts).replace("|", "\\|")


def takes(field: FieldInfo) -> str:
    """What an option takes: kind, choices and limits, in words."""
    limits = [each for each in field.metadata if isinstance(each, annotated_types.BaseMetadata | FieldInfo)]
    return kind_of(field.annotation, limits)


def kind_of(hint: Any, limits: Iterable[Any] = ()) -> str:
    """A type in words."""
    origin, parts = typing.get_origin(hint), typing.get_args(hint)
    if origin is typing.Annotated:
        return kind_of(parts[0], [*parts[1:], *limits])
    if origin is typing.Literal:
        return ", ".join(f"`{part}`" for part in parts)
    if origin in (typing.Union, types.UnionType):
        kinds = [kind_of(part, limits) for part in parts if part is not type(None)]
        return " or ".join(dict.fromkeys(kinds))
    if origin is tuple:
        if parts[1:] == (...,):
            return f"several: {kind_of(parts[0])}"
        kinds = [kind_of(part) for part in parts]
        return f"{len(kinds)} x {kinds[0]}" if len(set(kinds)) == 1 else ", then ".join(kinds)
    if origin is dict:
        return f"pairs of {kind_of(parts[0])} and {kind_of(parts[1])}"
    if hint is bool:
        return "switch"
    return f"{KINDS[hint]}{bounds(limits)}"


def bounds(limits: Iterable[Any]) -> str:
    """Limits in words: ` from 0 to 1`, ` above 0`. A million and more stands for no limit, and so does one by the cores."""
    found: dict[str, float] = {}
    for limit in limits:
        for each in getattr(limit, "metadata", [limit]):
            found |= {name: value for name in BOUNDS if (value := getattr(each, name, None)) is not None}
    words = ""
    if (low := found.get("ge", found.get("gt"))) is not None and abs(low) < LARGE:
        words = f" {'from' if 'ge' in found else 'above'} {low:g}"
    if (high := found.get("le", found.get("lt"))) is not None and high < LARGE and found.get("le") != CORES:
        words += f" to {'' if 'le' in found else 'below '}{high:,g}"
    return words


def default_of(field: FieldInfo) -> str:
    """A default as it is typed; empty where the help says what happens without the option."""
    if field.is_required():
        return NEEDED
    return shown(field.get_default(call_default_factory=True))


def shown(value: Any) -> str:
    """A value as it is typed."""
    if value is None or value in ((), {}, "") or value is PydanticUndefined:
        return ""
    if isinstance(value, bool):
        return "on" if value else "off"
    if isinstance(value, tuple):
        return " ".join(filter(None, map(shown, value)))
    if str(value) == sys.executable:
        return "this interpreter"
    if value == Path(sys.executable).parent:
        return "this interpreter's folder"
    if isinstance(value, Path) and value.is_absolute() and value.is_relative_to(ROOT):
        return str(value.relative_to(ROOT))  # where something is written, and no name of what is there
    return f"{value:g}" if isinstance(value, float) else str(value) if isinstance(value, int) else f"`{value}`"
