"""Copies of checkpoints in a second place: whole or not counted, tried again, fetched where the originals are gone."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest

from tests.runs.opened import open_run_folder
from tests.runs.test_folder import config_in, start_run, write_checkpoint
from vmae2_ds.checkpoint import mirror
from vmae2_ds.checkpoint.mirror import Mirror, SecondPlace, fetch_newest
from vmae2_ds.checkpoint.whole import WHOLE, tag_of
from vmae2_ds.errors import CheckpointError, ConfigError
from vmae2_ds.runs.folder import finish


@pytest.fixture(params=["file", "memory", "folder"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    yield {"file": f"file://{tmp_path}/there", "memory": "memory://there", "folder": f"{tmp_path}/there"}[request.param]
    fsspec.filesystem("memory").store.clear()


def copied(place: SecondPlace, run: Path, *steps: int) -> None:
    """Have the checkpoints of these steps written and copied."""
    copies = Mirror(place, run)
    for step in steps:
        target = run / "ckpt" / tag_of(step)
        copies.put(target if target.exists() else write_checkpoint(run, step))
        copies.close(10)
        copies._closing.clear()


def test_what_is_fetched_is_what_was_copied(url: str, tmp_path: Path) -> None:
    run, place = tmp_path / "run", SecondPlace(url, "recipe")
    copied(place, run, 10, 20)
    assert place.whole_copies("run") == [tag_of(10), tag_of(20)]
    before = {path.name: path.read_bytes() for path in (run / "ckpt" / tag_of(20)).iterdir()}
    shutil.rmtree(run / "ckpt")
    assert fetch_newest(place, "run", run / "ckpt") == run / "ckpt" / tag_of(20)
    assert {path.name: path.read_bytes() for path in (run / "ckpt" / tag_of(20)).iterdir()} == before
    assert [path.name for path in (run / "ckpt").iterdir()] == [tag_of(20)], "nothing else is left"


def test_a_copy_counts_when_its_manifest_is_there(url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run, place = tmp_path / "run", SecondPlace(url, "recipe")
    copied(place, run, 10)
    put = SecondPlace.put

    def broken(self: SecondPlace, source: Path, name: str, target: str) -> None:
        if source.name == WHOLE:
            raise ConnectionError("the network is gone")
        put(self, source, name, target)

    monkeypatch.setattr(SecondPlace, "put", broken)
    monkeypatch.setattr(mirror, "RETRY_AFTER_S", ())
    copied(place, run, 20)
    assert place.whole_copies("run") == [tag_of(10)]
    shutil.rmtree(run / "ckpt")
    assert fetch_newest(place, "run", run / "ckpt") == run / "ckpt" / tag_of(10)


def test_a_failed_copy_is_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    run, place = tmp_path / "run", SecondPlace(str(tmp_path / "there"), "recipe")
    left, put = [3], SecondPlace.put

    def flaky(self: SecondPlace, *args: Any) -> None:
        left[0] -= 1
        if left[0] >= 0:
            raise TimeoutError("slow down")
        put(self, *args)

    monkeypatch.setattr(SecondPlace, "put", flaky)
    monkeypatch.setattr(mirror, "RETRY_AFTER_S", (0.01, 0.01, 0.01))
    with caplog.at_level(logging.INFO):
        copied(place, run, 10)
    assert place.whole_copies("run") == [tag_of(10)]
    assert caplog.text.count("trying again") == 3


def test_old_copies_go_once_their_originals_are_gone(tmp_path: Path) -> None:
    run, place = tmp_path / "run", SecondPlace(str(tmp_path / "there"), "recipe")
    copied(place, run, 10, 20, 30)
    assert len(place.whole_copies("run")) == 3
    shutil.rmtree(run / "ckpt" / tag_of(10))
    copied(place, run, 40)
    assert place.whole_copies("run") == [tag_of(20), tag_of(30), tag_of(40)]


def test_copies_of_steps_that_were_taken_back_go(tmp_path: Path) -> None:
    run, place = tmp_path / "run", SecondPlace(str(tmp_path / "there"), "recipe")
    copied(place, run, 10, 20, 30)
    for step in (20, 30):
        shutil.rmtree(run / "ckpt" / tag_of(step))
    copied(place, run, 20)
    assert place.whole_copies("run") == [tag_of(10), tag_of(20)]


def test_a_manifest_that_points_outside_is_refused(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    run, place = tmp_path / "run", SecondPlace(str(tmp_path / "there"), "recipe")
    copied(place, run, 10)
    there = tmp_path / "there" / "recipe" / "run" / "ckpt" / tag_of(10)
    (tmp_path / "there" / "recipe" / "stolen").write_bytes(b"12345678")
    whole = json.loads((there / WHOLE).read_text())
    (there / WHOLE).write_text(json.dumps({**whole, "files": {"../../../stolen": 8}}))
    with pytest.raises(CheckpointError, match=r"lists '\.\./\.\./\.\./stolen', which is outside of the checkpoint"):
        mirror._fetch(place, "run", tag_of(10), tmp_path / "fetched")
    with pytest.raises(CheckpointError, match="none of the copies step00000010 of run could be fetched"):
        fetch_newest(place, "run", tmp_path / "fresh")
    assert "outside of the checkpoint" in caplog.text
    assert not (tmp_path / "stolen").exists()


def test_an_unknown_kind_of_url_is_one_line() -> None:
    with pytest.raises(ConfigError, match=r"--train.copy-to nosuch://bucket: Protocol not known"):
        SecondPlace("nosuch://bucket", "recipe")


def test_a_run_whose_folder_is_gone_goes_on_from_its_copy(url: str, tmp_path: Path) -> None:
    config = config_in(tmp_path / "runs", copy_to=url)
    run = start_run(config, (10,))
    place = SecondPlace(url, config.recipe)
    copied(place, run, 10)
    shutil.rmtree(run)
    again = open_run_folder(config)
    assert again.path == run
    assert again.checkpoint == run / "ckpt" / tag_of(10)
    shutil.rmtree(run)
    named = open_run_folder(config_in(tmp_path / "runs", copy_to=url, run=run))
    assert named.checkpoint == run / "ckpt" / tag_of(10)
    shutil.rmtree(run)
    other = open_run_folder(config_in(tmp_path / "runs", copy_to=url, seed=1))
    assert other.checkpoint is None
    assert other.path != run


def test_a_finished_run_is_not_fetched_to_go_on(tmp_path: Path) -> None:
    config = config_in(tmp_path / "runs", copy_to=str(tmp_path / "there"))
    run = start_run(config, (10,))
    finish(open_run_folder(config), {"steps": 10})
    copied(SecondPlace(str(tmp_path / "there"), config.recipe), run, 10)
    shutil.rmtree(run)
    assert open_run_folder(config).path != run


def test_a_second_place_that_cannot_be_read_does_not_start_a_new_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It might hold weeks of work; where the run is still here it is not asked."""

    def down(self: SecondPlace) -> list[str]:
        raise ConnectionError("no route")

    monkeypatch.setattr(SecondPlace, "runs", down)
    config = config_in(tmp_path / "runs", copy_to=str(tmp_path / "there"))
    with pytest.raises(
        CheckpointError, match=r"cannot be read: ConnectionError\('no route'\); fix it, or start a new run"
    ):
        open_run_folder(config)
    run = start_run(config_in(tmp_path / "runs", copy_to=str(tmp_path / "there"), resume="never"), (10,))
    assert open_run_folder(config).checkpoint == run / "ckpt" / tag_of(10)
