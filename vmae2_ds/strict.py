"""What every configuration is made of: models that refuse what they do not know, and stretches of time."""

from __future__ import annotations

import re
from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict


class StrictModel(BaseModel):
    """Frozen, unknown keys refused, docstrings below fields kept as help texts."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, validate_default=True)


def seconds_of(span: str) -> float:
    """Seconds of a TimeSpan; raises ValueError for anything else."""
    if found := re.fullmatch(r"(\d+(?:\.\d+)?)([hms])", span):
        return float(found[1]) * {"h": 3600, "m": 60, "s": 1}[found[2]]
    if found := re.fullmatch(r"(?:(\d+)-)?(\d+):([0-5]\d):([0-5]\d)", span):
        days, hours, minutes, seconds = (int(part or 0) for part in found.groups())
        return 86400 * days + 3600 * hours + 60 * minutes + seconds
    raise ValueError(
        f"{span!r} is no time; write hours:minutes:seconds (23:50:00, 1-12:00:00 with days), or 90m, 1.5h, 600s"
    )


def _check_span(span: str) -> str:
    seconds_of(span)
    return span


TimeSpan = Annotated[str, AfterValidator(_check_span)]
"""A stretch of time, as SLURM writes it with all three parts, or as a number with its unit."""
