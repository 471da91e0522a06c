"""The process behind a Watchdog: answers one request after another over a socket, and dies with its parent.

Started as `python -m vmae2_ds.data.readers.child SOCKET MEMORY PARENT`; imports no torch.
"""

from __future__ import annotations

import contextlib
import importlib
import mmap
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from typing import Any

import numpy as np

from vmae2_ds.data.entry import ReadAs, VideoEntry
from vmae2_ds.data.readers.common import FrameCount
from vmae2_ds.data.readers.storage import in_pieces, read_entry, stream_entry
from vmae2_ds.data.readers.table import PACKAGES, find_reader
from vmae2_ds.errors import VideoError, Vmae2Error
from vmae2_ds.host import die_with

FOLLOW_S = 0.2
"""Between two signs of life of long work."""
SHOWN = 200
"""Characters of an unexpected error that are told."""


def main() -> None:
    """Serve until the parent closes its end."""
    socket, memory, parent = (int(word) for word in sys.argv[1:])
    die_with(parent)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):  # the parent decides when to stop
        signal.signal(number, signal.SIG_IGN)
    child, is_new = _Child(Connection(socket), memory), True
    while True:
        try:
            request = child.pipe.recv()
            if is_new:
                _import_what_reads(request)
                child.pipe.send(("ready",))  # from here on the time limit counts
                is_new = False
        except (EOFError, ConnectionError):
            return
        child.answer(request)


def _import_what_reads(request: tuple[Any, ...]) -> None:
    """The packages that the first request needs: on a loaded machine they take longer than many a video may.

    What cannot be imported is told by the request itself, where it is carried out.
    """
    for reader in {"pyav", *(value.reader for value in request[1:] if isinstance(value, ReadAs))}:
        with contextlib.suppress(Exception):
            find_reader(reader)
            if reader in PACKAGES:
                importlib.import_module(PACKAGES[reader])


class _Child:
    def __init__(self, pipe: Connection, memory: int) -> None:
        self.pipe = pipe
        self._memory = memory
        self._mapped: mmap.mmap | None = None

    def answer(self, request: tuple[Any, ...]) -> None:
        """Carry out one request; what goes wrong is an answer too."""
        verb, *values = request
        if verb == "call":
            self._send_result(lambda: ("value", values[0](*values[1])))
        elif verb == "follow":
            self._send_result(lambda: ("value", self._follow(values[0](*values[1]))))
        elif verb == "stream":
            self._send_result(lambda: self._stream(*values))
        else:
            self._send_result(lambda: self._read(*values))

    def _send_result(self, work: Callable[[], tuple[Any, ...]]) -> None:
        try:
            result = work()
        except _Skipped:
            return
        except Vmae2Error as error:
            result = "error", error
        except Exception as error:  # whatever a reader raises concerns this file alone
            told = f"its reader failed: {type(error).__name__}: {str(error).strip()[:SHOWN]}"
            result = "error", VideoError(" ".join(told.split()))
        self.pipe.send(result)

    def _follow(self, items: Iterator[Any]) -> Any:
        """The last item; that there was another one is told now and then."""
        told, last = time.monotonic(), None
        for item in items:
            last = item
            if time.monotonic() - told > FOLLOW_S:
                told = time.monotonic()
                self.pipe.send(("going",))
        return last

    def _read(self, entry: VideoEntry, how: ReadAs) -> tuple[str, str, tuple[int, ...]]:
        frames = np.asarray(read_entry(entry, how, self._ask_which))
        if frames.dtype == np.uint8:
            self._share(frames)
        return "done", frames.dtype.str, frames.shape

    def _stream(self, entry: VideoEntry, how: ReadAs) -> tuple[str, int, float]:
        """Piece after piece, one decoded while the parent works on the one before."""
        count, is_looked_at = FrameCount(), False
        try:
            for piece in in_pieces(stream_entry(entry, how, self._ask_which, count)):
                if is_looked_at:
                    self._heard()  # the memory is free again
                    is_looked_at = False
                room = self._room(len(piece) * piece[0].nbytes).reshape(len(piece), *piece[0].shape)
                for place, frame in zip(room, piece, strict=True):
                    place[...] = frame
                self.pipe.send(("piece", piece[0].dtype.str, room.shape, count.decoded))
                is_looked_at = True
        finally:
            if is_looked_at:  # an error is told when the parent asks, or its question is taken for the next request
                self._heard()
        return "end", count.decoded, count.off_s

    def _ask_which(self, length: int, fps: float) -> np.ndarray:
        """The parent's choice: its random draws stay with it."""
        self.pipe.send(("choose", length, fps))
        verb, *values = self._heard()
        if verb == "skip":
            self.pipe.send(("skipped",))
            raise _Skipped
        return np.array(values[0], np.int64)

    def _heard(self) -> tuple[Any, ...]:
        """The parent's next word; the end where there is no parent."""
        try:
            return tuple(self.pipe.recv())
        except (EOFError, ConnectionError):
            sys.exit()

    def _share(self, frames: np.ndarray) -> None:
        self._room(frames.nbytes).reshape(frames.shape)[...] = frames

    def _room(self, size: int) -> np.ndarray:
        """So many bytes of the memory that the parent sees."""
        if self._mapped is None or len(self._mapped) < size:
            os.ftruncate(self._memory, size)
            self._mapped = mmap.mmap(self._memory, size)
        return np.frombuffer(self._mapped, np.uint8, size)


class _Skipped(BaseException):
    """The parent does not want this video; no reader's `except Exception` may stop this on its way."""


if __name__ == "__main__":
    main()
