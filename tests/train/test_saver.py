"""Saves one after another, behind training or not: what counts when, what is told when, and what a run ends with."""

from __future__ import annotations

import json
import logging
import math
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from tests.checkpoint.test_save import SHARDS, DeepSpeed
from vmae2_ds.checkpoint.hashed_files import HashedFiles
from vmae2_ds.checkpoint.whole import find_newest_whole, tag_of, why_torn
from vmae2_ds.config.run import TrainConfig
from vmae2_ds.dist import Ranks
from vmae2_ds.errors import ConfigError, SaveFailed
from vmae2_ds.guard.stopping import StopRequests
from vmae2_ds.host import HostMemory
from vmae2_ds.train import saver as module
from vmae2_ds.train.saver import Saver, saves_behind


@contextmanager
def saving(folder: Path, *, behind: bool = True, mirror: Any = None, **settings: Any) -> Iterator[Saver]:
    engine: Any = SimpleNamespace(deepspeed=DeepSpeed(), stage=1, zero_policy={})
    config = TrainConfig(save_every=1, **settings)
    with closing(Saver(engine, folder, config, Ranks(), None, mirror, StopRequests(), behind=behind)) as made:
        yield made


class Disk:
    """Answers when it is told to."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.answers, self.refuses = threading.Event(), False
        write = HashedFiles.write_copies

        def waiting(files: HashedFiles) -> None:
            assert self.answers.wait(30)
            if self.refuses:
                files.error = OSError(28, "No space left on device")
            write(files)

        monkeypatch.setattr(HashedFiles, "write_copies", waiting)


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> Disk:
    return Disk(monkeypatch)


def test_training_goes_on_while_the_disk_does_not_answer(tmp_path: Path, disk: Disk) -> None:
    with saving(tmp_path) as saver:
        saver.save(1, {"step": 1})
        assert not saver.is_written()
        assert why_torn(tmp_path / tag_of(1)) == "it was never finished"
        assert saver._stop.is_saving
        threading.Timer(0.2, disk.answers.set).start()
        saver.finish()
        assert why_torn(tmp_path / tag_of(1)) is None
        listed = json.loads((tmp_path / tag_of(1) / "whole.json").read_text())["sha256"]
        assert sorted(listed) == sorted([*SHARDS, "offloaded_tensors/rank00/0.swp"])
        assert not saver._stop.is_saving


def test_a_save_that_training_waits_for_counts_when_it_returns(tmp_path: Path) -> None:
    with saving(tmp_path, behind=False) as saver:
        saver.save(1, {"step": 1})
        assert why_torn(tmp_path / tag_of(1)) is None


def test_a_save_begins_when_the_one_before_counts(tmp_path: Path, disk: Disk) -> None:
    """The copies lie in the same memory: two at once would write the second one's values into the first one's files."""
    with saving(tmp_path) as saver:
        saver.save(1, {"step": 1})
        threading.Timer(0.2, disk.answers.set).start()
        saver.save(2, {"step": 2})
        assert find_newest_whole(tmp_path) is not None
        saver.finish()
    loaded = [torch.load(tmp_path / tag_of(step) / "mp_rank_00_model_states.pt") for step in (1, 2)]
    assert [state["vmae2"]["step"] for state in loaded] == [1, 2]


def test_what_the_disk_refuses_behind_training_is_told_when_it_is_declared(
    tmp_path: Path, disk: Disk, caplog: pytest.LogCaptureFixture
) -> None:
    disk.answers.set()
    with saving(tmp_path, max_failed_saves=2) as saver:
        saver.save(1, {"step": 1})
        saver.finish()
        disk.refuses = True
        saver.save(2, {"step": 2})
        assert saver.error is None
        saver.declare()
        assert "the checkpoint of step 2 could not be written" in str(saver.error)
        assert "No space left on device (rank 0); training goes on, the next try is after step 3" in caplog.text
        assert not (tmp_path / tag_of(2)).exists()
        saver.save(3, {"step": 3})
        with pytest.raises(SaveFailed, match="2 saves in a row failed: the newest whole checkpoint is step00000001"):
            saver.save(4, {"step": 4})
        assert not (tmp_path / tag_of(4)).exists(), "a run that ends begins no other"


def test_what_is_given_up_stays_torn_and_ends_soon(tmp_path: Path, disk: Disk) -> None:
    """A run that ends by an error on one rank alone: the others would not declare it."""
    with saving(tmp_path) as saver:
        saver.save(1, {"step": 1})
        threading.Timer(0.2, disk.answers.set).start()
    assert why_torn(tmp_path / tag_of(1)) == "it was never finished"
    assert not list((tmp_path / tag_of(1)).glob("*.pt")), "nothing was written after it"
    assert not any(thread.name.startswith("saver") for thread in threading.enumerate())


def test_old_checkpoints_go_and_copies_are_made_once_the_new_one_counts(tmp_path: Path) -> None:
    whole_when_copied = list[bool]()
    mirror = SimpleNamespace(
        put=lambda target: whole_when_copied.append(why_torn(target) is None), protected=lambda: frozenset([tag_of(1)])
    )
    with saving(tmp_path, mirror=mirror) as saver:
        for step in range(1, 5):
            saver.save(step, {"step": step})
        saver.finish()
    assert whole_when_copied == [True] * 4
    assert sorted(path.name for path in tmp_path.glob("step*")) == [tag_of(1), tag_of(3), tag_of(4)]


def test_the_figures_are_those_of_the_step_that_is_saved(tmp_path: Path, disk: Disk) -> None:
    """Not those of the steps beside its writing: keep_best goes by them."""
    with saving(tmp_path) as saver:
        saver.note({"loss": 1.0})
        saver.save(1, {"step": 1})
        saver.note({"loss": 0.5})
        disk.answers.set()
        saver.finish()
    assert json.loads((tmp_path / tag_of(1) / "whole.json").read_text())["figures"] == {"loss": 1.0}


def test_a_loss_is_better_the_lower_it_is_and_than_that_of_a_save_under_way(tmp_path: Path, disk: Disk) -> None:
    with saving(tmp_path, keep_best="val_loss") as saver:
        saver.note({"val_loss": 0.5})
        saver.save(1, {"step": 1})
        assert not saver.are_best({"val_loss": 0.6}), "what is being written is as good as written"
        assert saver.are_best({"val_loss": 0.4})
        assert not saver.are_best({"val_loss": math.nan})
        saver.note({"val_loss": math.nan})
        disk.answers.set()
        saver.finish()
        for step in (2, 3, 4):
            saver.note({"val_loss": 0.5 + step / 10})
            saver.save(step, {"step": step})
            saver.finish()
    assert sorted(path.name for path in tmp_path.glob("step*")) == [tag_of(step) for step in (1, 3, 4)]


@pytest.mark.parametrize("figure", ["val_top1", "val_map", "val_frame_map"])
def test_a_validation_better_than_all_checkpoints_is_known_and_stays(figure: str, tmp_path: Path) -> None:
    """Step 3 is saved for another reason, and has the figure of step 2 again; a later start compares with what it finds."""
    with saving(tmp_path, keep_best=figure) as saver:
        for step, found in ((1, 0.5), (2, 0.7), (3, None), (4, 0.6), (5, None)):
            if found is not None:
                saver.note({figure: found})
                assert saver.are_best({figure: found, "val_videos": 9}) is (step != 4)
            saver.save(step, {"step": step})
            saver.finish()
        assert not saver.are_best({figure: None})
    assert sorted(path.name for path in tmp_path.glob("step*")) == [tag_of(step) for step in (2, 4, 5)]
    with saving(tmp_path, keep_best=figure) as saver:
        assert not saver.are_best({figure: 0.7})
        assert saver.are_best({figure: 0.71})


@pytest.mark.parametrize(("needed", "fits"), [(500, True), (501, False)])
def test_auto_saves_behind_where_half_of_the_free_memory_is_enough(
    needed: int, fits: bool, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(module, "memory", lambda: HostMemory(9000, 8000, 2000, 1000))
    with caplog.at_level(logging.WARNING):
        assert saves_behind("auto", needed, Ranks()) is fits
    assert ("training stands still while a checkpoint is written" in caplog.text) is not fits
    assert not saves_behind("false", needed, Ranks())
    if fits:
        assert saves_behind("true", needed, Ranks())
    else:
        with pytest.raises(ConfigError, match=r"--train.save-behind true: copies of the states take 5.01e-07 GB"):
            saves_behind("true", needed, Ranks())
