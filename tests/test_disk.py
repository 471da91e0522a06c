"""What is written for a user is whole or absent, and a place that cannot be written is refused before the work."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from vmae2_ds.disk import check_out_file, check_out_folder, whole_file, write_whole
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
