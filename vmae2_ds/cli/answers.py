"""How a verb's answer is printed: once, whatever the number of ranks; as text, or as JSON."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from typing import Any

from vmae2_ds.console.terminal import fitted, say

Verb = Callable[[list[str]], None]
"""What is done with the words behind a verb."""


def say_once(text: str) -> None:
    """Print what all ranks have come to, on the first alone; they have met, so that RANK is set."""
    if os.environ.get("RANK", "0") == "0":
        say(text)


def say_of_part(result: object) -> None:
    """Print what a data tool has come to; of the ranks of a launcher the first has it, and the others have nothing to add."""
    from vmae2_ds.data.tools.job_folder import PartDone

    if not isinstance(result, PartDone) or result.part.kind == "part":
        say(str(result))


def show_answer(result: Mapping[str, Any] | str, *, fits: bool = False) -> None:
    """Print a calculator's answer: JSON, or text, which `fits` breaks at the terminal's width."""
    if isinstance(result, str):
        return say(fitted(result) if fits else result)
    say(json.dumps(result, indent=2))
