"""What the options of a verb are called: read off a function's signature or a model's fields, as tyro spells them."""

from __future__ import annotations

import inspect
import re
import typing
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import tyro
from pydantic import BaseModel

from vmae2_ds.console.spelling import did_you_mean
from vmae2_ds.errors import ConfigError

Subject = Callable[..., Any]
"""A function, or a model's class."""


def options_of(subject: Subject) -> dict[str, tuple[str, ...]]:
    """Option -> the path of names behind it: `--train.epochs` -> ("train", "epochs"). A switch has two options."""
    return dict(_walk(subject, (), ""))


def _walk(subject: Subject, path: tuple[str, ...], prefix: str) -> Iterable[tuple[str, tuple[str, ...]]]:
    for name, kind, metadata in _fields(subject):
        if tyro.conf.Suppress in metadata or tyro.conf.Positional in metadata:
            continue
        here = (*path, name)
        said = next((each for each in metadata if hasattr(each, "prefix_name")), None)
        own = (getattr(said, "name", None) or name).replace("_", "-")
        before = "" if getattr(said, "prefix_name", True) is False else prefix
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            yield from _walk(kind, here, f"{before}{own}.")
            continue
        yield f"--{before}{own}", here
        if kind is bool:
            yield f"--{before}no-{own}", here


def _fields(subject: Subject) -> Iterable[tuple[str, Any, tuple[Any, ...]]]:
    """Name, type and the annotation's metadata of each field or parameter."""
    if isinstance(subject, type) and issubclass(subject, BaseModel):
        for name, field in subject.model_fields.items():
            yield name, field.annotation, tuple(field.metadata)
        return
    hints = typing.get_type_hints(subject, include_extras=True)
    for name, parameter in inspect.signature(subject).parameters.items():
        hint = hints[name]
        metadata = getattr(hint, "__metadata__", ())
        kind = typing.get_args(hint)[0] if metadata else hint
        positional = (tyro.conf.Positional,) if parameter.kind is inspect.Parameter.POSITIONAL_ONLY else ()
        yield name, kind, (*metadata, *positional)


def model_at(subject: Subject, path: Sequence[str]) -> type[BaseModel] | None:
    """The model that lies at a path of names in a function's parameters or a model's fields."""
    here: Any = subject
    for name in path:
        here = next((kind for field, kind, _ in _fields(here) if field == name), None)
        if not (isinstance(here, type) and issubclass(here, BaseModel)):
            return None
    return here if isinstance(here, type) and issubclass(here, BaseModel) else None


def name_behind(options: dict[str, tuple[str, ...]], path: tuple[str, ...]) -> str:
    """What the user calls the field at `path`; of a whole section its dotted name, of nothing nothing."""
    return next((option for option, behind in options.items() if behind == path), ".".join(path))


def check_known(args: Sequence[str], options: Iterable[str], where: str) -> None:
    """Raises ConfigError for the first word that looks like an option and is none, with the nearest; `where` is the help."""
    known = list(options)
    for word in args:
        if not word.startswith("--") or word == "--help":
            continue
        asked = f"--{word[2:].partition('=')[0].replace('_', '-')}"
        if asked not in known:
            guess = did_you_mean(asked, known)
            raise ConfigError(
                f"no option {word.partition('=')[0]}; {guess or 'all are in'} {guess and 'see '}{where} --help"
            )


def in_own_words(message: str, options: Iterable[str]) -> str:
    """`--data.NAME`, as the library calls a setting in its messages, by the name that a verb without `data.` has for it."""
    known = set(options)

    def own(found: re.Match[str]) -> str:
        names = (found[1], found[1].removeprefix("read-"))  # data check calls data.read_timeout_s --timeout-s
        return next((f"--{name}" for name in names if f"--{name}" in known), found[0])

    return re.sub(r"--data\.([a-z]+(?:-[a-z]+)*)", own, message)
