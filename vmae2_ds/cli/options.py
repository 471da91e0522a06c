"""What the options of a verb are called: read off its model's fields, as tyro spells them."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Any, TypeGuard

import tyro
from pydantic import BaseModel

from vmae2_ds.console.spelling import did_you_mean
from vmae2_ds.errors import ConfigError

CALLED_ELSEWHERE = {
    **dict.fromkeys(("--videos", "--data", "--data-path", "--dataset", "--csv", "--list"), "manifest"),
    **dict.fromkeys(("--lr", "--learning-rate"), "base-lr"),
    **dict.fromkeys(("--batch-size", "--batch"), "global-batch"),
    **dict.fromkeys(("--output", "--output-dir", "--save-dir", "--run-dir"), "run"),
    **dict.fromkeys(("--finetune", "--pretrained", "--checkpoint", "--ckpt", "--weights"), "init"),
    **dict.fromkeys(("--mask-ratio", "--masking-ratio"), "encoder-ratio"),
    **dict.fromkeys(("--decoder-mask-ratio",), "decoder-ratio"),
    **dict.fromkeys(("--steps", "--iters"), "max-steps"),
    **dict.fromkeys(("--deepspeed-config", "--deepspeed"), "ds-config"),
    **dict.fromkeys(("--input-size", "--image-size"), "size"),
}
"""What other projects call a setting -> the last part of its name here."""


def options_of(model: type[BaseModel]) -> dict[str, tuple[str, ...]]:
    """Option -> the path of names behind it: `--train.epochs` -> ("train", "epochs"). A switch has two options."""
    return dict(_walk(model, (), ""))


def _walk(model: type[BaseModel], path: tuple[str, ...], prefix: str) -> Iterable[tuple[str, tuple[str, ...]]]:
    for name, field in model.model_fields.items():
        if tyro.conf.Suppress in field.metadata or tyro.conf.Positional in field.metadata:
            continue
        here, kind = (*path, name), field.annotation
        said = next((each for each in field.metadata if hasattr(each, "prefix_name")), None)
        own = (getattr(said, "name", None) or name).replace("_", "-")
        before = "" if getattr(said, "prefix_name", True) is False else prefix
        if _is_model(kind):
            yield from _walk(kind, here, f"{before}{own}.")
            continue
        yield f"--{before}{own}", here
        if kind is bool:
            yield f"--{before}no-{own}", here


def _is_model(kind: Any) -> TypeGuard[type[BaseModel]]:
    return isinstance(kind, type) and issubclass(kind, BaseModel)


def model_at(model: type[BaseModel], path: Sequence[str]) -> type[BaseModel] | None:
    """The model that lies at a path of names in a model's fields."""
    here: Any = model
    for name in path:
        here = here.model_fields[name].annotation if _is_model(here) and name in here.model_fields else None
    return here if _is_model(here) else None


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
            meant = CALLED_ELSEWHERE.get(asked)
            guess = (meant and did_you_mean(f"--{meant}", known, cutoff=1.0)) or did_you_mean(asked, known)
            raise ConfigError(
                f"no option {word.partition('=')[0]}; {guess + 'see ' if guess else 'all are in '}{where} --help"
            )


def in_own_words(message: str, options: Iterable[str]) -> str:
    """`--data.NAME`, as the library calls a setting in its messages, by the name that a verb without `data.` has for it."""
    known = set(options)

    def own(found: re.Match[str]) -> str:
        names = (found[1], found[1].removeprefix("read-"))  # data check calls data.read_timeout_s --timeout-s
        return next((f"--{name}" for name in names if f"--{name}" in known), found[0])

    return re.sub(r"--data\.([a-z]+(?:-[a-z]+)*)", own, message)
