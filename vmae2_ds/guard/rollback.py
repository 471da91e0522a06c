"""What a run does about a spike: say and note it, leave the update out, or go back to a checkpoint without the step's samples.

A window is the stretch of the sample order that a step reads. After a rollback the same steps read on behind the windows that
are left out: step, schedule and weights belong together as before, and so do windows and samples.
"""

from __future__ import annotations

import json
import logging
import math
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from vmae2_ds.checkpoint.state import TrainState
from vmae2_ds.checkpoint.whole import LATEST, WHOLE, why_torn
from vmae2_ds.config.guard import GuardConfig
from vmae2_ds.config.run_plan import RunPlan
from vmae2_ds.contracts import StepResult
from vmae2_ds.data.sources.mixture import Mixture
from vmae2_ds.data.sources.order import positions_of, window_of
from vmae2_ds.disk import write_whole
from vmae2_ds.dist import Ranks
from vmae2_ds.errors import Diverged
from vmae2_ds.guard.spikes import Spike
from vmae2_ds.json_lines import adding_rows, rows_of

log = logging.getLogger(__name__)

EVENTS = "guard.jsonl"
"""A row for each spike: what, how large, what was done."""
SKIPPED = "skipped_samples.jsonl"
"""A row for each sample that was left out, or whose update was."""
ROLLBACKS = "rollbacks.json"
"""What rollbacks have left out, written before the checkpoint is loaded: a run that is killed after that goes on alike."""


class RollBack(Exception):
    """All ranks leave the loop together, to go on from a checkpoint."""

    def __init__(self, target: Path) -> None:
        super().__init__(target)
        self.target = target


class SpikeActions:
    """Carries out `guard.on_spike`; every method is called by all ranks together.

    Args:
        folder: the run folder.
        checkpoints: the folder of checkpoints.
        load: loads a checkpoint into the engine and returns the state saved with it.
        seed: of the sample order.
    """

    def __init__(
        self,
        folder: Path,
        checkpoints: Path,
        config: GuardConfig,
        mixture: Mixture,
        plan: RunPlan,
        seed: int,
        load: Callable[[Path], dict[str, Any]],
        ranks: Ranks,
    ) -> None:
        self._folder, self._checkpoints, self._config = folder, checkpoints, config
        self._mixture, self._plan, self._order = mixture, plan, mixture.order(seed)
        self._load, self._ranks = load, ranks

    def spiked(self, spike: Spike, state: TrainState, result: StepResult) -> None:
        """Note a spike in the step after `state.step`.

        Raises RollBack where the run goes back, Diverged where it has done so often enough.
        """
        target = None
        if self._config.on_spike == "rollback" and spike.limit is not None:
            target = self._ranks.from_first(lambda: self._find_target(state))
        if target is None:
            action = "applied, on_spike=warn" if result.applied else "update left out"
            self._note(spike, state, action, [] if result.applied else [window_of(state.step, state.skipped_windows)])
            return
        if state.rollbacks >= self._config.max_rollbacks:
            self._note(spike, state, "stopped", [])
            raise Diverged(
                f"step {state.step + 1}: {spike}, after {state.rollbacks} rollbacks (--guard.max-rollbacks "
                f"{self._config.max_rollbacks}); the run stands at {target}. Look at {EVENTS} and {SKIPPED} in its folder; to "
                "go on: a higher --guard.max-rollbacks or --guard.rollback-skip, or --guard.on-spike warn"
            )
        raise RollBack(self._ranks.from_first(lambda: self._begin(spike, state, target)))

    def go_back(self, back: RollBack) -> TrainState:
        """Load the checkpoint and return the state to go on with."""
        if self._ranks.rank == 0:
            drop_newer(self._checkpoints, back.target)
        self._ranks.sum(0)
        return with_rollbacks(TrainState(**self._load(back.target)), self._folder)

    def _find_target(self, state: TrainState) -> Path | None:
        """The newest whole checkpoint that was not gone back to before, rather from before what is to be left out."""
        first = max(0, state.step + 1 - self._config.rollback_skip)
        found = [path for path in sorted(self._checkpoints.glob("step*"), reverse=True) if _step_of(path) <= state.step]
        # stable: of equals the newest comes first
        for path in sorted(found, key=lambda path: (_step_of(path) in state.rolled_back_to, _step_of(path) > first)):
            if why_torn(path) is None:
                return path
        return None

    def _begin(self, spike: Spike, state: TrainState, target: Path) -> Path:
        """On rank 0: write down what is left out from here on."""
        step = _step_of(target)
        first = max(step, state.step + 1 - self._config.rollback_skip)
        windows = [window_of(step, state.skipped_windows) for step in range(first, state.step + 1)]
        self._note(spike, state, f"back to step {step}, samples left out", windows)
        held = {
            "spikes": state.spikes,
            "rollbacks": state.rollbacks + 1,
            "skipped_windows": sorted({*state.skipped_windows, *windows}),
            "rolled_back_to": [*state.rolled_back_to, step],
        }
        write_whole(self._folder / ROLLBACKS, json.dumps(held, indent=1))
        return target

    def _note(self, spike: Spike, state: TrainState, action: str, windows: list[int]) -> None:
        """A line in the log, a row in EVENTS, and rows in SKIPPED for the samples of `windows` (rank 0 alone)."""
        if self._ranks.rank:
            return
        log.warning("step %d: %s: %s", state.step + 1, spike, action)
        event = {
            "step": state.step + 1,
            "window": window_of(state.step, state.skipped_windows),
            "what": spike.what,
            "value": spike.value if math.isfinite(spike.value) else None,
            "limit": spike.limit,
            "action": action,
            "time": time.time(),
        }
        _append(self._folder / EVENTS, [event])
        listed = _windows_in(self._folder / SKIPPED)
        for window in windows:
            if window not in listed:
                why = {"step": state.step + 1, "why": str(spike)}
                _append(self._folder / SKIPPED, [{**row, **why} for row in self._samples(window)])

    def _samples(self, window: int) -> Iterator[dict[str, Any]]:
        """What each rank read in a window, before unreadable videos were replaced."""
        plan = self._plan
        split = {"micro_batch": plan.micro_batch, "accumulation": plan.accumulation, "world_size": plan.world_size}
        for rank in range(plan.world_size):
            for micro_step in range(plan.accumulation):
                for position in positions_of(window, micro_step, rank, **split):
                    key = self._order.key_at(position)
                    entry = self._mixture.sources[key.source].manifest[key.row]
                    yield {
                        "window": window,
                        "rank": rank,
                        "micro_step": micro_step,
                        **key._asdict(),
                        "path": entry.name,
                    }


def with_rollbacks(state: TrainState, folder: Path) -> TrainState:
    """`state` with what rollbacks of the run in `folder` have left out since it was saved."""
    path = folder / ROLLBACKS
    if not path.is_file():
        return state
    held = json.loads(path.read_text())
    return replace(state, **{**held, "spikes": max(held["spikes"], state.spikes)})


def drop_newer(checkpoints: Path, target: Path) -> None:
    """Remove the checkpoints after `target`, so that no resume finds them (rank 0 only)."""
    write_whole(checkpoints / LATEST, target.name)
    for path in sorted(checkpoints.glob("step*"), reverse=True):
        if path.name > target.name:
            (path / WHOLE).unlink(missing_ok=True)  # from here on it does not count
            shutil.rmtree(path)


def _step_of(checkpoint: Path) -> int:
    return int(checkpoint.name.removeprefix("step"))


def _windows_in(path: Path) -> set[int]:
    """Windows that are listed already: a run that is killed meets its spikes again."""
    return {row["window"] for row in rows_of(path)}


def _append(path: Path, rows: list[dict[str, Any]]) -> None:
    """Add rows; a full disk costs the note, not the run."""
    try:
        with adding_rows(path) as add:
            add(*rows)
    except OSError as error:
        log.warning("%s could not be written: %s", path, error.strerror)
