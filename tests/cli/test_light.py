"""What needs no torch does without it: help of every verb, and what a first look at the command line refuses."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from vmae2_ds.cli import VERBS

ROOT = Path(__file__).parents[2]


def outcomes(lines: list[list[str]]) -> dict[str, int | str]:
    """Exit code, or the heavy package that was asked for, by command line; one process for all of them."""
    command = [sys.executable, "-m", "tests.cli.without_heavy", json.dumps(lines)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    return dict(zip((" ".join(line) for line in lines), json.loads(done.stdout), strict=True))


def test_help_of_every_verb_comes_without_heavy_packages() -> None:
    found = outcomes([[], ["--help"], ["--version"], *([*verb.split(), "--help"] for verb in VERBS)])
    assert found.pop("") == 2
    assert {line: what for line, what in found.items() if what != 0} == {}
