"""Merging Kinetics sets: against the published head maps, hand-made sets whose answer is known, and what must always hold."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from vmae2_ds.data.sources.manifest import read_manifest
from vmae2_ds.data.tools.kinetics import MergeKineticsArguments, merge_kinetics, youtube_id_of
from vmae2_ds.errors import ConfigError, DataError

SETS = ("k400", "k600", "k700")


def write_set(folder: Path, train: list[str], val: list[str], names: list[str]) -> tuple[Path, Path, Path]:
    folder.mkdir(parents=True, exist_ok=True)
    files = folder / "train.csv", folder / "val.csv", folder / "classes.txt"
    for file, lines in zip(files, (train, val, names), strict=True):
        file.write_text("".join(f"{line}\n" for line in lines))
    return files


def read(path: Path) -> list[tuple[str, str]]:
    with path.open(newline="") as file:
        return [(row["path"], row["label"]) for row in csv.DictReader(file)]


def video(number: int) -> str:
    return f"abcdefgh-_{number}"


@pytest.fixture
def two_sets(tmp_path: Path) -> dict[str, tuple[Path, Path, Path]]:
    """Video 1 changes its class, 2 and 3 are in the other set's validation list, 4 is listed twice, 5 stands alone."""
    return {
        "k400": write_set(
            tmp_path / "k400",
            [f"t/{video(1)}_000010_000020.mp4 0", f"t/{video(2)}.mp4 1", f"t/{video(4)}.mp4 1"],
            [f"v/{video(3)}_000001_000011.mp4 1"],
            ["drinking", "archery"],
        ),
        "k600": write_set(
            tmp_path / "k600",
            ["path,label", f"{video(1)}.mp4,2", f"{video(3)}.mp4,0", f"{video(5)}.mp4,1", f"sub/{video(4)}.mp4,0"],
            ["path,label", f'"a, b/{video(2)}.mp4",0'],
            ["archery", "sipping cup", "zumba"],
        ),
    }


def test_two_small_sets(tmp_path: Path, two_sets: dict[str, tuple[Path, Path, Path]]) -> None:
    (tmp_path / "merges.json").write_text('{"drinking": "sipping cup"}')
    out = tmp_path / "out"
    merged = merge_kinetics(MergeKineticsArguments(out=out, **two_sets, class_merges=tmp_path / "merges.json"))
    new, old = tmp_path / "k600", tmp_path / "k400"
    assert (out / "labels.txt").read_text().split("\n") == ["archery", "sipping cup", "zumba", ""]
    assert read(out / "val.csv") == [
        (f"{new}/a, b/{video(2)}.mp4", "0"),
        (f"{old}/v/{video(3)}_000001_000011.mp4", "0"),
    ]
    assert read(out / "train.csv") == [
        (f"{new}/{video(1)}.mp4", "2"),
        (f"{new}/{video(5)}.mp4", "1"),
        (f"{new}/sub/{video(4)}.mp4", "0"),
    ]
    assert json.loads((out / "head_3to400.json").read_text()) == [1, 0]
    assert json.loads((out / "head_3to600.json").read_text()) == [0, 1, 2]
    assert merged.counts == {
        "k600 train": 4,
        "k600 val": 1,
        "k400 train": 3,
        "k400 val": 1,
        "k600 train dropped: in a validation list": 1,
        "k400 train dropped: listed before": 2,
        "k400 train dropped: in a validation list": 1,
        "names without a YouTube id": 0,
        "videos of two classes (the newer set's taken)": 1,
        "classes renamed": 1,
        "classes": 3,
        "train": 3,
        "val": 2,
    }
    report = json.loads((out / "report.json").read_text())
    assert report["train"] == {"here": 3, "published": 658_340}
    assert report["classes"] == {"here": 3, "published": 710}
    assert "658,340" in str(merged)


def test_a_common_root_leaves_paths_alone(tmp_path: Path, two_sets: dict[str, tuple[Path, Path, Path]]) -> None:
    merge_kinetics(MergeKineticsArguments(out=tmp_path / "out", **two_sets, root=tmp_path))
    assert [path for path, _ in read(tmp_path / "out" / "val.csv")] == [
        f"a, b/{video(2)}.mp4",
        f"v/{video(3)}_000001_000011.mp4",
    ]


def test_the_written_list_is_a_manifest(tmp_path: Path, two_sets: dict[str, tuple[Path, Path, Path]]) -> None:
    merge_kinetics(MergeKineticsArguments(out=tmp_path / "out", **two_sets))
    (tmp_path / "k600" / f"{video(5)}.mp4").touch()
    entries = list(read_manifest(tmp_path / "out" / "train.csv"))
    assert [(entry.path, str(entry.label)) for entry in entries] == read(tmp_path / "out" / "train.csv")


numbered = st.lists(st.tuples(st.integers(0, 9), st.integers(0, 2)), min_size=1, max_size=15)


@given(lists=st.lists(numbered, min_size=6, max_size=6))
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_what_always_holds(tmp_path: Path, lists: list[list[tuple[int, int]]]) -> None:
    """Each id once, none of training in validation, none lost; the class of the newest set that lists it."""
    sets = {
        name: write_set(
            tmp_path / name,
            *([f"{video(number)}.mp4 {label}" for number, label in lists[2 * at + part]] for part in (0, 1)),
            ["archery", "bowling", "zumba"],
        )
        for at, name in enumerate(SETS)
    }
    merged = merge_kinetics(MergeKineticsArguments(out=tmp_path / "out", **sets))
    train, val = (
        [Path(path).stem for path, _ in read(tmp_path / "out" / f"{split}.csv")] for split in ("train", "val")
    )
    in_val = {number for entries in lists[1::2] for number, _ in entries}
    in_train = {number for entries in lists[0::2] for number, _ in entries}
    assert sorted(val) == [video(number) for number in sorted(in_val)]
    assert sorted(train) == [video(number) for number in sorted(in_train - in_val)]
    for split, part in (("train", 0), ("val", 1)):
        for path, label in read(tmp_path / "out" / f"{split}.csv"):
            newest = next(entries for entries in lists[part::2][::-1] if Path(path).stem in map(video, dict(entries)))
            assert int(label) in {found for number, found in newest if video(number) == Path(path).stem}
    dropped = sum(count for name, count in merged.counts.items() if "dropped" in name)
    assert dropped + len(train) + len(val) == sum(map(len, lists))


def published(shared: Path) -> Path:
    return shared / "data" / "annotations" / "label_maps" / "VideoMAEv2_misc"


def test_head_maps_equal_the_published(tmp_path: Path, shared: Path) -> None:
    """The three published maps, from the published class lists and renamings."""
    misc = published(shared)
    lists = write_set(tmp_path, [f"{video(1)}.mp4 0"], [f"{video(2)}.mp4 0"], [])
    sets = {name: (*lists[:2], misc / f"label_map_{name}.txt") for name in SETS}
    merge_kinetics(
        MergeKineticsArguments(
            out=tmp_path / "out",
            **sets,
            classes=misc / "label_map_k710.txt",
            class_merges=misc / "k710_identical_label_merge.json",
        )
    )
    for size in (400, 600, 700):
        ours = json.loads((tmp_path / "out" / f"head_710to{size}.json").read_text())
        assert ours == json.loads((misc / f"label_710to{size}.json").read_text())


def test_official_class_lists_give_710_classes(tmp_path: Path, shared: Path) -> None:
    """Without a list of the merged classes, from the official names and the 15 published renamings."""
    maps = published(shared).parent
    lists = write_set(tmp_path, [f"{video(1)}.mp4 0"], [f"{video(2)}.mp4 0"], [])
    sets = {name: (*lists[:2], maps / f"kinetics_label_map_{name}.txt") for name in SETS}
    merged = merge_kinetics(
        MergeKineticsArguments(
            out=tmp_path / "out", **sets, class_merges=published(shared) / "k710_identical_label_merge.json"
        )
    )
    assert merged.counts["classes"] == 710
    assert merged.counts["classes renamed"] == 15


def test_the_official_csv(tmp_path: Path, shared: Path) -> None:
    """The real K400 validation list: its 19,906 ids are told apart, and all labels are known."""
    official = shared / "data" / "annotations" / "kinetics" / "kinetics-400_val.csv"
    names = shared / "data" / "annotations" / "label_maps" / "kinetics_label_map_k400.txt"
    train = tmp_path / "train.csv"
    lines = [
        "label,youtube_id,time_start,time_end,split,is_cc",
        "archery,0wR5jVB-WPk,1,11,train,0",
        "archery,-_-_-_-_-_-,5,15,train,0",
    ]
    train.write_text("\n".join(lines))
    merged = merge_kinetics(MergeKineticsArguments(out=tmp_path / "out", k400=(train, official, names)))
    with official.open() as file:
        rows = list(csv.DictReader(file))
    assert merged.counts["k400 val"] == len(rows)
    assert merged.counts["val"] == len({row["youtube_id"] for row in rows})
    assert read(tmp_path / "out" / "train.csv") == [(f"{tmp_path}/train/-_-_-_-_-_-_000005_000015.mp4", "5")]
    path, label = read(tmp_path / "out" / "val.csv")[0]
    assert Path(path) == official.parent / "val" / "0wR5jVB-WPk_000417_000427.mp4"
    assert names.read_text().splitlines()[int(label)] == "abseiling"


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("a/abc12345678_000010_000020.mp4", "abc12345678"),
        ("abc12345678.mp4", "abc12345678"),
        ("-_c_10_20_8.webm", "-_c_10_20_8"),
        ("-_c_10_20_8_5_15.mkv", "-_c_10_20_8"),
        ("abc1234567.mp4", None),
        ("abc12345678_000010.mp4", None),
        ("abc1234567é.mp4", None),
    ],
)
def test_ids_in_file_names(path: str, expected: str | None) -> None:
    assert youtube_id_of(path) == expected


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"train": ["x.mp4 7"]}, DataError, "label 7; the set has classes 0 to 1"),
        ({"train": ["path", "x.mp4"]}, DataError, "label None"),
        ({"train": ["path,label,start", "abcdefgh-_1.mp4,0,30"]}, DataError, "before you pack or cut"),
        ({"train": ["film one.mp4 0"]}, DataError, "paths with spaces"),
        ({"train": ["film.mp4 0"]}, DataError, "YouTube id"),
        ({"train": ["path,label"]}, DataError, "lists no videos of the split 'train'"),
        ({"train": ["label,youtube_id,time_start,time_end", "archer,abcdefgh-_1,1,2"]}, DataError, "list mean 'archery'"),
        ({"train": ["label,youtube_id,time_start,time_end", "archery,abcdefgh-_1,,2"]}, DataError, r"train.csv:2: time_start"),
        ({"train": ["youtube_id,time_start,time_end"]}, DataError, "without label"),
        ({"names": ["archery", "archery"]}, ConfigError, "'archery' is named twice"),
        ({"names": ["archery", "bowl"]}, ConfigError, "class 'bowl' .* did it become 'bowling'"),
    ],
)  # fmt: skip
def test_what_cannot_be_taken_is_one_line(
    tmp_path: Path, change: dict[str, list[str]], error: type[Exception], message: str
) -> None:
    usual = {"train": ["abcdefgh-_1.mp4 0"], "val": ["abcdefgh-_2.mp4 1"], "names": ["archery", "bowling"]}
    (tmp_path / "merged.txt").write_text("archery\nbowling\n")
    files = write_set(tmp_path, **{**usual, **change})
    with pytest.raises(error, match=message) as refusal:
        merge_kinetics(MergeKineticsArguments(out=tmp_path / "out", k400=files, classes=tmp_path / "merged.txt"))
    assert "\n" not in str(refusal.value)
    assert not (tmp_path / "out").exists()


def test_nothing_to_merge(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="--k400"):
        merge_kinetics(MergeKineticsArguments(out=tmp_path / "out"))
