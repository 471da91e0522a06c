"""What tyro refuses, as one line: its events, instead of the boxes that it would draw from them.

`tyro._errors` is the only place where tyro hands out what it refuses as objects. It is no public part of tyro: written for
1.0.17, where every line below has a test. A version without it draws its own box and ends with the same exit code.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, NoReturn

from pydantic import BaseModel, ValidationError

from vmae2_ds.cli.options import model_at, name_behind, options_of
from vmae2_ds.config.refusals import refused
from vmae2_ds.console.progress import counted
from vmae2_ds.console.spelling import did_you_mean
from vmae2_ds.errors import ConfigError

try:
    from tyro import _errors as tyro_errors
except ImportError:  # a version of before it
    tyro_errors = None  # type: ignore[assignment]

if TYPE_CHECKING:
    from tyro._arguments import ArgumentDefinition

_KINDS = {"INT": "a whole number", "FLOAT": "a number"}
"""What tyro's names of kinds mean, where a word is none."""


@contextlib.contextmanager
def refusing(model: type[BaseModel], args: Sequence[str], prog: str) -> Iterator[None]:
    """While tyro reads `args` into `model`: what it or the model refuses is a ConfigError, which names `prog --help`."""

    def refuse(event: tyro_errors.ParseErrorEvent) -> NoReturn:
        raise _Refused(event)

    if not hasattr(tyro_errors, "on_parse_error"):
        yield
        return
    try:
        with tyro_errors.on_parse_error(refuse):
            yield
    except _Refused as stop:
        why = _of_the_model(stop, model) or _of_tyro(stop.event, args)
        raise ConfigError(f"{why}; see {prog} --help") from None


class _Refused(Exception):
    """Raised where tyro would draw its box and exit."""

    def __init__(self, event: tyro_errors.ParseErrorEvent) -> None:
        super().__init__()
        self.event = event


def _of_the_model(stop: BaseException, model: type[BaseModel]) -> str | None:
    """What pydantic said about the values, where that is why tyro gave up."""
    section: tuple[str, ...] = ()
    cause: BaseException | None = stop
    while cause is not None and not isinstance(cause, ValidationError):
        if isinstance(where := getattr(cause, "arg", None), str):  # the section, of tyro's own error
            section = tuple(where.replace("-", "_").split("."))
        cause = cause.__context__
    part = model_at(model, section)
    if cause is None or part is None:
        return None
    options = options_of(model)
    return refused(cause, lambda path: name_behind(options, (*section, *path)), part)


def _of_tyro(event: tyro_errors.ParseErrorEvent, args: Sequence[str]) -> str:
    """What was wrong before there were values: words that are missing, too many, or of no use."""
    match event:
        case tyro_errors.MissingArgs(missing_arguments=missing):
            return f"missing: {'; '.join(_described(one.arg) for one in missing)}"
        case tyro_errors.UnrecognizedArgs(tokens=tokens):
            return f"{' '.join(tokens)}: no argument and no option takes this"
        case tyro_errors.InvalidChoice(argument=argument, value=value):
            # in the order of the help: where None is one of them, `choices` is in any
            choices = sorted({*event.choices} - {"None"}, key=str(argument.lowered.metavar).find)
            guess = did_you_mean(value, choices)
            return f"{argument.display_name()} {value}: {guess}one of {', '.join(choices)}"
        case tyro_errors.BadValue(argument=argument, reason="too_few_values"):
            return f"{argument.display_name()}: {counted(int(argument.lowered.nargs or 1), 'value')} needed"
        case tyro_errors.InstantiationFailure(argument=argument) if argument is not None:
            name, kind = argument.display_name(), str(argument.lowered.metavar).removeprefix("{None}|").strip("{}")
            kind = kind.replace("}|{", " or ").replace("[INT [INT ...]]", "whole numbers")  # of several kinds
            return f"{name}: '{_given(name, args)}' is not {_KINDS.get(kind, kind)}"
    return str(event)  # of a kind that no model here can bring about


def _described(argument: ArgumentDefinition) -> str:
    """`--gpus INT: GPUs in all`; an argument without a name is known by its kind and its help."""
    text = argument.field.helptext() if callable(argument.field.helptext) else argument.field.helptext
    name = "" if argument.is_positional() else f"{argument.display_name()} "
    return f"{name}{argument.lowered.metavar}: {' '.join((text or '').split()).rstrip('.')}"


def _given(option: str, args: Sequence[str]) -> str:
    """The words that `args` gives an option, the last time it is there."""
    given: list[str] = []
    inside = False
    for word in args:
        if word.startswith("--"):
            name, _, value = word.partition("=")
            inside = name.replace("_", "-") == option
            given = ([value] if value else []) if inside else given
        elif inside:
            given.append(word)
    return " ".join(given)
