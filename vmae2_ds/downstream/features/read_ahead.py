"""Several videos read at once, each by a thread and a child process of its own, ahead of the model."""

from __future__ import annotations

import contextlib
import queue
import threading
from collections.abc import Callable, Generator, Iterator
from typing import NamedTuple

from vmae2_ds.data.readers.watchdog import GuardedReader
from vmae2_ds.downstream.features.video_windows import VideoWindows, WindowBatch
from vmae2_ds.errors import VideoError

AHEAD = 2
"""Batches of each reader that wait for the model, at most."""
LOOK_S = 0.2
"""How often a reader that waits sees whether it is still wanted."""

Open = Callable[[int, GuardedReader], VideoWindows]
"""(which of the videos, what reads it) -> its windows."""


class Read(NamedTuple):
    """Some windows of a video; or its end, with the reason where it could not be read."""

    number: int
    """Which of the videos."""
    video: VideoWindows
    batch: WindowBatch | None
    reason: str | None = None


def read_videos(
    open_video: Open, count: int, workers: int, timeout_s: float, *, pinned: bool = False
) -> Generator[Read, None, None]:
    """The windows of videos 0 .. count - 1, each video's in order and its end last; several videos may take turns.

    Args:
        open_video: Called in the thread that reads.
        workers: Videos that are read at once; 0: one, by this thread and this process, without a time limit.
        timeout_s: For each piece of a video.
        pinned: Frames lie in pinned memory, from which a GPU copies without waiting.
    """
    if not workers:
        reader = GuardedReader(0)
        for number in range(count):
            yield from _read(number, open_video(number, reader), pinned)
        return
    ready: queue.Queue[Read | BaseException | None] = queue.Queue(AHEAD * workers)
    numbers, taking, over = iter(range(count)), threading.Lock(), threading.Event()

    def put(item: Read | BaseException | None) -> None:
        while not over.is_set():
            with contextlib.suppress(queue.Full):
                return ready.put(item, timeout=LOOK_S)
        raise _NotWanted

    def work() -> None:
        reader = GuardedReader(timeout_s)
        try:
            while True:
                with taking:
                    number = next(numbers, None)
                if number is None:
                    break
                for item in _read(number, open_video(number, reader), pinned):
                    put(item)
            put(None)
        except _NotWanted:
            pass
        except BaseException as error:  # whatever it is, it belongs to whoever asked
            with contextlib.suppress(_NotWanted):
                put(error)
        finally:
            reader.close()

    threads = [threading.Thread(target=work, daemon=True) for _ in range(min(workers, count))]
    for thread in threads:
        thread.start()
    try:
        at_work = len(threads)
        while at_work:
            item = ready.get()
            if item is None:
                at_work -= 1
            elif isinstance(item, BaseException):
                raise item
            else:
                yield item
    finally:
        over.set()
        for thread in threads:
            thread.join(2 * LOOK_S)  # one that hangs in a reader ends with its time limit


class _NotWanted(Exception):
    """Nobody takes what is read any more."""


def _read(number: int, video: VideoWindows, pinned: bool) -> Iterator[Read]:
    try:
        for batch in video:
            frames = batch.frame_FHWC.pin_memory() if pinned else batch.frame_FHWC
            yield Read(number, video, batch._replace(frame_FHWC=frames))
        yield Read(number, video, None)
    except VideoError as error:
        yield Read(number, video, None, str(error))
