"""What configurations and verbs' arguments are made of: models that refuse what they do not know, bounds, stretches of time."""

from __future__ import annotations

import os
import re
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

MANY = 10**9
"""More of anything than there can be: what is above is a slip of the hand, and overflows somewhere later."""
LONG_S = 1e8
"""Three years: the longest wait that anybody can mean, and below what operating systems' clocks and sockets take."""

Count = Annotated[int, Field(ge=1, le=MANY)]
"""How many, at least one."""
Whole = Annotated[int, Field(ge=0, le=MANY)]
"""How many, perhaps none."""
Seed = Annotated[int, Field(ge=0, le=2**63 - 1)]
"""A seed of random numbers; torch takes 64 bits with a sign."""
Amount = Annotated[float, Field(ge=0, le=MANY)]
"""A size or a weight, perhaps none."""
Size = Annotated[float, Field(gt=0, le=MANY)]
"""A size or a weight, above none."""
Part = Annotated[float, Field(ge=0, le=1)]
"""A share: none to all."""
PartBelow1 = Annotated[float, Field(ge=0, lt=1)]
"""A share that leaves something."""


class StrictModel(BaseModel):
    """Base of all configs: frozen, unknown keys refused, no infinity and no nan; a field's docstring is its help text."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", use_attribute_docstrings=True, validate_default=True, allow_inf_nan=False
    )

    @classmethod
    def __pydantic_init_subclass__(cls, **kwargs: Any) -> None:
        """Puts each help text on one line: the command line would print the source's line breaks among its own."""
        for field in cls.model_fields.values():
            if field.description:
                field.description = " ".join(field.description.split())


def switched_off_by(how: str) -> dict[str, Any]:
    """`json_schema_extra` of a field that people set to inf to switch something off: what they should give instead."""
    return {"off": how}


def seconds_of(span: str) -> float:
    """Seconds of a TimeSpan; raises ValueError for anything else, and for more than LONG_S."""
    seconds = _seconds_of(span)
    if seconds > LONG_S:
        raise ValueError(f"{span!r} is longer than {LONG_S / 86400:.0f} days; leave it out for no limit")
    return seconds


def _seconds_of(span: str) -> float:
    if found := re.fullmatch(r"(\d+(?:\.\d+)?)([hms])", span):
        return float(found[1]) * {"h": 3600, "m": 60, "s": 1}[found[2]]
    if found := re.fullmatch(r"(?:(\d+)-)?(\d+):([0-5]\d):([0-5]\d)", span):
        days, hours, minutes, seconds = (float(part or 0) for part in found.groups())
        return 86400 * days + 3600 * hours + 60 * minutes + seconds
    raise ValueError(
        f"{span!r} is no time; write hours:minutes:seconds (23:50:00, 1-12:00:00 with days), or 90m, 1.5h, 600s"
    )


def _check_span(span: str) -> str:
    seconds_of(span)
    return span


TimeSpan = Annotated[str, AfterValidator(_check_span)]
"""A stretch of time, as SLURM writes it with all three parts, or as a number with its unit."""


PartOf = Annotated[str, Field(max_length=20)]
"""A part of an array job, i/N; `data/tools/parts.py:part_here` says what it may be."""
ClipLength = Annotated[int, Field(ge=1, le=100_000)]
"""Frames of a clip, or steps between them."""
Edge = Annotated[int, Field(ge=1, le=2**14)]
"""Pixels along one side of a clip or a cube."""
Views = Annotated[int, Field(ge=1, le=1024)]
"""Clips of one video, or crops of one clip."""
Workers = Annotated[int, Field(ge=0, le=1024)]
"""Loader processes of one rank."""
Machines = Annotated[int, Field(ge=1, le=10**6)]
"""GPUs, or the hosts that they are in."""
AtOnce = Annotated[int, Field(ge=1, le=max(32, 4 * (os.cpu_count() or 1)))]
"""Processes or threads of one machine, which only loses with more of them."""
ReadLimit = Annotated[float, Field(ge=0.1, le=86400)]
"""Seconds that one read may take: enough for one, and no more than a day."""
