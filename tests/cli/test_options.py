"""Messages name the options of the verb that was called, not those of training."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.cli.lines import MODELS
from vmae2_ds.cli.main import VERBS
from vmae2_ds.cli.options import CALLED_ELSEWHERE, check_known, in_own_words, options_of
from vmae2_ds.cli.parse import STAGES, call
from vmae2_ds.config.pretrain import PretrainConfig
from vmae2_ds.errors import ConfigError, DataError


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--manifest", "--root", "--timeout-s"], "set --root, or see --timeout-s and --data.reader pyav"),
        (["--read-timeout-s", "--reader"], "set --data.root, or see --read-timeout-s and --reader pyav"),
        ([], "set --data.root, or see --data.read-timeout-s and --data.reader pyav"),
    ],
)
def test_a_setting_is_called_as_the_verb_calls_it_where_the_verb_has_it(options: list[str], said: str) -> None:
    message = "set --data.root, or see --data.read-timeout-s and --data.reader pyav"
    assert in_own_words(message, options) == said


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("--videos", "no option --videos; did you mean '--data.manifest'? see"),
        ("--mask_ratio=0.9", "no option --mask_ratio; did you mean '--mask.encoder-ratio'? see"),
        ("--train.max-step", "did you mean '--train.max-steps'?"),
        ("--xyzzy", "no option --xyzzy; all are in "),
    ],
)
def test_an_option_as_other_projects_call_it_is_known(word: str, said: str) -> None:
    with pytest.raises(ConfigError) as refused:
        check_known([word], options_of(PretrainConfig), "vmae2 pretrain")
    assert said in str(refused.value)


def test_what_other_projects_call_an_option_is_none_here_and_stands_for_one() -> None:
    here = options_of(PretrainConfig)
    assert not CALLED_ELSEWHERE.keys() & here.keys()
    assert set(CALLED_ELSEWHERE.values()) <= {name.removeprefix("--").rpartition(".")[2] for name in here}


def test_every_verb_takes_a_model_a_recipe_or_both() -> None:
    assert set(VERBS) == {*MODELS, *STAGES, "distil-cache"}


def test_an_error_of_a_verb_without_data_options_names_its_own(tmp_path: Path) -> None:
    from vmae2_ds.data.tools.check import CheckArguments, check_manifest

    (tmp_path / "list.csv").write_text("path,subject\na.mp4,x\n")
    words = [str(tmp_path / "list.csv"), "--out", str(tmp_path / "out")]
    with pytest.raises(DataError, match=r"give --ignore-columns subject;"):
        call(check_manifest, CheckArguments, "vmae2 data check", words)
    with pytest.raises(DataError, match=r"set --root to the folder they belong to"):
        call(check_manifest, CheckArguments, "vmae2 data check", [*words, "--ignore-columns", "subject"])
