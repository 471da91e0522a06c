"""Ranks and parts of a data tool as processes of their own, forked from one that has the imports behind it.

They count what they do, and can be told when to die or to wait. A video is read in the process itself, not in a
watchdog's child.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from vmae2_ds.cli.main import main
from vmae2_ds.console import progress
from vmae2_ds.data.entry import ReadAs, VideoEntry
from vmae2_ds.data.readers.storage import read_entry
from vmae2_ds.data.tools import pack, parallel, parts, prepare, scan

FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload([__name__, "webdataset", "av"])


class Start:
    """A process that runs `vmae2 WORDS`, as a rank where a launcher would have started it (by the variables of torchrun).

    Args:
        words: Behind `vmae2`.
        folder: `counted` in it has a line for each file that was worked on.
        rank: None for a process that no launcher started.
        ranks: How many there are.
        die_at: Killed when it begins the file after so many; -1: never.
        wait_for: A file without which no file is begun.
    """

    def __init__(
        self,
        words: list[str],
        folder: Path,
        rank: int | None = None,
        ranks: int = 1,
        die_at: int = -1,
        wait_for: str = "",
    ) -> None:
        env = (
            {} if rank is None else {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": ranks, "MASTER_ADDR": "localhost"}
        )
        self._said = [folder / f"said.{time.monotonic_ns()}.{stream}" for stream in ("out", "err")]
        self._process = FORKS.Process(target=_run, args=(words, env, self._said, folder / "counted", die_at, wait_for))
        self._process.start()

    @property
    def pid(self) -> int | None:
        """Its number."""
        return self._process.pid

    def stop(self, number: int) -> None:
        """Send a signal."""
        assert self.pid is not None
        os.kill(self.pid, number)

    def wait_until_said(self, words: str) -> None:
        """Until it has written these words to standard error, or has ended; at most two minutes."""
        end = time.monotonic() + 120
        while not (self._said[1].exists() and words in self._said[1].read_text()):
            if not self._process.is_alive() or time.monotonic() > end:
                return
            time.sleep(0.02)

    def end(self) -> tuple[int | None, str, str]:
        """(exit code, standard output, standard error) once it has ended."""
        self._process.join(120)
        out, err = (file.read_text() for file in self._said)
        return self._process.exitcode, out, err


class NoChild:
    """What a watchdog is asked, without a child."""

    def __init__(self, timeout_s: float) -> None:
        pass

    def __enter__(self) -> NoChild:
        return self

    def __exit__(self, *ended: object) -> None:
        pass

    def call(self, function: Callable[..., Any], *values: Any) -> Any:
        return function(*values)

    def read(self, entry: VideoEntry, how: ReadAs, choose: Callable[..., Any]) -> Any:
        return read_entry(entry, how, choose)


def _run(words: list[str], env: dict[str, object], said: list[Path], counted: Path, die_at: int, wait_for: str) -> None:
    os.environ.update({name: str(value) for name, value in env.items()})
    for descriptor, file in enumerate(said, 1):
        os.dup2(os.open(file, os.O_WRONLY | os.O_CREAT), descriptor)
    parts.BEAT_S, progress.TELL_EVERY_S = 0.2, 0.0
    done = 0

    def counting(inner: Callable[..., Any], path_of: Callable[..., str]) -> Callable[..., Any]:
        def work(*values: Any) -> Any:
            nonlocal done
            if done == die_at:
                os.kill(os.getpid(), signal.SIGKILL)
            while wait_for and not os.path.exists(wait_for):
                time.sleep(0.02)
            try:
                return inner(*values)
            finally:
                done += 1
                with open(counted, "a") as file:
                    file.write(path_of(*values).partition("/set/")[2] + "\n")

        return work

    parallel.Watchdog = NoChild  # type: ignore[misc, assignment]
    prepare._prepare_one = counting(prepare._prepare_one, lambda job, *_: job.source.path)
    scan.look_at = counting(scan.look_at, lambda entry, *_: entry.path)
    pack.fetch = counting(pack.fetch, lambda entry: entry.path)
    with contextlib.suppress(KeyboardInterrupt):
        main(words)
