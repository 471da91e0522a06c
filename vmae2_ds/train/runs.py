"""The run folder: which one a command means, what it holds, and whether a resumed run is still the same run.

runs/<recipe>/<time>_<commit>/  run.json identity.json labels.txt ds.json env.json metrics.jsonl bad_files.jsonl
                                tensorboard/ ckpt/ pictures/ report.html
"""

from __future__ import annotations

import fcntl
import json
import logging
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any, NamedTuple, TypeVar

from pydantic import ValidationError

from vmae2_ds.config import PretrainConfig, RunConfig
from vmae2_ds.data.mixture import class_names_of, identity_of_videos
from vmae2_ds.disk import write_whole
from vmae2_ds.dist import Agreement, World
from vmae2_ds.distil_config import DistilConfig
from vmae2_ds.errors import CheckpointError, ConfigError
from vmae2_ds.finetune_config import FinetuneConfig
from vmae2_ds.guard_config import GuardConfig
from vmae2_ds.refusals import refused
from vmae2_ds.strict import StrictModel
from vmae2_ds.train.checkpoint import find_newest_whole, newest_sound
from vmae2_ds.train.ds_config import read_policy
from vmae2_ds.train.environment import commit, environment
from vmae2_ds.train.mirror import SecondPlace, fetch_newest, fetch_run_files, known_runs

log = logging.getLogger(__name__)

LOCK = ".lock"
NAMES = "labels.txt"
"""The names of a run's classes, one a line, where `data.labels` gave them."""

AnyRun = PretrainConfig | FinetuneConfig
Run = TypeVar("Run", bound=RunConfig)
STAGES: dict[str, type[PretrainConfig] | type[FinetuneConfig]] = {
    "pretrain": PretrainConfig,
    "finetune": FinetuneConfig,
    "distil": DistilConfig,
}
"""What run.json holds, by its `stage`; files of before there were stages are of pre-training."""

MAY_CHANGE = {
    "train": {"runs", "run", "resume", "stop_after_steps", "save_every", "keep", "log_every", "tensorboard"}
    | {"keep_every_hours", "keep_best", "max_failed_saves", "copy_to"}
    | {"max_nonfinite_steps", "peak_flops", "collective_timeout_s", "time_limit"}
    # how the same global batch and the same states are split: elastic.py goes on from there
    | {"micro_batch", "ds_config", "ds_zero_init"},
    "data": {"workers", "prefetch", "max_bad_share", "read_timeout_s", "labels"},
    "distil": {"teacher", "teacher_sharded", "cache", "cache_dtype"},
    "guard": set(GuardConfig.model_fields),
}
"""Settings that do not change what is learnt: a run may be resumed with others. Who the teacher is, and what the classes
are called, is in its identity."""


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

    @property
    def is_gone(self) -> bool:
        """Whether somebody removed it while it is trained into; a file system that does not answer has not lost it."""
        try:
            (self.path / "run.json").stat()
        except (FileNotFoundError, NotADirectoryError):
            return True
        except OSError:
            pass
        return False


def open_run_folder(config: RunConfig, more: Mapping[str, Any] | None = None) -> RunFolder:
    """Find or make the folder of this run, and hold it until this process ends (rank 0 only).

    `more` is what a resumed run must share besides `identity_of`: who its teacher is.
    With `train.run` that folder; else, with resume=auto, the newest unfinished run of the recipe with the same
    settings that no other job holds; else a new one. Raises ConfigError where a named run is held by another job or was
    started with settings, videos or a ZeRO policy that change the result.
    """
    identity = {**identity_of(config), **(more or {})}
    try:
        return _find_or_make(config, identity)
    except OSError as error:
        named = "--train.runs" if config.train.run is None else "--train.run"
        why = error.strerror or str(error)
        place = error.filename or config.train.run or config.train.runs
        raise ConfigError(f"{place}: no run folder can be opened: {why}; mend it, or name another {named}") from None


def _find_or_make(config: RunConfig, identity: dict[str, Any]) -> RunFolder:
    if config.train.run is not None:
        return _named(config, identity, config.train.run)
    folder = config.train.runs / config.recipe
    if config.train.resume == "auto":
        for path in _candidates(config, folder):
            if is_finished(path):
                continue
            if different := differing_settings(config, identity, path):
                log.info("not resuming %s, which has other settings: %s", path, "; ".join(different[:3]))
            elif (checkpoint := _newest_here_or_there(config, path)) is not None:
                if _hold(path):
                    return RunFolder(path, checkpoint)
                log.info("not resuming %s: another job holds it", path)
    return _new(config, identity, folder)


def _candidates(config: RunConfig, folder: Path) -> Iterator[Path]:
    """The recipe's runs, newest first; after them those that only the second place has, whose files are fetched."""
    here = sorted((file.parent for file in folder.glob("*/run.json")), reverse=True)
    yield from here
    place = second_place(config)
    if place is not None:
        for name in reversed(known_runs(place)):
            path = folder / name
            if path not in here and fetch_run_files(place, name, path):
                log.info("%s is not here any more: its files came from %s", path, place.url)
                yield path


def second_place(config: RunConfig) -> SecondPlace | None:
    """Where checkpoints are copied to; raises ConfigError for a kind of URL that cannot be opened here."""
    return None if config.train.copy_to is None else SecondPlace(config.train.copy_to, config.recipe)


def _newest_here_or_there(config: RunConfig, path: Path) -> Path | None:
    """The newest whole checkpoint in the run's folder, or else the newest copy, fetched."""
    found = find_newest_whole(path / "ckpt")
    place = second_place(config)
    if found is not None or place is None:
        return found
    (path / "ckpt").mkdir(exist_ok=True)
    return fetch_newest(place, path.name, path / "ckpt")


def checkpoint_to_resume(config: RunConfig, folder: RunFolder, world: World, agreement: Agreement) -> Path | None:
    """The newest checkpoint of the folder whose content is what was written, the same on all ranks; None in a new run.

    Where there is none, the newest copy in the second place. Raises CheckpointError where there are checkpoints but not a
    sound one.
    """
    if folder.checkpoint is None:
        return None
    sound = newest_sound(folder.checkpoint, world, agreement)
    place = second_place(config)
    if sound is None and place is not None:
        fetched = agreement.from_first(lambda: fetch_newest(place, folder.path.name, folder.checkpoints))
        sound = None if fetched is None else newest_sound(fetched, world, agreement)
    if sound is None:
        raise CheckpointError(
            f"{folder.checkpoints}: no checkpoint holds what was written into it (the log names what is wrong with each); "
            "put a copy in place, or start anew with --train.resume never"
        )
    return sound


def _new(config: RunConfig, identity: dict[str, Any], folder: Path) -> RunFolder:
    name = f"{time.strftime('%Y%m%d-%H%M%S')}_{commit() or 'nogit'}"
    for number in range(1, 1000):
        path = folder / (name if number == 1 else f"{name}.{number}")
        try:
            path.mkdir(parents=True)  # fails where another job was quicker
        except FileExistsError:
            continue
        return _start(config, identity, path)
    raise ConfigError(f"{folder} has a thousand runs of this second; name one with --train.run")


def _named(config: RunConfig, identity: dict[str, Any], path: Path) -> RunFolder:
    place = second_place(config)
    if not (path / "run.json").is_file() and place is not None and path.name in known_runs(place):
        fetch_run_files(place, path.name, path)
        log.info("%s is not here any more: its files came from %s", path, place.url)
    if not (path / "run.json").is_file():
        if path.exists() and any(entry.name != LOCK for entry in path.iterdir()):
            raise ConfigError(f"--train.run {path} is neither a run folder (no run.json) nor empty; name another")
        path.mkdir(parents=True, exist_ok=True)
        return _start(config, identity, path)
    if config.train.resume == "never":
        raise ConfigError(f"--train.run {path} already holds a run; leave out --train.resume never, or name another")
    if different := differing_settings(config, identity, path):
        raise ConfigError(f"{path} was started with other settings: {'; '.join(different)}; name another --train.run")
    if not _hold(path):
        raise ConfigError(f"{path} is held by another job; wait for it, end it, or name another --train.run")
    if is_finished(path):
        log.info("%s is finished already; to train again name another --train.run", path)
    return RunFolder(path, _newest_here_or_there(config, path))


def _start(config: RunConfig, identity: dict[str, Any], path: Path) -> RunFolder:
    if not _hold(path):
        raise ConfigError(f"{path} is held by another job; name another --train.run")
    (path / "ckpt").mkdir(exist_ok=True)
    write_whole(path / "identity.json", json.dumps(identity, indent=1))
    if (names := class_names_of(config.data)) is not None:
        write_whole(path / NAMES, names.text)
    write_whole(path / "run.json", config.model_dump_json(indent=1))
    return RunFolder(path, None)


_HELD: dict[Path, IO[str]] = {}  # open for as long as the process lives: the lock goes with it, however it ends


def _hold(path: Path) -> bool:
    """Lock the run folder; False where another process has it. File systems without locks are taken on trust."""
    path = path.resolve()
    if path in _HELD:
        return True
    file = (path / LOCK).open("w")
    try:
        # of this process alone: a flock would live on in its loader workers for seconds after a kill -9
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        file.close()
        return False
    except OSError as error:
        log.warning("%s: this file system has no locks (%s); do not start two jobs on one run folder", path, error)
    _HELD[path] = file
    return True


def identity_of(config: RunConfig) -> dict[str, Any]:
    """What a resumed run must share beside its settings: the videos listed, in their order, and the ZeRO policy."""
    return {**identity_of_videos(config.data), "ds_config": read_policy(config.train.ds_config)}


def differing_settings(config: RunConfig, identity: dict[str, Any], path: Path) -> list[str]:
    """What changes the result and differs from the run in folder `path`, as "a.b: was x, now y"."""
    try:
        before = _as_written(path).model_dump(mode="json")
        identity_before = json.loads((path / "identity.json").read_text())
    except (OSError, ValueError, ConfigError) as error:
        return [f"{path} cannot be read ({str(error).splitlines()[0]})"]
    now = config.model_dump(mode="json")
    different = [
        f"{section}.{key}: was {before[section][key]}, now {value}"
        for section, values in now.items()
        if isinstance(values, dict)
        for key, value in values.items()
        if key not in MAY_CHANGE.get(section, set()) and before[section][key] != value
    ]
    said = {
        "manifest": f"--data.manifest: the content of {config.data.manifest}",
        "labels": f"--data.labels: the names in {getattr(config.data, 'labels', None)}",
        "ds_config": f"--train.ds-config: in the content of {config.train.ds_config} more than how states are split",
        "teacher": "--teacher: the model that answers",
        "answers": "--distil.cache: where the teacher's answers come from",
    }
    identity_now = {**identity, "ds_config": _beyond_splitting(identity["ds_config"])}
    identity_before["ds_config"] = _beyond_splitting(identity_before["ds_config"])
    return different + [
        f"{said.get(name, f'--data.mixture: {name}')} has changed"
        for name in {**identity_before, **identity_now}
        if identity_now.get(name) != identity_before.get(name)
    ]


def _beyond_splitting(policy: dict[str, Any]) -> dict[str, Any]:
    """What of a ZeRO policy changes the numbers: not the stage, buckets or offload, but dtypes and quantised traffic."""
    zero = {
        key: value for key, value in policy.get("zero_optimization", {}).items() if key.startswith("zero_quantized")
    }
    return {**policy, "zero_optimization": {key: value for key, value in zero.items() if value}}


def read_run_config(path: Path) -> AnyRun:
    """The config of the run in folder `path`, its relative paths taken from where the run was started; raises ConfigError."""
    config = _as_written(path)
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


def _as_written(path: Path) -> AnyRun:
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


def find_checkpoint(source: Path) -> tuple[AnyRun, Path]:
    """The run's config and the checkpoint that `source` means: a run, the newest run in a folder, or a checkpoint."""
    newest = sorted(source.glob("*/run.json"))[-1:]
    candidates = (source, source.parent.parent, *(file.parent for file in newest))
    run = next((folder for folder in candidates if (folder / "run.json").is_file()), None)
    if run is None:
        raise ConfigError(
            f"{source} is neither a run folder (with a run.json), nor a folder of runs, nor a runs/.../ckpt/stepN, nor weights "
            "with a config.json"
        )
    config = read_run_config(run)
    checkpoint = source if run == source.parent.parent else find_newest_whole(run / "ckpt")
    if checkpoint is None:
        raise CheckpointError(f"{run} holds no whole checkpoint yet")
    return config, checkpoint


def write_run_files(folder: RunFolder, ds_config: dict[str, Any], extra: dict[str, Any]) -> None:
    """Write ds.json, and env.json with the environments of earlier starts under `earlier` (rank 0 only)."""
    path = folder.path / "env.json"
    before = json.loads(path.read_text()) if path.is_file() else None
    earlier = [*before.pop("earlier"), before] if before else []
    write_whole(folder.path / "ds.json", json.dumps(ds_config, indent=1))
    write_whole(path, json.dumps({**environment(), **extra, "earlier": earlier}, indent=1))


def finish(folder: RunFolder, summary: dict[str, Any]) -> None:
    """Mark the run as finished, so that the same command starts a new one."""
    write_whole(folder.path / "finished.json", json.dumps(summary, indent=1))


def is_finished(path: Path) -> bool:
    """True where the run in folder `path` reached its last step."""
    return (path / "finished.json").is_file()
