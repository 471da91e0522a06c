"""Command lines: words into the arguments of a verb, or into a recipe; what is refused is one line with its option."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import tyro
from pydantic import BaseModel

from vmae2_ds.cli.options import check_known, in_own_words, options_of
from vmae2_ds.cli.tyro_refusals import refusing
from vmae2_ds.cli.usage import usage_of
from vmae2_ds.config.stages import STAGES
from vmae2_ds.console.spelling import did_you_mean
from vmae2_ds.console.terminal import fitted, nobody_reads, say
from vmae2_ds.errors import ConfigError, Vmae2Error
from vmae2_ds.recipes import describe_recipe

if TYPE_CHECKING:
    from vmae2_ds.config.pretrain import PretrainConfig
    from vmae2_ds.config.run import RunConfig

Asked = TypeVar("Asked", bound=BaseModel)
Result = TypeVar("Result")


def call(function: Callable[[Asked], Result], arguments: type[Asked], prog: str, args: Sequence[str]) -> Result:
    """Make a verb's arguments of the words in `args`, and call its function with them; its errors name the options it has."""
    asked = _parse(arguments, prog, args)
    try:
        return function(asked)
    except Vmae2Error as error:
        error.args = tuple(in_own_words(str(said), options_of(arguments)) for said in error.args)
        raise


def recipe(prog: str, args: Sequence[str], stages: Sequence[str], more: Sequence[str] = ()) -> tuple[str, RunConfig]:
    """The stage and the config of the recipe named first in `args`, of one of `stages`, with the options that follow it.

    `more`: options of the verb itself, which may have been meant where one is misspelt.
    """
    of_stage = {name: stage for stage in stages for name in STAGES[stage].recipe_functions()}
    if args[:1] in (["-h"], ["--help"]):
        say(fitted(_recipes_help(prog, stages)))
        raise SystemExit(0)
    if not args:
        raise ConfigError(f"name a recipe: {', '.join(of_stage)}; see {prog} --help")
    name, *words = args
    if name not in of_stage:
        raise ConfigError(_no_recipe(prog, name, args, of_stage))
    build = STAGES[of_stage[name]].recipe_functions()[name]
    config = build()
    where = f"{prog} {name}"
    if not _asks_help(words):
        check_known(words, [*options_of(type(config)), *more], where)
    description = _with_line_breaks(describe_recipe(build))
    return of_stage[name], _parse(type(config), where, words, default=config, description=description)


def ask(
    arguments: type[Asked],
    prog: str,
    args: list[str],
    stages: Sequence[str],
    named: Callable[[Asked], str] | None = None,
) -> tuple[Asked, RunConfig, str, list[str]]:
    """Split `args` into the verb's own options, the recipe, its stage, and the words from the recipe on, as typed.

    `named`: the recipe out of the verb's own options, for a verb that has it there.
    """
    own = list(options_of(arguments))
    if not _asks_help(args):
        kinds = {STAGES[stage].config for stage in stages}
        check_known(args, [*own, *(option for kind in kinds for option in options_of(kind))], prog)
    usage = prog if named else f"{prog} RECIPE"
    asked, words = _parse(arguments, prog, args, usage=usage, return_unknown_args=True)
    if named:
        words = [named(asked), *words]
    stage, config = recipe(prog, words, stages, own)
    return asked, config, stage, words


def ask_for(
    arguments: type[Asked], work: type[BaseModel], prog: str, args: Sequence[str], of_work: str
) -> tuple[Asked, list[str]]:
    """Split `args` into a verb's own options and the words of another verb, `of_work`, that it starts; both are checked."""
    if not _asks_help(args):
        check_known(args, [*options_of(arguments), *options_of(work)], prog)
    asked, words = _parse(arguments, prog, args, return_unknown_args=True)
    _parse(work, of_work, words)
    return asked, words


def pretraining(prog: str, config: RunConfig) -> PretrainConfig:
    """The config where it is one of pre-training; raises ConfigError for others."""
    from vmae2_ds.config.pretrain import PretrainConfig

    if not isinstance(config, PretrainConfig):
        raise ConfigError(f"{config.recipe} is no pre-training recipe, and {prog} takes no others")
    return config


def _no_recipe(prog: str, name: str, args: Sequence[str], of_stage: dict[str, str]) -> str:
    """Why the first word is no recipe here."""
    if name.startswith("-"):
        placed = next((word for word in args if word in of_stage), "RECIPE")
        return f"{name} stands where the recipe belongs: {prog} {placed} {name} ...; recipes: {', '.join(of_stage)}"
    for entry in STAGES.values():
        if name in entry.recipe_functions():
            kinds = ", ".join(STAGES[each].kind for each in dict.fromkeys(of_stage.values()))
            takes = " and ".join(kinds.rsplit(", ", 1))
            return f"{name} is a {entry.kind} recipe, and {prog} takes {takes} recipes: {', '.join(of_stage)}"
    guess = did_you_mean(name, of_stage)
    return f"no recipe {name!r}; {guess}recipes: {', '.join(of_stage)}; see {prog} --help"


def _recipes_help(prog: str, stages: Sequence[str]) -> str:
    """The recipes of a verb as they describe themselves."""
    lines = [f"usage: {prog} RECIPE [OPTIONS]    ({prog} RECIPE --help for its options)"]
    for stage in stages:
        for name, build in STAGES[stage].recipe_functions().items():
            lines += ["", name, *(f"  {line}".rstrip() for line in describe_recipe(build).splitlines())]
    return "\n".join(lines)


def _with_line_breaks(text: str) -> str:
    """tyro joins lines that begin with a letter; a space in front keeps them apart."""
    first, *rest = text.splitlines()
    return "\n".join([first, *(f" {line}" if line else line for line in rest)])


def _parse(model: type[BaseModel], prog: str, args: Sequence[str], *, usage: str | None = None, **more: Any) -> Any:
    """Call tyro; what it or the model refuses becomes a ConfigError that names the option as it is typed."""
    if not _asks_help(args) and not more.get("return_unknown_args"):
        check_known(args, options_of(model), prog)
    if ways := usage_of(prog.removeprefix("vmae2 ")):
        ways = tuple(f" {way}" for way in ways)  # see _with_line_breaks
        more["description"] = "\n".join([inspect.getdoc(model) or "", "", "Usage:", *ways])
    try:
        with refusing(model, args, prog):
            return tyro.cli(model, prog=usage or prog, args=list(args), **more)
    except BrokenPipeError:  # the help text had no reader any more
        nobody_reads()
        raise SystemExit(0) from None


def _asks_help(args: Sequence[str]) -> bool:
    return "-h" in args or "--help" in args
