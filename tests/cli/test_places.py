"""Where verbs write: a place that cannot be written is one line before any work, and nobody's file is lost."""

from __future__ import annotations

import errno
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cli.lines import answer, line_of, refusal
from vmae2_ds.cli.main import VERBS

FOLDERS = {
    "extract": "--out",
    "ava check": "--pictures",
    "visualize": "--out",
    "data synth": "",
    "data index": "--out",
    "data check": "--out",
    "data pack": "--out",
    "data prepare": "--out",
    "data merge-kinetics": "",
    "evaluate": "--out",
    "predict": "--out",
    "tad score": "--out",
    "ava convert": "--out",
    "distil-cache": "--distil.cache",
}
"""Verbs that write a folder, and the option that names it; nothing: the first word."""
FILES = {
    "data list": ("--out", "x.csv"),
    "data index-shards": ("--out", "x.csv"),
    "import": ("--out", "x.safetensors"),
    "export": ("--out", "x.pth"),
    "probe": ("--out", "x.json"),
    "tad detect": ("--out", "x.json"),
    "ava detect": ("--out", "x.csv"),
    "ava boxes": ("--out", "x.csv"),
    "tad show": ("--out", "x.png"),
    "ava score-tubes": ("--out", "x.pkl"),
    "ava show": ("--out", "x.png"),
    "tune": ("--out", "x.json"),
    "launch slurm": ("--out", "x.sh"),
}
"""Verbs that write a file, the option that names it, and a name that it could have."""
WRITES_NOTHING = {"ava score", "flops", "memory", "plan", "doctor", "launch hosts", "launch doctor"}
WRITES_A_RUN = {"pretrain", "finetune", "distil", "tad", "ava"}
"""`train.run` is held, made and refused by open_run_folder: tests/runs/test_folder.py."""


def with_place(verb: str, place: Path, folder: Path) -> list[str]:
    """The verb's line, writing to `place`."""
    words = line_of(verb, folder)
    option = FOLDERS.get(verb) if verb in FOLDERS else FILES[verb][0]
    if not option:
        return [str(place) if word == str(folder / "new") else word for word in words]
    if option in words:
        at = words.index(option)
        return [*words[: at + 1], str(place), *words[at + 2 :]]
    return [*words, option, str(place)]


def test_every_verb_has_its_place_here() -> None:
    assert set(VERBS) == {*FOLDERS, *FILES, *WRITES_NOTHING, *WRITES_A_RUN}


@pytest.mark.parametrize("verb", [*FOLDERS, *FILES])
def test_a_place_below_a_file_is_refused(verb: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "taken").write_text("mine")
    place = tmp_path / "taken" / (FILES[verb][1] if verb in FILES else "folder")
    assert str(place) in refusal(with_place(verb, place, tmp_path), capsys)
    assert (tmp_path / "taken").read_text() == "mine"


@pytest.mark.parametrize("verb", FOLDERS)
def test_a_file_where_a_folder_is_due_is_refused(verb: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "taken").write_text("mine")
    assert str(tmp_path / "taken") in refusal(with_place(verb, tmp_path / "taken", tmp_path), capsys)
    assert (tmp_path / "taken").read_text() == "mine"


@pytest.mark.parametrize("verb", FILES)
def test_a_folder_where_a_file_is_due_is_refused(verb: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    place = tmp_path / FILES[verb][1]
    place.mkdir()
    assert str(place) in refusal(with_place(verb, place, tmp_path), capsys)
    assert list(place.iterdir()) == []


@pytest.mark.parametrize("verb", [*FOLDERS, *FILES])
@pytest.mark.parametrize("why", [errno.ENOSPC, errno.EROFS])
def test_a_full_or_read_only_disk_is_found_before_any_work(
    why: int, verb: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The trial writes a block: what the disk says to that ends the verb, and what it made for the trial is gone."""
    write = Path.write_bytes

    def refuse(path: Path, data: bytes) -> int:
        if path.name.startswith(".vmae2_can_write"):
            raise OSError(why, "the disk says no", str(path))
        return write(path, data)

    words = with_place(verb, tmp_path / "deep" / "er" / (FILES[verb][1] if verb in FILES else "folder"), tmp_path)
    monkeypatch.setattr(Path, "write_bytes", refuse)
    line = refusal(words, capsys)
    assert str(tmp_path / "deep" / "er") in line
    assert "the disk says no" in line
    assert not (tmp_path / "deep").exists()


@pytest.mark.parametrize("verb", ["tune", "launch slurm"])
def test_another_s_file_is_not_replaced_and_one_s_own_is(
    verb: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    place = tmp_path / FILES[verb][1]
    place.write_text('{"zero_optimization": {"stage": 2}}')
    words = with_place(verb, place, tmp_path)
    assert f"--out {place} is a file of something else" in refusal(words, capsys)
    assert place.read_text() == '{"zero_optimization": {"stage": 2}}'
    place.unlink()
    assert answer(words, capsys)[0] == 0
    written = place.read_text()
    assert answer(words, capsys)[0] == 0
    assert place.read_text() == written


def test_tune_does_not_write_over_the_policy_that_it_reads(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    policy = tmp_path / "policy.json"
    policy.write_text('{"zero_optimization": {"stage": 1}}')
    words = [*with_place("tune", policy, tmp_path), "--train.ds-config", str(policy)]
    assert "which is read" in refusal(words, capsys)


def test_launch_slurm_makes_the_folder_of_its_script(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    script = tmp_path / "jobs" / "g.sh"
    assert answer(with_place("launch slurm", script, tmp_path), capsys)[0] == 0
    assert script.read_text().startswith("#!/bin/bash\n# Written by vmae2_ds ")


def test_what_is_written_has_its_place_before_torch_is_there(tmp_path: Path) -> None:
    """What is refused of where they write is said at once: torch alone takes seconds, more on a shared disk."""
    line_of("export", tmp_path)
    source, taken, project = tmp_path / "file.safetensors", tmp_path / "x.pth", tmp_path / "project"
    taken.write_text("mine")
    project.mkdir()
    (project / "main.py").write_text("mine")
    wrong = [tmp_path / "x.onnx", source, taken, taken / "below.pth"]
    lines = [[verb, str(source), "--out", str(out)] for verb in ("import", "export") for out in wrong]
    for verb, option in (("evaluate", "--out"), ("distil-cache", "--distil.cache")):
        lines.append(with_place(verb, project, tmp_path))
        assert lines[-1][-2:] == [option, str(project)]
    lines += [["export", str(source), "--layout", "transformers", "--out", str(out)] for out in (project, taken)]
    code = f"""
import sys
from vmae2_ds.cli.main import main
for line in {lines}:
    try:
        main(line)
    except SystemExit as stop:
        assert stop.code == 2 and "torch" not in sys.modules, line
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    said = done.stderr.splitlines()
    for words, line in zip(lines, said, strict=True):
        assert line.startswith(f"vmae2: {words[-2]} {words[-1]}")
    assert (taken.read_text(), (project / "main.py").read_text()) == ("mine", "mine")
