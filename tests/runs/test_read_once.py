"""A start reads each file that the run names once: policy, mixture, lists, validation list and names of classes."""

from __future__ import annotations

import json
import os
import sys
from collections import Counter
from pathlib import Path

import pytest

from tests.distributed.ranks import tiny_finetuning, tiny_pretraining
from vmae2_ds.cli.main import main
from vmae2_ds.config.ds_config import read_policy
from vmae2_ds.data.tools.synthetic import SynthArguments, write_synthetic_set
from vmae2_ds.errors import EXIT_OK

pytestmark = pytest.mark.slow
OPENED: Counter[str] = Counter()
"""How often this process has opened each file, by whatever function of Python."""


def count(event: str, arguments: tuple[object, ...]) -> None:
    """An audit hook: it stays for as long as the process lives."""
    if event == "open" and isinstance(arguments[0], str | bytes | os.PathLike):
        OPENED[os.path.abspath(os.fsdecode(arguments[0]))] += 1


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Videos; lists of their halves and of all, and what a run names besides."""
    folder = tmp_path_factory.mktemp("once")
    asked = SynthArguments(folder=folder / "clips", train_videos=12, val_videos=2, size=48, frames=8)
    made = write_synthetic_set(asked)
    header, *rows = made.train.read_text().splitlines()
    for name, half in (("one", rows[:6]), ("two", rows[6:])):
        (made.train.parent / f"{name}.csv").write_text("\n".join([header, *half]) + "\n")
    tables = "".join(f'[[source]]\nname = "{name}"\nmanifest = "{name}.csv"\n' for name in ("one", "two"))
    (made.train.parent / "mix.toml").write_text(tables)
    (folder / "policy.json").write_text(json.dumps(read_policy("cpu")))
    sys.addaudithook(count)
    return folder


def opened_by(words: list[str], files: list[Path]) -> dict[str, int]:
    """How often a start of one process opens each of the files."""
    before = Counter(OPENED)
    with pytest.raises(SystemExit) as stop:
        main(words)
    assert int(stop.value.code or 0) == EXIT_OK
    return {file.name: OPENED[str(file)] - before[str(file)] for file in files}


def test_a_fine_tuning_of_a_mixture_reads_each_of_its_files_once(folder: Path) -> None:
    clips, policy = folder / "clips", folder / "policy.json"
    words = tiny_finetuning(clips / "train.csv", folder / "run", 1)
    at = words.index("--data.manifest")
    words[at : at + 2] = ["--data.mixture", str(clips / "mix.toml")]
    words += ["--data.val-manifest", str(clips / "val.csv"), "--data.labels", str(clips / "labels.txt")]
    words += ["--train.ds-config", str(policy), "--model.encoder.depth", "1"]
    files = [policy, *(clips / name for name in ("mix.toml", "one.csv", "two.csv", "val.csv", "labels.txt"))]
    assert opened_by(words, files) == {file.name: 1 for file in files}
    assert (folder / "run" / "labels.txt").read_text() == (clips / "labels.txt").read_text()
    # the second start finds the run by what it has read, and reads no more
    assert opened_by(words, files) == {file.name: 1 for file in files}


def test_a_pre_training_reads_its_list_and_policy_once(folder: Path) -> None:
    listed, policy = folder / "clips" / "train.csv", folder / "policy.json"
    words = tiny_pretraining(listed, folder / "pretrained", 1)
    words += ["--train.ds-config", str(policy), "--data.workers", "0"]
    assert opened_by(words, [listed, policy]) == {"train.csv": 1, "policy.json": 1}
