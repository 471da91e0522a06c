"""Which run folder a command means, and which checkpoint counts as whole."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.runs.opened import open_run_folder
from vmae2_ds.checkpoint.retention import RetentionRules
from vmae2_ds.checkpoint.save import _drop_old
from vmae2_ds.checkpoint.whole import WHOLE, find_newest_whole, tag_of, why_torn
from vmae2_ds.config.pretrain import PretrainConfig
from vmae2_ds.config.stages import read_run_config
from vmae2_ds.disk import write_whole
from vmae2_ds.dist import Ranks
from vmae2_ds.errors import ConfigError
from vmae2_ds.recipes import get_recipe
from vmae2_ds.runs import folder as runs
from vmae2_ds.runs.folder import find_checkpoint, finish, write_run_files


def config_in(folder: Path, **changes: Any) -> PretrainConfig:
    return changed(get_recipe("pretrain", "vit_ti_pretrain_desk"), "train", runs=folder, **changes)


def changed(config: PretrainConfig, section: str, **changes: Any) -> PretrainConfig:
    return config.model_copy(update={section: getattr(config, section).model_copy(update=changes)})


def write_checkpoint(run: Path, step: int) -> Path:
    target = run / "ckpt" / tag_of(step)
    target.mkdir(parents=True)
    (target / "shard.pt").write_bytes(b"12345678")
    (target / WHOLE).write_text(json.dumps({"step": step, "world_size": 1, "stage": 1, "files": {"shard.pt": 8}}))
    return target


def start_run(config: PretrainConfig, steps: tuple[int, ...] = ()) -> Path:
    folder = open_run_folder(config)
    for step in steps:
        write_checkpoint(folder.path, step)
    return folder.path


def test_the_same_command_goes_on_from_the_newest_whole_checkpoint(tmp_path: Path) -> None:
    run = start_run(config_in(tmp_path), (10, 20))
    again = open_run_folder(config_in(tmp_path))
    assert again.path == run
    assert again.checkpoint is not None
    assert again.checkpoint.name == tag_of(20)


@contextlib.contextmanager
def another_job_holds(run: Path) -> Iterator[None]:
    """Another process has the lock, and this one forgets that it had it."""
    runs._HELD.pop(run.resolve()).close()
    code = "import fcntl, sys; f = open(sys.argv[1], 'w'); fcntl.lockf(f, fcntl.LOCK_EX); print('held', flush=True); input()"
    command = [sys.executable, "-c", code, str(run / runs.LOCK)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "held\n"
        yield
        other.kill()


def test_a_run_held_by_another_job_is_not_taken_over(tmp_path: Path) -> None:
    run = start_run(config_in(tmp_path), (10,))
    with another_job_holds(run):
        assert open_run_folder(config_in(tmp_path)).path != run
        with pytest.raises(ConfigError, match="held by another job"):
            open_run_folder(config_in(tmp_path, run=run))
    assert open_run_folder(config_in(tmp_path, run=run)).checkpoint is not None


def test_two_starts_in_one_second_get_two_folders(tmp_path: Path) -> None:
    assert start_run(config_in(tmp_path)) != start_run(config_in(tmp_path, seed=1))


def test_a_changed_manifest_or_policy_is_another_run(tmp_path: Path) -> None:
    manifest, policy = tmp_path / "list.csv", tmp_path / "mine.json"
    manifest.write_text("path\nx://a.mp4\n")
    policy.write_text('{"zero_optimization": {"stage": 3}}')
    config = changed(config_in(tmp_path, ds_config=str(policy)), "data", manifest=manifest)
    run = start_run(config, (10,))
    assert open_run_folder(config).path == run
    manifest.write_text("path\nx://a.mp4\nb.mp4\n")
    policy.write_text('{"zero_optimization": {"stage": 3, "zero_quantized_gradients": true}}')
    with pytest.raises(ConfigError, match=r"list\.csv has changed; --train.ds-config: in the content of .*mine\.json"):
        open_run_folder(changed(config, "train", run=run))


def test_another_split_of_the_same_batch_and_states_is_the_same_run(tmp_path: Path) -> None:
    """Ranks, ZeRO stage, buckets, micro batch: what the run learns from stays."""
    run = start_run(config_in(tmp_path, ds_config="zero3", ds_zero_init=True, micro_batch=4), (10,))
    assert (
        open_run_folder(config_in(tmp_path, ds_config="zero2_offload", ds_zero_init=False, micro_batch=2)).path == run
    )
    assert open_run_folder(config_in(tmp_path, ds_config="zeropp", micro_batch=4)).path != run  # quantised traffic


@pytest.mark.parametrize(
    ("before", "after", "told"),
    [
        ("a.mp4", "b.mp4", "--data.mixture: source 'one' has changed"),
        ("weight = 1", "weight = 2", "--data.mixture: source 'two' has changed"),
        ('name = "two"', 'name = "three"', "--data.mixture: source 'three' has changed"),
    ],
)
def test_a_changed_source_is_another_run(before: str, after: str, told: str, tmp_path: Path) -> None:
    """A list, a share or a name; a comment in the mixture file changes nothing."""
    (tmp_path / "one.csv").write_text("path\nx://a.mp4\n")
    (tmp_path / "two.csv").write_text("path\nx://c.mp4\n")
    mixture = tmp_path / "mix.toml"
    mixture.write_text(
        '[[source]]\nname = "one"\nmanifest = "one.csv"\nweight = 3\n'
        '[[source]]\nname = "two"\nmanifest = "two.csv"\nweight = 1\n'
    )
    config = changed(config_in(tmp_path), "data", mixture=str(mixture))
    run = start_run(config, (10,))
    mixture.write_text("# mine\n" + mixture.read_text())
    assert open_run_folder(config).path == run
    for path in (tmp_path / "one.csv", mixture):
        path.write_text(path.read_text().replace(before, after))
    with pytest.raises(ConfigError, match=told):
        open_run_folder(changed(config, "train", run=run))


def test_every_start_leaves_its_environment(tmp_path: Path) -> None:
    folder = open_run_folder(config_in(tmp_path))
    for device in ("one", "two", "three"):
        write_run_files(folder, {}, {"device": device})
    environment = json.loads((folder.path / "env.json").read_text())
    assert environment["device"] == "three"
    assert [start["device"] for start in environment["earlier"]] == ["one", "two"]


def test_a_run_s_relative_paths_are_found_from_any_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    there, elsewhere = tmp_path / "there", tmp_path / "elsewhere"
    for folder in (there, elsewhere):
        folder.mkdir()
    (there / "all.csv").write_text("path\nx://a.mp4\n")
    monkeypatch.chdir(there)
    config = changed(config_in(Path("runs"), init=Path("gone.pth")), "data", manifest=Path("all.csv"))
    folder = open_run_folder(config)
    write_run_files(folder, {}, {})
    write_checkpoint(folder.path, 10)
    run = folder.path.absolute()
    monkeypatch.chdir(elsewhere)
    found, _ = find_checkpoint(run)
    assert found.data.manifest == there / "all.csv"
    assert found.train.init == Path("gone.pth")  # what is not there stays as it was typed, for the message
    monkeypatch.chdir(there)
    again = open_run_folder(config)
    assert again.path.absolute() == run  # the same words in the same folder are the same run
    (run / "env.json").write_text('{"command": []}')  # as runs of before had it
    assert find_checkpoint(run)[0].data.manifest == Path("all.csv")


def test_a_mixture_file_of_a_run_is_found_from_any_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "one.csv").write_text("path\nx://a.mp4\n")
    (tmp_path / "mix.toml").write_text('[[source]]\nname = "one"\nmanifest = "one.csv"\nweight = 1\n')
    monkeypatch.chdir(tmp_path)
    folder = open_run_folder(changed(config_in(Path("runs")), "data", mixture="mix.toml"))
    write_run_files(folder, {}, {})
    run = folder.path.absolute()
    monkeypatch.chdir("/")
    assert read_run_config(run).data.mixture == str(tmp_path / "mix.toml")


def test_a_run_of_before_epochs_had_whole_steps_is_not_resumed_in_silence(tmp_path: Path) -> None:
    """Its run.json does not name the count: it was exact, and the same recipe counts whole steps now."""
    recipe = get_recipe("pretrain", "vit_g_pretrain_hybrid")
    run = start_run(changed(recipe, "train", runs=tmp_path), (10,))
    written = json.loads((run / "run.json").read_text())
    assert written["train"].pop("epoch_steps") == "whole"
    (run / "run.json").write_text(json.dumps(written))
    with pytest.raises(ConfigError, match=r"train\.epoch_steps: was exact, now whole"):
        open_run_folder(changed(recipe, "train", run=run))
    assert open_run_folder(changed(recipe, "train", run=run, epoch_steps="exact")).checkpoint is not None


def test_torn_folders_go_with_the_old_ones(tmp_path: Path) -> None:
    for step in (1, 3, 4, 5):
        write_checkpoint(tmp_path, step)
    (write_checkpoint(tmp_path, 2) / WHOLE).unlink()
    _drop_old(tmp_path / "ckpt", RetentionRules(2))
    assert sorted(path.name for path in (tmp_path / "ckpt").iterdir()) == [tag_of(4), tag_of(5)]


def test_a_finished_run_is_left_alone(tmp_path: Path) -> None:
    run = start_run(config_in(tmp_path), (10,))
    finish(open_run_folder(config_in(tmp_path)), {"steps": 10})
    assert open_run_folder(config_in(tmp_path)).path != run


def test_other_settings_mean_another_run(tmp_path: Path) -> None:
    run = start_run(config_in(tmp_path), (10,))
    assert open_run_folder(config_in(tmp_path, seed=7)).path != run
    assert open_run_folder(config_in(tmp_path, resume="never")).path != run
    assert open_run_folder(config_in(tmp_path, save_every=3, log_every=1, keep=5, deterministic=True)).path == run


def test_a_named_run_with_other_settings_is_refused_by_name(tmp_path: Path) -> None:
    named = tmp_path / "mine"
    start_run(config_in(tmp_path, run=named), (10,))
    with pytest.raises(ConfigError, match=r"train\.seed: was 0, now 7"):
        open_run_folder(config_in(tmp_path, run=named, seed=7))


@pytest.mark.parametrize(("before", "now"), [("adamw", "muon"), ("muon", "adamw")])
def test_a_run_does_not_go_on_under_another_optimizer(before: str, now: str, tmp_path: Path) -> None:
    config = config_in(tmp_path, run=tmp_path / "mine")
    start_run(config.changed(optim={"optimizer": before}), (10,))
    with pytest.raises(ConfigError, match=rf"optim\.optimizer: was {before}, now {now}") as error:
        open_run_folder(config.changed(optim={"optimizer": now}))
    assert "\n" not in str(error.value)


def test_a_folder_with_other_things_is_not_taken_for_a_run(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").touch()
    with pytest.raises(ConfigError, match="neither a run folder"):
        open_run_folder(config_in(tmp_path, run=tmp_path / "mine"))


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lambda target: (target / WHOLE).unlink(), "never finished"),
        (lambda target: (target / "shard.pt").unlink(), "shard.pt is missing"),
        (lambda target: (target / "shard.pt").write_bytes(b"1234"), "4 bytes instead of 8"),
        (lambda target: (target / WHOLE).write_text("{"), "cannot be read"),
    ],
)
def test_a_torn_checkpoint_is_passed_over(damage: Any, reason: str, tmp_path: Path) -> None:
    older, newer = write_checkpoint(tmp_path, 1), write_checkpoint(tmp_path, 2)
    damage(newer)
    assert reason in (why_torn(newer) or "")
    assert find_newest_whole(tmp_path / "ckpt") == older


@pytest.mark.parametrize("ranks", [1, 3, 8])
def test_ranks_look_at_each_file_of_a_checkpoint_once_together(
    ranks: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """There are as many files as ranks and more: all looking at all would be their product."""
    target = write_checkpoint(tmp_path, 1)
    files = {f"shard_{number}.pt": 2 for number in range(7)}
    for name in files:
        (target / name).write_bytes(b"12")
    (target / WHOLE).write_text(json.dumps({"files": files}))
    asked: list[str] = []
    kept = Path.stat
    monkeypatch.setattr(Path, "stat", lambda path, **how: (asked.append(path.name), kept(path, **how))[1])
    assert [why_torn(target, Ranks(rank, rank, ranks)) for rank in range(ranks)] == [None] * ranks
    assert {name: len(set(asked) & {name}) for name in files} == dict.fromkeys(files, 1)
    assert asked.count("shard_4.pt") == asked.count("shard_0.pt") <= 2, "is it a file, and how long"
    monkeypatch.undo()
    (target / "shard_4.pt").unlink()
    told = [why_torn(target, Ranks(rank, rank, ranks)) for rank in range(ranks)]
    assert [reason for reason in told if reason] == ["shard_4.pt is missing"]


def test_an_atomic_write_leaves_nothing_else_behind(tmp_path: Path) -> None:
    write_whole(tmp_path / "latest", "one")
    write_whole(tmp_path / "latest", "two")
    assert [path.name for path in tmp_path.iterdir()] == ["latest"]
    assert (tmp_path / "latest").read_text() == "two"


@pytest.mark.parametrize(("option", "given"), [("--train.run", {"run": "l.csv"}), ("--train.runs", {})])
def test_a_place_for_runs_that_is_a_file_is_named_with_its_option(
    tmp_path: Path, option: str, given: dict[str, str]
) -> None:
    (tmp_path / "l.csv").write_text("mine")
    config = config_in(tmp_path / "l.csv", **{name: tmp_path / file for name, file in given.items()})
    with pytest.raises(ConfigError, match=rf"l\.csv.*: Not a directory; fix it, or name another {option}$") as refused:
        open_run_folder(config)
    assert "Errno" not in str(refused.value)
    assert (tmp_path / "l.csv").read_text() == "mine"
