"""A second place for the checkpoints of a run: copied there while it trains, and fetched from there where they are gone.

COPY_TO/RECIPE/RUN/  run.json identity.json ...  ckpt/stepN/...   (whole.json last: without it a copy does not count)
"""

from __future__ import annotations

import json
import logging
import re
import shutil
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path, PurePosixPath
from typing import TypeVar

from vmae2_ds.checkpoint.whole import WHOLE, find_newest_whole
from vmae2_ds.disk import put_whole_folder
from vmae2_ds.errors import CheckpointError, ConfigError

T = TypeVar("T")
log = logging.getLogger(__name__)

RUN_FILES = ("run.json", "identity.json", "finished.json", "rollbacks.json", "labels.txt")
RETRY_AFTER_S = (2.0, 15.0, 60.0)
WAY_OUT = "fix it, or start a new run with --train.resume never"
KEPT_THERE = 2
"""Copies that stay whatever becomes of the originals."""


class SecondPlace:
    """Files below `COPY_TO/RECIPE`, on any file system that fsspec knows. Raises ConfigError for one that it does not."""

    def __init__(self, copy_to: str, recipe: str) -> None:
        import fsspec

        self.url = f"{copy_to.rstrip('/')}/{recipe}"
        try:
            self._system, self._root = fsspec.core.url_to_fs(self.url)
        except (ImportError, ValueError) as error:
            raise ConfigError(f"--train.copy-to {copy_to}: {error}") from None

    def runs(self) -> list[str]:
        """Names of the runs that have something there, oldest first."""
        return sorted(name for name in self._names("") if self._system.exists(f"{self._root}/{name}/run.json"))

    def whole_copies(self, run: str) -> list[str]:
        """Names of the whole copies of a run's checkpoints, oldest first."""
        names = [name for name in self._names(f"{run}/ckpt") if re.fullmatch(r"step\d+", name)]
        return sorted(name for name in names if self._system.exists(f"{self._root}/{run}/ckpt/{name}/{WHOLE}"))

    def put(self, source: Path, run: str, name: str) -> None:
        """Copy a file, and see that it arrived with its size."""
        target = f"{self._root}/{run}/{name}"
        self._system.makedirs(str(PurePosixPath(target).parent), exist_ok=True)
        self._system.put_file(str(source), target)
        size, there = source.stat().st_size, self._system.size(target)
        if there not in (size, None):
            raise OSError(f"{target} has {there} bytes instead of {size}")

    def get(self, run: str, name: str, target: Path) -> bool:
        """Fetch a file; False where there is none."""
        if not self._system.exists(f"{self._root}/{run}/{name}"):
            return False
        target.parent.mkdir(parents=True, exist_ok=True)
        self._system.get_file(f"{self._root}/{run}/{name}", str(target))
        return True

    def remove(self, run: str, name: str) -> None:
        """Remove a checkpoint's copy; it does not count from the first moment on."""
        folder = f"{self._root}/{run}/ckpt/{name}"
        self._system.rm_file(f"{folder}/{WHOLE}")
        self._system.rm(folder, recursive=True)

    def _names(self, folder: str) -> list[str]:
        self._system.invalidate_cache()
        try:
            found = self._system.ls(f"{self._root}/{folder}".rstrip("/"), detail=False)
        except FileNotFoundError:
            return []
        return [PurePosixPath(path.rstrip("/")).name for path in found]


class Mirror:
    """Copies checkpoints in a thread of rank 0. It never stops or waits for training: what fails is tried again, and logged.

    Only the newest checkpoint waits; the one under way is `busy_with` and must stay on disk.
    """

    def __init__(self, place: SecondPlace, run: Path) -> None:
        self._place, self._run = place, run
        self.busy_with: str | None = None
        self._waiting: Path | None = None
        self._news = threading.Condition()
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._work, name="mirror", daemon=True)
        self._thread.start()

    def put(self, checkpoint: Path) -> None:
        """Have a whole checkpoint copied when those before it are done; one that still waits gives way."""
        with self._news:
            if self._waiting is not None:
                log.warning("%s is not copied to %s: a newer one is there", self._waiting.name, self._place.url)
            self._waiting = checkpoint
            self._news.notify()

    def protected(self) -> frozenset[str]:
        """Names of the checkpoints that are to stay on disk for now."""
        with self._news:
            waiting = None if self._waiting is None else self._waiting.name
            return frozenset(name for name in (self.busy_with, waiting) if name is not None)

    def close(self, patience_s: float) -> None:
        """Wait so long for what is under way; a copy that is cut does not count."""
        deadline = time.monotonic() + patience_s
        with self._news:
            if self.busy_with or self._waiting:
                log.info("waiting up to %.0f s for the copy of %s", patience_s, ", ".join(sorted(self._names())))
            while (self.busy_with or self._waiting) and time.monotonic() < deadline:
                self._news.wait(max(0.0, deadline - time.monotonic()))
            if left := self._names():
                log.warning("%s could not be copied to %s in time", ", ".join(sorted(left)), self._place.url)
        self._closing.set()
        self._finish_run_files()

    def _names(self) -> set[str]:
        return {name for name in (self.busy_with, self._waiting and self._waiting.name) if name}

    def _work(self) -> None:
        while True:
            with self._news:
                self.busy_with = None
                self._news.notify_all()
                while self._waiting is None:
                    self._news.wait()
                checkpoint, self._waiting = self._waiting, None
                self.busy_with = checkpoint.name
            self._copy_with_retries(checkpoint)

    def _copy_with_retries(self, checkpoint: Path) -> None:
        began = time.monotonic()
        for wait_s in (*RETRY_AFTER_S, None):
            try:
                size = self._copy(checkpoint)
            except Exception as error:  # each file system has errors of its own, and none may reach the run
                again = (
                    f"trying again in {wait_s:.0f} s" if wait_s is not None else "given up; the next one is tried again"
                )
                log.warning("%s could not be copied to %s: %r; %s", checkpoint.name, self._place.url, error, again)
                if wait_s is None or self._closing.wait(wait_s):
                    return
            else:
                seconds = time.monotonic() - began
                log.info("%s copied to %s: %.3g GB in %.1f s", checkpoint.name, self._place.url, size / 1e9, seconds)
                return

    def _copy(self, checkpoint: Path) -> int:
        """The manifest goes last, and is what makes the copy whole."""
        run, sizes = self._run.name, json.loads((checkpoint / WHOLE).read_text())["files"]
        self._put_run_files()
        for name in (*sizes, WHOLE):
            self._place.put(checkpoint / name, run, f"ckpt/{checkpoint.name}/{name}")
        here = {path.name for path in checkpoint.parent.glob("step*")}
        copies = self._place.whole_copies(run)
        later = [name for name in copies if name > checkpoint.name]  # of steps that were taken back, and are done again
        gone = [name for name in copies[:-KEPT_THERE] if name not in here]
        for name in {*later, *gone}:
            self._place.remove(run, name)
        return sum(sizes.values())

    def _put_run_files(self) -> None:
        for name in RUN_FILES:
            if (self._run / name).is_file():
                self._place.put(self._run / name, self._run.name, name)

    def _finish_run_files(self) -> None:
        try:
            self._put_run_files()
        except Exception as error:  # as above
            log.warning("the end of the run could not be told to %s: %r", self._place.url, error)


def fetch_newest(place: SecondPlace, run: str, checkpoints: Path) -> Path | None:
    """Fetch the newest whole copy of a run's checkpoints into the folder `checkpoints`; None where there is none.

    Raises CheckpointError where there may be one and it cannot be had: a new start would throw away what it holds.
    """
    names = _asked(place, lambda: place.whole_copies(run))
    for name in reversed(names):
        began = time.monotonic()
        unfinished = checkpoints / f".{name}.fetched"
        shutil.rmtree(unfinished, ignore_errors=True)
        try:
            _asked(place, partial(_fetch, place, run, name, unfinished))
        except CheckpointError as error:
            log.warning("%s: passed over", error)
            continue
        shutil.rmtree(checkpoints / name, ignore_errors=True)  # one that is not whole
        put_whole_folder(unfinished, checkpoints / name)
        log.info("fetched %s of %s from %s in %.1f s", name, run, place.url, time.monotonic() - began)
        return find_newest_whole(checkpoints)
    if names:
        raise CheckpointError(
            f"none of the copies {', '.join(names)} of {run} could be fetched from {place.url}; {WAY_OUT}"
        )
    return None


def fetch_run_files(place: SecondPlace, run: str, into: Path) -> bool:
    """Fetch what tells of a run; False where it is not all there. Raises CheckpointError."""
    found = [_asked(place, partial(place.get, run, name, into / name)) for name in RUN_FILES]
    return all(found[:2])


def known_runs(place: SecondPlace) -> list[str]:
    """Names of the runs that the second place tells of, oldest first. Raises CheckpointError."""
    return _asked(place, place.runs)


def _fetch(place: SecondPlace, run: str, name: str, target: Path) -> None:
    place.get(run, f"ckpt/{name}/{WHOLE}", target / WHOLE)
    for file in json.loads((target / WHOLE).read_text())["files"]:
        if not (target / file).resolve().is_relative_to(target.resolve()):
            raise CheckpointError(
                f"{place.url}/{run}/ckpt/{name}/{WHOLE} lists {file!r}, which is outside of the checkpoint"
            )
        place.get(run, f"ckpt/{name}/{file}", target / file)


def _asked(place: SecondPlace, action: Callable[[], T]) -> T:
    try:
        return action()
    except CheckpointError:
        raise
    except Exception as error:  # each file system has errors of its own
        raise CheckpointError(f"--train.copy-to: {place.url} cannot be read: {error!r}; {WAY_OUT}") from error
