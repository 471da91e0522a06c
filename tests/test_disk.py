"""What is written for a user is whole or absent, and a place that cannot be written is refused before the work."""

from __future__ import annotations

import fcntl
import hashlib
import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from vmae2_ds import disk
from vmae2_ds.disk import (
    HashedFile,
    WrittenFile,
    check_out_file,
    check_out_folder,
    hold,
    put_whole_folder,
    sha256_of,
    whole_file,
    write_whole,
)  # fmt: skip
from vmae2_ds.errors import ConfigError


def write_half_and_fail(part: Path) -> None:
    part.write_text("half of the n")
    raise ZeroDivisionError


def test_a_file_is_the_old_one_or_the_new_one_and_nothing_else_stays(tmp_path: Path) -> None:
    file = tmp_path / "a.json"
    write_whole(file, "old")
    with pytest.raises(ZeroDivisionError), whole_file(file) as part:
        write_half_and_fail(part)
    assert file.read_text() == "old"
    assert os.listdir(tmp_path) == ["a.json"]
    write_whole(file, "new")
    assert file.read_text() == "new"
    assert os.listdir(tmp_path) == ["a.json"]


def test_names_that_are_no_utf8_are_written_as_they_were_read(tmp_path: Path) -> None:
    write_whole(tmp_path / "list", b"caf\xe9".decode("utf-8", "surrogateescape"))
    assert (tmp_path / "list").read_bytes() == b"caf\xe9"


def test_the_content_reaches_the_disk_before_its_name_and_the_name_before_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[str] = []
    fsync, replace = os.fsync, Path.replace

    def synced(descriptor: int) -> None:
        calls.append(f"fsync {os.path.basename(os.readlink(f'/proc/self/fd/{descriptor}')).partition('.part')[0]}")
        fsync(descriptor)

    def renamed(path: Path, target: Path) -> Path:
        calls.append("rename")
        return replace(path, target)

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(Path, "replace", renamed)
    write_whole(tmp_path / "a", "x")
    assert calls == ["fsync .a", "rename", f"fsync {tmp_path.name}"]


@pytest.mark.parametrize("left", [".a.mp4.part", "a.mp4.part", ".part.a.mp4"])
def test_a_job_that_holds_its_folder_writes_over_what_a_killed_one_left_under_any_version_s_name(
    tmp_path: Path, left: str
) -> None:
    (tmp_path / left).write_text("a gibibyte")
    with whole_file(tmp_path / "a.mp4", alone=True) as part:
        part.write_text("whole")
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {"a.mp4": "whole"}


def test_a_folder_gets_its_name_after_all_that_lies_in_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "half" / "deep").mkdir(parents=True)
    (tmp_path / "half" / "deep" / "file").write_text("x")
    calls: list[str] = []

    def synced(descriptor: int) -> None:
        place = os.path.relpath(os.readlink(f"/proc/self/fd/{descriptor}"), tmp_path)
        calls.append(f"{place} {(tmp_path / 'whole').exists()}")

    monkeypatch.setattr(os, "fsync", synced)
    put_whole_folder(tmp_path / "half", tmp_path / "whole")
    assert sorted(calls) == [". True", "half False", "half/deep False", "half/deep/file False"]
    assert (tmp_path / "whole" / "deep" / "file").read_text() == "x"


def test_a_file_is_hashed_as_it_is_written_from_bytes_and_from_arrays(tmp_path: Path) -> None:
    content = os.urandom(70_000)
    with HashedFile(tmp_path / "a") as file:
        assert file.write(content[:1]) == 1
        assert file.write(torch.frombuffer(bytearray(content[1:60_001]), dtype=torch.int16).numpy()) == 60_000
        file.write(memoryview(content)[60_001:])
    assert (tmp_path / "a").read_bytes() == content
    assert file.written == WrittenFile(70_000, hashlib.sha256(content).hexdigest())
    assert sha256_of(tmp_path / "a") == file.written.sha256


def test_a_large_piece_is_hashed_in_a_second_thread_and_may_be_changed_once_it_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The writer's memory is the caller's: nothing of it is read after `write` has returned."""
    threads = set[str]()
    plain = hashlib.sha256

    def slow() -> Any:
        digest = plain()

        def update(data: memoryview) -> None:
            threads.add(threading.current_thread().name)
            time.sleep(0.05 * (len(data) > 100))
            digest.update(data)

        return SimpleNamespace(update=update, hexdigest=digest.hexdigest)

    monkeypatch.setattr(hashlib, "sha256", slow)
    piece, content = bytearray(b"a" * disk.HASHED_APART), b""
    with HashedFile(tmp_path / "a") as file:
        for letter in b"abc":
            piece[:] = bytes([letter]) * len(piece)
            content += bytes(piece) + b"small"
            file.write(piece)
            piece[:] = b"x" * len(piece)
            file.write(b"small")
    assert (tmp_path / "a").read_bytes() == content
    assert file.written.sha256 == plain(content).hexdigest()
    assert threads == {"MainThread", "sha256_0"}
    assert not any(thread.name.startswith("sha256") for thread in threading.enumerate()), "it ends with its file"


@pytest.mark.parametrize("failing", ["the hash", "the disk"])
def test_an_error_of_either_thread_ends_the_write(
    failing: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> int:
        raise OSError(5, f"{failing} failed")

    with HashedFile(tmp_path / "a") as file:
        if failing == "the hash":
            file._hash = SimpleNamespace(update=fail)  # type: ignore[assignment]
        else:
            monkeypatch.setattr(HashedFile, "_put", fail)
        with pytest.raises(OSError, match=f"{failing} failed"):
            file.write(bytes(disk.HASHED_APART))
        assert file._size == 0


def test_a_lock_is_of_one_process_and_ends_with_it(tmp_path: Path) -> None:
    """Not of its children: loader workers outlive a killed run by seconds."""
    code = (
        "import os, sys; from pathlib import Path; from vmae2_ds.disk import hold\n"
        "file = hold(Path(sys.argv[1]))\n"
        "if os.fork() == 0: os.read(0, 1); os._exit(0)\n"
        "print('held', flush=True); os.read(0, 1); os._exit(0)"
    )
    lock = str(tmp_path / "lock")
    with subprocess.Popen(
        [sys.executable, "-c", code, lock], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "held\n"
        assert hold(tmp_path / "lock") is None
        other.kill()
        os.waitid(os.P_PID, other.pid, os.WEXITED | os.WNOWAIT)
        held = hold(tmp_path / "lock")
        assert held is not None, "the child lives, and has the file open"
        held.close()


def test_a_file_system_without_locks_is_taken_on_trust(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def without(file: object, how: int) -> None:
        raise OSError(38, "Function not implemented")

    monkeypatch.setattr(fcntl, "lockf", without)
    held = hold(tmp_path / "lock")
    assert held is not None
    held.close()
    assert "no locks" in caplog.text


def test_a_file_is_refused_where_it_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    (tmp_path / "folder").mkdir()
    (tmp_path / "link").symlink_to("file")
    for path, why in (("folder", "is a folder"), ("file/in", "Not a directory|File exists")):
        with pytest.raises(ConfigError, match=why):
            check_out_file(tmp_path / path)
    with pytest.raises(ConfigError, match="is read"):
        check_out_file(tmp_path / "link", inputs=[tmp_path / "file"])
    check_out_file(tmp_path / "file")
    check_out_file(tmp_path / "new" / "deep" / "file")
    assert (tmp_path / "file").read_text() == "mine"
    assert not any((tmp_path / "new" / "deep").iterdir())


def test_a_folder_is_refused_where_it_holds_what_is_read_or_what_is_not_ours(tmp_path: Path) -> None:
    (tmp_path / "a.mp4").write_text("mine")
    with pytest.raises(ConfigError, match="is read"):
        check_out_folder(tmp_path, inputs=[tmp_path / "a.mp4"])
    with pytest.raises(ConfigError, match="something else"):
        check_out_folder(tmp_path, is_ours=lambda folder: (folder / "ours").exists())
    with pytest.raises(ConfigError, match="is a file"):
        check_out_folder(tmp_path / "a.mp4")
    check_out_folder(tmp_path / "new", inputs=[tmp_path / "a.mp4"], is_ours=lambda folder: False)


def test_folders_made_for_a_trial_that_fails_are_gone_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(path: Path, data: bytes) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(ConfigError, match=r"--out .*/b: No space left on device"):
        check_out_folder(tmp_path / "a" / "b")
    assert not (tmp_path / "a").exists()
