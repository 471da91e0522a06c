"""Manifests: what is read, and that every refusal names file, line and a way out."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from vmae2_ds.data.manifest import DEFAULT_SOURCE, VideoEntry, read_manifest
from vmae2_ds.errors import DataError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("a.mp4", "b c, é.mp4"):
        (tmp_path / name).touch()
    return tmp_path


def write(folder: Path, text: str | bytes) -> Path:
    path = folder / "list.csv"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def test_csv_columns_in_any_order(folder: Path) -> None:
    text = 'frames,path,label,source,start\n16,a.mp4,3,k710,8\n,"b c, é.mp4",,,\n'
    manifest = read_manifest(write(folder, text))
    assert list(manifest) == [
        VideoEntry(f"{folder}/a.mp4", 3, "k710", 8, 16),
        VideoEntry(f"{folder}/b c, é.mp4", None, DEFAULT_SOURCE, 0, None),
    ]
    assert len(manifest) == 2
    assert manifest.sources == ("k710", DEFAULT_SOURCE)


@pytest.mark.parametrize(
    "text",
    [
        "path\na.mp4\n",
        "\ufeffpath\r\na.mp4\r\n",
        "\n path ,label\n\n a.mp4 ,\n\n",
        "a.mp4 0 -1\n",
        "\ufeffa.mp4 0 -1\r\n\r\n",
    ],
    ids=["plain", "bom-crlf", "blanks", "published", "published-bom-crlf"],
)
def test_one_video_in_many_spellings(folder: Path, text: str) -> None:
    assert list(read_manifest(write(folder, text))) == [VideoEntry(f"{folder}/a.mp4", None, DEFAULT_SOURCE, 0, None)]


def test_published_labels(folder: Path) -> None:
    assert [entry.label for entry in read_manifest(write(folder, "a.mp4 7\na.mp4 0\n"))] == [7, 0]


def test_root(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    elsewhere = write(tmp_path_factory.mktemp("lists"), f"path\na.mp4\n{folder}/a.mp4\n")
    assert [entry.path for entry in read_manifest(elsewhere, root=folder)] == [f"{folder}/a.mp4"] * 2


def test_path_that_is_not_utf8_keeps_its_bytes(folder: Path) -> None:
    name = b"caf\xe9.mp4"
    (Path(str(folder)) / name.decode("utf-8", "surrogateescape")).touch()
    (entry,) = read_manifest(write(folder, b"path\n" + name + b"\n"))
    assert Path(entry.path).exists()


BAD = {
    # name: (text, the line it must name, what it must say, the way out it must offer)
    "unknown column": ("path,lable\na.mp4,1\n", 1, "unknown column 'lable'", "did you mean 'label'?"),
    "capital": ("Path\na.mp4\n", 1, "unknown column 'Path'", "did you mean 'path'?"),
    "far column": ("path,xyzzy\na.mp4,1\n", 1, "unknown column 'xyzzy'", "out of path, label, source, start, frames"),
    "no header": ("a.mp4,3\n", 1, "unknown column 'a.mp4'", "the first line must name the columns"),
    "semicolons": ("path;label\na.mp4;3\n", 1, "unknown column 'path;label'", "separated by commas"),
    "no path": ("label\n1\n", 1, "no column 'path'", "name the column"),
    "twice": ("path,label,label\na.mp4,1,1\n", 1, "'label' given twice", "once"),
    "label": ("path,label\na.mp4,1\na.mp4,dog\n", 3, "label='dog'", "a class number"),
    "negative label": ("path,label\na.mp4,-1\n", 2, "label='-1'", "a class number"),
    "huge label": ("path,label\na.mp4,4000000000\n", 2, "label='4000000000'", "a class number"),
    "start": ("path,start\na.mp4,-4\n", 2, "start='-4'", "counted from 0"),
    "frames": ("path,frames\na.mp4,0\n", 2, "frames='0'", "empty for all"),
    "comma in path": ("path\nb c, é.mp4\n", 2, "2 cells where the header has 1", "double quotes"),
    "short row": ("path,label\na.mp4\n", 2, "1 cells where the header has 2", "leave empty cells empty"),
    "empty path": ("path,label\n,1\n", 2, "empty path", "drop the line"),
    "open quote": ('path\na.mp4\n"b c\n', 3, "not CSV", "quote a path"),
    "text after quote": ('path\n"a.mp4"x\n', 2, "not CSV", "double its quotes"),
    "published, spaces": ("a.mp4 0 -1\nb c.mp4 0 -1\n", 2, "neither", "paths with spaces need the CSV form"),
    "published, spaces and label": ("a.mp4 1\nb c.mp4 3\n", 2, "neither", "paths with spaces need the CSV form"),
    "raw frames": ("a.mp4 0 -1\nfolder 1 300\n", 2, "raw frames", "make a video of the folder"),
    "published start": ("a.mp4 5 -1\n", 1, "does not end in '0 -1'", "CSV with start"),
    "published label": ("a.mp4 -1\n", 1, "label=-1", "from 0"),
    "utf-16": ("path\na.mp4\n".encode("utf-16"), 1, "UTF-16", "save it as UTF-8"),
    "a video": (b"\0\0\0\x20ftypisom", 1, "not a text file", "takes a CSV"),
}


@pytest.mark.parametrize("case", BAD)
def test_refusals_name_file_line_and_way_out(folder: Path, case: str) -> None:
    text, line, problem, way_out = BAD[case]
    path = write(folder, text)
    with pytest.raises(DataError) as refusal:
        read_manifest(path)
    message = str(refusal.value)
    assert message.startswith(f"{path}:{line}: ")
    assert problem in message
    assert way_out in message
    assert "\n" not in message


@pytest.mark.parametrize("text", ["", "\n\n", "path,label\n"])
def test_empty(folder: Path, text: str) -> None:
    with pytest.raises(DataError, match="lists no videos"):
        read_manifest(write(folder, text))


def test_absent_or_a_folder(folder: Path) -> None:
    for path in (folder / "none.csv", folder):
        with pytest.raises(DataError, match=re.escape(str(path)) + ".*check --data.manifest"):
            read_manifest(path)


def test_wrong_root_is_refused_at_once_but_one_missing_video_is_not(folder: Path) -> None:
    with pytest.raises(DataError, match=re.escape(f"{folder}/x/a.mp4") + ".*set --data.root"):
        read_manifest(write(folder, "path\na.mp4\n"), root=folder / "x")
    assert len(read_manifest(write(folder, "path\nmissing.mp4\na.mp4\n"))) == 2


def test_a_large_manifest_stays_small(folder: Path) -> None:
    rows = 100_000
    path = write(folder, "path,label,source\n" + "".join(f"a.mp4,{row % 710},k710\n" for row in range(rows)))
    manifest = read_manifest(path)
    arrays = (manifest.path_ends, manifest.labels, manifest.source_codes, manifest.starts, manifest.frames)
    assert sum(array.nbytes for array in arrays) / rows <= 30
    assert manifest[rows - 1].label == (rows - 1) % 710
