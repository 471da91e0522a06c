"""Every command of the pages' shell blocks is one that its program understands."""

from __future__ import annotations

import re

import pytest
import tyro

from benchmarks import __main__ as benchmarks
from tests.docs_figures import ROOT
from tests.pages.commands import Command, all_commands, commands_of
from tests.pages.parsing import understand
from vmae2_ds.errors import ConfigError

ALL = all_commands()
OURS = [command for command in ALL if command.ours]
OTHERS = {
    "python3 -m pip install --no-index": "installs wheels that the reader has copied",
    "pip install 'vmae2_ds[": "installs packages",
    "cat > cost.py": "a measurement of readers, on videos of the reader's",
    "OMP_NUM_THREADS=1 .venv/bin/python cost.py": "a measurement of readers, on videos of the reader's",
    "python -m benchmarks.data_parts": "minutes, tests/benchmarks/test_data_parts.py runs its parts",
    "python - <<'PY' > desk.csv": "lists sets that are not part of the project",
    'python -c "import json; rows': "tests/test_your_videos.py runs it",
}
"""How commands of other programs begin, and why nobody runs them here."""


@pytest.mark.parametrize("command", OURS, ids=lambda command: command.place)
def test_a_command_of_ours_is_understood(command: Command) -> None:
    """By the verb itself, up to where the work begins: every option is there, every value may be, nothing is missing."""
    assert command.ours is not None
    understand(command.ours)


@pytest.mark.parametrize("command", [each for each in ALL if each.benchmark], ids=lambda command: command.place)
def test_a_command_of_benchmarks_is_understood(command: Command) -> None:
    asked = tyro.cli(benchmarks.COMMANDS, args=command.benchmark)  # type: ignore[call-overload]
    if isinstance(asked, benchmarks.Run):
        benchmarks.names_of(asked)


def test_every_other_command_is_a_target_of_make_or_an_exception_by_name() -> None:
    others = [command for command in ALL if not (command.ours or command.benchmark)]
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    begun = {start: [each for each in others if each.text.startswith(start)] for start in OTHERS}
    assert [start for start, found in begun.items() if not found] == [], "no page has these any more: leave them out"
    left = [each for each in others if not any(each in found for found in begun.values())]
    assert [each.place for each in left if each.text.removeprefix("make ").split()[0] not in targets] == []


def test_a_hostfile_that_a_command_names_is_there() -> None:
    named = {file for command in ALL for file in re.findall(r"hostfiles/\w+", command.text)}
    assert named
    assert {file for file in named if not (ROOT / file).is_file()} == set()


# --- that the checks themselves can fail ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "wrong"),
    [
        ("deepspeed --num_accelerators 8 --module vmae2_ds pretrain vit_x --data.manifest all.csv", "vit_x"),
        ("vmae2 pretrain vit_b_continue --data.manifst all.csv", "--data.manifst"),
        ("vmae2 evaluate runs/a  # without a list", "--manifest"),
        ("vmae2 ava score --gt a.csv --det b.csv --labelmap c --protocol other", "--protocol other"),
        ("vmae2 launch slurm data prepare LIST --out FOLDER --part-s 64", "--part-s"),
    ],
)
def test_a_wrong_command_is_found(text: str, wrong: str, tmp_path: object) -> None:
    words = Command("page", 1, text.partition("  #")[0]).ours
    assert words is not None
    with pytest.raises(ConfigError, match=wrong):
        understand(words)


def test_commands_are_read_off_a_page(monkeypatch: pytest.MonkeyPatch) -> None:
    page = ROOT / "made_up.md"
    lines = ["```bash", "# a", "vmae2 data check LIST \\", "    [--a b|c] [--d 1 | --e f]  # g"]
    lines += ["python - <<'PY' > x", "print()", "PY", "make test", "```"]
    monkeypatch.setattr(type(page), "read_text", lambda self: "\n".join([*lines, ""]))
    found = list(commands_of(page))
    assert [command.line for command in found] == [3, 5, 8]
    assert [command.ours for command in found] == [["data", "check", "LIST", "--a", "b", "--d", "1"], None, None]
    assert found[1].text.endswith("\nPY")
