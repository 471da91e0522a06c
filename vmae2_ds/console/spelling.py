"""What somebody may have meant: a name that ends or begins as what was typed, else the one that is spelt most alike."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def did_you_mean(asked: str, known: Iterable[str], cutoff: float = 0.6) -> str:
    """`did you mean 'x'? `, two names where both begin or end as asked; empty where nothing is near."""
    near = nearest(asked, known, cutoff)
    return f"did you mean {' or '.join(map(repr, near))}? " if near else ""


def nearest(asked: str, known: Iterable[str], cutoff: float = 0.6) -> list[str]:
    """At most two names that may have been meant, the shorter first.

    `--manifest` is `--data.manifest`, and a100 is a100-40g or a100-80g, however much a10 looks like it.
    """
    names = sorted(known, key=len)
    bare = asked.removeprefix("--")
    ends = [name for name in names if name.endswith(f".{bare}")]
    begins = [name for name in names if name.startswith((f"{asked}-", f"{asked}_", f"{asked} "))]
    return (ends or begins or difflib.get_close_matches(asked, names, n=1, cutoff=cutoff))[:2]
