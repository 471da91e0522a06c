"""How the calculators print tables in Markdown, times, and numbers with their prefixes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence


def markdown(header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A table in Markdown."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(str(cell) for cell in line) + " |" for line in lines)


def duration(seconds: float) -> str:
    """A time as people say it: 0.8 ms, 3.2 s, 41 min, 15.9 h, 50 days."""
    for unit, size, below in (("ms", 1e-3, 1), ("s", 1, 120), ("min", 60, 7200), ("h", 3600, 1000 * 3600)):
        if seconds < below:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds / 86400:.3g} days"


def hours(value: float) -> str:
    """Hours that are paid for, or clips a second: whole ones, and parts of a few."""
    return f"{value:,.0f}" if value >= 10 else f"{value:.2g}"


def scaled(value: float, unit: str = "") -> str:
    """A number with its decimal prefix: 263.9 G."""
    for prefix, size in (("E", 1e18), ("P", 1e15), ("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if abs(value) >= size:
            return f"{value / size:.4g} {prefix}{unit}"
    return f"{value:.4g} {unit}".rstrip()
