"""comet: the one place that imports its client.

Offline each start that ends makes an archive, whose upload adds to the same experiment. What a start that was killed had taken
is in none, and is handed over again by the next one: the note beside the archives says which steps they hold.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vmae2_ds.disk import write_whole
from vmae2_ds.track.tracker import About, State, figures, flat

QUIET = {
    **dict.fromkeys(("log_code", "log_graph", "parse_args", "log_git_patch", "auto_output_logging"), False),
    **dict.fromkeys(("auto_param_logging", "auto_metric_logging"), False),
    "display_summary_level": 0,
}
"""What the client does by itself, left out: we tell it all that it is to know."""


class Comet:
    """An experiment of comet."""

    def __init__(self, about: About) -> None:
        import comet_ml

        folder = about.folder / "comet"
        self._held = folder / f"{about.id}.held.json"
        self._is_offline = about.track.mode == "offline" or (
            about.track.mode == "auto" and not comet_ml.config.get_config("comet.api_key")
        )
        self.last_step = -1
        is_new = not self._held.is_file() if self._is_offline else about.is_new
        kind, key = {
            (True, True): ("OfflineExperiment", "experiment_key"),
            (True, False): ("ExistingOfflineExperiment", "previous_experiment"),
            (False, True): ("Experiment", "experiment_key"),
            (False, False): ("ExistingExperiment", "previous_experiment"),
        }[self._is_offline, is_new]
        where: dict[str, Any] = {}
        if is_new:
            where["project_name"] = about.project("COMET_PROJECT_NAME")
        if self._is_offline:
            folder.mkdir(parents=True, exist_ok=True)
            where["offline_directory"] = str(folder)
            if not is_new:
                self.last_step = json.loads(self._held.read_text())["step"]
        elif not is_new:
            self.last_step = _last_on_server(comet_ml.API(), about.id)
        self._experiment = getattr(comet_ml, kind)(**{key: about.id}, **where, **QUIET)
        if is_new:
            self._experiment.set_name(about.name)
            self._experiment.add_tags([*about.track.tags, *([about.track.group] if about.track.group else [])])
            self._experiment.log_parameters(dict(flat(about.settings())))
        for file in about.files():
            self._experiment.log_asset(str(file), overwrite=True)
        self.place = str(self._experiment.url)
        if self._is_offline:
            self.place = f"offline, in {folder}; to send it: comet upload {folder}/{about.id}*.zip"

    def row(self, row: Mapping[str, Any]) -> None:
        """Log a step's figures."""
        self._experiment.log_metrics(figures(row), step=row["step"])
        self.last_step = row["step"]

    def picture(self, path: Path, name: str, step: int) -> None:
        """Log a picture of a step."""
        self._experiment.log_image(str(path), name=name, step=step)

    def close(self, state: State) -> None:
        """End the experiment, and note what its archives hold."""
        self._experiment.log_other("state", state)
        self._experiment.end()
        if self._is_offline:
            write_whole(self._held, json.dumps({"step": self.last_step}))


def open_comet(about: About) -> Comet:
    """The experiment in comet, gone on with where there is one."""
    return Comet(about)


def _last_on_server(api: Any, key: str) -> int:
    steps = [int(metric["step"]) for metric in api.get_experiment_by_key(key).get_metrics("step") if metric.get("step")]
    return max(steps, default=-1)
