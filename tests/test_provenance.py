"""The commit that runs and rows carry: `+` says that the code is not the commit's, and nothing else does."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from vmae2_ds.provenance import commit


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A repository of one commit with code, a page and rows."""
    files = {"package/step.py": "1", "docs/page.md": "1", "benchmarks/results/cpu/a.jsonl": "1", "zero3.json": "1"}
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    name = ("-c", "user.name=a", "-c", "user.email=a@b")
    for words in (["init", "-q"], ["add", "."], ["commit", "-q", "-m", "one"]):
        subprocess.run(["git", *name, *words], cwd=tmp_path, check=True)
    return tmp_path


@pytest.mark.parametrize("changed", ["docs/page.md", "benchmarks/results/cpu/a.jsonl"])
def test_rows_and_pages_that_grow_leave_the_commit_clean(checkout: Path, changed: str) -> None:
    before = commit(checkout / "package")
    (checkout / changed).write_text("2")
    assert commit(checkout / "package") == before
    assert before is not None
    assert not before.endswith("+")


@pytest.mark.parametrize("changed", ["package/step.py", "zero3.json"])
def test_changed_code_and_policies_are_told_wherever_they_lie(checkout: Path, changed: str) -> None:
    (checkout / changed).write_text("2")
    assert str(commit(checkout / "package")).endswith("+")


def test_outside_a_checkout_it_is_what_the_environment_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("VMAE2_COMMIT", raising=False)
    assert commit(tmp_path) is None
    monkeypatch.setenv("VMAE2_COMMIT", "0a1b2c3")
    assert commit(tmp_path) == "0a1b2c3"


def test_a_copy_inside_another_repository_is_not_of_its_commit(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("VMAE2_COMMIT", raising=False)
    (checkout / "copied").mkdir()
    (checkout / "copied" / "step.py").write_text("1")
    assert commit(checkout / "copied") is None


def test_in_a_checkout_git_knows_better_than_the_environment(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VMAE2_COMMIT", "0a1b2c3")
    assert commit(checkout / "package") not in (None, "0a1b2c3")
