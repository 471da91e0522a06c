"""Weights & Biases: the one place that imports its client."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vmae2_ds.track.tracker import About, State
from vmae2_ds.track.wandb_file import last_step

EXIT_CODES: dict[State, int] = {"finished": 0, "stopped": 75, "failed": 1}
FINISH_S = 45.0
"""How long the end waits for what is not sent yet: less than the run waits for us. The rest lies on disk, for `wandb sync`."""


class Wandb:
    """A run of W&B. A step of ours is a step of W&B's, whose client refuses one that is not after the last."""

    def __init__(self, about: About) -> None:
        import wandb

        self._image = wandb.Image
        self._run = wandb.init(
            mode=None if about.track.mode == "auto" else about.track.mode,
            dir=str(about.folder),
            id=about.id,
            resume="allow",
            project=about.project("WANDB_PROJECT"),
            name=about.name,
            group=about.track.group,
            tags=about.track.tags,
            config=about.settings(),
            allow_val_change=True,
            settings=wandb.Settings(
                console="off", silent=True, save_code=False, finish_timeout=FINISH_S, x_stats_pid=about.pid
            ),
        )
        if self._run.disabled:
            self.last_step, self.place = -1, "WANDB_MODE=disabled: nothing is written or sent"
        elif not self._run.offline:
            self.last_step, self.place = self._run.step - 1, str(self._run.url)
        else:
            folder = about.folder / "wandb"
            self.last_step = last_step(folder, about.id)
            self.place = (
                f"offline, in {folder}; to send it: wandb sync --id {about.id} {folder}/offline-run-*-{about.id}"
            )
        self._pictures: dict[str, Any] = {}

    def row(self, row: Mapping[str, Any]) -> None:
        """Log a step, with the pictures since the last one."""
        self._run.log({**row, **self._pictures}, step=row["step"], commit=True)
        self._pictures = {}
        self.last_step = row["step"]

    def picture(self, path: Path, name: str, step: int) -> None:
        """Keep a picture for the next step's row: steps that are over take no more."""
        self._pictures[f"pictures/{path.stem}"] = self._image(str(path), caption=f"{name} (step {step})")

    def close(self, state: State) -> None:
        """Finish: a run that stopped is one that was preempted."""
        if self._pictures:
            self._run.log(self._pictures, step=self.last_step + 1, commit=True)
        self._run.summary["state"] = state
        if state == "stopped":
            self._run.mark_preempting()
        self._run.finish(exit_code=EXIT_CODES[state])


def open_wandb(about: About) -> Wandb:
    """The run in W&B, gone on with where there is one."""
    return Wandb(about)
