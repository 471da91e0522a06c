"""MLflow: the one place that imports its client, of which the small package mlflow-skinny has all that is needed.

A server is MLFLOW_TRACKING_URI's; offline a folder is, in MLflow's own layout, which it has to be allowed with
MLFLOW_ALLOW_FILE_STORE since it is to change no more. A folder and not its SQLite: run folders lie on network file systems.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vmae2_ds.track.tracker import About, State, figures, flat

STATUS: dict[State, str] = {"finished": "FINISHED", "stopped": "KILLED", "failed": "FAILED"}
SERVER = "MLFLOW_TRACKING_URI"
OURS = "vmae2_ds.run"
"""The tag that a run is found by."""
MOST_CHARACTERS, MOST_AT_ONCE = 500, 100
"""The longest value of a parameter, and the most parameters in one request, that every version of MLflow takes."""
NOT_TAKEN = re.compile(r"[^\w\-. /]", re.ASCII)
"""What a name must not have: another character becomes `_`."""


class Mlflow:
    """A run of MLflow. The column `step` goes in last: a step whose writing was cut off is not there."""

    def __init__(self, about: About) -> None:
        server = None if about.track.mode == "offline" else os.environ.get(SERVER)
        if server is None:
            os.environ["MLFLOW_ALLOW_FILE_STORE"] = "true"
        from mlflow import MlflowClient, entities

        self._entities = entities
        self.place = server or (about.folder / "mlflow").as_uri()
        self._client = MlflowClient(tracking_uri=self.place, registry_uri=self.place)
        name = about.project("MLFLOW_EXPERIMENT_NAME")
        experiment = self._client.get_experiment_by_name(name)
        where = self._client.create_experiment(name) if experiment is None else experiment.experiment_id
        found = self._client.search_runs([where], f"tags.`{OURS}` = '{about.id}'")
        run = found[0] if found else self._begin(about, where)
        self._run = run.info.run_id
        self._tell_settings(about, known=run.data.params)
        self._client.update_run(self._run, status="RUNNING")
        for file in about.files():
            self._client.log_artifact(self._run, str(file))
        self.last_step = int(self._client.get_run(self._run).data.metrics.get("step", -1))
        self._may_be_cut = server is None and bool(found)

    def _begin(self, about: About, where: str) -> Any:
        tags = {OURS: about.id, "recipe": about.run.parent.name, **dict.fromkeys(about.track.tags, "true")}
        if about.track.group:
            tags["group"] = about.track.group
        return self._client.create_run(where, run_name=about.name, tags=tags)

    def _tell_settings(self, about: About, known: Mapping[str, str]) -> None:
        """Those that the run has not, since an earlier start was cut off: what it has, MLflow lets nobody change."""
        named = {NOT_TAKEN.sub("_", name): str(value)[:MOST_CHARACTERS] for name, value in flat(about.settings())}
        parameters = [self._entities.Param(name, value) for name, value in named.items() if name not in known]
        for at in range(0, len(parameters), MOST_AT_ONCE):
            self._client.log_batch(self._run, params=parameters[at : at + MOST_AT_ONCE])

    def row(self, row: Mapping[str, Any]) -> None:
        """Log a step's figures, which have the time of the row."""
        step, when = row["step"], int(1000 * row.get("time", time.time()))
        numbers = {NOT_TAKEN.sub("_", name): value for name, value in figures(row).items()}
        if self._may_be_cut:
            numbers = {name: value for name, value in numbers.items() if not self._has(name, step)}
            self._may_be_cut = False
        named = sorted(numbers.items(), key=lambda item: item[0] == "step")
        self._client.log_batch(
            self._run, metrics=[self._entities.Metric(name, value, when, step) for name, value in named]
        )
        self.last_step = step

    def _has(self, name: str, step: int) -> bool:
        return any(metric.step == step for metric in self._client.get_metric_history(self._run, name))

    def picture(self, path: Path, name: str, step: int) -> None:
        """Keep the file among the run's artifacts, under its name in the run folder."""
        self._client.log_artifact(self._run, str(path), str(Path(name).parent))

    def close(self, state: State) -> None:
        """End the run as MLflow calls it."""
        self._client.set_terminated(self._run, STATUS[state])


def open_mlflow(about: About) -> Mlflow:
    """The run in MLflow, gone on with where there is one."""
    return Mlflow(about)
