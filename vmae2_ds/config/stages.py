"""The stages a run may be of, and a run's config as its folder keeps it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TypeVar

from pydantic import ValidationError

from vmae2_ds.config.distil import DistilConfig
from vmae2_ds.config.finetune import FinetuneConfig
from vmae2_ds.config.pretrain import PretrainConfig
from vmae2_ds.config.refusals import refused
from vmae2_ds.config.run import RunConfig
from vmae2_ds.config.strict import StrictModel
from vmae2_ds.errors import ConfigError

AnyRun = PretrainConfig | FinetuneConfig
Run = TypeVar("Run", bound=RunConfig)
STAGES: dict[str, type[PretrainConfig] | type[FinetuneConfig]] = {
    "pretrain": PretrainConfig,
    "finetune": FinetuneConfig,
    "distil": DistilConfig,
}
"""What run.json holds, by its `stage`; files of before there were stages are of pre-training."""


def read_run_config(path: Path) -> AnyRun:
    """The config of the run in folder `path`, its relative paths taken from where the run was started; raises ConfigError."""
    config = read_as_written(path)
    try:
        started_in = Path(json.loads((path / "env.json").read_text())["cwd"])
    except (OSError, ValueError, KeyError, TypeError):  # of before it was kept, or torn
        return config
    paths = {
        name: {key: there for key, value in section if (there := _found_from(started_in, key, value)) is not None}
        for name, section in config
        if isinstance(section, StrictModel)
    }
    return config.changed(**paths)


def _found_from(folder: Path, key: str, value: object) -> Path | str | None:
    """A setting that names a file relative to `folder`, from there; None for all others, and where it is gone."""
    if (not isinstance(value, Path) and key != "mixture") or value is None:
        return None
    path = folder / str(value)
    return None if not path.exists() else str(path) if isinstance(value, str) else path


def read_as_written(path: Path) -> AnyRun:
    file = path / "run.json"
    if not file.is_file():
        raise ConfigError(f"{path} is not a run folder: it has no run.json")
    try:
        written = json.loads(file.read_text())
        return STAGES[written.get("stage", "pretrain")].model_validate(written)
    except ValidationError as error:
        raise ConfigError(f"{file}: {refused(error, '.'.join, STAGES[written.get('stage', 'pretrain')])}") from None
    except (ValueError, KeyError, AttributeError) as error:
        raise ConfigError(f"{file} is damaged ({error!r})") from None


def with_options(config: Run, **sections: Mapping[str, object]) -> Run:
    """`config` with a command's options in its sections, checked again; None stands for an option that was not given.

    Raises ConfigError, naming the option.
    """
    given = {
        name: {key: value for key, value in fields.items() if value is not None} for name, fields in sections.items()
    }
    fields = config.changed(**given).model_dump()
    if "model" not in given:
        fields["model"] = config.model  # as it is: a model without a head is a kind of its own
    try:
        return type(config).model_validate(fields)
    except ValidationError as error:
        # of a field its option; of a section that does not fit together its name
        raise ConfigError(refused(error, _option_of, type(config))) from None


def _option_of(path: tuple[str, ...]) -> str:
    return f"--{'-'.join(path[1:]).replace('_', '-')}" if path[1:] else "".join(path)
