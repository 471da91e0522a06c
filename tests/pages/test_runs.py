"""The commands of the pages run, one verb after another, made small as small.py says; the others have a reason each."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cli.lines import answer
from tests.conftest import environment_put_back
from tests.pages.commands import Command, all_commands
from tests.pages.small import SMALL, small, verb_of
from tests.pages.world import write_world

ELSEWHERE = {"docs/YOUR_VIDEOS.md": "tests/test_your_videos.py"}
"""Pages whose commands another test runs in their order."""
PARSED = {
    "tad detect": "tests/downstream/tad/test_page.py runs it on a page's own lines",
    "tad score": "tests/downstream/tad/test_page.py runs it on a page's own lines",
    "tad show": "tests/downstream/tad/test_page.py runs it on a page's own lines",
    "probe": "tests/test_your_videos.py runs it on a page's own lines",
    "visualize": "tests/test_your_videos.py runs it on a page's own lines",
    "data check": "tests/test_your_videos.py runs it on a page's own lines",
    "launch hosts": "tests/launch/test_hosts.py",
    "--data.excluded": "needs files of AVA that are not made here",
    "--link.min-length": "has a truth in csv: tests/downstream/ava/test_tube_report.py",
    "--track.to": "needs an account",
    "pretrain ...": "the end of a line that is written out above it",
    "launch slurm data": "needs a folder of the job: tests/launch/test_slurm_array.py",
}
"""What the test of understanding alone sees: a verb, or what a command has in it, and why it is not run."""
COMMANDS = [command for command in all_commands() if command.ours and command.page not in ELSEWHERE]


def is_parsed_only(command: Command) -> str | None:
    """The entry of PARSED that leaves a command out."""
    assert command.ours is not None
    return next((mark for mark in PARSED if mark == verb_of(command.ours) or f"{mark} " in f"{command.text} "), None)


RUN = [command for command in COMMANDS if is_parsed_only(command) is None]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("world")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        write_world()
        yield folder


@pytest.mark.slow
@pytest.mark.parametrize("verb", [verb for verb in SMALL if verb not in PARSED])
def test_commands_of_a_verb_run(verb: str, world: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """In the order of SMALL: trainings leave the runs that later verbs read."""
    asked = {small(command.ours): command for command in RUN if command.ours and verb_of(command.ours) == verb}
    for words, command in asked.items():
        with environment_put_back():
            code, _, said = answer(list(words), capsys)
        assert code == 0, f"{command.place}: vmae2 {' '.join(words)}\n{said[-600:]}"


def test_every_command_is_run_or_left_out_by_name() -> None:
    unknown = [command.place for command in RUN if command.ours and verb_of(command.ours) not in SMALL]
    assert unknown == [], "make these small (small.py), or say in PARSED why they are not run"
    assert PARSED.keys() - {is_parsed_only(command) for command in COMMANDS} == set(), "no page has these any more"
    assert {page for page in ELSEWHERE if not any(command.page == page for command in all_commands())} == set()
