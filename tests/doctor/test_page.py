"""The page: as wide as the terminal, colours on terminals alone, a remedy below each line that is not green."""

from __future__ import annotations

import io
import json
import re
import sys

import pytest

from vmae2_ds.doctor.examine import PROBES
from vmae2_ds.doctor.finding import Finding, green, red, worst, yellow
from vmae2_ds.doctor.page import Examination, as_json, page

LONG = "a long story of what was found here " * 6
FINDINGS = [green("torch", LONG), yellow("device", "none", "take another host"), red("shm", LONG, f"do this: {LONG}")]


def made(findings: list[Finding]) -> Examination:
    by_name = {finding.name: finding for finding in findings}
    return Examination("h", "2026-11-28T12:00:00Z", 1.5, 2.25, "vit_b", ("--data.workers", "2"), 8, by_name)


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize("width", [80, 120])
def test_no_line_is_wider_than_the_terminal(width: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    lines = page(made(FINDINGS)).splitlines()
    assert max(map(len, lines)) <= width
    assert "8 ranks here: 1 red, 1 yellow, 1 green" in " ".join(" ".join(lines[:2]).split())
    assert " ".join(" ".join(lines).split()).count(LONG.strip()) == 3  # whole, in spite of the breaks


def test_each_line_that_is_not_green_has_its_remedy_and_a_remedy_is_said_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "300")
    twice = [red("torch", "broken", "mend it"), yellow("device", "not known", "mend it"), green("shm", "all")]
    said = page(made(twice))
    assert said.count("--> mend it") == 1
    assert re.search(r"red +torch +broken\n +--> mend it\n +yellow +device +not known", said)


def test_colours_are_for_terminals_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    assert "\033" not in page(made(FINDINGS))
    monkeypatch.setattr(sys, "stdout", Terminal())
    assert page(made(FINDINGS)).count("\033[0m") == len(FINDINGS)
    monkeypatch.setenv("NO_COLOR", "1")
    assert "\033" not in page(made(FINDINGS))


def test_the_json_is_plain_and_counts() -> None:
    told = json.loads(json.dumps(as_json(made(FINDINGS))))
    assert (told["light"], told["counts"]) == ("red", {"green": 1, "yellow": 1, "red": 1})
    assert told["findings"]["shm"]["section"] == PROBES["shm"].section
    assert worst([]) == "green"


def test_a_line_that_is_not_green_needs_a_remedy() -> None:
    with pytest.raises(AssertionError, match="remedy"):
        Finding("torch", "broken", "red")
