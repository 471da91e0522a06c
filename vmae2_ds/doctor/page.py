"""The doctor's page for people, and the same as JSON for programs."""

from __future__ import annotations

import os
import shutil
import sys
import textwrap
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from typing import Any, NamedTuple

from vmae2_ds.console.progress import counted
from vmae2_ds.console.terminal import columns
from vmae2_ds.doctor.examine import PROBES, SECTIONS
from vmae2_ds.doctor.finding import ORDER, Finding, Light, worst

SCHEMA = 1
"""Number of the JSON's form: a key may be added without a new one, none is taken away or changed."""
_PAINT: dict[Light, str] = {"green": "\033[32m", "yellow": "\033[33m", "red": "\033[31;1m"}
_PLAIN = "\033[0m"
_LIGHT, _NAME = 8, 15  # columns


class Examination(NamedTuple):
    """A whole page."""

    host: str
    utc: str
    unix_s: float
    """When it was begun, by this host's clock."""
    seconds: float
    recipe: str
    words: tuple[str, ...]
    """Options of the recipe that were given."""
    ranks: int
    findings: dict[str, Finding]

    @property
    def light(self) -> Light:
        """The worst."""
        return worst(self.findings.values())


def as_json(made: Examination) -> dict[str, Any]:
    """One JSON object with stable keys."""
    section = {name: probe.section for probe in PROBES.values() for name in probe.names}
    counts = Counter(finding.light for finding in made.findings.values())
    findings = {}
    for name, finding in made.findings.items():
        about = asdict(finding)
        del about["name"]
        findings[name] = {"section": section.get(name, "")} | about
    about = {name: value for name, value in made._asdict().items() if name != "findings"}
    return {
        "schema": SCHEMA,
        **about,
        "light": made.light,
        "counts": {light: counts[light] for light in ORDER},
        "findings": findings,
    }


def page(made: Examination) -> str:
    """Lines of light, name and value, below headings; a remedy below each that is not green."""
    width, paint = columns() or shutil.get_terminal_size((160, 24)).columns, paints()
    return "\n".join(_lines(made, width, paint))


def paints() -> bool:
    """Whether standard output is a terminal that wants colour (no-color.org)."""
    is_terminal = sys.stdout is not None and sys.stdout.isatty()
    return is_terminal and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def summary(made: Examination) -> str:
    """`2 red, 1 yellow, 28 green`, without those that there are none of."""
    counts = Counter(finding.light for finding in made.findings.values())
    return ", ".join(f"{counts[light]} {light}" for light in reversed(ORDER) if counts[light])


def _lines(made: Examination, width: int, paint: bool) -> Iterator[str]:
    asked = " ".join((made.recipe, *made.words))
    head = f"vmae2 doctor on {made.host} for {asked}, {counted(made.ranks, 'rank')} here: {summary(made)}"
    yield from _wrapped(f"{head} ({made.seconds:.1f} s)", width, 0)
    for section in SECTIONS:
        names = [name for probe in PROBES.values() if probe.section == section for name in probe.names]
        there = [made.findings[name] for name in names if name in made.findings]
        if there:
            yield section
            yield from _told(there, width, paint)


def _told(findings: Iterable[Finding], width: int, paint: bool) -> Iterator[str]:
    remedy = None
    for finding in findings:
        light = f"{finding.light:<{_LIGHT}}"
        shown = f"{_PAINT[finding.light]}{light}{_PLAIN}" if paint else light
        first, *rest = _wrapped(finding.value, width, 2 + _LIGHT + _NAME) or [""]
        yield f"  {shown}{finding.name:<{_NAME}}{first.strip()}"
        yield from rest
        if finding.remedy is not None and finding.remedy != remedy:
            first, *rest = _wrapped(finding.remedy, width, 2 + _LIGHT + _NAME + 4)
            yield f"{' ' * (2 + _LIGHT + _NAME)}--> {first.strip()}"
            yield from rest
        remedy = finding.remedy


def _wrapped(text: str, width: int, indent: int) -> list[str]:
    """Lines of at most `width` columns; words of commands and paths stay whole."""
    margin = " " * indent
    return textwrap.wrap(
        text, max(width, indent + 20), initial_indent=margin, subsequent_indent=margin or "  ",
        break_long_words=False, break_on_hyphens=False,
    )  # fmt: skip
