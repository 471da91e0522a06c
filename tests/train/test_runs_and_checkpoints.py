"""Which run folder a command means, and which checkpoint counts as whole."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from vmae2_ds.config import RunConfig
from vmae2_ds.errors import ConfigError
from vmae2_ds.recipes import get_recipe
from vmae2_ds.train.checkpoint import WHOLE, find_newest_whole, tag_of, why_torn, write_atomically
from vmae2_ds.train.runs import finish, open_run_folder, write_run_files


def config_in(folder: Path, **changes: Any) -> RunConfig:
    config = get_recipe("vit_ti_pretrain_desk")
    return config.model_copy(update={"train": config.train.model_copy(update={"runs": folder, **changes})})


def write_checkpoint(run: Path, step: int) -> Path:
    target = run / "ckpt" / tag_of(step)
    target.mkdir(parents=True)
    (target / "shard.pt").write_bytes(b"12345678")
    (target / WHOLE).write_text(json.dumps({"step": step, "world_size": 1, "stage": 1, "files": {"shard.pt": 8}}))
    return target


def start_run(config: RunConfig, steps: tuple[int, ...] = ()) -> Path:
    folder = open_run_folder(config)
    write_run_files(folder, config, {}, {})
    for step in steps:
        write_checkpoint(folder.path, step)
    return folder.path


def test_the_same_command_goes_on_from_the_newest_whole_checkpoint(tmp_path: Path) -> None:
    run = start_run(config_in(tmp_path), (10, 20))
    again = open_run_folder(config_in(tmp_path))
    assert again.path == run
    assert again.checkpoint is not None
    assert again.checkpoint.name == tag_of(20)


def test_a_finished_run_is_left_alone(tmp_path: Path) -> None:
    run = start_run(config_in(tmp_path), (10,))
    finish(open_run_folder(config_in(tmp_path)), {"steps": 10})
    assert open_run_folder(config_in(tmp_path)).path != run


def test_other_settings_mean_another_run(tmp_path: Path) -> None:
    run = start_run(config_in(tmp_path), (10,))
    assert open_run_folder(config_in(tmp_path, seed=7)).path != run
    assert open_run_folder(config_in(tmp_path, resume="never")).path != run
    assert open_run_folder(config_in(tmp_path, save_every=3, log_every=1, keep=5)).path == run


def test_a_named_run_with_other_settings_is_refused_by_name(tmp_path: Path) -> None:
    named = tmp_path / "mine"
    start_run(config_in(tmp_path, run=named), (10,))
    with pytest.raises(ConfigError, match=r"train\.seed: was 0, now 7"):
        open_run_folder(config_in(tmp_path, run=named, seed=7))


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


def test_an_atomic_write_leaves_nothing_else_behind(tmp_path: Path) -> None:
    write_atomically(tmp_path / "latest", "one")
    write_atomically(tmp_path / "latest", "two")
    assert [path.name for path in tmp_path.iterdir()] == ["latest"]
    assert (tmp_path / "latest").read_text() == "two"
