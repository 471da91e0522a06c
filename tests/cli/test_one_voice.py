"""One line for each job and host, whoever is first: without waiting for each other, and without losing a line."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from vmae2_ds.console import one_voice

ROOT = Path(__file__).parents[2]
ASK = """
import sys
from vmae2_ds.console import one_voice
one_voice.FIRST_WORD_S, one_voice.LAUNCH_S = 0, float(sys.argv[3])
print(one_voice.may_say(sys.argv[1], int(sys.argv[2])))
"""


LAUNCHER, SHELL = "1e9", "0"
"""Whom the ranks take their parent for: all is of one job, or of an earlier try where it is older than they are."""


def speakers(lines: Sequence[str], folder: Path, parent: str = LAUNCHER, **env: str) -> list[bool]:
    """Which of the ranks of one job, started together, may say its line."""
    everything = {**os.environ, "TMPDIR": str(folder), **env}
    commands = [[sys.executable, "-c", ASK, line, str(rank), parent] for rank, line in enumerate(lines)]
    ranks = [
        subprocess.Popen(command, cwd=ROOT, env=everything, stdout=subprocess.PIPE, text=True) for command in commands
    ]
    return [rank.communicate()[0].strip() == "True" for rank in ranks]


def test_one_of_the_ranks_that_would_say_the_same_says_it_and_a_line_of_one_s_own_is_said(tmp_path: Path) -> None:
    said = speakers(["same", "same", "same", "my own"], tmp_path)
    assert sum(said[:3]) == 1
    assert said[3]


def test_the_same_ranks_by_hand_again_say_it_again(tmp_path: Path) -> None:
    """The same shell, the same port, the same mistake: a file of before must not silence it."""
    assert [speakers(["same"], tmp_path, SHELL) for _ in range(2)] == [[True], [True]]
    assert speakers(["same"], tmp_path, LAUNCHER) == [False]


def test_two_jobs_of_one_launcher_speak_for_themselves(tmp_path: Path) -> None:
    assert [sum(speakers(["same"] * 2, tmp_path, MASTER_PORT=port)) for port in ("29500", "29501")] == [1, 1]


def test_files_of_long_ago_are_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(one_voice.tempfile, "gettempdir", lambda: str(tmp_path))
    old = tmp_path / "vmae2_said_0123"
    old.touch()
    os.utime(old, (0, 0))
    assert one_voice.may_say("a line", 0)
    assert not old.exists()


def test_without_a_launcher_and_without_a_place_everything_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(one_voice, "FIRST_WORD_S", 0)
    monkeypatch.setattr(one_voice.tempfile, "gettempdir", lambda: "/nonexistent")
    assert all(one_voice.may_say("a line", rank) for rank in (None, None, 0, 1))
