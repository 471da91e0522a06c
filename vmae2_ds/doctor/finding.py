"""A line of the doctor's page: what was looked at, what it is, how good that is, and what to do about it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Literal

Light = Literal["green", "yellow", "red"]
ORDER: tuple[Light, ...] = ("green", "yellow", "red")
"""The best first. yellow: a run starts, and is slower, or less sure, than it could be; red: a run of the recipe fails here."""


@dataclass(frozen=True)
class Finding:
    """What one look found."""

    name: str
    """What was looked at: the finding's key in the JSON, which stays."""
    value: str
    """What it is, in words."""
    light: Light = "green"
    remedy: str | None = None
    """A command or a setting that helps; None beside green."""
    figures: dict[str, Any] = field(default_factory=dict)
    """The same for programs: plain JSON, units in the names."""

    def __post_init__(self) -> None:
        assert (self.remedy is None) == (self.light == "green"), f"{self.name}: a remedy beside yellow and red alone"


def green(name: str, value: str, /, **figures: Any) -> Finding:
    """Nothing to do."""
    return Finding(name, value, "green", None, figures)


def yellow(name: str, value: str, remedy: str, /, **figures: Any) -> Finding:
    """A run starts, but something is worth doing."""
    return Finding(name, value, "yellow", remedy, figures)


def red(name: str, value: str, remedy: str, /, **figures: Any) -> Finding:
    """A run of the recipe fails here."""
    return Finding(name, value, "red", remedy, figures)


def worst(findings: Iterable[Finding]) -> Light:
    """The light of all together."""
    return max((finding.light for finding in findings), key=ORDER.index, default="green")


def gib(size: float) -> str:
    """Bytes as people say them: 64 MiB, 4.9 GiB."""
    return f"{size / 2**30:.1f} GiB" if size >= 2**30 else f"{size / 2**20:.0f} MiB"
