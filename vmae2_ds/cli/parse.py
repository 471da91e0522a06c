"""Command lines: words into the arguments of a function, a model or a recipe; what is refused is one line with its option."""

from __future__ import annotations

import contextlib
import functools
import io
import os
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

import tyro
from pydantic import BaseModel, ValidationError

from vmae2_ds.cli.options import Subject, check_known, in_own_words, model_at, name_behind, options_of
from vmae2_ds.config.pretrain import PretrainConfig
from vmae2_ds.config.refusals import refused
from vmae2_ds.config.run import RunConfig
from vmae2_ds.console.progress import counted
from vmae2_ds.console.spelling import did_you_mean
from vmae2_ds.console.terminal import fitted, nobody_reads, say
from vmae2_ds.errors import ConfigError, Vmae2Error
from vmae2_ds.recipes.distil import DISTIL_RECIPES
from vmae2_ds.recipes.finetune import FINETUNE_RECIPES
from vmae2_ds.recipes.pretrain import RECIPES, describe_recipe

Asked = TypeVar("Asked", bound=BaseModel)
RecipeFn = Callable[[], RunConfig]

STAGES: dict[str, dict[str, RecipeFn]] = {
    "pretrain": {**RECIPES},
    "finetune": {**FINETUNE_RECIPES},
    "distil": {**DISTIL_RECIPES},
}
"""Recipes by the verb that trains them; every verb that takes a recipe looks here."""
_KINDS = {"pretrain": "pre-training", "finetune": "fine-tuning", "distil": "distillation"}


def call(function: Callable[..., Any], prog: str, args: list[str]) -> Any:
    """Parse `args` by the function's signature and docstring, then call it; its errors name the options that it has."""

    @functools.wraps(function)
    def remember(*values: Any, **named: Any) -> Callable[[], Any]:
        return functools.partial(function, *values, **named)

    work = _parse(remember, function, prog, args)
    try:
        return work()
    except Vmae2Error as error:
        error.args = tuple(in_own_words(str(said), options_of(function)) for said in error.args)
        raise


def recipe(prog: str, args: Sequence[str], stages: Sequence[str], more: Sequence[str] = ()) -> tuple[str, RunConfig]:
    """The stage and the config of the recipe named first in `args`, of one of `stages`, with the options that follow it.

    `more`: options of the verb itself, which may have been meant where one is misspelt.
    """
    of_stage = {name: stage for stage in stages for name in STAGES[stage]}
    if args[:1] in (["-h"], ["--help"]):
        say(fitted(_recipes_help(prog, stages)))
        raise SystemExit(0)
    if not args:
        raise ConfigError(f"name a recipe: {', '.join(of_stage)}; see {prog} --help")
    name, *words = args
    if name not in of_stage:
        raise ConfigError(_no_recipe(prog, name, args, of_stage))
    build = STAGES[of_stage[name]][name]
    config = build()
    where = f"{prog} {name}"
    if not _asks_help(words):
        check_known(words, [*options_of(type(config)), *more], where)
    description = _with_line_breaks(describe_recipe(build))
    return of_stage[name], _parse(type(config), type(config), where, words, default=config, description=description)


def ask(
    arguments: type[Asked], prog: str, args: list[str], stages: Sequence[str]
) -> tuple[Asked, RunConfig, str, list[str]]:
    """Split `args` into the verb's own options, the recipe, its stage, and the words from the recipe on, as typed."""
    own = list(options_of(arguments))
    if not _asks_help(args):
        kinds = {type(build()) for stage in stages for build in STAGES[stage].values()}
        check_known(args, [*own, *(option for kind in kinds for option in options_of(kind))], prog)
    asked, words = _parse(arguments, arguments, prog, args, usage=f"{prog} RECIPE", return_unknown_args=True)
    stage, config = recipe(prog, words, stages, own)
    return asked, config, stage, words


def pretraining(prog: str, config: RunConfig) -> PretrainConfig:
    """The config where it is one of pre-training; raises ConfigError for others."""
    if not isinstance(config, PretrainConfig):
        raise ConfigError(f"{config.recipe} is no pre-training recipe, and {prog} takes no others")
    return config


def _no_recipe(prog: str, name: str, args: Sequence[str], of_stage: dict[str, str]) -> str:
    """Why the first word is no recipe here."""
    if name.startswith("-"):
        placed = next((word for word in args if word in of_stage), "RECIPE")
        return f"{name} stands where the recipe belongs: {prog} {placed} {name} ...; recipes: {', '.join(of_stage)}"
    for stage, recipes in STAGES.items():
        if name in recipes:
            takes = " and ".join(_KINDS[each] for each in dict.fromkeys(of_stage.values()))
            return f"{name} is a {_KINDS[stage]} recipe, and {prog} takes {takes} recipes: {', '.join(of_stage)}"
    guess = did_you_mean(name, of_stage)
    return f"no recipe {name!r}; {guess + ' ' if guess else ''}recipes: {', '.join(of_stage)}; see {prog} --help"


def _recipes_help(prog: str, stages: Sequence[str]) -> str:
    """The recipes of a verb as they describe themselves."""
    lines = [f"usage: {prog} RECIPE [OPTIONS]    ({prog} RECIPE --help for its options)"]
    for stage in stages:
        for name, build in STAGES[stage].items():
            lines += ["", name, *(f"  {line}".rstrip() for line in describe_recipe(build).splitlines())]
    return "\n".join(lines)


def _with_line_breaks(text: str) -> str:
    """tyro joins lines that begin with a letter; a space in front keeps them apart."""
    first, *rest = text.splitlines()
    return "\n".join([first, *(f" {line}" if line else line for line in rest)])


def _parse(
    subject: Any, named: Subject, prog: str, args: Sequence[str], *, usage: str | None = None, **more: Any
) -> Any:
    """Call tyro; what it refuses becomes a ConfigError that names the option of `named` as it is typed."""
    asks_help = _asks_help(args)
    if not asks_help and not more.get("return_unknown_args"):
        check_known(args, options_of(named), prog)
    box = io.StringIO()
    try:
        with contextlib.redirect_stderr(box), contextlib.nullcontext() if asks_help else _wide():
            return tyro.cli(subject, prog=usage or prog, args=list(args), **more)
    except BrokenPipeError:  # the help text had no reader any more
        nobody_reads()
        raise SystemExit(0) from None
    except SystemExit as stop:
        if stop.code in (None, 0):
            raise
        raise ConfigError(f"{_refusal(stop, named) or _in_the_box(box.getvalue())}; see {prog} --help") from None


def _asks_help(args: Sequence[str]) -> bool:
    return "-h" in args or "--help" in args


@contextlib.contextmanager
def _wide() -> Iterator[None]:
    """tyro breaks lines, and options, at the terminal's width; ours are one line."""
    before = os.environ.get("COLUMNS")
    os.environ["COLUMNS"] = "4000"
    try:
        yield
    finally:
        if before is None:
            del os.environ["COLUMNS"]
        else:
            os.environ["COLUMNS"] = before


def _refusal(stop: BaseException, named: Subject) -> str | None:
    """What a model said about its values, where that is why tyro gave up."""
    section: tuple[str, ...] = ()
    cause: BaseException | None = stop
    while cause is not None and not isinstance(cause, ValidationError):
        if isinstance(where := getattr(cause, "arg", None), str):  # the section, of tyro's own error
            section = tuple(where.replace("-", "_").split("."))
        cause = cause.__context__
    if cause is None:
        return None
    model = model_at(named, section)
    if model is None:
        return None
    options = options_of(named)
    return refused(cause, lambda path: name_behind(options, (*section, *path)), model)


def _in_the_box(box: str) -> str:
    """The words of tyro's box, without its frame, its title and what helps a reader of a whole screen.

    Terminals that have no such characters get a title, rules of - and no frame; others get colours.
    """
    lines = [re.sub(r"\x1b\[[0-9;]*m", "", line) for line in box.splitlines()]
    if lines and not lines[0].lstrip().startswith("╭"):
        del lines[0]
    inside = [line.strip("│ ") for line in lines if not re.match(r"[╭╰]|[│ ]*[-─]+[│ ]*$", line)]
    words = re.sub(r"\s+", " ", " ".join(inside)).strip()
    words = re.sub(r"\s*For full helptext, (see|run):? .*$", "", words)
    words = re.sub(r" Argument helptext: .*$", "", words)
    words = re.sub(r"(?<=.) Unrecognized options: .*$", "", words)  # a recipe; `check_known` has seen the others
    words = re.sub(r"Missing from [^:]+: ", "missing: ", words)
    words = re.sub(r"^Error parsing ", "", words.replace(" (required)", "")).rstrip(".")
    words = re.sub(r"invalid literal for int\(\) with base 10: (.*)$", r"\1 is not a whole number", words)
    words = re.sub(r"could not convert string to float: (.*)$", r"\1 is not a number", words)
    if lacking := re.fullmatch(r"Missing value for argument '(\S+)'. Expected (\d+) values", words):
        return f"{lacking[1]}: {counted(int(lacking[2]), 'value')} needed"
    if choice := re.fullmatch(r"invalid choice '(.*)' for argument '(\S+)'. Expected one of \((.*)\)", words):
        asked, option, choices = choice[1], choice[2], re.findall(r"'([^']*)'", choice[3])
        guess = did_you_mean(asked, choices)
        return f"{option} {asked}: {guess + ' ' if guess else ''}one of {', '.join(choices)}"
    return words
