"""Command lines of ours up to where the work would begin: the real verbs, which stop when their words are understood."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

from vmae2_ds.cli import ava, parse, verbs


class Understood(Exception):
    """Raised in the place of the work."""


def understand(words: list[str]) -> None:
    """Run a command line up to its work; raises what is wrong with it."""
    verb = next(name for name in (" ".join(words[:2]), words[0]) if name in verbs.VERBS)
    with no_work():
        try:
            verbs.VERBS[verb](words[len(verb.split()) :])
        except Understood:
            return
    raise AssertionError(f"{verb} did not read its words by cli/parse.py")


@contextmanager
def no_work() -> Iterator[None]:
    """Every door through which a verb reads its words ends with Understood."""

    def call(function: object, arguments: type[Any], prog: str, args: list[str]) -> None:
        parse.call(stopping, arguments, prog, args)

    doors: dict[str, Any] = {name: _stopping_after(getattr(parse, name)) for name in ("ask", "ask_for", "recipe")}
    with patch.multiple(verbs, **doors, call=call), patch.object(ava, "call", call):
        yield


def stopping(asked: object) -> None:
    """What a verb would call with its arguments."""
    raise Understood


def _stopping_after(door: Callable[..., Any]) -> Callable[..., Any]:
    def through(*args: Any, **more: Any) -> None:
        door(*args, **more)
        raise Understood

    return through
