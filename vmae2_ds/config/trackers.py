"""Configuration of trackers, and whether their packages are here. No account's key is a setting: no file of a run holds one."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from vmae2_ds.config.strict import StrictModel
from vmae2_ds.errors import ConfigError
from vmae2_ds.provenance import is_found

TrackerName = Literal["wandb", "mlflow", "comet"]
"""A tracker (track/start.py:OPENERS), and the extra of this package that installs its client."""
PACKAGES: dict[str, str] = {"wandb": "wandb", "mlflow": "mlflow", "comet": "comet_ml"}
"""The package behind each tracker."""


class TrackConfig(StrictModel):
    """Experiment trackers besides TensorBoard. Keys and servers are given by each one's own environment variables."""

    to: tuple[TrackerName, ...] = ()
    """Trackers that get the rows of metrics.jsonl and validation.jsonl, the settings and the pictures of the run: wandb
    (Weights & Biases), mlflow, comet. Each is a process of its own, which training never waits for."""
    project: str | None = None
    """Project, or in MLflow experiment, that the run is shown in; default: what the tracker's own environment variable says
    (WANDB_PROJECT, MLFLOW_EXPERIMENT_NAME, COMET_PROJECT_NAME), or else vmae2_ds."""
    name: str | None = None
    """Name of the run; default: recipe and name of the run folder."""
    group: str | None = None
    """Group that the run belongs to, such as the seeds of one experiment."""
    tags: tuple[str, ...] = ()
    """Tags of the run."""
    folder: Path | None = None
    """Folder for what trackers keep on this machine, which runs may share; default: trackers/ in the run folder."""
    mode: Literal["auto", "online", "offline"] = "auto"
    """Whether a tracker sends what it gets. offline: it is only kept in --track.folder, to be sent later; auto: as WANDB_MODE,
    MLFLOW_TRACKING_URI and COMET_API_KEY say: W&B sends, the other two only where the variable is set."""


def check_installed(config: TrackConfig) -> None:
    """Raises ConfigError where a tracker's package is not installed on this machine; imports none."""
    missing = [name for name in config.to if not is_found(PACKAGES[name])]
    if missing:
        packages = ", ".join(PACKAGES[name] for name in missing)
        raise ConfigError(
            f"--track.to {' '.join(missing)}: {packages} is not installed; pip install 'vmae2_ds[{','.join(missing)}]'"
        )
