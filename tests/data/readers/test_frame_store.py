"""The folder of kept videos: bounded to the byte over all processes, each file whole or absent, and what is in use stays."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from multiprocessing.synchronize import Barrier
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from vmae2_ds.data.readers.frame_store import HEADER_BYTES, Frames, FrameStore, NoRoom

ABOUT = Frames(length=40, fps=12.5, start=3, kept=7, height=6, width=10)
SIZE = ABOUT.file_bytes
GIB = 2**30
DAY_S = 86400
SERVER = multiprocessing.get_context("forkserver")  # a fork of this process might wait for threads of its decoders


def pixels(seed: int = 0) -> np.ndarray:
    shape = (ABOUT.kept, ABOUT.height, ABOUT.width, 3)
    return np.random.default_rng(seed).integers(0, 256, shape, np.uint8)


def put(store: FrameStore, key: str, seed: int = 0) -> bool:
    """Whether this process was the one that wrote it."""
    part = store.reserve(key, SIZE)
    if part is None:
        return False
    part.write_bytes(ABOUT.header + pixels(seed).tobytes())
    store.publish(part, key)
    return True


def age(path: Path, days: float) -> None:
    """As if it had been used last so long ago."""
    then = time.time() - days * DAY_S
    os.utime(path, (then, then))


def keys_in(folder: Path) -> list[str]:
    return sorted(path.stem for path in folder.glob("*.frames"))


def test_frames_come_back_by_their_numbers_in_the_video(tmp_path: Path) -> None:
    store = FrameStore(tmp_path, GIB)
    assert store.open("a") is None
    assert put(store, "a")
    kept = FrameStore(tmp_path, GIB).open("a")
    assert kept is not None
    with kept:
        assert kept.about == ABOUT
        assert kept.has([3, 9])
        assert not kept.has([2, 9])
        assert not kept.has([3, 10])
        assert np.array_equal(kept.frames([9, 3, 3]), pixels()[[6, 0, 0]])


def test_the_bound_holds_to_the_byte(tmp_path: Path) -> None:
    store = FrameStore(tmp_path, 3 * SIZE - 1)
    assert put(store, "a")
    assert put(store, "b")
    with pytest.raises(NoRoom):
        store.reserve("c", SIZE)
    assert store.reserve("c", SIZE - 1) is not None
    with pytest.raises(NoRoom):  # what is being written counts whole
        store.reserve("d", 1)
    assert store.used() == (2, 3 * SIZE - 1)


def test_what_is_not_written_after_all_leaves_its_room(tmp_path: Path) -> None:
    store = FrameStore(tmp_path, SIZE)
    part = store.reserve("a", SIZE)
    assert part is not None
    store.drop(part)
    assert put(store, "b")


def fill(folder: Path, keys: list[str], limit: int, start: Barrier, written: multiprocessing.Queue[int]) -> None:
    """Keep what there is room for; a moment passes between counting and taking the room."""
    store, mine, make_room = FrameStore(folder, limit), 0, FrameStore._make_room

    def slowly(*about: Any) -> None:
        make_room(*about)
        time.sleep(0.001)

    FrameStore._make_room = slowly  # type: ignore[method-assign]  # the fork's own
    start.wait()
    for key in keys:
        try:
            mine += put(store, key, int(key))
        except NoRoom:
            continue
        total = sum(path.stat().st_size for path in folder.glob("*.frames"))
        if total > limit:
            os._exit(1)
    written.put(mine)


@pytest.mark.parametrize("room_for", [1000, 17])
def test_processes_that_fill_at_once_write_each_video_once_and_keep_the_bound(tmp_path: Path, room_for: int) -> None:
    keys, limit = [str(number) for number in range(40)], room_for * SIZE + SIZE // 2
    start, written = SERVER.Barrier(4), SERVER.Queue()
    store = FrameStore(tmp_path, limit)
    store.sign()  # or the last ones might take what the first ones, which have ended, left
    turned = [keys[turn:] + keys[:turn] for turn in (0, 0, 1, 20)]
    others = [SERVER.Process(target=fill, args=(tmp_path, order, limit, start, written)) for order in turned]
    for other in others:
        other.start()
    count = sum(written.get(timeout=60) for _ in others)
    for other in others:
        other.join()
    assert [other.exitcode for other in others] == [0] * 4
    found = keys_in(tmp_path)
    assert count == len(found) == min(len(keys), room_for)
    for key in found:
        kept = store.open(key)
        assert kept is not None
        with kept:
            assert np.array_equal(kept.frames(range(3, 10)), pixels(int(key)))
    assert not list(tmp_path.glob("*.part"))


STOPS_HALF_WAY = """
import sys, time
from pathlib import Path
from vmae2_ds.data.readers.frame_store import FrameStore
part = FrameStore(Path(sys.argv[1]), 2**30).reserve("a", int(sys.argv[2]))
part.write_bytes(b"half")
print("half", flush=True)
time.sleep(600)
"""


def test_a_process_killed_while_it_writes_leaves_nothing_that_is_used(tmp_path: Path) -> None:
    store = FrameStore(tmp_path, SIZE)
    command = [sys.executable, "-c", STOPS_HALF_WAY, str(tmp_path), str(SIZE)]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as other:
        assert other.stdout is not None
        other.stdout.readline()
        assert store.open("a") is None
        assert store.reserve("a", SIZE) is None  # it is being written
        with pytest.raises(NoRoom):
            store.reserve("b", SIZE)
        other.send_signal(signal.SIGKILL)
    assert put(store, "a")
    assert not list(tmp_path.glob("*.part"))
    assert len(list(tmp_path.glob(".*.user"))) == 1


@pytest.mark.parametrize("content", [b"", b"vmae2fr1", ABOUT.header, ABOUT.header + bytes(SIZE), b"x" * SIZE])
def test_a_file_that_is_not_whole_is_not_used(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.frames").write_bytes(content)
    store = FrameStore(tmp_path, GIB)
    assert store.open("a") is None
    assert put(store, "a")
    assert len(HEADER_BYTES * b"x") == len(ABOUT.header)


def test_the_oldest_that_nobody_uses_makes_room(tmp_path: Path) -> None:
    before = FrameStore(tmp_path, 4 * SIZE)
    for key, days in {"a": 2, "b": 3, "c": 1, "d": 4}.items():
        put(before, key)
        age(tmp_path / f"{key}.frames", days)
    store = FrameStore(tmp_path, 4 * SIZE)
    kept = store.open("d")  # used just now
    assert kept is not None
    assert put(store, "e")
    assert keys_in(tmp_path) == ["a", "c", "d", "e"]
    assert put(store, "f")
    assert put(store, "g")
    assert keys_in(tmp_path) == ["d", "e", "f", "g"]
    with pytest.raises(NoRoom):
        put(store, "h")
    with kept:
        assert np.array_equal(kept.frames(range(3, 10)), pixels())


def test_nothing_goes_where_that_would_not_be_enough(tmp_path: Path) -> None:
    store = FrameStore(tmp_path, 2 * SIZE)
    put(store, "a")
    put(store, "b")
    age(tmp_path / "a.frames", 1)
    with pytest.raises(NoRoom):
        store.reserve("c", 2 * SIZE)
    assert keys_in(tmp_path) == ["a", "b"]


USES = """
import sys, time
from pathlib import Path
from vmae2_ds.data.readers.frame_store import FrameStore
store = FrameStore(Path(sys.argv[1]), 2**30)
store.sign()
print("there", flush=True)
sys.stdin.readline()
store.open("a").__exit__(None, None, None)
print("used", flush=True)
time.sleep(600)
"""


def test_what_another_running_process_has_used_stays(tmp_path: Path) -> None:
    first = FrameStore(tmp_path, 2 * SIZE)
    put(first, "a")
    put(first, "b")
    for key in "ab":
        age(tmp_path / f"{key}.frames", 1)
    command = [sys.executable, "-c", USES, str(tmp_path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdin is not None
        assert other.stdout is not None
        other.stdout.readline()
        other.stdin.write("\n")
        other.stdin.flush()
        other.stdout.readline()
        assert put(first, "c")
        assert keys_in(tmp_path) == ["a", "c"]
        with pytest.raises(NoRoom):
            put(first, "d")
        other.kill()


def test_a_kept_video_can_be_read_after_it_is_removed(tmp_path: Path) -> None:
    store = FrameStore(tmp_path, GIB)
    put(store, "a")
    kept = store.open("a")
    assert kept is not None
    with kept:
        (tmp_path / "a.frames").unlink()
        assert np.array_equal(kept.frames([3]), pixels()[:1])
    assert store.open("a") is None
    assert put(store, "a")
