"""The side of the run: a process for each tracker, started, listened to, and told how the run ended. It waits for none."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType

from vmae2_ds.config.trackers import TrackConfig
from vmae2_ds.errors import Preempted
from vmae2_ds.track.tracker import State

log = logging.getLogger(__name__)

CHILD = "vmae2_ds.track.child"
OPENERS = {name: f"vmae2_ds.track.{name}:open_{name}" for name in ("wandb", "mlflow", "comet")}
"""What opens a tracker's run, as `module:NAME`: a function of `About` that returns a `Tracker`, called in its own process."""
PATIENCE_S, PATIENCE_AT_STOP_S = 60.0, 10.0
"""How long the end of a run waits for its trackers; launchers kill 30 s after their SIGTERM."""


class Trackers:
    """The trackers of a run, on rank 0; none where none is asked for. As a context it tells them of a run that failed.

    Start it once the run's files have their first rows: what is in them from then on is taken as it is.
    """

    def __init__(self, run: Path, track: TrackConfig, openers: Mapping[str, str] = OPENERS) -> None:
        self._run = run
        self._processes: dict[str, subprocess.Popen[str]] = {}
        self._listeners: list[threading.Thread] = []
        self._is_over, self._warned = False, set[str]()
        for name in dict.fromkeys(track.to):
            try:
                self._start(name, track, openers[name])
            except OSError as error:
                log.warning("%s: its process cannot be started (%s); the run goes on without it", name, error)

    def _start(self, name: str, track: TrackConfig, opener: str) -> None:
        (self._run / "trackers").mkdir(exist_ok=True)
        with self._log_of(name).open("ab") as noise:
            process = subprocess.Popen(
                [sys.executable, "-m", CHILD],
                env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},  # it finds what we find
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=noise,
                text=True,
                start_new_session=True,  # neither Ctrl-C nor a launcher's signals to the group
            )
        asked = {"tracker": name, "run": str(self._run.absolute()), "pid": os.getpid(), "opener": opener}
        self._processes[name] = process
        self._tell(process, {**asked, "track": track.model_dump(mode="json")})
        self._listeners.append(threading.Thread(target=self._listen, args=(name, process), daemon=True))
        self._listeners[-1].start()

    def _listen(self, name: str, process: subprocess.Popen[str]) -> None:
        """Repeat in the run's log what a tracker's process has to say."""
        assert process.stdout is not None, "it was started with one"
        for line in process.stdout:
            level, text = json.loads(line)
            if level >= logging.WARNING:
                self._warn(name, text)
            else:
                log.log(level, "%s", text)
        if not self._is_over:
            self._warn(
                name,
                f"{name}: its process has ended by itself; training goes on without it, metrics.jsonl has every row, and the "
                f"next start of the run sends them ({self._log_of(name)})",
            )

    def _warn(self, name: str, text: str) -> None:
        """One warning for each tracker: its own log has the rest."""
        if name not in self._warned:
            self._warned.add(name)
            log.warning("%s", text)

    def _log_of(self, name: str) -> Path:
        return self._run / "trackers" / f"{name}.log"

    def close(self, state: State, patience_s: float) -> None:
        """Tell all how the run ended, and give them together so many seconds to send what they have; then they are ended."""
        self._is_over = True
        for process in self._processes.values():
            self._tell(process, state)
        until = time.monotonic() + patience_s
        for name, process in self._processes.items():
            try:
                process.wait(max(0.0, until - time.monotonic()))
            except subprocess.TimeoutExpired:
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    os.killpg(process.pid, signal.SIGKILL)
                self._warn(
                    name,
                    f"{name} did not take all within {patience_s:g} s and was ended; metrics.jsonl has every row "
                    f"({self._log_of(name)})",
                )
                process.wait()
        for listener in self._listeners:  # a client's own process may hold the other end open
            listener.join(1)
        self._processes, self._listeners = {}, []

    def __enter__(self) -> Trackers:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close("failed" if error is not None else "stopped", PATIENCE_AT_STOP_S)

    @staticmethod
    def _tell(process: subprocess.Popen[str], what: object) -> None:
        assert process.stdin is not None, "it was started with one"
        with contextlib.suppress(OSError):  # it has ended: the listener says so
            process.stdin.write(f"{json.dumps(what)}\n")
            process.stdin.flush()


def state_of(stop: BaseException | None, *, is_finished: bool) -> State:
    """What a run's end is called: `stop` is why it ends early, where it does."""
    if is_finished:
        return "finished"
    return "stopped" if stop is None or isinstance(stop, Preempted) else "failed"
