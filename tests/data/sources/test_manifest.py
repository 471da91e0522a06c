"""Manifests: what is read, and that every refusal names file, line and a way out."""

from __future__ import annotations

import csv
import re
import tracemalloc
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vmae2_ds.data.entry import VideoEntry
from vmae2_ds.data.sources.list_formats import ListForm, csv_line, list_form
from vmae2_ds.data.sources.manifest import DEFAULT_SOURCE, manifest_digest, read_manifest
from vmae2_ds.data.tools.index import IndexArguments, index_manifest
from vmae2_ds.errors import ConfigError, DataError


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
    "far column": (
        "path,xyzzy\na.mp4,1\n",
        1,
        "unknown column 'xyzzy'",
        "out of path, label, source, start, frames, shard",
    ),
    "further columns": (
        "path,label_id,label,subject,a b\na.mp4,1,1,x,y\n",
        1,
        "unknown columns 'label_id', 'subject', 'a b'",
        "remove them, or give --data.ignore-columns label_id subject 'a b'; ",
    ),
    "further columns, no path": (
        "video,lable\na.mp4,1\n",
        1,
        "'video', 'lable'; and no column 'path'",
        "'label' by 'lable'",
    ),
    "no header": ("a.mp4,3\n", 1, "no header line", "put the first line 'path,label' on top"),
    "paths alone": ("/x/y z.mp4\n/x/b.mp4\n", 1, "no header line", "put the first line 'path' on top"),
    "no header, odd cells": ("3,b.mkv,dog\n", 1, "no header line", "put a first line on top"),
    "semicolons": ("path;label\na.mp4;3\n", 1, "columns separated by ';'", "save it with commas: path,label"),
    "tabs": ("path\tlabel\na.mp4\t3\n", 1, "columns separated by tabs", "save it with commas: path,label"),
    "bars": ("label|path\n3|a.mp4\n", 1, "columns separated by '|'", "save it with commas: label,path"),
    "spaces": ("path label\na.mp4 3\n", 1, "columns separated by spaces", "save it with commas: path,label"),
    "semicolons, no header": ("a.mp4;dog\n", 1, "no header line, and cells separated by ';'", "save it with commas"),
    "no path": ("label\n1\n", 1, "no column 'path'", "name the column"),
    "twice": ("path,label,label\na.mp4,1,1\n", 1, "'label' given twice", "once"),
    "label": ("path,label\na.mp4,1\na.mp4,dog\n", 3, "label='dog'", "one a line: --data.labels FILE"),
    "label of other digits": ("path,label\na.mp4,1_0\n", 2, "label='1_0'", "a class number"),
    "published label of other digits": ("a.mp4 \u00b2\n", 1, "separated by spaces", "save it with commas"),
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
    "raw frames": ("a.mp4 0 -1\nfolder 1 300\n", 2, "raw frames", 'kind = "frames"'),
    "published start": ("a.mp4 5 -1\n", 1, "does not end in '0 -1'", "CSV with start"),
    "published label": ("a.mp4 -1\n", 1, "label=-1", "from 0"),
    "utf-16": ("path\na.mp4\n".encode("utf-16"), 1, "UTF-16", "save it as UTF-8"),
    "a video": (b"\0\0\0\x20ftypisom", 1, "not a text file", "a CSV or a published list"),
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
    for path, way_out in ((folder / "none.csv", "name a list of videos"), (folder, f"vmae2 data list {folder}")):
        with pytest.raises(DataError, match=re.escape(str(path)) + ".*" + re.escape(way_out)):
            read_manifest(path)


def test_wrong_root_is_refused_at_once_but_one_missing_video_is_not(folder: Path) -> None:
    with pytest.raises(DataError, match=re.escape(f"{folder}/x/a.mp4") + ".*set --data.root"):
        read_manifest(write(folder, "path\na.mp4\n"), root=folder / "x")
    assert len(read_manifest(write(folder, "path\nmissing.mp4\na.mp4\n"))) == 2


def test_videos_in_shards(folder: Path) -> None:
    header = "path,shard,offset,bytes\n"
    (entry,) = read_manifest(write(folder, header + "k/a.mp4,a.mp4,512,900\n"))
    assert entry == VideoEntry("k/a.mp4", None, DEFAULT_SOURCE, 0, None, f"{folder}/a.mp4", 512, 900)
    assert entry.name == f"{folder}/a.mp4:k/a.mp4@512+900"
    (entry,) = read_manifest(write(folder, header + "k/a.mp4,s3://b/0.tar,0,9\n"))
    assert entry.shard == "s3://b/0.tar"


def test_frame_folders(folder: Path) -> None:
    (folder / "v").mkdir()
    (entry,) = read_manifest(write(folder, "v 1 300\n"), form=ListForm(frame_folders=True))
    assert entry == VideoEntry(f"{folder}/v", None, DEFAULT_SOURCE, 1, 300)
    with pytest.raises(DataError, match=r"list.csv:1: .*a line is: folder, first frame, frames"):
        read_manifest(write(folder, "v 1 0\n"), form=ListForm(frame_folders=True))


def test_a_large_manifest_stays_small(folder: Path) -> None:
    rows = 100_000
    path = write(folder, "path,label,source\n" + "".join(f"a.mp4,{row % 710},k710\n" for row in range(rows)))
    tracemalloc.start()
    manifest = read_manifest(path)
    assert tracemalloc.get_traced_memory()[0] / rows < 60
    tracemalloc.stop()
    assert manifest[rows - 1].label == (rows - 1) % 710


# --- cells, further columns, class names -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("header", "line", "path"),
    [
        ("path", '" lead.mp4"', " lead.mp4"),
        ("path,label", '"tail.mp4 ",', "tail.mp4 "),
        ("path,label", '"tab\t",3', "tab\t"),
        ("path", '" a ""quoted"", title "', ' a "quoted", title '),
        ("path", '"two\nlines "', "two\nlines "),
        ("label,path", '3," behind.mp4"', " behind.mp4"),
        ("label,path", '"3 "," behind.mp4 "', " behind.mp4 "),
        ("label,path", ' 3, a "b" ', 'a "b"'),
        ("path,label", " plain.mp4\t,", "plain.mp4"),
        ("path,label", "no\u00a0break\u3000,", "no\u00a0break\u3000"),
    ],
)
def test_what_is_quoted_is_kept_as_it_is_and_blanks_elsewhere_mean_nothing(
    folder: Path, header: str, line: str, path: str
) -> None:
    (folder / path).touch()
    (entry,) = read_manifest(write(folder, f"{header}\n{line}\n"))
    assert entry.path == f"{folder}/{path}"


ANY_PATH = st.text(st.characters(exclude_characters="\0", exclude_categories=("Cs",)), min_size=1, max_size=20)


@given(paths=st.lists(ANY_PATH, min_size=1))
@settings(max_examples=50, deadline=None)
def test_a_written_list_gives_back_every_path(tmp_path_factory: pytest.TempPathFactory, paths: list[str]) -> None:
    folder = tmp_path_factory.mktemp("set")
    text = csv_line(("path", "label", "source")) + "".join(csv_line(("x://" + path, None, path)) for path in paths)
    (folder / "list.csv").write_bytes(text.encode())
    assert [(entry.path, entry.source) for entry in read_manifest(folder / "list.csv")] == [
        ("x://" + path, path) for path in paths
    ]
    with (folder / "list.csv").open(newline="", encoding="utf-8") as file:  # and it is CSV to others
        assert [row[2] for row in csv.reader(file)][1:] == paths


FURTHER = "subject,path,label,notes\ns1,a.mp4,3,x\n"


@pytest.mark.parametrize("ignored", [(), ("notes", "subject"), ("subject", "notes", "absent")])
def test_further_columns_are_left_out_where_asked(folder: Path, ignored: tuple[str, ...]) -> None:
    (entry,) = read_manifest(write(folder, FURTHER), form=list_form(ignored))
    assert entry[:3] == (f"{folder}/a.mp4", 3, DEFAULT_SOURCE)


def test_only_the_columns_named_are_left_out_ours_too(folder: Path) -> None:
    with pytest.raises(DataError, match="unknown column 'notes' in"):
        read_manifest(write(folder, FURTHER), form=list_form(("subject",)))
    (entry,) = read_manifest(write(folder, "path,label\na.mp4,dog\n"), form=list_form(("label",)))
    assert entry.label is None
    with pytest.raises(DataError, match="no column 'path'"):
        read_manifest(write(folder, "path,label\na.mp4,1\n"), form=list_form(("path",)))


def names_file(folder: Path, text: str) -> Path:
    (folder / "labels.txt").write_text(text, encoding="utf-8")
    return folder / "labels.txt"


def test_names_of_classes_become_their_numbers(folder: Path) -> None:
    form = list_form(labels=names_file(folder, "\ufeffcat\r\nhot dog\nfox, red\n\n"))
    text = 'path,label\na.mp4,hot dog\na.mp4,"fox, red"\na.mp4,cat\na.mp4,1\na.mp4,\n'
    assert [entry.label for entry in read_manifest(write(folder, text), form=form)] == [1, 2, 0, 1, None]


def test_all_unknown_names_are_told_at_once_with_their_rows(folder: Path) -> None:
    form = list_form(labels=names_file(folder, "cat\ndog\n"))
    rows = ["dogs", "cow", "cat", "cow", "dogs", "dogs"]
    with pytest.raises(DataError) as refusal:
        read_manifest(write(folder, "path,label\n" + "".join(f"a.mp4,{name}\n" for name in rows)), form=form)
    assert "(2 names) does not name: 'dogs' (3 rows, meant 'dog'?), 'cow' (2 rows)" in str(refusal.value)
    many = "path,label\n" + "".join(f"a.mp4,x{number}y\n" for number in range(11))
    with pytest.raises(DataError, match="and 3 more; fix the list"):
        read_manifest(write(folder, many), form=form)


@pytest.mark.parametrize(
    ("text", "problem"),
    [("\n\n", "names no class"), ("cat\n\ndog\n", "line 2 is empty"), ("cat\ndog\ncat\n", "'cat' is named twice")],
)
def test_a_file_of_names_that_is_none_is_refused(folder: Path, text: str, problem: str) -> None:
    with pytest.raises(ConfigError, match=problem):
        list_form(labels=names_file(folder, text))
    with pytest.raises(ConfigError, match=r"--labels .*none\.txt: No such file"):
        list_form(labels=folder / "none.txt")


def test_a_number_that_is_the_name_of_another_class_is_no_label(folder: Path) -> None:
    form = list_form(labels=names_file(folder, "1\n0\n"))
    with pytest.raises(DataError, match=r"list.csv:2: label='1'.*also the name of class 0"):
        read_manifest(write(folder, "path,label\na.mp4,1\n"), form=form)


ROWS = st.lists(
    st.tuples(
        st.text(st.characters(exclude_characters="\0\r\n", exclude_categories=("Cs",)), min_size=1, max_size=20)
        .map(str.strip)
        .filter(bool),
        st.none() | st.integers(0, 2**31 - 1),
        st.sampled_from(["k710", "ssv2", ""]),
        st.integers(0, 2**31 - 1),
        st.none() | st.integers(1, 2**31 - 1),
    ),
    min_size=1,
)


@given(rows=ROWS)
@settings(max_examples=50, deadline=None)
def test_an_index_has_the_rows_and_the_digest_of_its_list(tmp_path_factory: pytest.TempPathFactory, rows: list) -> None:
    folder = tmp_path_factory.mktemp("set")
    path = folder / "list.csv"
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["path", "label", "source", "start", "frames"])
        writer.writerows([["./" + name, *rest] for name, *rest in rows])
    (folder / rows[0][0].split("/")[0]).mkdir(exist_ok=True)
    root = "nowhere://"  # a URL is not looked for
    manifest = read_manifest(path, root)
    index_manifest(IndexArguments(manifest=path, out=folder / "index"))
    index = read_manifest(folder / "index", root)
    assert list(index) == list(manifest)
    assert [(e.label, e.source or DEFAULT_SOURCE, e.start, e.frames) for e in index] == [
        (label, source or DEFAULT_SOURCE, start, frames) for _, label, source, start, frames in rows
    ]
    assert manifest_digest(folder / "index") == manifest_digest(path) == index.rows.digest


def test_a_damaged_index_is_refused(folder: Path) -> None:
    index_manifest(IndexArguments(manifest=write(folder, "path\na.mp4\n"), out=folder / "index"))
    assert read_manifest(folder / "index")[0].path == f"{folder}/a.mp4"
    with (folder / "index/rows.bin").open("ab") as file:
        file.write(b"x")
    with pytest.raises(DataError, match=r"rows.bin has 45 bytes where index.json says 44; make the index again"):
        read_manifest(folder / "index")
    (folder / "index/index.json").write_text("{")
    with pytest.raises(DataError, match="damaged"):
        read_manifest(folder / "index")
    with pytest.raises(DataError, match="takes a list"):
        index_manifest(IndexArguments(manifest=folder / "index", out=folder / "again"))


def test_an_interrupted_index_is_not_a_manifest(folder: Path) -> None:
    path = write(folder, "path,label\na.mp4,1\na.mp4,dog\n")
    with pytest.raises(DataError, match="label='dog'"):
        index_manifest(IndexArguments(manifest=path, out=folder / "index"))
    with pytest.raises(DataError, match="cannot read the manifest"):
        read_manifest(folder / "index")
