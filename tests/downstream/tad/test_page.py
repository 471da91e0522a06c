"""docs/DETECTION.md: every command is one that the program has, and the steps for one's own videos run one after another."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import pytest

from tests.cli.lines import MODELS
from tests.docs_names import is_setting
from tests.downstream.features.made_source import WIDTH, write_encoder, write_list, write_video
from vmae2_ds.cli.main import main
from vmae2_ds.cli.options import options_of
from vmae2_ds.cli.verbs import VERBS
from vmae2_ds.recipes import get_recipe

PAGE = (Path(__file__).parents[3] / "docs" / "DETECTION.md").read_text()


def commands(text: str) -> list[list[str]]:
    """The lines of fenced shell blocks that call the program, as words after `vmae2`."""
    blocks = re.findall(r"```bash\n(.*?)```", text, re.DOTALL)
    lines = [line for block in blocks for line in block.replace("\\\n", " ").splitlines()]
    calls = [re.split(r"(?:^|--module )vmae2(?:_ds)? ", line, maxsplit=1) for line in lines if not line.startswith("#")]
    return [shlex.split(call[1], comments=True) for call in calls if len(call) == 2]


def verb_of(words: list[str]) -> str:
    return next(name for name in (" ".join(words[:2]), words[0]) if name in VERBS)


def unknown_options(words: list[str]) -> list[str]:
    """Options of a command line that its verb does not have; of a stage, also a recipe that it does not have."""
    verb = verb_of(words)
    options = [word[2:].replace("-", "_") for word in words if word.startswith("--")]
    if verb not in MODELS:
        get_recipe(verb, words[1])
        return [option for option in options if not is_setting(option)]
    known = {option[2:].replace("-", "_") for option in options_of(MODELS[verb])}
    return [option for option in options if option not in known]


@pytest.mark.parametrize("words", commands(PAGE), ids=" ".join)
def test_every_command_of_the_page_is_one_of_the_program(words: list[str]) -> None:
    assert unknown_options(words) == []


def test_a_command_that_is_none_is_found() -> None:
    (words,) = commands("```bash\nvmae2 tad tad_desk --data.annotation a.json  # no such option\n```")
    assert unknown_options(words) == ["data.annotation"]
    (words,) = commands("```bash\ndeepspeed --module vmae2_ds extract W --manifest \\\n a.csv --outt b\n```")
    assert unknown_options(words) == ["outt"]


def exit_code(words: list[str]) -> int:
    """The code that a command line ends with, run in this process."""
    try:
        main(words)
    except SystemExit as ended:
        return int(ended.code or 0)
    return 0


QUICK = "--train.max-steps 2 --data.length 16 --train.micro-batch 2 --train.global-batch 2 --detect.most 9"


@pytest.mark.slow
def test_the_steps_for_own_videos_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The page's own lines, in their order, with a set of four short videos and two classes."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "videos").mkdir()
    names = ["my_video", "b", "c", "d"]
    database = {}
    for number, name in enumerate(names):
        write_video(tmp_path / "videos" / f"{name}.mp4", 44, seed=number)
        rows = [{"label": "wave", "segment": [0.4, 1.2]}, {"label": "jump", "segment": [1.3, 2.0]}]
        subset = "validation" if name == "my_video" else "training"
        database[name] = {"subset": subset, "duration": 2.2, "fps": 20.0, "annotations": rows}
    (tmp_path / "annotations.json").write_text(json.dumps({"database": database}))
    write_list(tmp_path / "videos.csv", [f"videos/{name}.mp4" for name in names])
    write_encoder(tmp_path / "my_encoder.safetensors")
    steps = commands(PAGE.partition("## Your own videos")[2].partition("\n## ")[0])
    assert [verb_of(words) for words in steps] == ["extract", "tad", "tad detect", "tad score", "tad show", "tad show"]
    for words in steps:
        line = " ".join(words).replace("num-classes 13", "num-classes 2").replace("width 192", f"width {WIDTH}")
        more = {"tad": QUICK, "extract": "--workers 0"}.get(verb_of(words), "")
        assert exit_code([*line.split(), *more.split()]) == 0, line
    assert {path.name for path in tmp_path.iterdir()} > {"found.json", "found.html", "my_video.png", "features", "runs"}
    assert set(json.loads((tmp_path / "found.json").read_text())["results"]) == {"my_video"}
