"""A trained head: its run, its weights, and the features that it was trained on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import NamedTuple

from vmae2_ds.config.tad import TadConfig, check_is_named
from vmae2_ds.downstream.features.sidecar import FeatureInfo
from vmae2_ds.downstream.tad.objective import DetectActions, tad_objective
from vmae2_ds.downstream.tad.videos import feature_info
from vmae2_ds.errors import ConfigError
from vmae2_ds.runs.open import is_run
from vmae2_ds.runs.trained import made_ready, open_trained
from vmae2_ds.weights.layouts import StateDict


class TrainedHead(NamedTuple):
    """A run's head."""

    config: TadConfig
    weights: StateDict
    checkpoint: Path

    def check_features(self, config: TadConfig) -> None:
        """Raises ConfigError where the features that `config` names are not of the kind that the head was trained on.

        A model that is shown videos makes them itself.
        """
        check_is_named(config)
        if config.model.is_end_to_end:
            return
        folder = self.checkpoint.parent.parent
        try:
            said = json.loads((folder / "identity.json").read_text())["features"]
            before = FeatureInfo.model_validate({"model": "", "made_by": "others", **said})
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ConfigError(
                f"{folder}/identity.json does not say what features the head was trained on ({error})"
            ) from None
        if differing := before.differing(feature_info(config.data, config.model.encoder.width)):
            raise ConfigError(
                f"{config.data.features} holds other features than the head of {folder} was trained on: "
                f"{'; '.join(differing)}; extract them as those were"
            )


def open_head(source: Path, mean: bool | None = None) -> TrainedHead:
    """The head that `source` means: a run, the newest run in a folder, or a checkpoint.

    `mean`: whether the running mean of its weights is taken; None: where the run keeps one.
    Raises ConfigError or CheckpointError.
    """
    if not is_run(source):
        raise ConfigError(
            f"{source} is not a run: a file of weights does not say what features its head was trained on; give the run, or "
            f"start another one from it: --train.init {source}"
        )
    otherwise = "finds no actions; train a head: vmae2 tad RECIPE"
    run = open_trained(source, TadConfig, otherwise, mean)
    return TrainedHead(run.config, run.weights, run.checkpoint)


def detector_of(config: TadConfig, weights: StateDict) -> DetectActions:
    """The objective with these weights, in the precision of `config`, on this process's device."""
    return made_ready(tad_objective(config), weights, config)
