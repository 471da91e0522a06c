"""The process behind a tracker: it follows the files of a run, and hands what is new to the tracker's client.

Started as `python -m vmae2_ds.track.child`; imports no torch. The first line of its standard input says what to follow, the
second how the run ended; what it has to say leaves as lines of JSON on its standard output. Whatever the client does (hang,
crash, print, catch signals) stays in here, and what it could not take is tried again: the files have it.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import pkgutil
import queue
import re
import signal
import sys
import threading
import time
import uuid
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

from vmae2_ds.config.trackers import TrackConfig
from vmae2_ds.disk import hold, write_whole
from vmae2_ds.track.rows import Steps
from vmae2_ds.track.tracker import About, State, Tracker

POLL_S = 1.0
"""Between two looks at the files."""
PICTURES_S = 30.0
"""Between two looks for pictures."""
RETRY_S = (30.0, 600.0)
"""The first pause after a failure, and the longest: each is twice the one before."""
ORPHAN_S = 60.0
"""How long it goes on once the process that trains is gone without a word."""
SHOWN = 300
"""Characters of an error that are told."""

Say = Callable[[int, str], None]


class Follower:
    """Hands a run's figures and pictures to one tracker, from where that one stands.

    Args:
        run: the run folder.
        open_tracker: opens the tracker's run.
        say: takes a level of logging and a line.
    """

    def __init__(
        self, name: str, run: Path, track: TrackConfig, pid: int, open_tracker: Callable[[About], Tracker], say: Say
    ) -> None:
        self._name, self._run, self._track, self._pid, self._say = name, run, track, pid, say
        self._open = open_tracker
        self._notes = run / "trackers" / f"{name}.json"
        self._tracker: Tracker | None = None
        self._is_told, self._pause_s, self._not_before, self._pictures_at = False, RETRY_S[0], 0.0, 0.0

    def follow(self, *, is_over: bool = False) -> bool:
        """Hand over what is new, unless a failure is too fresh; whether all is handed over."""
        now = time.monotonic()
        if now < self._not_before and not is_over:
            return False
        try:
            tracker = self._tracker or self._opened()
            for row in self._steps.take(is_over=is_over):
                tracker.row(row)
            if is_over or now >= self._pictures_at:
                self._pictures_at = now + PICTURES_S
                self._hand_pictures(tracker)
        except Exception as error:  # whatever a client raises: of a network, a server, an account, a version
            self._failed(error)
            return False
        self._pause_s = RETRY_S[0]
        return True

    def close(self, state: State) -> bool:
        """Hand over the rest, and let go of the tracker; whether it has taken all."""
        is_whole = self.follow(is_over=True)
        if self._tracker is not None:
            try:
                self._tracker.close(state)
            except Exception as error:  # as above
                self._failed(error)
                return False
        return is_whole

    def _opened(self) -> Tracker:
        notes = {"id": uuid.uuid4().hex, "is_new": True, **self._read_notes()}
        self._write_notes(notes)  # first: what fails half-way through is not begun a second time under another name
        about = About(self._run, self._track, notes["id"], notes["is_new"], self._pid)
        about.folder.mkdir(parents=True, exist_ok=True)
        self._tracker = tracker = self._open(about)
        self._write_notes({**notes, "is_new": False})
        self._steps = Steps(self._run, tracker.last_step)
        self._say(logging.INFO, f"{self._name}: {without_login(tracker.place)}")
        return tracker

    def _hand_pictures(self, tracker: Tracker) -> None:
        """Those that the run's folder has got: a name is told once."""
        notes = self._read_notes()
        known = set(notes.get("pictures", []))
        for path in sorted((self._run / "pictures").rglob("*.png")):
            name = str(path.relative_to(self._run).with_suffix(""))
            if name not in known:
                of = re.search(r"step(\d+)", name)
                tracker.picture(path, name, int(of[1]) if of else max(0, self._steps.last))
                known.add(name)
                self._write_notes({**notes, "pictures": sorted(known)})

    def _failed(self, error: Exception) -> None:
        """One line for all failures; the log of the tracker has each."""
        why = without_login(" ".join(f"{type(error).__name__}: {error}".split()))
        print(f"{time.strftime('%Y-%m-%dT%H:%M:%S%z')} {why}", flush=True)
        if not self._is_told:
            self._say(
                logging.WARNING,
                f"{self._name} does not take the run's figures: {why[:SHOWN]}; training goes on, metrics.jsonl has "
                "every row, and the tracker is tried again and gets what it missed",
            )
        self._is_told = True
        self._not_before = time.monotonic() + self._pause_s
        self._pause_s = min(2 * self._pause_s, RETRY_S[1])

    def _read_notes(self) -> dict[str, Any]:
        with contextlib.suppress(OSError, ValueError):
            found: dict[str, Any] = json.loads(self._notes.read_text())
            return found
        return {}

    def _write_notes(self, notes: dict[str, Any]) -> None:
        write_whole(self._notes, json.dumps(notes, indent=1))


def without_login(text: str) -> str:
    """The text without the names and passwords that addresses of servers in it have: logs are kept and sent on."""
    return re.sub(r"(?<=://)[^/\s]+@", "", text)


def main() -> None:
    """Follow a run until its process says how it ended, or is gone."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP):  # the run decides when to stop
        signal.signal(number, signal.SIG_IGN)
    os.nice(10)  # the cores are the loader's
    first = sys.stdin.readline()
    if not first:  # whoever started this was killed before it said what for
        return
    asked = json.loads(first)
    name, run, parent = asked["tracker"], Path(asked["run"]), asked["pid"]
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()
    lines: queue.Queue[str] = queue.Queue()
    threading.Thread(target=lambda: deque(map(lines.put, sys.stdin), 0), daemon=True).start()
    told = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what a client prints

    def say(level: int, text: str) -> None:
        with contextlib.suppress(OSError):  # of a run that is gone
            print(json.dumps([level, text]), file=told, flush=True)

    lock = _wait_for_lock(run / "trackers" / f".{name}.lock")
    follower = Follower(
        name,
        run,
        TrackConfig.model_validate(asked["track"]),
        parent,
        lambda about: pkgutil.resolve_name(asked["opener"])(about),  # imported with its client, in time
        say,
    )
    state: State | None = None
    while state is None:
        try:
            word = lines.get(timeout=POLL_S)
            state = json.loads(word)
        except queue.Empty:
            state = "failed" if os.getppid() != parent else None
        if state is None:
            follower.follow()
    is_whole = follower.close(state)
    del lock
    os._exit(0 if is_whole else 1)  # what a client does at exit is its own


def _wait_for_lock(path: Path) -> Any:
    """One at a time: of a run that was killed and begun again at once, the former may still be sending."""
    until = time.monotonic() + 2 * ORPHAN_S
    while (file := hold(path)) is None and time.monotonic() < until:
        time.sleep(POLL_S / 4)
    return file


def _end_with(parent: int) -> None:
    """Once the process that trains is gone, end a while after it, whatever the client waits for, with all that it has started:
    they are in a session of their own."""
    while os.getppid() == parent:
        time.sleep(POLL_S)
    time.sleep(ORPHAN_S)
    os.killpg(0, signal.SIGKILL)


if __name__ == "__main__":
    main()
