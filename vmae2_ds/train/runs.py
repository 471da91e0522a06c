"""The run folder: which one a command means, what it holds, and whether a resumed run is still the same run.

runs/<recipe>/<time>_<commit>/  run.json ds.json env.json metrics.jsonl bad_files.jsonl tensorboard/ ckpt/ report.html
"""

from __future__ import annotations

import json
import logging
import os
import platform
import subprocess
import sys
import time
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import ValidationError

from vmae2_ds.config import RunConfig
from vmae2_ds.errors import ConfigError
from vmae2_ds.train.checkpoint import find_newest_whole, write_atomically

log = logging.getLogger(__name__)

MAY_CHANGE = {
    "train": {"runs", "run", "resume", "stop_after_steps", "save_every", "keep", "log_every", "tensorboard"}
    | {"max_nonfinite_steps", "peak_flops"},
    "data": {"workers", "prefetch", "max_bad_share"},
}
"""Settings that do not change what is learnt: a run may be resumed with others."""


class RunFolder(NamedTuple):
    """Where a run lives, and the checkpoint it goes on from."""

    path: Path
    checkpoint: Path | None

    @property
    def checkpoints(self) -> Path:
        """Folder of the checkpoints."""
        return self.path / "ckpt"

    @property
    def metrics(self) -> Path:
        """One JSON row per logged step."""
        return self.path / "metrics.jsonl"


def open_run_folder(config: RunConfig) -> RunFolder:
    """Find or make the folder of this run (rank 0 only).

    With `train.run` that folder; else, with resume=auto, the newest unfinished run of the recipe with the same
    settings; else a new one. Raises ConfigError where a named run was started with settings that change the result.
    """
    if config.train.run is not None:
        return _named(config, config.train.run)
    folder = config.train.runs / config.recipe
    if config.train.resume == "auto":
        for path in sorted(folder.glob("*/run.json"), reverse=True):
            if is_finished(path.parent):
                continue
            different = differing_settings(config, path)
            if not different:
                checkpoint = find_newest_whole(path.parent / "ckpt")
                if checkpoint is not None:
                    return RunFolder(path.parent, checkpoint)
            elif (path.parent / "ckpt").is_dir():
                log.info("not resuming %s, which has other settings: %s", path.parent, "; ".join(different[:3]))
    name = f"{time.strftime('%Y%m%d-%H%M%S')}_{commit() or 'nogit'}"
    path = folder / name
    for number in range(2, 1000):
        if not path.exists():
            break
        path = folder / f"{name}.{number}"
    return RunFolder(path, None)


def _named(config: RunConfig, path: Path) -> RunFolder:
    if not (path / "run.json").is_file():
        if path.exists() and any(path.iterdir()):
            raise ConfigError(f"train.run={path} is neither a run folder (no run.json) nor empty; name another")
        return RunFolder(path, None)
    if config.train.resume == "never":
        raise ConfigError(f"train.run={path} already holds a run; leave out --train.resume never, or name another")
    different = differing_settings(config, path / "run.json")
    if different:
        raise ConfigError(f"{path} was started with other settings: {'; '.join(different)}; name another train.run")
    if is_finished(path):
        log.info("%s is finished already; to train again name another train.run", path)
    return RunFolder(path, find_newest_whole(path / "ckpt"))


def differing_settings(config: RunConfig, path: Path) -> list[str]:
    """Settings that change the result and differ between `config` and the run.json at `path`, as "a.b: was x, now y"."""
    try:
        before = RunConfig.model_validate_json(path.read_text()).model_dump(mode="json")
    except (OSError, ValidationError) as error:
        return [f"{path} cannot be read ({str(error).splitlines()[0]})"]
    now = config.model_dump(mode="json")
    return [
        f"{section}.{key}: was {before[section][key]}, now {value}"
        for section, values in now.items()
        if isinstance(values, dict)
        for key, value in values.items()
        if key not in MAY_CHANGE.get(section, set()) and before[section][key] != value
    ]


def read_run_config(path: Path) -> RunConfig:
    """The config of the run in folder `path`; raises ConfigError."""
    file = path / "run.json"
    if not file.is_file():
        raise ConfigError(f"{path} is not a run folder: it has no run.json")
    try:
        return RunConfig.model_validate_json(file.read_text())
    except ValidationError as error:
        raise ConfigError(f"{file}: {error.errors()[0]['loc']}: {error.errors()[0]['msg']}") from None


def write_run_files(folder: RunFolder, config: RunConfig, ds_config: dict[str, Any], extra: dict[str, Any]) -> None:
    """Write run.json, ds.json and env.json (rank 0 only)."""
    folder.checkpoints.mkdir(parents=True, exist_ok=True)
    write_atomically(folder.path / "run.json", config.model_dump_json(indent=1))
    write_atomically(folder.path / "ds.json", json.dumps(ds_config, indent=1))
    write_atomically(folder.path / "env.json", json.dumps({**environment(), **extra}, indent=1))


def finish(folder: RunFolder, summary: dict[str, Any]) -> None:
    """Mark the run as finished, so that the same command starts a new one."""
    write_atomically(folder.path / "finished.json", json.dumps(summary, indent=1))


def is_finished(path: Path) -> bool:
    """True where the run in folder `path` reached its last step."""
    return (path / "finished.json").is_file()


def environment() -> dict[str, Any]:
    """Command, commit, machine and versions, for the run folder."""
    versions = {}
    for name in ("vmae2_ds", "torch", "deepspeed", "decord", "numpy", "torchvision", "flash-attn"):
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return {
        "command": sys.argv,
        "commit": commit(),
        "host": platform.node(),
        "platform": platform.platform(),
        "python": platform.python_version(),
        "versions": versions,
        "ranks": int(os.environ.get("WORLD_SIZE", "1")),
        "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
    }


def commit() -> str | None:
    """Short commit of the checkout this package runs from, `+` where it has changes; None outside a checkout."""
    here = Path(__file__).parent

    def git(*words: str) -> str:
        return subprocess.run(["git", *words], cwd=here, capture_output=True, text=True, check=True).stdout.strip()

    try:
        return git("rev-parse", "--short", "HEAD") + ("+" if git("status", "--porcelain", "-uno") else "")
    except (OSError, subprocess.CalledProcessError):
        return None
