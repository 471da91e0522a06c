"""The table of stages: its texts name what is there, and a new stage is one entry and files of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.config.made_up_stage import ENTRY, WeighConfig, vit_ti_weigh_desk
from vmae2_ds.config.stages import STAGES, read_run_config
from vmae2_ds.data.tools.synthetic import SynthArguments, write_synthetic_set
from vmae2_ds.recipes import get_recipe
from vmae2_ds.train.report import write_report
from vmae2_ds.train.stage import Training, training_of

ROOT = Path(__file__).parents[2]
RECIPE = "vit_ti_weigh_desk"


def vmae2(words: list[str]) -> tuple[int, str, str]:
    """Exit code, standard output and standard error of a command line in a process whose table has one entry more."""
    command = [sys.executable, "-m", "tests.config.made_up_stage", *words]
    env = {**os.environ, "DS_ACCELERATOR": "cpu", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True)
    return done.returncode, done.stdout, done.stderr


@pytest.mark.parametrize("stage", STAGES)
def test_every_text_of_the_table_names_what_is_there_and_is_of_this_stage(stage: str) -> None:
    entry = STAGES[stage]
    assert entry.config.model_fields["stage"].default == stage
    assert all(line.startswith("RECIPE ") for line in entry.usage)
    for name in entry.recipe_functions():
        config = get_recipe(stage, name)
        assert type(config) is entry.config
        assert config.recipe == name
        assert isinstance(training_of(config), Training)


def test_no_two_stages_have_a_recipe_of_one_name() -> None:
    """A command line names the recipe alone, and `launch` finds the stage by it."""
    names = [name for entry in STAGES.values() for name in entry.recipe_functions()]
    assert len(set(names)) == len(names)


LINES = {
    "--help": (0, "weigh Weigh videos."),
    f"weigh {RECIPE} --help": (0, "--weigh.weight FLOAT"),
    "pretrain vit_ti_weigh_desk": (2, "is a weighing recipe, and vmae2 pretrain takes pre-training recipes"),
    f"launch slurm {RECIPE} --nodes 1 --gpus-per-node 1 --data.manifest elsewhere.csv": (0, f"vmae2_ds weigh {RECIPE}"),
    f"launch slurm {RECIPE} --nodes 1 --gpus-per-node 1 --weigh.weight 0": (2, "--weigh.weight 0 learns nothing"),
}
"""Of a command line: its exit code, and what it says."""
ANSWERS = """
import contextlib, io, json, sys

from tests.config.made_up_stage import ENTRY
from vmae2_ds.config.stages import STAGES

STAGES["weigh"] = ENTRY
from vmae2_ds.cli.main import main

answers = {}
for line in json.loads(sys.argv[1]):
    said = io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        try:
            main(line.split())
        except SystemExit as stop:
            code = int(stop.code or 0)
    answers[line] = code, said.getvalue()
print(json.dumps(answers))
"""


@pytest.fixture(scope="module")
def answers() -> dict[str, tuple[int, str]]:
    """Of all LINES, in one process whose table has one entry more; the verbs are made of it at import."""
    command = [sys.executable, "-c", ANSWERS, json.dumps(list(LINES))]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found: dict[str, tuple[int, str]] = json.loads(done.stdout)
    return found


@pytest.mark.parametrize("line", LINES)
def test_one_entry_gives_a_stage_its_verb_options_checks_and_launch(
    line: str, answers: dict[str, tuple[int, str]]
) -> None:
    (code, out), (expected, said) = answers[line], LINES[line]
    assert code == expected, out
    assert said in " ".join(out.split())


def test_one_entry_brings_a_run_back_from_its_folder_and_gives_it_a_report(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = vit_ti_weigh_desk().changed(weigh={"weight": 2.0})
    (tmp_path / "run.json").write_text(config.model_dump_json())
    (tmp_path / "metrics.jsonl").write_text(json.dumps({"step": 1, "epoch": 1.0, "loss": 2.0, "flat_loss": 1.0}) + "\n")
    monkeypatch.setitem(STAGES, "weigh", ENTRY)
    found = read_run_config(tmp_path)
    assert isinstance(found, WeighConfig)
    assert found == config
    page = write_report(tmp_path).read_text()
    assert "Loss (weighed squares)." in page
    assert "a stone would give 1.0000" in page


@pytest.mark.slow
def test_one_entry_trains(tmp_path: Path) -> None:
    """With its own objective: the loss of its first step is a thousand times that of pre-training, which begins near 1."""
    clips = write_synthetic_set(
        SynthArguments(folder=tmp_path / "clips", train_videos=2, val_videos=1, size=32, frames=8)
    )
    words = ["weigh", RECIPE, "--data.manifest", str(clips.train), "--train.run", str(tmp_path / "run")]
    code, _, err = vmae2(words)
    assert code == 0, err
    (row,) = (json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines())
    assert 500 < row["loss"] < 5000
    assert "no --train.init: from random weights" in err
    assert "weighed squares" in (tmp_path / "run" / "report.html").read_text()
