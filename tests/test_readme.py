"""What the README quotes of `plan` and `tune` is what they answer."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.cli.lines import answer
from tests.docs_figures import ROOT

README = (ROOT / "README.md").read_text()
PLAN = "vmae2 plan vit_g_pretrain_hybrid --gpus 64 --gpu a100-80g"
TUNE = "vmae2 tune vit_g_pretrain_hybrid --gpus 8 --gpu rtx-4090"


def printed(command: str, capsys: pytest.CaptureFixture[str]) -> str:
    """The words that a command of the README prints; where its lines are broken depends on the terminal."""
    assert f"\n{command} " in README
    code, out, err = answer(command.split()[1:], capsys)
    assert (code, err) == (0, "")
    return " ".join(out.split())


def not_printed(quoted: str, words: str) -> list[str]:
    """The quoted lines that were not printed, each behind the one before it."""
    missing = []
    for line in quoted.strip().splitlines():
        _, found, rest = words.partition(" ".join(line.split()))
        if found:
            words = rest
        else:
            missing.append(line)
    return missing


def test_the_lines_of_plan_are_what_it_prints(capsys: pytest.CaptureFixture[str]) -> None:
    quoted = README.partition("`plan` prints a page")[2].split("```")[1]
    assert len(quoted.strip().splitlines()) > 5
    assert not_printed(quoted, printed(PLAN, capsys)) == []


def test_what_is_told_of_tune_is_what_it_answers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)  # it writes ds_config.json
    told_by_it = printed(TUNE, capsys)
    told = README.partition("`tune` finds")[2].partition(":")[2].partition("\n\n")[0]
    assert "48.7 days" in told
    assert "48.7 days" in told_by_it
    assert "1,944 settings" in " ".join(told.split())
    assert "(1944 searched" in told_by_it
    assert "taken: stage 1 + offload of states" in told_by_it


def test_a_line_that_is_not_printed_is_found() -> None:
    words = "a 1 b 2 c 3"
    assert not_printed("a   1\n c 3", words) == []
    assert not_printed("a 1\nb 3", words) == ["b 3"]
    assert not_printed("c 3\na 1", words) == ["a 1"]
