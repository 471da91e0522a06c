"""A run folder as a start opens it, also of a run whose config names no videos."""

from __future__ import annotations

from vmae2_ds.config.ds_config import read_policy
from vmae2_ds.config.run import RunConfig
from vmae2_ds.data.sources.inputs import read_inputs
from vmae2_ds.runs.folder import RunFolder
from vmae2_ds.runs.folder import open_run_folder as open_folder


def open_run_folder(config: RunConfig) -> RunFolder:
    """Of the files as they are now."""
    if config.data.manifest is None and config.data.mixture is None:
        return open_folder(config, {"manifest": None, "ds_config": read_policy(config.train.ds_config)})
    inputs = read_inputs(config)
    return open_folder(config, inputs.identity(), inputs.names)
