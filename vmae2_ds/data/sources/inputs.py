"""What a run reads of the files that it names, once in each process: opened at its start, and handed on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from vmae2_ds.config.ds_config import read_policy
from vmae2_ds.config.run import RunConfig
from vmae2_ds.config.stages import STAGES
from vmae2_ds.data.sources.class_names import ClassNames
from vmae2_ds.data.sources.labels import check_names
from vmae2_ds.data.sources.manifest import Manifest, read_manifest
from vmae2_ds.data.sources.mixture import Mixture, form_of, open_parts


@dataclass(frozen=True)
class Inputs:
    """The contents of a run's files, as this process found them."""

    policy: dict[str, Any]
    """The ZeRO policy, not filled in."""
    mixture: Mixture
    """The training videos."""
    validation: Manifest | None
    """The validation videos that have a list of their own."""
    held_back: Mixture | None = None
    """The validation videos that are held back from the training videos' lists."""

    @property
    def names(self) -> ClassNames | None:
        """The names of the classes, where `data.labels` gives them."""
        return self.mixture.form.names

    def identity(self) -> dict[str, Any]:
        """What a resumed run must share beside its settings: the videos listed, in their order, and the ZeRO policy."""
        return {**self.mixture.identity(), "ds_config": self.policy}


def read_inputs(config: RunConfig) -> Inputs:
    """Read the files of a run; raises ConfigError or DataError, naming the one that cannot be used."""
    policy = read_policy(config.train.ds_config)
    entry = STAGES.get(config.stage)
    if entry is not None and entry.videos is not None:
        return Inputs(policy, *entry.open_videos(config))
    form = form_of(config.data)
    check_names(config, form.names)
    validation = None
    if config.data.validation is not None:
        file, root = config.data.validation
        validation = read_manifest(file, root, form=form)
    mixture, held_back = open_parts(config.data, form)
    return Inputs(policy, mixture, validation, held_back)
