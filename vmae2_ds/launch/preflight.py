"""Is a run what this many ranks can start? Found out where the script is written, not by a thousand GPUs."""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence
from pathlib import Path

from vmae2_ds.config.ds_config import resolve_ds_config
from vmae2_ds.config.run import RunConfig
from vmae2_ds.config.run_plan import plan_run
from vmae2_ds.config.stages import STAGES
from vmae2_ds.data.sources.labels import check_names
from vmae2_ds.data.sources.manifest import read_manifest
from vmae2_ds.data.sources.mixture import open_mixture
from vmae2_ds.errors import ConfigError
from vmae2_ds.runs.first_look import check_classes_of, check_shapes

UNKNOWN_VIDEOS = 10**9
"""Stands for a list that is not on this machine: the batch is checked, the length is not."""
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


def check_run(config: RunConfig, ranks: int) -> list[str]:
    """What the run will be, a line each; raises ConfigError or DataError where it cannot start on `ranks` ranks."""
    check_shapes(config)
    entry = STAGES[config.stage]
    entry.check_settings(config)
    lists = [config.data.manifest, config.data.mixture] if entry.videos is None else config.read_at_the_start.values()
    absent = [path for path in lists if isinstance(path, Path) and not path.exists()]
    mixture = None if absent else open_mixture(config.data) if entry.videos is None else entry.open_videos(config)[0]
    videos = UNKNOWN_VIDEOS if mixture is None else mixture.num_videos
    plan = plan_run(config, videos, ranks)
    resolve_ds_config(config, plan, on_cpu=False)
    if absent:
        return [plan.describe()[0], f"{absent[0]} is not on this machine: its videos are not checked"]
    if mixture is not None:
        check_names(config, mixture.form.names)
        file, root = config.data.validation or (None, None)
        val = read_manifest(file, root, form=mixture.form) if file is not None and file.exists() else None
        check_classes_of(config, mixture, val)
    return plan.lines()


def check_words(words: Sequence[str]) -> None:
    """Raises ConfigError for what no command line can hold."""
    for word in words:
        if "\0" in word:
            raise ConfigError(f"{word!r} holds a zero byte, which no command line can; remove it")


def environment_of(pairs: Sequence[str]) -> dict[str, str]:
    """NAME=VALUE words as a dict; raises ConfigError."""
    check_words(pairs)
    variables = {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not equals or not _NAME.fullmatch(name):
            raise ConfigError(f"--env {pair!r} is not NAME=VALUE, with a name of letters, digits and _")
        variables[name] = value
    return variables


def bash_words(words: Sequence[str]) -> str:
    """The words as one line of bash (or several, where one holds a line break), each quoted where it has to be."""
    return " ".join(map(shlex.quote, words))


def refuse_unless(pattern: str, option: str, value: str | None, what: str) -> None:
    """Raises ConfigError where `value` is given and not of the form `pattern` as a whole."""
    if value is not None and not re.fullmatch(pattern, value):
        raise ConfigError(f"{option} {value!r} is not {what}")
