"""The text of docs/CLI.md: every verb with its options, the settings of recipes, benchmarks and make targets."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import re
import typing
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

from pydantic import BaseModel

from benchmarks import __main__ as benchmarks
from tests.cli.lines import MODELS
from tests.docs_figures import ROOT
from tests.pages.options import NEEDED, Option, escaped, kind_of, options_in, shown
from tests.pages.text import code, filled, head, options_table, page_of, paragraphs, table
from vmae2_ds.cli.main import first_line
from vmae2_ds.cli.usage import EXIT_CODES, GROUPS, usage_of
from vmae2_ds.cli.verbs import VERBS
from vmae2_ds.config.stages import STAGES
from vmae2_ds.launch.slurm_array import ArrayArguments

ABOUT = """Every verb of `vmae2` with its options and their defaults; then the [settings of recipes](#settings-of-recipes),
which the trainings take; then `python -m benchmarks` and `make`. To find an option, search the page for it. `vmae2 VERB --help`
says the same in the terminal. The recipes have a page of their own: [RECIPES.md](RECIPES.md)."""
SETTINGS = """`vmae2 pretrain RECIPE --section.key VALUE` changes one setting of a recipe, and so do the other trainings, and
`plan`, `tune`, `doctor` and `launch`. A recipe's own values come before the defaults below: [RECIPES.md](RECIPES.md) has the
main ones, `vmae2 pretrain RECIPE --help` all of them. "all" in the second column: every training has the setting. Where
defaults differ, the trainings stand behind theirs."""
CODES = """What a command ends with. What you can fix is told in one line, which says what is wrong, where, and what to do.
After 75, 76 and 77 there is a checkpoint; after 75 and 78 start the same command again ([RELIABILITY.md](RELIABILITY.md))."""


FURTHER: dict[str, tuple[str, type[BaseModel]]] = {"launch slurm": ("vmae2 launch slurm data TOOL", ArrayArguments)}
"""Verbs that are called in another way too, with other options."""


def cli_page() -> str:
    """The page."""
    return page_of(
        [
            *head("Command line", ABOUT),
            *index(),
            "## Exit codes",
            filled(CODES),
            table(("code", "means"), ((str(number), what) for number, what in EXIT_CODES.items())),
            *(part for heading, verbs in GROUPS.items() for part in group(heading, verbs)),
            "## Settings of recipes",
            filled(SETTINGS),
            *settings(),
            "## python -m benchmarks",
            *measuring(),
            "## make",
            table(("target", "does"), make_targets()),
        ]
    )


def index() -> Iterator[str]:
    """All verbs with what they do, linked."""
    for heading, verbs in GROUPS.items():
        rows = [(f"[{verb}](#vmae2-{verb.replace(' ', '-')})", escaped(first_line(VERBS[verb]))) for verb in verbs]
        yield table((heading, "does"), rows)


def group(heading: str, verbs: Iterable[str]) -> Iterator[str]:
    """The verbs under a heading, each in full."""
    yield f"## {heading}"
    for verb in verbs:
        told = without_commands(inspect.getdoc(MODELS[verb]) or "") if verb in MODELS else VERBS[verb].__doc__ or ""
        yield f"### vmae2 {verb}"
        yield from paragraphs(told)
        yield code(usage_of(verb))
        yield options_table(options_in(MODELS[verb])) if verb in MODELS else of_a_stage(verb)
        if verb in FURTHER:
            title, model = FURTHER[verb]
            yield f"#### {title}"
            yield from paragraphs(without_commands(inspect.getdoc(model) or ""))
            yield options_table(options_in(model))


def without_commands(doc: str) -> str:
    """A docstring without its lines for the terminal: examples, and where recipes are listed."""
    kept = [part for part in doc.split("\n\n") if not part.startswith(("Example:", "`vmae2 pretrain --help`"))]
    return "\n\n".join(kept)


def of_a_stage(verb: str) -> str:
    """What a training takes: a recipe, and its settings by section."""
    stage = verb if verb in STAGES else "distil"
    sections = dict.fromkeys(section_of(option.name) for option in options_in(STAGES[stage].config))
    links = ", ".join(f"[{name}](#settings-{name})" for name in sections)
    return filled(f"Recipes: [RECIPES.md](RECIPES.md#vmae2-{stage}). Settings: {links}.")


class Setting(NamedTuple):
    """An option of recipes, where it means the same."""

    takes: str
    help: str
    default_of: dict[str, str]
    """Default by stage."""


def settings() -> Iterator[str]:
    """The options of all recipes by section, each once."""
    found: dict[str, dict[str, list[Setting]]] = {}
    for stage, entry in STAGES.items():
        for option in options_in(entry.config):
            ways = found.setdefault(section_of(option.name), {}).setdefault(option.name, [])
            way = next((each for each in ways if (each.takes, each.help) == (option.takes, option.help)), None)
            if way is None:
                ways.append(way := Setting(option.takes, option.help, {}))
            way.default_of[stage] = "the recipe's" if option.default == NEEDED else option.default
    for section, options in found.items():
        yield f"### Settings: {section}"
        rows = [
            (f"`{name}`", stages_of(way), way.takes, defaults_of(way), way.help)
            for name, ways in options.items()
            for way in ways
        ]
        yield table(("option", "of", "takes", "default", "what it does"), rows)


def section_of(option: str) -> str:
    """`--data.root` -> data; the teacher's options stand without their section."""
    name, dot, _ = option.removeprefix("--").partition(".")
    return name if dot else "distil"


def stages_of(setting: Setting) -> str:
    """The trainings that have a setting."""
    return "all" if set(setting.default_of) == set(STAGES) else ", ".join(setting.default_of)


def defaults_of(setting: Setting) -> str:
    """The default, or each with its trainings."""
    stages: dict[str, list[str]] = {}
    for stage, default in setting.default_of.items():
        stages.setdefault(default, []).append(stage)
    if len(stages) == 1:
        return next(iter(stages))
    return "; ".join(f"{default or 'none'} ({', '.join(names)})" for default, names in stages.items())


def measuring() -> Iterator[str]:
    """The verbs of `python -m benchmarks`."""
    yield filled(escaped("What they measure and how to read it: ") + "[BENCHMARKS.md](BENCHMARKS.md).")
    for each in typing.get_args(benchmarks.COMMANDS):
        made, subcommand = typing.get_args(each)[:2]
        yield f"### python -m benchmarks {subcommand.name}"
        yield from paragraphs(inspect.getdoc(made) or "")
        if options := list(options_of_dataclass(made)):
            yield options_table(options)


def options_of_dataclass(made: Any) -> Iterator[Option]:
    """The options of a verb of benchmarks: fields of a dataclass, and those of models in it."""
    hints, told = typing.get_type_hints(made, include_extras=True), docs_of_fields(made)
    for field in dataclasses.fields(made):
        hint, *about = typing.get_args(hints[field.name]) or [hints[field.name]]
        if isinstance(hint, type) and issubclass(hint, BaseModel):
            yield from options_in(hint)
            continue
        is_positional = "Positional" in repr(about)
        hint = hint if about and typing.get_origin(hints[field.name]) is typing.Annotated else hints[field.name]
        name = field.name.upper() if is_positional else f"--{field.name.replace('_', '-')}"
        default = NEEDED if field.default is dataclasses.MISSING else shown(field.default)
        yield Option(name, kind_of(hint), default, escaped(told.get(field.name, "")))


def docs_of_fields(made: type) -> dict[str, str]:
    """The text below each field of a class."""
    (node,) = ast.parse(inspect.getsource(made)).body
    assert isinstance(node, ast.ClassDef)
    pairs = zip(node.body, node.body[1:], strict=False)
    return {
        field.target.id: " ".join(str(below.value.value).split())
        for field, below in pairs
        if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name)
        if isinstance(below, ast.Expr) and isinstance(below.value, ast.Constant)
    }


def make_targets() -> Iterator[tuple[str, str]]:
    """The targets of the Makefile that `make help` lists."""
    for target, does in re.findall(r"^([a-z_]+):.*?## (.+)$", (ROOT / "Makefile").read_text(), re.MULTILINE):
        yield f"`make {target}`", escaped(does)
