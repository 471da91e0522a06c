"""A run waits for the save behind training wherever what is on disk decides how it goes on, and before it ends."""

from __future__ import annotations

from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import pytest

from vmae2_ds.checkpoint.state import TrainState
from vmae2_ds.config.guard import GuardConfig
from vmae2_ds.dist import Ranks
from vmae2_ds.errors import AgreedStop, Diverged, Preempted, SaveFailed
from vmae2_ds.train.session import _Hooks, _Session


class Run:
    """A session and its hooks, and what they ask of saver and guard, in order."""

    def __init__(self, *, on_spike: str = "warn", lost: str | None = None, gone: bool = False) -> None:
        self.calls: list[str] = []
        guard = GuardConfig(on_spike=on_spike)  # type: ignore[arg-type]
        ready: Any = SimpleNamespace(
            met=SimpleNamespace(config=SimpleNamespace(guard=guard), ranks=Ranks()),
            opened=SimpleNamespace(
                hang=SimpleNamespace(slow=nullcontext), folder=SimpleNamespace(is_gone=gone, path="the folder")
            ),
            built=SimpleNamespace(mean=None),
            saver=SimpleNamespace(finish=self.finish, declare=lambda: self.calls.append("declared")),
        )
        self._lost = lost
        actions: Any = SimpleNamespace(spiked=lambda *_: self.calls.append("spiked"))
        self.hooks = _Hooks(ready, actions)

    def finish(self) -> None:
        self.calls.append("finished")
        if self._lost:
            raise SaveFailed(self._lost)

    def train(self, stop: AgreedStop | None) -> AgreedStop | None:
        """How a run ends that stops so."""
        session: Any = object.__new__(_Session)
        session.state, session._hooks = TrainState(step=7), self.hooks

        def train_to_the_end() -> None:
            if stop is not None:
                raise stop

        session._train_to_the_end = train_to_the_end
        return session.train()


@pytest.mark.parametrize(("on_spike", "calls"), [("rollback", ["finished", "spiked"]), ("warn", ["spiked"])])
def test_a_rollback_finds_the_save_that_was_under_way(on_spike: str, calls: list[str]) -> None:
    run: Any = Run(on_spike=on_spike)
    run.hooks.spiked(None, TrainState(step=7), None)
    assert run.calls == calls


@pytest.mark.parametrize("stop", [None, Preempted("a signal"), Diverged("spikes")])
def test_the_last_save_is_on_disk_before_the_run_ends(stop: AgreedStop | None) -> None:
    run = Run()
    assert run.train(stop) is stop
    assert run.calls == ["finished"]


def test_a_last_save_that_is_lost_is_how_the_run_ends() -> None:
    assert str(Run(lost="no room").train(Preempted("a signal"))) == "no room"
    first = SaveFailed("no room, three times")
    assert Run(lost="no room").train(first) is first, "what was told first"


@pytest.mark.parametrize("declares", [False, True])
def test_a_folder_that_was_removed_is_told_and_nothing_is_declared_in_it(declares: bool) -> None:
    run = Run(gone=True)
    if declares:
        with pytest.raises(
            SaveFailed, match="the run folder the folder was removed while it trained: stopped at step 7"
        ):
            run.hooks.declare(7)
    else:
        assert "was removed while it trained: stopped at step 7" in str(run.train(None))
    assert run.calls == []
