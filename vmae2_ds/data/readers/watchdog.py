"""Reads under a time limit: in a child process that can be killed, because a hung reader holds the GIL and cannot be stopped.

The child (data/readers/child.py) writes frames into memory that both share; only their shape goes through the socket.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from types import TracebackType
from typing import Any

import numpy as np

from vmae2_ds.data.entry import ReadAs, VideoEntry
from vmae2_ds.data.readers.common import Choose, FrameCount
from vmae2_ds.data.readers.storage import in_pieces, read_entry, stream_entry
from vmae2_ds.errors import VideoError

CHILD = "vmae2_ds.data.readers.child"
START_S = 120.0
"""What a child may take to import its packages on a loaded machine before it counts as hung. Then the time limit begins."""
KEEP_PAGES = {"MALLOC_MMAP_THRESHOLD_": str(32 << 20), "MALLOC_TRIM_THRESHOLD_": str(256 << 20)}
"""Settings of glibc's malloc in bytes that keep the pages of one clip for the next: new ones cost a fifth of decoding."""


class Watchdog:
    """One child that reads videos, started at the first read and again after it hung or died.

    Belongs to the process and the thread that made it. Frames stay valid until the next read.
    """

    def __init__(self, timeout_s: float) -> None:
        self.timeout_s = timeout_s
        """For each answer: opening a video, and decoding what was chosen of it."""
        self._child: subprocess.Popen[bytes] | None = None
        self._owner = os.getpid()

    @property
    def pid(self) -> int | None:
        """Process id of the child; None while there is none."""
        return self._child.pid if self._child is not None else None

    def read(self, entry: VideoEntry, how: ReadAs, choose: Choose) -> np.ndarray:
        """Frames as `read_entry` gives them, uint8 (T, H, W, 3), in shared memory that the next read overwrites.

        Raises VideoError also where the reader hangs, dies, or returns something else; ConfigError as it does.
        """
        tag, *answer = self._ask("read", entry, how)
        if tag == "choose":
            indices = self._choice(choose, *answer)
            tag, *answer = self._ask("frames", indices)
            if tag == "done":
                return self._checked(answer, len(indices), how.reader)
            self.close()  # it waits for a second choice
        raise VideoError(f"the reader {how.reader} does not choose its frames once, as a reader has to")

    def stream(self, entry: VideoEntry, how: ReadAs, choose: Choose, count: FrameCount) -> Iterator[np.ndarray]:
        """Frames as `stream_entry` gives them, in pieces: uint8 (T, H, W, 3), in shared memory that the next one overwrites.

        The time limit is for each piece, and the next one is decoded while this one is looked at. Raises as `read`.
        """
        _, *answer = self._ask("stream", entry, how)
        tag, *answer = self._ask("frames", self._choice(choose, *answer))
        try:
            while tag == "piece":
                *piece, count.decoded = answer
                yield self._checked(piece, len(piece[1]) and piece[1][0], how.reader)
                tag, *answer = self._ask("next")
        except GeneratorExit:
            self.close()  # it has more to tell
            raise
        count.decoded, count.off_s = answer

    def _choice(self, choose: Choose, length: int, fps: float) -> list[int]:
        """What the child is told to read."""
        try:
            return [int(index) for index in choose(length, fps)]
        except VideoError:
            self._ask("skip")
            raise
        except BaseException:
            self.close()  # it still waits for a choice
            raise

    def call(self, function: Callable[..., Any], *values: Any) -> Any:
        """What a module-level function returns in the child, under the same limit; its own errors come back as they are."""
        return self._ask("call", function, values)[1]

    def follow(self, function: Callable[..., Iterator[Any]], *values: Any) -> Any:
        """Call a generator function, for long work: the time limit is for each item, and the last one is returned."""
        tag, *answer = self._ask("follow", function, values)
        while tag == "going":
            tag, *answer = self._wait(self.timeout_s)
        return answer[0]

    def close(self) -> None:
        """End the child."""
        if self._child is not None and os.getpid() == self._owner:
            self._end(patience_s=0)

    def __enter__(self) -> Watchdog:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def __del__(self) -> None:
        with contextlib.suppress(Exception):  # the interpreter may be half gone
            self.close()

    def _ask(self, *request: Any) -> Any:
        assert os.getpid() == self._owner, "a watchdog does not survive a fork: make one in the new process"
        is_new = self._child is None
        if is_new:
            self._start()
        with contextlib.suppress(ConnectionError):  # what became of it is seen in waiting for the answer
            self._pipe.send(request)
        if is_new:
            self._wait(START_S + self.timeout_s)  # it says that it is ready
        return self._wait(self.timeout_s)

    def _wait(self, limit_s: float) -> Any:
        try:
            if not self._pipe.poll(limit_s):
                self._end(patience_s=0)
                raise VideoError(
                    f"no answer within {self.timeout_s:g} s: its reader was killed; --data.read-timeout-s, "
                    "in data tools --timeout-s, sets the limit"
                )
            answer = self._pipe.recv()
        except (EOFError, ConnectionError):
            raise VideoError(f"crashed its reader ({self._end(patience_s=5)})") from None
        if answer[0] == "error":
            raise answer[1]
        return answer

    def _start(self) -> None:
        self._memory = _shared_file()
        self._mapped: mmap.mmap | None = None
        ours, theirs = socket.socketpair()
        with theirs:
            self._child = subprocess.Popen(
                [sys.executable, "-m", CHILD, str(theirs.fileno()), str(self._memory), str(os.getpid())],
                pass_fds=(theirs.fileno(), self._memory),
                env={**KEEP_PAGES, **os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},  # it finds what we find
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,  # libav's complaints; what matters of them is in the VideoError
            )
        self._pipe = Connection(ours.detach())

    def _end(self, patience_s: float) -> str:
        """Kill the child, unless it ends by itself in time, and say how it ended."""
        assert self._child is not None, "only a child that was started can end"
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._child.wait(patience_s)
        self._child.kill()
        code = self._child.wait()
        self._pipe.close()
        os.close(self._memory)  # a view of the last frames keeps its own mapping
        self._child = None
        return f"signal {-code}, {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"

    def _checked(self, answer: tuple[str, tuple[int, ...]], count: int, reader: str) -> np.ndarray:
        kind, shape = answer
        if kind != "|u1" or len(shape) != 4 or shape[0] != count or shape[3] != 3:
            raise VideoError(
                f"the reader {reader} returned {kind} {tuple(shape)} for {count} frames, not uint8 (T, H, W, 3)"
            )
        size = int(np.prod(shape))
        if self._mapped is None or len(self._mapped) < size:
            self._mapped = mmap.mmap(self._memory, os.fstat(self._memory).st_size)
        return np.frombuffer(self._mapped, np.uint8, size).reshape(shape)


def _shared_file() -> int:
    """A file descriptor of nameless memory; it is gone with the last process that holds it, however that ends."""
    if hasattr(os, "memfd_create"):
        return os.memfd_create("vmae2_frames")
    with tempfile.TemporaryFile() as file:
        return os.dup(file.fileno())


class GuardedReader:
    """Reads for whichever process asks, each with a watchdog of its own; with `timeout_s` 0 inside that process.

    A loader worker is a fork, and must not talk to its parent's child.
    """

    def __init__(self, timeout_s: float) -> None:
        self.timeout_s = timeout_s
        self._watchdog: tuple[int, Watchdog] | None = None

    def read(self, entry: VideoEntry, how: ReadAs, choose: Choose) -> np.ndarray:
        """Frames as `read_entry` gives them, valid until the next read. Raises VideoError."""
        if not self.timeout_s:
            return read_entry(entry, how, choose)
        return self._mine().read(entry, how, choose)

    def stream(self, entry: VideoEntry, how: ReadAs, choose: Choose, count: FrameCount) -> Iterator[np.ndarray]:
        """Frames as `stream_entry` gives them, in pieces (T, H, W, 3), each valid until the next. Raises VideoError."""
        if not self.timeout_s:
            return map(np.stack, in_pieces(stream_entry(entry, how, choose, count)))
        return self._mine().stream(entry, how, choose, count)

    def describe(self) -> str | None:
        """One line on what it keeps; None, as it keeps nothing."""
        return None

    def call(self, function: Callable[..., Any], *values: Any) -> Any:
        """What a module-level function returns that is called where videos are read; its own errors come back as they are."""
        if not self.timeout_s:
            return function(*values)
        return self._mine().call(function, *values)

    def close(self) -> None:
        """End this process's child, where it has one."""
        if self._watchdog is not None:
            self._watchdog[1].close()

    def _mine(self) -> Watchdog:
        if self._watchdog is None or self._watchdog[0] != os.getpid():
            self._watchdog = os.getpid(), Watchdog(self.timeout_s)
        return self._watchdog[1]
