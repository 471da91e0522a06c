"""No data tool writes over what it did not write: every verb, asked for every kind of place, changes nothing and says why."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.data.tools.test_shards import write_tar
from vmae2_ds.cli.main import main
from vmae2_ds.data.tools.synthetic import SyntheticSet

WRITTEN = {
    "data check": ("clean.csv", "bad.csv", "report.html"),
    "data prepare": ("manifest.csv", "a.mp4", "report.json"),
    "data pack": ("manifest.csv", "000000.tar", "shards.jsonl"),
    "data index": ("rows.bin", "paths.bin", "index.json"),
    "data synth": ("train.csv", "labels.txt", "train/00000.mp4"),
    "data merge-kinetics": ("train.csv", "report.json", "labels.txt"),
}
"""Verb -> some of the names that it writes into its folder."""
FOLDER_VERBS = sorted(WRITTEN)
VERBS = [*FOLDER_VERBS, "data index-shards"]
ID = "abcdefgh-_"


@pytest.fixture
def place(synthetic_set: SyntheticSet, tmp_path: Path) -> Path:
    """A folder with a list and its two videos, a shard, and the lists of a small Kinetics set."""
    films = sorted((synthetic_set.train.parent / "train").glob("*.mp4"))[:2]
    folder = tmp_path / "mine"
    folder.mkdir()
    for name, film in zip(("a.mp4", "b.mp4"), films, strict=True):
        shutil.copy(film, folder / name)
    (folder / "manifest.csv").write_text("path\na.mp4\nb.mp4\n")
    write_tar(folder / "set.tar", [("a.mp4", films[0].read_bytes())])
    (folder / "train.csv").write_text(f"{ID}1.mp4 0\n")
    (folder / "val.csv").write_text(f"{ID}2.mp4 1\n")
    (folder / "labels.txt").write_text("run\nwalk\n")
    return folder


def call(verb: str, place: Path, out: Path) -> list[str]:
    """The verb's line, reading what lies in `place` and writing to `out`."""
    if verb == "data synth":
        return [*verb.split(), str(out), "--train-videos", "2", "--val-videos", "1", "--size", "32", "--frames", "4"]
    if verb == "data merge-kinetics":
        lists = [str(place / name) for name in ("train.csv", "val.csv", "labels.txt")]
        return [*verb.split(), str(out), "--k400", *lists]
    source = place / ("set.tar" if verb == "data index-shards" else "manifest.csv")
    one = ["--workers", "1"]
    more = {"data check": ["--pictures", "0", *one], "data prepare": ["--sample", "0", *one]}.get(verb, [])
    return [*verb.split(), str(source), "--out", str(out), *more]


def run(args: list[str], capsys: pytest.CaptureFixture[str]) -> tuple[int, str]:
    """Exit code, and the last line of what was complained."""
    with pytest.raises(SystemExit) as stop:
        main(args)
    err = capsys.readouterr().err
    assert "Traceback" not in err
    return int(stop.value.code or 0), (err.strip().splitlines() or [""])[-1]


def content(folder: Path) -> dict[str, bytes | None]:
    return {str(path): path.read_bytes() if path.is_file() else None for path in sorted(folder.rglob("*"))}


Refused = Callable[[str, Path, str], None]


@pytest.fixture
def refused(place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Refused:
    """The verb is refused for `out` with these words in one line, and nothing has changed anywhere."""

    def check(verb: str, out: Path, words: str) -> None:
        before = content(tmp_path)
        code, line = run(call(verb, place, out), capsys)
        assert code == 2, line
        assert line.startswith("vmae2: ")
        assert words in line
        assert content(tmp_path) == before

    return check


@pytest.mark.parametrize("verb", FOLDER_VERBS)
def test_the_folder_that_is_read_is_not_written_into_by_any_of_its_names(
    verb: str, place: Path, refused: Refused
) -> None:
    link = place.parent / "link"
    link.symlink_to(place)
    words = "holds files of something else" if verb == "data synth" else "which is read"
    for out in (place, link, place / "." / ".." / "mine"):
        refused(verb, out, words)


@pytest.mark.parametrize("verb", FOLDER_VERBS)
def test_a_folder_of_somebody_else_s_stays_as_it_is(verb: str, place: Path, tmp_path: Path, refused: Refused) -> None:
    for name in WRITTEN[verb]:
        theirs = tmp_path / f"theirs of {name.replace('/', ' ')}"
        (theirs / name).parent.mkdir(parents=True)
        (theirs / name).write_text("years of work")
        refused(verb, theirs, "name another folder" if name == "index.json" else "name a new or an empty folder")
    for number, text in enumerate(("years of work", "[1]", '{"list": 3}')):
        theirs = tmp_path / f"theirs {number}"
        theirs.mkdir()
        (theirs / f"{verb.removeprefix('data ')}.json").write_text(text)
        refused(verb, theirs, "name another")


@pytest.mark.parametrize("verb", FOLDER_VERBS)
def test_a_folder_of_another_tool_of_ours_is_somebody_else_s(
    verb: str, place: Path, tmp_path: Path, refused: Refused, capsys: pytest.CaptureFixture[str]
) -> None:
    other = "data pack" if verb != "data pack" else "data index"
    assert run(call(other, place, tmp_path / "other"), capsys)[0] == 0
    refused(verb, tmp_path / "other", "name a new or an empty folder")


@pytest.mark.parametrize("verb", VERBS)
def test_a_place_that_cannot_be_written_is_found_before_the_work(
    verb: str, place: Path, tmp_path: Path, refused: Refused, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("mine")
    refused(verb, tmp_path / "file" / "in", "name a place that can be written")
    if verb == "data index-shards":
        refused(verb, tmp_path / "mine", "is a folder; name a file in it")
        refused(verb, tmp_path / "file", "is there and no list of index-shards")
        refused(verb, place / "set.tar", "which is read")
        (tmp_path / "link").hardlink_to(place / "set.tar")
        refused(verb, tmp_path / "link", "which is read")
    else:
        refused(verb, tmp_path / "file", "is a file; name a folder")

    def full(path: Path, data: bytes) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Path, "write_bytes", full)
    refused(verb, tmp_path / "new" / "deep" / "x", "No space left on device; name a place that can be written")


@pytest.mark.parametrize("verb", VERBS)
def test_a_disk_that_fills_up_during_the_work_is_one_line(
    verb: str, place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "new" / "list.csv"
    sources = content(place)

    def full(path: Path) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("vmae2_ds.disk.flush_to_disk", full)
    code, line = run(call(verb, place, out), capsys)
    assert code == 2
    assert (
        "No space left on device, while writing; what is finished stays: make room, and the same command goes on"
        in line
    )
    monkeypatch.undo()
    assert run(call(verb, place, out), capsys)[0] == 0
    assert content(place) == sources


@pytest.mark.parametrize("verb", VERBS)
def test_the_same_command_may_be_given_again(
    verb: str, place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "out").mkdir()  # an empty folder is as good as none
    out = tmp_path / "out" / "list.csv" if verb == "data index-shards" else tmp_path / "out"
    assert run(call(verb, place, out), capsys)[0] == 0
    sources = content(place)
    before = {name: held for name, held in content(tmp_path).items() if not name.endswith((".html", ".json"))}
    assert run(call(verb, place, out), capsys)[0] == 0
    assert {name: held for name, held in content(tmp_path).items() if not name.endswith((".html", ".json"))} == before
    assert content(place) == sources


SAID = {
    "data check": ["1 of 2 files checked", "2 of 2 files checked"],
    "data prepare": ["1 of 2 videos prepared", "2 of 2 videos prepared"],
    "data pack": ["1 of 2 files packed", "2 of 2 files packed"],
    "data index": ["1 rows of MANIFEST read", "2 rows of MANIFEST read"],
    "data index-shards": ["1 of 1 shards read"],
    "data synth": ["1 of 3 videos written", "3 of 3 videos written"],
    "data merge-kinetics": ["1 lines of all lists merged", "2 lines of all lists merged"],
}


@pytest.mark.parametrize("verb", VERBS)
def test_every_tool_says_how_far_it_is(
    verb: str, place: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level("INFO")
    monkeypatch.setattr("vmae2_ds.console.progress.TELL_EVERY_S", 0)
    monkeypatch.setattr("vmae2_ds.data.sources.manifest.TOLD_ROWS", 1)
    with pytest.raises(SystemExit) as stop:
        main(call(verb, place, tmp_path / "out"))
    assert not stop.value.code
    lines = [record.message for record in caplog.records]
    for told in SAID[verb]:
        expected = told.replace("MANIFEST", str(place / "manifest.csv"))
        assert any(line.startswith(expected) for line in lines), (expected, lines)


@pytest.mark.parametrize("verb", ["data check", "data index", "data prepare", "data pack"])
def test_what_another_list_gave_is_not_replaced(
    verb: str, place: Path, tmp_path: Path, refused: Refused, capsys: pytest.CaptureFixture[str]
) -> None:
    other = tmp_path / "other"
    other.mkdir()
    for path in place.iterdir():
        shutil.copy(path, other / path.name)
    (other / "manifest.csv").write_text("path\nb.mp4\n")
    assert run(call(verb, other, tmp_path / "out"), capsys)[0] == 0
    refused(verb, tmp_path / "out", "name another")


def test_a_copy_never_takes_the_place_of_its_original(place: Path, tmp_path: Path, refused: Refused) -> None:
    """A folder that prepare began, into which the originals are linked afterwards: by link, by hard link, as the root."""
    from vmae2_ds.data.tools.prepare import PrepareArguments, prepare_manifest

    for number, link in enumerate((Path.symlink_to, Path.hardlink_to)):
        out = tmp_path / f"out{number}"
        prepare_manifest(PrepareArguments(manifest=place / "manifest.csv", out=out, sample=0))
        (out / "a.mp4").unlink()
        link(out / "a.mp4", place / "a.mp4")
        refused("data prepare", out, "a.mp4, which is read; name another --out")


def test_two_names_of_one_file_share_a_copy_and_two_files_never_do(place: Path, tmp_path: Path) -> None:
    from vmae2_ds.data.sources.manifest import read_manifest
    from vmae2_ds.data.tools.prepare import PrepareArguments, prepare_manifest

    (place / "c.avi").write_bytes((place / "a.mp4").read_bytes())
    (place / "c.avi.mp4").write_bytes((place / "b.mp4").read_bytes())
    names = ["a.mp4", "./a.mp4", str(place / "a.mp4"), "c.avi", "c.avi.mp4"]
    (place / "names.csv").write_text("path\n" + "".join(f"{name}\n" for name in names))
    prepared = prepare_manifest(PrepareArguments(manifest=place / "names.csv", out=tmp_path / "out", sample=0))
    assert (prepared.videos, prepared.rows) == (3, 5)
    a, again, absolute, c, other = (
        Path(entry.path).read_bytes() for entry in read_manifest(tmp_path / "out/manifest.csv")
    )
    assert a == again == absolute == c
    assert other != a
