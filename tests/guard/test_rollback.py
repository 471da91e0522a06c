"""Which checkpoint a run goes back to after a spike, and which windows of the sample order it leaves out from there on."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.runs.test_folder import write_checkpoint
from vmae2_ds.checkpoint.state import TrainState
from vmae2_ds.checkpoint.whole import WHOLE, find_newest_whole, tag_of
from vmae2_ds.config.guard import GuardConfig
from vmae2_ds.config.model import ModelConfig
from vmae2_ds.config.pretrain import PretrainConfig, PretrainDataConfig
from vmae2_ds.config.run import TrainConfig
from vmae2_ds.config.run_plan import plan_run
from vmae2_ds.contracts import StepResult
from vmae2_ds.data.sources.mixture import open_mixture
from vmae2_ds.dist import Ranks
from vmae2_ds.errors import Diverged
from vmae2_ds.guard.rollback import RollBack, SpikeActions, drop_newer, with_rollbacks
from vmae2_ds.guard.spikes import Spike

SPIKE = Spike("the loss", 9.0, 2.0)
REFUSED = StepResult(False, 1.0)


class Run:
    """A run folder with checkpoints, and what it does about a spike."""

    def __init__(self, folder: Path, steps: list[int], **guard: Any) -> None:
        self.folder, self.checkpoints = folder, folder / "ckpt"
        (folder / "list.csv").write_text("path\n" + "".join(f"{number}.mp4\n" for number in range(40)))
        (folder / "0.mp4").touch()
        data = PretrainDataConfig.model_validate({"manifest": folder / "list.csv", "views": 1})
        train = TrainConfig(global_batch=4, micro_batch=2, max_steps=20)
        config = PretrainConfig(model=ModelConfig.of_size("tiny"), data=data, train=train)
        mixture = open_mixture(data)
        for step in steps:
            write_checkpoint(folder, step)
        self.actions = SpikeActions(
            folder, self.checkpoints, GuardConfig.model_validate({"on_spike": "rollback", **guard}), mixture,
            plan_run(config, 40, 1), 0, lambda target: {"step": int(target.name[4:])}, Ranks(),
        )  # fmt: skip

    def goes_back_to(self, state: TrainState) -> int:
        with pytest.raises(RollBack) as back:
            self.actions.spiked(SPIKE, state, REFUSED)
        return int(back.value.target.name.removeprefix("step"))

    @property
    def left_out(self) -> list[int]:
        return json.loads((self.folder / "rollbacks.json").read_text())["skipped_windows"]


@pytest.mark.parametrize(
    # A spike in the tenth step, which reads window 9 after nine steps; the last `skip` windows are left out, or as many as
    # were read since the checkpoint. The checkpoint of step n has read windows 0 to n - 1.
    ("steps", "skip", "target", "left_out"),
    [
        ([6, 7, 8, 9], 1, 9, [9]),
        ([6, 7, 8], 1, 8, [9]),
        ([6, 7, 8, 9], 2, 8, [8, 9]),
        ([6, 7, 8, 9], 3, 7, [7, 8, 9]),
        ([6, 8, 9], 3, 6, [7, 8, 9]),
        ([8, 9], 3, 9, [9]),
        ([2, 4], 99, 4, [4, 5, 6, 7, 8, 9]),
        ([0, 4], 99, 0, [0, 1, 2, 3, 4, 5, 6, 7, 8, 9]),
        ([7, 9, 10, 12], 1, 9, [9]),  # of a run that was there before
    ],
)
def test_the_target_is_the_newest_checkpoint_that_has_not_read_what_is_left_out(
    steps: list[int], skip: int, target: int, left_out: list[int], tmp_path: Path
) -> None:
    run = Run(tmp_path, steps, rollback_skip=skip)
    assert run.goes_back_to(TrainState(step=9)) == target
    assert run.left_out == left_out
    listed = [json.loads(line) for line in (tmp_path / "skipped_samples.jsonl").read_text().splitlines()]
    assert [row["window"] for row in listed] == [window for window in left_out for _ in range(4)], "four videos a step"


def test_steps_behind_windows_that_are_left_out_read_later_ones(tmp_path: Path) -> None:
    """With window 2 gone the tenth step reads window 10."""
    run = Run(tmp_path, [7, 9], rollback_skip=3)
    assert run.goes_back_to(TrainState(step=9, skipped_windows=[2], rollbacks=1, rolled_back_to=[2])) == 7
    assert run.left_out == [2, 8, 9, 10]
    held = json.loads((tmp_path / "rollbacks.json").read_text())
    assert (held["rollbacks"], held["rolled_back_to"]) == (2, [2, 7])


def test_a_checkpoint_is_gone_back_to_once_while_there_are_others(tmp_path: Path) -> None:
    run = Run(tmp_path, [3, 6, 9])
    found, state = [], TrainState(step=9)
    for _ in range(3):
        found.append(run.goes_back_to(state))
        state = TrainState(step=9, rolled_back_to=list(found))
    assert found == [9, 6, 3]
    assert run.goes_back_to(state) == 9, "all were: the newest again"


def test_a_torn_checkpoint_is_no_target(tmp_path: Path) -> None:
    run = Run(tmp_path, [6, 8, 9])
    (run.checkpoints / tag_of(9) / WHOLE).unlink()
    assert run.goes_back_to(TrainState(step=9)) == 8


@pytest.mark.parametrize("newer", [[], [10, 12]])
def test_without_an_older_checkpoint_only_the_update_is_left_out(newer: list[int], tmp_path: Path) -> None:
    run = Run(tmp_path, newer)
    run.actions.spiked(SPIKE, TrainState(step=9), REFUSED)
    (event,) = [json.loads(line) for line in (tmp_path / "guard.jsonl").read_text().splitlines()]
    assert (event["step"], event["window"], event["action"]) == (10, 9, "update left out")
    assert not (tmp_path / "rollbacks.json").exists()


def test_as_many_rollbacks_as_are_allowed_are_made(tmp_path: Path) -> None:
    run = Run(tmp_path, [8], max_rollbacks=2)
    assert run.goes_back_to(TrainState(step=9, rollbacks=1)) == 8
    with pytest.raises(Diverged, match="after 2 rollbacks"):
        run.actions.spiked(SPIKE, TrainState(step=9, rollbacks=2), REFUSED)


def test_a_loss_that_is_not_finite_goes_back_nowhere(tmp_path: Path) -> None:
    """Its update is refused on all ranks, so that there is nothing to undo."""
    run = Run(tmp_path, [8])
    run.actions.spiked(Spike("the loss of rank 0", float("inf"), None), TrainState(step=9), REFUSED)
    assert json.loads((tmp_path / "guard.jsonl").read_text())["value"] is None


def test_going_back_removes_newer_checkpoints_and_keeps_what_was_counted(tmp_path: Path) -> None:
    run = Run(tmp_path, [3, 6, 9])
    with pytest.raises(RollBack) as back:
        run.actions.spiked(SPIKE, TrainState(step=9, spikes=4, rolled_back_to=[9]), REFUSED)
    state = run.actions.go_back(back.value)
    assert (state.step, state.spikes, state.rollbacks, state.rolled_back_to, state.skipped_windows) == (
        6, 4, 1, [9, 6], [9],
    )  # fmt: skip
    assert sorted(path.name for path in run.checkpoints.glob("step*")) == [tag_of(3), tag_of(6)]
    assert (run.checkpoints / "latest").read_text() == tag_of(6)
    assert find_newest_whole(run.checkpoints) == run.checkpoints / tag_of(6)
    assert with_rollbacks(TrainState(step=3, spikes=9), tmp_path).spikes == 9, "of a checkpoint that counted more"


def test_a_kill_while_newer_checkpoints_go_leaves_none_that_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A list goes before its files: half a checkpoint would else pass for a whole one."""
    run = Run(tmp_path, [6, 8, 9])

    def killed(target: Path) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(shutil, "rmtree", killed)
    with pytest.raises(KeyboardInterrupt):
        drop_newer(run.checkpoints, run.checkpoints / tag_of(6))
    assert not (run.checkpoints / tag_of(9) / WHOLE).exists()
    assert (run.checkpoints / "latest").read_text() == tag_of(6)
