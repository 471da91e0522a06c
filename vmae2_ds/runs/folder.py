"""The run folder: which one a command means, what it holds, and whether a resumed run is still the same run.

runs/<recipe>/<time>_<commit>/  run.json identity.json labels.txt ds.json env.json metrics.jsonl bad_files.jsonl
                                tensorboard/ ckpt/ pictures/ report.html
"""

from __future__ import annotations

import contextlib
import json
import logging
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import IO, Any, NamedTuple

from vmae2_ds.checkpoint.mirror import SecondPlace, fetch_newest, fetch_run_files, known_runs
from vmae2_ds.checkpoint.whole import find_newest_whole, newest_sound
from vmae2_ds.config.run import RunConfig
from vmae2_ds.config.stages import read_run_config
from vmae2_ds.data.sources.class_names import ClassNames
from vmae2_ds.disk import hold, write_whole
from vmae2_ds.dist import Ranks
from vmae2_ds.errors import CheckpointError, ConfigError
from vmae2_ds.provenance import commit, environment
from vmae2_ds.runs.identity import differing_settings

log = logging.getLogger(__name__)

LOCK = ".lock"
NAMES = "labels.txt"
"""The names of a run's classes, one a line, where `data.labels` gave them."""


class RunFolder(NamedTuple):
    """Folder of a run, and the checkpoint it goes on from."""

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


class Identity(NamedTuple):
    """What tells a run from others beside its settings."""

    of: dict[str, Any]
    """Plain JSON."""
    names: ClassNames | None
    begin: Callable[[Path], Path | None]
    """Puts into the folder of a new run the checkpoint that it begins with, where it has one."""


def open_run_folder(
    config: RunConfig,
    identity: Mapping[str, Any],
    names: ClassNames | None = None,
    begin: Callable[[Path], Path | None] = lambda path: None,
) -> RunFolder:
    """Find or make the folder of this run, and hold it until this process ends (rank 0 only).

    `identity` is what a resumed run must share beside its settings: `Inputs.identity`, and who its teacher is. `names` are
    kept with a new run, and `begin` puts a checkpoint into its folder, or returns None.
    With `train.run` that folder; else, with resume=auto, the newest unfinished run of the recipe with the same
    settings that no other job holds; else a new one. Raises ConfigError where a named run is held by another job or was
    started with settings, videos or a ZeRO policy that change the result.
    """
    try:
        return _find_or_make(config, Identity(dict(identity), names, begin))
    except OSError as error:
        named = "--train.runs" if config.train.run is None else "--train.run"
        why = error.strerror or str(error)
        place = error.filename or config.train.run or config.train.runs
        raise ConfigError(f"{place}: no run folder can be opened: {why}; fix it, or name another {named}") from None


def _find_or_make(config: RunConfig, identity: Identity) -> RunFolder:
    if config.train.run is not None:
        return _named(config, identity, config.train.run)
    folder = config.train.runs / config.recipe
    if config.train.resume == "auto":
        for path in _candidates(config, folder):
            if is_finished(path):
                continue
            if different := differing_settings(config, identity.of, path):
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
    """The second place that checkpoints are copied to; raises ConfigError for a kind of URL that cannot be opened here."""
    return None if config.train.copy_to is None else SecondPlace(config.train.copy_to, config.recipe)


def _newest_here_or_there(config: RunConfig, path: Path) -> Path | None:
    """The newest whole checkpoint in the run's folder, or else the newest copy, fetched."""
    found = find_newest_whole(path / "ckpt")
    place = second_place(config)
    if found is not None or place is None:
        return found
    (path / "ckpt").mkdir(exist_ok=True)
    return fetch_newest(place, path.name, path / "ckpt")


def checkpoint_to_resume(config: RunConfig, folder: RunFolder, ranks: Ranks) -> Path | None:
    """The newest checkpoint of the folder whose content is what was written, the same on all ranks; None in a new run.

    Where there is none, the newest copy in the second place. Raises CheckpointError where there are checkpoints but not a
    sound one.
    """
    if folder.checkpoint is None:
        return None
    sound = newest_sound(folder.checkpoint, ranks)
    place = second_place(config)
    if sound is None and place is not None:
        fetched = ranks.from_first(lambda: fetch_newest(place, folder.path.name, folder.checkpoints))
        sound = None if fetched is None else newest_sound(fetched, ranks)
    if sound is None:
        raise CheckpointError(
            f"{folder.checkpoints}: no checkpoint holds what was written into it (the log names what is wrong with each); "
            "put a copy in place, or start a new run with --train.resume never"
        )
    return sound


def _new(config: RunConfig, identity: Identity, folder: Path) -> RunFolder:
    name = f"{time.strftime('%Y%m%d-%H%M%S')}_{commit() or 'nogit'}"
    for number in range(1, 1000):
        path = folder / (name if number == 1 else f"{name}.{number}")
        try:
            path.mkdir(parents=True)  # fails where another job was quicker
        except FileExistsError:
            continue
        return _start(config, identity, path)
    raise ConfigError(f"{folder} has a thousand runs of this second; name one with --train.run")


def _named(config: RunConfig, identity: Identity, path: Path) -> RunFolder:
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
    if different := differing_settings(config, identity.of, path):
        raise ConfigError(f"{path} was started with other settings: {'; '.join(different)}; name another --train.run")
    if not _hold(path):
        raise ConfigError(f"{path} is held by another job; wait for it, end it, or name another --train.run")
    if is_finished(path):
        log.info("%s is finished already; to train again name another --train.run", path)
    return RunFolder(path, _newest_here_or_there(config, path))


def _start(config: RunConfig, identity: Identity, path: Path) -> RunFolder:
    if not _hold(path):
        raise ConfigError(f"{path} is held by another job; name another --train.run")
    (path / "ckpt").mkdir(exist_ok=True)
    try:
        first = identity.begin(path)
    except ConfigError:  # nothing of a run is left that did not begin
        (path / LOCK).unlink(missing_ok=True)
        for folder in (path / "ckpt", path):
            with contextlib.suppress(OSError):
                folder.rmdir()
        raise
    write_whole(path / "identity.json", json.dumps(identity.of, indent=1))
    if identity.names is not None:
        write_whole(path / NAMES, identity.names.text)
    write_whole(path / "run.json", config.model_dump_json(indent=1))
    return RunFolder(path, first)


_HELD: dict[Path, IO[str]] = {}  # open for as long as the process lives: the lock goes with it, however it ends


def _hold(path: Path) -> bool:
    """Lock the run folder for as long as this process lives; False where another has it."""
    path = path.resolve()
    if path not in _HELD and (file := hold(path / LOCK)) is not None:
        _HELD[path] = file
    return path in _HELD


def find_checkpoint(source: Path) -> tuple[RunConfig, Path]:
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
