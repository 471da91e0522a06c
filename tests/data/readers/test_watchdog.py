"""Reads in a killable child: the same frames as without it, and a reader that hangs, dies or lies costs its file alone."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import psutil
import pytest

from vmae2_ds.config.pretrain import PretrainConfig
from vmae2_ds.data.entry import ReadAs, VideoEntry
from vmae2_ds.data.feed.loader import make_loader
from vmae2_ds.data.feed.pretrain import PretrainDataset
from vmae2_ds.data.readers.storage import read_entry
from vmae2_ds.data.readers.watchdog import START_S, Watchdog
from vmae2_ds.data.sources.manifest import read_manifest
from vmae2_ds.data.sources.mixture import Mixture
from vmae2_ds.data.tools.synthetic import SyntheticSet
from vmae2_ds.errors import ConfigError, VideoError

FIRST = np.array([0, 3, 5])
HANGS = 1.0
"""Seconds that these tests give a reader which never answers."""


def entry_of(path: Path) -> VideoEntry:
    return VideoEntry(str(path), None, "default", 0, None)


def choose(length: int, fps: float) -> np.ndarray:
    assert length == 24
    assert fps == 16
    return FIRST


@pytest.fixture(scope="module")
def good(synthetic_set: SyntheticSet) -> VideoEntry:
    return read_manifest(synthetic_set.train)[0]


@pytest.fixture
def bad(tmp_path: Path) -> VideoEntry:
    (tmp_path / "bad.mp4").write_bytes(b"anything")
    return entry_of(tmp_path / "bad.mp4")


@pytest.fixture
def watchdog() -> Iterator[Watchdog]:
    with Watchdog(timeout_s=30) as made:
        yield made


@pytest.mark.parametrize("reader", ["pyav", "decord"])
def test_frames_are_those_of_a_plain_read(watchdog: Watchdog, good: VideoEntry, reader: str) -> None:
    how = ReadAs(reader=reader)
    assert np.array_equal(watchdog.read(good, how, choose), read_entry(good, how, choose))
    child = watchdog.pid
    more = watchdog.read(good, how, lambda length, fps: np.arange(20))  # the shared memory grows
    assert np.array_equal(more, read_entry(good, how, lambda length, fps: np.arange(20)))
    assert watchdog.pid == child


MISDEEDS = {
    "sleeps": r"no answer within 1 s: its reader was killed",
    "sleeps_decoding": r"no answer within 1 s",
    "crashes": r"crashed its reader \(signal 11, SIGSEGV\)",
    "exits": r"crashed its reader \(exit code 3\)",
    "hogs": r"its reader failed: MemoryError: no room for a frame$",
    "wrong_shape": r"returned \|u1 \(2, 8, 8, 3\) for 3 frames, not uint8",
    "wrong_type": r"returned <f4 \(3, 8, 8, 3\) for 3 frames",
    "never_chooses": r"does not choose its frames once",
    "chooses_twice": r"does not choose its frames once",
}


@pytest.mark.parametrize("misdeed", MISDEEDS)
def test_a_misdeed_costs_its_file_alone(watchdog: Watchdog, good: VideoEntry, bad: VideoEntry, misdeed: str) -> None:
    how = ReadAs(reader=f"tests.data.readers.bad_readers:{misdeed}")
    before = watchdog.read(good, how, choose).copy()
    watchdog.timeout_s = HANGS
    with pytest.raises(VideoError, match=MISDEEDS[misdeed]) as error:
        watchdog.read(bad, how, lambda length, fps: FIRST)
    assert "\n" not in str(error.value)
    watchdog.timeout_s = 30
    assert np.array_equal(watchdog.read(good, how, choose), before)


def test_a_hang_in_the_first_read_costs_no_more_than_one_later(
    watchdog: Watchdog, bad: VideoEntry, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A new child has longer to start, and not to answer."""
    limits_s, wait = [], watchdog._wait

    def noted(limit_s: float) -> object:
        limits_s.append(limit_s)
        return wait(limit_s)

    monkeypatch.setattr(watchdog, "_wait", noted)
    watchdog.timeout_s = HANGS
    with pytest.raises(VideoError, match="no answer within 1 s"):
        watchdog.read(bad, ReadAs(reader="tests.data.readers.bad_readers:sleeps"), lambda length, fps: FIRST)
    assert limits_s == [START_S + HANGS, HANGS]


def test_errors_come_back_as_they_are(watchdog: Watchdog, good: VideoEntry, tmp_path: Path) -> None:
    with pytest.raises(VideoError, match="cannot be opened: No such file"):
        watchdog.read(entry_of(tmp_path / "none.mp4"), ReadAs(), choose)
    with pytest.raises(ConfigError, match=r"reader 'nowhere:read' cannot be imported \(No module named 'nowhere'\)"):
        watchdog.read(good, ReadAs(reader="nowhere:read"), choose)
    child = watchdog.pid

    def refuse(length: int, fps: float) -> np.ndarray:
        raise VideoError(f"{length} are too few")

    with pytest.raises(VideoError, match="24 are too few"):
        watchdog.read(good, ReadAs(), refuse)
    assert watchdog.call(divmod, 7, 2) == (3, 1)
    with pytest.raises(VideoError, match="ZeroDivisionError"):
        watchdog.call(divmod, 7, 0)
    assert np.array_equal(watchdog.read(good, ReadAs(), choose), read_entry(good, ReadAs(), choose))
    assert watchdog.pid == child


def test_a_child_killed_between_reads_is_replaced(watchdog: Watchdog, good: VideoEntry) -> None:
    watchdog.read(good, ReadAs(), choose)
    assert watchdog.pid is not None
    os.kill(watchdog.pid, signal.SIGKILL)
    with pytest.raises(VideoError, match="signal 9"):
        watchdog.read(good, ReadAs(), choose)
    watchdog.read(good, ReadAs(), choose)


def test_restarts_leave_no_descriptors_and_no_processes(good: VideoEntry) -> None:
    """Counted in a process of its own: what other tests left here is closed at any time."""
    program = f"""
import psutil
from vmae2_ds.data.entry import ReadAs, VideoEntry
from vmae2_ds.data.readers.watchdog import Watchdog
watchdog, good, me = Watchdog(60), VideoEntry({good.path!r}, None, "", 0, None), psutil.Process()
for restart in range(4):
    watchdog.read(good, ReadAs(), lambda length, fps: range(3))
    watchdog.close()
    print(me.num_fds(), len(me.children()))
"""
    counts = subprocess.run([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True, check=True).stdout
    lines = counts.splitlines()
    assert len(lines) == 4
    assert len(set(lines)) == 1, lines
    assert lines[0].endswith(" 0")


def test_a_child_dies_with_its_parent_even_while_it_hangs(good: VideoEntry, bad: VideoEntry) -> None:
    program = f"""
import threading, time
from vmae2_ds.data.entry import ReadAs, VideoEntry
from vmae2_ds.data.readers.watchdog import Watchdog
watchdog = Watchdog(600)
how = ReadAs(reader="tests.data.readers.bad_readers:sleeps")
watchdog.call(len, "started")
print(watchdog.pid, flush=True)
watchdog.read(VideoEntry({bad.path!r}, None, "", 0, None), how, None)
"""
    parent = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    child = psutil.Process(int(parent.stdout.readline()))
    time.sleep(0.5)  # into the read that never ends
    parent.kill()
    parent.wait()
    _, alive = psutil.wait_procs([child], timeout=30)
    assert not [process for process in alive if process.status() != psutil.STATUS_ZOMBIE]


@pytest.mark.parametrize("workers", [0, 2])
def test_a_hung_reader_costs_training_one_file(
    synthetic_set: SyntheticSet,
    bad: VideoEntry,
    make_config: Callable[..., PretrainConfig],
    tmp_path: Path,
    workers: int,
) -> None:
    videos = sorted((synthetic_set.train.parent / "train").glob("*.mp4"))[:5]
    (tmp_path / "list.csv").write_text("path\nbad.mp4\n" + "".join(f"{path}\n" for path in videos))
    mixture = Mixture.of_manifest(read_manifest(tmp_path / "list.csv"), "tests.data.readers.bad_readers:sleeps")
    config = make_config(micro_batch=3, workers=workers, read_timeout_s=HANGS)
    where = {"rank": 0, "world_size": 1, "accumulation": 1, "first_step": 0, "num_steps": 2}
    loaded = list(make_loader(config, PretrainDataset(config, mixture), **where))
    failures = [failure for batch in loaded for failure in batch.failures]
    assert {failure.path for failure in failures} == {bad.path}
    assert "no answer within 1 s" in failures[0].reason
    assert sum(sum(batch.sources.values()) for batch in loaded) == 6
