"""The table of stages, and a run's config as its folder keeps it.

A new stage is one entry of STAGES, and the files that the entry names. What needs torch is named by text, so that the table
can be read where torch is not: tests/config/test_stages.py looks that every text names something.
"""

from __future__ import annotations

import json
import pkgutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from pydantic import ValidationError

from vmae2_ds.config.refusals import refused
from vmae2_ds.config.strict import StrictModel
from vmae2_ds.errors import ConfigError

if TYPE_CHECKING:
    from vmae2_ds.config.run import RunConfig

Run = TypeVar("Run", bound="RunConfig")
RecipeFn = Callable[[], "RunConfig"]

CLIP_OPTIONS = {"num_frames", "size", "stride"}
"""Options by which a verb asks for other clips than the run's: fields of `data`."""


@dataclass(frozen=True)
class StageEntry:
    """One kind of training. Its name in STAGES is its verb, `vmae2 NAME RECIPE`, and the `stage` in its runs' run.json."""

    settings: str
    """The class of what decides a run; its field `stage` is a literal of the name. As `module:NAME`: all stages' settings take
    a tenth of a second to load, which a verb without any should not wait for."""
    kind: str
    """What messages call it."""
    help: str
    """The stage's line in `vmae2 --help`."""
    usage: tuple[str, ...]
    """The words behind the verb, a line for each way to call it."""
    recipes: str
    """The stage's recipes, a dict of functions by name, written as `module:NAME`."""
    training: str
    """The stage's `train.stage.Training` (objective, parameter groups, data set, attention), written as `module:NAME`."""
    check: str | None = None
    """A function of the config that raises ConfigError for settings that cannot be, without torch. As `module:NAME`."""

    videos: str | None = None
    """A function of the config that opens a run's videos, (mixture, validation list or None), where something else lists them
    than `data.manifest` and `data.mixture`; without torch. As `module:NAME`."""

    @property
    def config(self) -> type[RunConfig]:
        """What decides a run."""
        found: type[RunConfig] = pkgutil.resolve_name(self.settings)
        return found

    def recipe_functions(self) -> Mapping[str, RecipeFn]:
        """The stage's recipes by name."""
        found: Mapping[str, RecipeFn] = pkgutil.resolve_name(self.recipes)
        return found

    def open_videos(self, config: RunConfig) -> Any:
        """What `videos` gives, of a stage that has it."""
        assert self.videos is not None, "asked of a stage that opens its videos itself"
        return pkgutil.resolve_name(self.videos)(config)

    def check_settings(self, config: RunConfig) -> None:
        """Raises ConfigError as `check` says; nothing where the stage has none."""
        if self.check is not None:
            pkgutil.resolve_name(self.check)(config)


STAGES: dict[str, StageEntry] = {
    "pretrain": StageEntry(
        "vmae2_ds.config.pretrain:PretrainConfig",
        "pre-training",
        "Pre-train a masked autoencoder with dual masking.",
        ("RECIPE --data.manifest LIST [--section.key VALUE ...]",),
        recipes="vmae2_ds.recipes.pretrain:RECIPES",
        training="vmae2_ds.train.pretrain:PRETRAINING",
        check="vmae2_ds.masking:check_masks",
    ),
    "finetune": StageEntry(
        "vmae2_ds.config.finetune:FinetuneConfig",
        "fine-tuning",
        "Train a classifier: post-pre-training, fine-tuning, adapters or linear probing.",
        ("RECIPE --data.manifest LIST --train.init RUN_OR_FILE [--section.key VALUE ...]",),
        recipes="vmae2_ds.recipes.finetune:FINETUNE_RECIPES",
        training="vmae2_ds.train.finetune:FINETUNING",
    ),
    "distil": StageEntry(
        "vmae2_ds.config.distil:DistilConfig",
        "distillation",
        "Train a classifier on what a frozen teacher says of the same clips; labels are optional.",
        ("RECIPE --data.manifest LIST --teacher RUN_OR_FILE --train.init RUN_OR_FILE [--section.key VALUE ...]",),
        recipes="vmae2_ds.recipes.distil:DISTIL_RECIPES",
        training="vmae2_ds.train.distil.stage:DISTILLATION",
        check="vmae2_ds.config.distil:check_has_teacher",
    ),
    "tad": StageEntry(
        "vmae2_ds.config.tad:TadConfig",
        "temporal detection",
        "Train a head that finds actions in long videos, on features, or on the videos with adapters in the encoder.",
        (
            "RECIPE --data.annotations FILE --data.features FOLDER [--section.key VALUE ...]",
            "RECIPE --data.annotations FILE --data.videos FOLDER --train.init RUN_OR_FILE [--section.key VALUE ...]",
        ),
        recipes="vmae2_ds.recipes.tad:TAD_RECIPES",
        training="vmae2_ds.downstream.tad.stage:TAD_TRAINING",
        check="vmae2_ds.config.tad:check_is_named",
        videos="vmae2_ds.downstream.tad.videos:open_videos",
    ),
    "ava": StageEntry(
        "vmae2_ds.config.ava:AvaConfig",
        "spatial detection",
        "Train an encoder and a head that say what each person in a box does, on AVA or on a set of your own.",
        (
            "RECIPE --data.truth FILE --data.label-map FILE --data.videos FOLDER --train.init RUN_OR_FILE "
            "[--section.key VALUE ...]",
        ),
        recipes="vmae2_ds.recipes.ava:AVA_RECIPES",
        training="vmae2_ds.downstream.ava.stage:AVA_TRAINING",
        check="vmae2_ds.config.ava:check_is_named",
        videos="vmae2_ds.downstream.ava.videos:open_videos",
    ),
}
"""Every stage by its name."""


def read_run_config(path: Path) -> RunConfig:
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


def _found_from(folder: Path, key: str, value: object) -> object:
    """A setting that names a file, or several, relative to `folder`, from there; None for all others, and where it is gone."""
    if isinstance(value, tuple) and value and all(isinstance(file, Path) for file in value):
        return tuple(_found_from(folder, key, file) or file for file in value)
    if (not isinstance(value, Path) and key != "mixture") or value is None:
        return None
    path = folder / str(value)
    if not path.exists():
        return None
    return str(path) if isinstance(value, str) else path


def read_as_written(path: Path) -> RunConfig:
    """The config of the run in folder `path`, paths as they were typed; raises ConfigError.

    Files written before there were stages are of pre-training.
    """
    file = path / "run.json"
    if not file.is_file():
        raise ConfigError(f"{path} is not a run folder: it has no run.json")
    try:
        written = json.loads(file.read_text())
        kind = STAGES[written.get("stage", "pretrain")].config
        return kind.model_validate(written)
    except ValidationError as error:
        raise ConfigError(f"{file}: {refused(error, '.'.join, kind)}") from None
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
