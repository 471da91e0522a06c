"""A skip must not hide work: under CI=true or --strict-skips each is printed with its reason, and an unknown one fails the run.

`.ci/allowed_skips.txt` lists the reasons that are known, as regular expressions, each with why the run can do without.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

import pytest

ALLOWED = Path(__file__).parents[1] / ".ci" / "allowed_skips.txt"


class Allowed(NamedTuple):
    """A line of the list."""

    pattern: re.Pattern[str]
    why: str


def read_allowed(path: Path) -> list[Allowed]:
    """The list; raises UsageError for a line that has no pattern or no reason."""
    found = []
    for number, line in enumerate(path.read_text().splitlines(), 1):
        if line.strip() and not line.startswith("#"):
            pattern, _, why = line.partition(" -- ")
            if not pattern.strip() or not why.strip():
                raise pytest.UsageError(f"{path}:{number}: not a pattern, ' -- ' and why: {line!r}")
            found.append(Allowed(re.compile(pattern), why.strip()))
    return found


class StrictSkips:
    """Gathers skips from reports, which reach this process from its own tests and from xdist's workers alike."""

    def __init__(self, allowed: list[Allowed]) -> None:
        self._allowed = allowed
        self._skips: dict[str, set[str]] = {}  # reason -> tests, or files where the whole file was skipped

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Of a test."""
        self._add(report)

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        """Of a file, by `importorskip` at its top."""
        self._add(report)

    def _add(self, report: pytest.TestReport | pytest.CollectReport) -> None:
        if report.skipped and not hasattr(report, "wasxfail"):
            *_, reason = report.longrepr if isinstance(report.longrepr, tuple) else (str(report.longrepr),)
            self._skips.setdefault(str(reason).removeprefix("Skipped: "), set()).add(report.nodeid)

    def why(self, reason: str) -> str | None:
        """Why a run may skip for `reason`; None where it may not."""
        return next((line.why for line in self._allowed if line.pattern.fullmatch(reason)), None)

    def unknown(self) -> list[str]:
        """Reasons of skips that are not in the list."""
        return [reason for reason in self._skips if self.why(reason) is None]

    @pytest.hookimpl(trylast=True)
    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        """A run that passed has not, where it skipped what it may not."""
        if self.unknown() and session.exitstatus in (pytest.ExitCode.OK, pytest.ExitCode.NO_TESTS_COLLECTED):
            session.exitstatus = pytest.ExitCode.TESTS_FAILED

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        """Every skip, by reason."""
        write = terminalreporter.write_line
        terminalreporter.section(f"skips, as {ALLOWED.parent.name}/{ALLOWED.name} allows them")
        for reason, places in sorted(self._skips.items()):
            why = self.why(reason)
            write(
                f"{len(places)} allowed: {reason} ({why})" if why else f"{len(places)} NOT ALLOWED: {reason}",
                red=not why,
            )
            for place in sorted(places):
                write(f"  {place}")
        if not self._skips:
            write("none")
        if unknown := self.unknown():
            write(
                f"failed: {len(unknown)} reason(s) are not in {ALLOWED}: install what is lacking, or add them", red=True
            )
