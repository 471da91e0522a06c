"""How a verb is called: every verb has a usage, with all that it needs and nothing that it does not have."""

from __future__ import annotations

import re

import pytest

from tests.cli.lines import MODELS, answer
from tests.docs_names import is_setting
from tests.pages.options import NEEDED, options_in
from vmae2_ds.cli.main import VERBS
from vmae2_ds.cli.options import options_of
from vmae2_ds.cli.usage import GROUPS, usage_of


def test_every_verb_is_in_one_group_and_nothing_else_is() -> None:
    grouped = [verb for verbs in GROUPS.values() for verb in verbs]
    assert sorted(grouped) == sorted(VERBS)


@pytest.mark.parametrize("verb", VERBS)
def test_a_usage_names_what_the_verb_has_and_all_that_it_needs(verb: str) -> None:
    lines = [line for line in usage_of(verb) if not line.startswith("vmae2 launch slurm data")]
    assert lines
    needed = (
        {option.name for option in options_in(MODELS[verb]) if option.default == NEEDED} if verb in MODELS else set()
    )
    for line in lines:
        named = set(re.findall(r"--[a-z][\w.-]*", line)) - {"--section.key"}
        known = (
            set(options_of(MODELS[verb]))
            if verb in MODELS
            else {"--teacher"} | {n for n in named if is_setting(n[2:].replace("-", "_"))}
        )
        assert named <= known
        assert {name for name in needed if name.startswith("--")} <= named
        arguments = re.sub(r"\[.*?\]|--\S+ [^-\[]*", "", line.removeprefix(f"vmae2 {verb}")).split()
        assert len(arguments) >= len([name for name in needed if not name.startswith("--")])


@pytest.mark.parametrize("verb", VERBS)
def test_help_shows_the_usage(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    if verb in MODELS:
        told = " ".join(answer([*verb.split(), "--help"], capsys)[1].split())
        assert all(" ".join(line.split()) in told for line in usage_of(verb))
