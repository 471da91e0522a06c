"""Tar shards of every habit: what is a video, and whose label is whose, as webdataset has it; no odd member stops a set."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Sequence
from pathlib import Path

import pytest
import webdataset
from hypothesis import given, settings
from hypothesis import strategies as st

from vmae2_ds.data.readers.storage import fetch
from vmae2_ds.data.sources.manifest import read_manifest
from vmae2_ds.data.tools.check import CheckArguments, check_manifest
from vmae2_ds.data.tools.pack import PackArguments, pack_manifest
from vmae2_ds.data.tools.prepare import PrepareArguments, prepare_manifest
from vmae2_ds.data.tools.shards import IndexedShards, IndexShardsArguments, index_shards
from vmae2_ds.data.tools.synthetic import SyntheticSet
from vmae2_ds.errors import DataError

Members = Sequence[tuple[str, bytes]]


def write_tar(path: Path, members: Members, form: int = tarfile.GNU_FORMAT) -> Path:
    with tarfile.open(path, "w", format=form) as tar:
        for name, content in members:
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return path


def index(folder: Path, members: Members, **asked: object) -> tuple[list[tuple[str, int | None, bytes]], IndexedShards]:
    """(name, label, content) of the videos as the written list has them, and what was told."""
    told = index_shards(
        IndexShardsArguments(shards=str(write_tar(folder / "s.tar", members)), out=folder / "list.csv", **asked)
    )  # type: ignore[arg-type]
    return [(entry.path, entry.label, fetch(entry)) for entry in read_manifest(folder / "list.csv")], told  # type: ignore[misc]


# name, members in the order of the tar, label of each video
HABITS: dict[str, tuple[Members, list[int | None]]] = {
    "two dots": ([("0.video.mp4", b"v"), ("0.cls", b"3"), ("0.json", b"{}")], [3]),
    "dots in folders": ([("v1.0/a.b/0.mp4", b"v"), ("v1.0/a.b/0.cls", b"4"), ("v1.0/a.cls", b"5")], [4]),
    "capitals": ([("0.MP4", b"v"), ("0.CLS", b"3")], [3]),
    "from tar's own command line": ([("./0.mp4", b"v"), ("./0.cls", b" 3\n")], [3]),
    "label in front": ([("0.cls", b"3"), ("0.mp4", b"v"), ("1.cls", b"4"), ("1.mp4", b"w")], [3, 4]),
    "sorted by suffix": ([("0.cls", b"3"), ("1.cls", b"4"), ("0.mp4", b"v"), ("1.mp4", b"w")], [3, 4]),
    "two videos of a sample": ([("0.left.mp4", b"v"), ("0.right.avi", b"w"), ("0.cls", b"3")], [3, 3]),
    "json": ([("0.mp4", b"v"), ("0.json", b'{"key": "0", "label": 3}')], [3]),
    "json, a number in quotes": ([("0.mp4", b"v"), ("0.json", b'{"cls": "3"}')], [3]),
    "json of something else": ([("0.mp4", b"v"), ("0.json", b'{"label": true, "fps": 3}')], [None]),
    "json that is none": ([("0.mp4", b"v"), ("0.json", b"[")], [None]),
    "cls before json": ([("0.json", b'{"label": 7}'), ("0.mp4", b"v"), ("0.cls", b"3")], [3]),
    "txt of a number": ([("0.mp4", b"v"), ("0.txt", b"3\n")], [3]),
    "a caption": ([("0.mp4", b"v"), ("0.txt", b"3 dogs")], [None]),
    "class": ([("0.mp4", b"v"), ("0.class", b"\xef\xbb\xbf3")], [3]),
    "the same name twice": ([("a.mp4", b"v"), ("a.cls", b"3"), ("a.mp4", b"w"), ("a.cls", b"4")], [3, 4]),
    "the same name twice, label in front": ([("a.cls", b"3"), ("a.mp4", b"v"), ("a.cls", b"4"), ("a.mp4", b"w")], [3, 4]),
    "the same name twice, labels behind": (
        [("a.mp4", b"v"), ("a.mp4", b"w"), ("b.mp4", b"x"), ("a.cls", b"3"), ("a.cls", b"4")],
        [3, 4, None],
    ),
    "one label of two videos apart": (
        [("a.mp4", b"v"), ("b.mp4", b"x"), ("a.mp4", b"w"), ("b.txt", b""), ("a.cls", b"3")],
        [None] * 3,
    ),
    "a label that is empty": ([("a.mp4", b"v"), ("a.cls", b"")], [None]),
    "webdataset's own members": ([("__meta__/a.mp4", b"i"), ("a.mp4", b"v"), ("a.cls", b"3")], [3]),
}  # fmt: skip


@pytest.mark.parametrize("habit", HABITS)
def test_labels_of_every_habit(tmp_path: Path, habit: str) -> None:
    members, labels = HABITS[habit]
    found, told = index(tmp_path, members)
    assert [label for _, label, _ in found] == labels
    videos = [(name, content) for name, content in members if len(content) == 1 and content.isalpha()]
    assert [(name, content) for name, _, content in found] == [
        member for member in videos if not member[0].startswith("__meta__")
    ]
    assert told.labelled == sum(label is not None for label in labels)


NAMES = st.from_regex(r"(\./|v1\.0/|a/b\.c/)?[ab]{1,2}", fullmatch=True)
SUFFIXES = st.sets(st.sampled_from(["mp4", "MP4", "left.mp4", "cls", "json", "txt", "x.webm"]), min_size=1)


@given(samples=st.dictionaries(NAMES, SUFFIXES, min_size=1, max_size=6), labels=st.randoms(use_true_random=False))
@settings(max_examples=40, deadline=None)
def test_sound_shards_are_what_webdataset_reads(
    tmp_path_factory: pytest.TempPathFactory, samples: dict[str, set[str]], labels: object
) -> None:
    folder = tmp_path_factory.mktemp("shard")
    members = []
    for key, suffixes in samples.items():
        lower = {suffix.lower(): suffix for suffix in suffixes}  # webdataset has no two that differ in case alone
        for suffix in sorted(lower.values()):
            content = {"cls": b"%d" % (len(members) % 9), "json": b"{}", "txt": b"words"}.get(
                suffix, b"%d" % len(members)
            )
            members.append((f"{key}.{suffix}", content))
    try:
        found, _ = index(folder, members)
    except DataError as error:
        assert "no video in 1 shard" in str(error)  # noqa: PT017  # webdataset is asked either way
        found = []
    expected = [
        (int(sample.get("cls", -1)), content)
        for sample in webdataset.WebDataset(str(folder / "s.tar"), shardshuffle=False)
        for suffix, content in sample.items()
        if suffix in ("left.mp4", "mp4", "x.webm")
    ]
    assert sorted((-1 if label is None else label, content) for _, label, content in found) == sorted(expected)


def test_members_that_are_no_videos_of_use_are_counted_and_said(tmp_path: Path) -> None:
    write_tar(
        tmp_path / "s.tar",
        [("a.mp4", b"v"), ("b.mp4", b""), ("._a.mp4", b"mac"), ("d/._a.mp4", b"mac"), ("c.mp4", b"w")],
    )
    with tarfile.open(tmp_path / "s.tar", "a") as tar:
        for name, kind in (("l.mp4", tarfile.LNKTYPE), ("s.mp4", tarfile.SYMTYPE), ("folder.mp4", tarfile.DIRTYPE)):
            link = tarfile.TarInfo(name)
            link.type, link.linkname = kind, "a.mp4"
            tar.addfile(link)
    told = index_shards(IndexShardsArguments(shards=str(tmp_path / "s.tar"), out=tmp_path / "list.csv"))
    assert told.left_out == {"empty members": 1, "hidden files": 2, "links to other members": 2}
    assert str(told).startswith(
        "2 videos in 1 shard, 0 with a label; empty members: 1, left out; hidden files: 2, left out; links to other members: 2"
    )
    assert [fetch(entry) for entry in read_manifest(tmp_path / "list.csv")] == [b"v", b"w"]


def test_sparse_members_have_no_place(tmp_path: Path) -> None:
    headers = {
        "GNU.sparse.major": "1",
        "GNU.sparse.minor": "0",
        "GNU.sparse.name": "a.mp4",
        "GNU.sparse.realsize": "4096",
    }
    with tarfile.open(tmp_path / "s.tar", "w", format=tarfile.PAX_FORMAT) as tar:
        member = tarfile.TarInfo("GNUSparseFile.0/a.mp4")
        content = b"1\n0\n4\n".ljust(512, b"\0") + b"data"
        member.size, member.pax_headers = len(content), headers
        tar.addfile(member, io.BytesIO(content))
        member = tarfile.TarInfo("b.mp4")
        member.size = 1
        tar.addfile(member, io.BytesIO(b"v"))
    told = index_shards(IndexShardsArguments(shards=str(tmp_path / "s.tar"), out=tmp_path / "list.csv"))
    assert (told.videos, list(told.left_out)) == (1, ["sparse files, which do not lie in one piece"])


@pytest.mark.parametrize("form", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_long_and_foreign_names_have_headers_of_their_own(tmp_path: Path, form: int) -> None:
    members = [("k" * 150 + "/é ü.mp4", b"v"), ("k" * 150 + "/é ü.cls", b"3"), (' lead, "b".mp4', b"w")]
    write_tar(tmp_path / "s.tar", members, form)
    index_shards(IndexShardsArguments(shards=str(tmp_path / "s.tar"), out=tmp_path / "list.csv"))
    found = [(entry.path, entry.label, fetch(entry)) for entry in read_manifest(tmp_path / "list.csv")]
    assert found == [(members[0][0], 3, b"v"), (members[2][0], None, b"w")]


def test_an_odd_shard_is_named_beside_all_the_others_of_its_kind(tmp_path: Path) -> None:
    write_tar(tmp_path / "0.tar", [("a.mp4", b"v")])
    write_tar(tmp_path / "1.tar", [])
    (tmp_path / "2.tar").touch()
    told = index_shards(IndexShardsArguments(shards=str(tmp_path / "{0..2}.tar"), out=tmp_path / "list.csv"))
    assert (told.shards, told.videos) == (3, 1)
    assert f"2 shards without a video: {tmp_path}/1.tar, {tmp_path}/2.tar" in str(told)
    (tmp_path / "list.csv").unlink()
    with tarfile.open(tmp_path / "3.tar", "w:gz") as tar:
        tar.add(tmp_path / "0.tar", "a.mp4")
    (tmp_path / "4.tar").write_bytes((tmp_path / "0.tar").read_bytes()[:700])
    with pytest.raises(
        DataError, match=r"3 of 6 shards cannot be read: .*3.tar: a gzip file.*4.tar.*5.tar.*No such file"
    ):
        index_shards(IndexShardsArguments(shards=str(tmp_path / "{0..5}.tar"), out=tmp_path / "list.csv"))
    assert not (tmp_path / "list.csv").exists()


def test_labels_that_are_no_numbers_are_told_and_a_file_of_names_maps_them(tmp_path: Path) -> None:
    members = [
        ("0.mp4", b"v"),
        ("0.cls", b"dog"),
        ("1.mp4", b"w"),
        ("1.json", b'{"label": "cat"}'),
        ("2.mp4", b"x"),
        ("2.cls", b"-1"),
    ]
    found, told = index(tmp_path, members)
    assert [label for _, label, _ in found] == [None] * 3
    assert (
        "3 labels that are no class numbers, for example 'dog', 'cat', '-1': these videos have none; --labels FILE"
        in str(told)
    )
    (tmp_path / "labels.txt").write_text("cat\ndog\n")
    found, told = index(tmp_path, members, labels=tmp_path / "labels.txt")
    assert [label for _, label, _ in found] == [1, 0, None]
    assert "(2 names) does not name: '-1' (1 row): these videos have none" in str(told)


# --- members of one name are videos of their own ---------------------------------------------------------------------


@pytest.fixture
def twins(synthetic_set: SyntheticSet, tmp_path: Path) -> list[bytes]:
    """Two videos of one name in twins.tar, an empty one among them, listed in list.csv."""
    films = [path.read_bytes() for path in sorted((synthetic_set.train.parent / "train").glob("*.mp4"))[:2]]
    write_tar(tmp_path / "twins.tar", [("a.mp4", films[0]), ("a.mp4", films[1])])
    index_shards(IndexShardsArguments(shards=str(tmp_path / "twins.tar"), out=tmp_path / "list.csv"))
    return films


def test_every_tool_tells_them_apart(twins: list[bytes], tmp_path: Path) -> None:
    checked = check_manifest(
        CheckArguments(manifest=tmp_path / "list.csv", out=tmp_path / "checked", pictures=0, num_frames=4, stride=1)
    )
    assert (checked.files, checked.bad) == (2, 0)
    pack_manifest(PackArguments(manifest=tmp_path / "list.csv", out=tmp_path / "packed"))
    assert [fetch(entry) for entry in read_manifest(tmp_path / "packed/manifest.csv")] == twins
    prepared = prepare_manifest(PrepareArguments(manifest=tmp_path / "list.csv", out=tmp_path / "prepared", sample=0))
    assert prepared.videos == 2
    copies = [Path(entry.path).read_bytes() for entry in read_manifest(tmp_path / "prepared/manifest.csv")]
    assert copies[0] != copies[1]


def test_an_empty_member_in_a_list_costs_its_row(twins: list[bytes], tmp_path: Path) -> None:
    (tmp_path / "old.csv").write_text((tmp_path / "list.csv").read_text() + "b.mp4,,,,,twins.tar,512,0\n")
    assert check_manifest(
        CheckArguments(manifest=tmp_path / "old.csv", out=tmp_path / "checked", pictures=0, num_frames=4, stride=1)
    ).verdicts == {"unreadable": 1}
    assert "an empty member of its shard" in (tmp_path / "checked/bad.csv").read_text()
    assert pack_manifest(PackArguments(manifest=tmp_path / "old.csv", out=tmp_path / "packed")).videos == 2
